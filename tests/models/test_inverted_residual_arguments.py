"""The operator `inverted_residual` called directly, with hostile arguments, too: an answer or one line, no crash.

`make sanitize` runs this file under AddressSanitizer and UBSan, where a read past an end is the end.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_inverted_residual import built  # noqa: F401
from tests.ops.conftest import cpp, simd  # noqa: F401
from tests.ops.direct import fuzz, is_plain

CALLS = 60


def arguments(generator: torch.Generator) -> dict[str, Any]:
    batch, height, width, inputs, outputs = torch.randint(1, 12, (5,), generator=generator).tolist()
    stride, expansion = torch.randint(1, 3, (2,), generator=generator).tolist()
    kernel = 3 if outputs % 2 else 5
    skip = stride == 1 and width % 2 == 0
    wide, outputs = inputs * expansion, inputs if skip else outputs

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": some(batch, height + 1, width + 1, inputs),
        "expand_weight": some(wide, inputs, 1, 1) if expansion > 1 else None,
        "expand_bias": some(wide) if expansion > 1 else None,
        "filter_weight": some(wide, 1, kernel, kernel),
        "filter_bias": some(wide),
        "project_weight": some(outputs, wide, 1, 1),
        "project_bias": some(outputs),
        "stride": stride,
        "skip": skip,
    }


@pytest.mark.usefixtures("simd", "built")
def test_hostile_arguments() -> None:
    """An answer or one line; `make sanitize` runs this, too, where a read past an end is the end."""
    answers = fuzz(torch.ops.finpercep.inverted_residual, arguments, CALLS)
    assert not [answer for answer in answers if not is_plain(answer)]
    assert 0 < answers.count("") < CALLS  # values pass, sizes and types do not


ZEROS = torch.zeros
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (r"x: expected \(B,H,W,C\), 1 to 16384 channels", {"x": ZEROS(4, 4, 8)}),
    (r"x: expected \(B,H,W,C\), 1 to 16384 channels", {"x": ZEROS(1, 4, 4, 16385)}),
    ("x: expected sides of 1, the stride, to 1048576", {"x": ZEROS(1, 4, 0, 8)}),
    ("x: expected sides of 1, the stride, to 1048576", {"x": ZEROS(1, 2**20 + 1, 1, 8)}),
    ("x: expected sides of 2, the stride, to 1048576", {"x": ZEROS(1, 4, 1, 8), "stride": 2, "skip": False}),
    ("x: expected float32", {"x": ZEROS(1, 4, 4, 8).half()}),
    ("stride: expected 1 or 2, got 3", {"stride": 3}),
    ("filter_weight: expected .channels,1,k,k., 1 to 16384 channels, k 3 or 5", {"filter_weight": ZEROS(16, 1, 4, 4)}),
    ("filter_weight: expected .channels,1,k,k.", {"filter_weight": ZEROS(16, 1, 3, 5)}),
    ("filter_weight: expected .channels,1,k,k.", {"filter_weight": ZEROS(16, 2, 3, 3)}),
    ("filter_bias: expected one number per channel of filter_weight", {"filter_bias": ZEROS(15)}),
    ("expand_weight: expected .channels of filter_weight, channels of x", {"expand_weight": ZEROS(16, 7, 1, 1)}),
    ("expand_weight, expand_bias: expected both or neither", {"expand_bias": None}),
    ("expand_bias: expected one number per channel", {"expand_bias": ZEROS(17)}),
    ("filter_weight: expected the channels of x where", {"expand_weight": None, "expand_bias": None}),
    ("project_weight: expected .outputs, channels of filter_weight", {"project_weight": ZEROS(8, 15, 1, 1)}),
    ("project_bias: expected one number per output", {"project_bias": ZEROS(1, 8)}),
    ("skip: expected false unless", {"stride": 2}),
    ("skip: expected false unless", {"project_weight": ZEROS(9, 16, 1, 1), "project_bias": ZEROS(9)}),
]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("message", "change"), REFUSED)
def test_refused(message: str, change: dict[str, Any]) -> None:
    fits = {
        "x": ZEROS(1, 4, 4, 8),
        "expand_weight": ZEROS(16, 8, 1, 1),
        "expand_bias": ZEROS(16),
        "filter_weight": ZEROS(16, 1, 3, 3),
        "filter_bias": ZEROS(16),
        "project_weight": ZEROS(8, 16, 1, 1),
        "project_bias": ZEROS(8),
        "stride": 1,
        "skip": True,
    }
    assert torch.ops.finpercep.inverted_residual(*fits.values()).shape == (1, 4, 4, 8)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.finpercep.inverted_residual(*{**fits, **change}.values())


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("expansion", [1, 6])
def test_opcheck(expansion: int) -> None:
    given = arguments(torch.Generator().manual_seed(expansion))
    operator = torch.ops.finpercep.inverted_residual.default
    torch.library.opcheck(operator, tuple(given.values()), test_utils="test_schema")
