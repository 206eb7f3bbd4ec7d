"""The operators of the degradations called directly with hostile arguments: an answer or one line, no crash.

`make sanitize` runs this file under AddressSanitizer and UBSan, where a read past an end is the end.
"""

from __future__ import annotations

import pytest
import torch

from finpercep.data.degradations.compiled import Flag, Integer
from finpercep.data.degradations.noise import noise_tables
from tests.ops.conftest import cpp, simd  # noqa: F401
from tests.ops.direct import fuzz, is_plain

CALLS = 40


@pytest.fixture
def checked(simd):  # noqa: F811
    """The operators of a library that checks what it is given."""
    image, one = torch.zeros(1, 1, 1, 1), torch.ones(1, dtype=torch.int64)
    try:  # an older library wants the memory of a border of 2^20 here, and is refused it
        torch.ops.finpercep.degrade_resize(image, one, one, one, one, one, 2**20 + 1, False)
    except RuntimeError as error:
        if "border: expected in [0, 1048576]" in str(error):
            return torch.ops.finpercep
    pytest.fail("the compiled extension is older than these sources; build it again")


def sizes(generator, *shape, most=20):
    return torch.randint(1, most, shape, generator=generator)


def degrade_filter(generator):
    batch, channels, height, width = sizes(generator, 4).tolist()
    side = 2 * int(sizes(generator, 1, most=8)) - 1
    padded = torch.rand(batch, channels, height + side - 1, width + side - 1, generator=generator)
    return {"padded": padded, "kernels": torch.rand(batch, side, side, generator=generator)}


def ragged(generator, channels):
    batch = int(sizes(generator, 1, most=5))
    height, width = sizes(generator, batch), sizes(generator, batch)
    images = torch.rand(batch, channels, int(height.max()), int(width.max()), generator=generator)
    return {"images": images, "height": height, "width": width}


def degrade_resize(generator):
    given = ragged(generator, int(sizes(generator, 1, most=4)))
    batch = len(given["height"])
    new = {"new_height": sizes(generator, batch, most=40), "new_width": sizes(generator, batch, most=40)}
    mode = torch.randint(0, 3, (batch,), generator=generator)
    return {**given, **new, "mode": mode, "border": int(sizes(generator, 1)) - 1, "mirror": batch % 2 == 0}


def degrade_noise(generator):
    given = ragged(generator, 3)
    batch = len(given["height"])
    gaussian, grey = torch.randint(0, 2, (2, batch), generator=generator, dtype=torch.bool)
    tables = dict(zip(("quantile", "chance", "alias"), noise_tables("cpu"), strict=True))
    key = torch.randint(-(2**31), 2**31, (batch, 2), generator=generator).int()
    strength = 30 * torch.rand(batch, generator=generator, dtype=torch.float64)
    return {**given, "gaussian": gaussian, "strength": strength, "grey": grey, "key": key, **tables}


def degrade_jpeg(generator):
    batch, height, width = sizes(generator, 3, most=40).tolist()
    luma, chroma = 1 + 50 * torch.rand(2, batch, 8, 8, generator=generator)
    return {"images": torch.rand(batch, 3, height, width, generator=generator), "luma": luma, "chroma": chroma}


def degrade_samples(generator):
    batch, height, width = sizes(generator, 3).tolist()
    given = {"images": torch.rand(batch, 3, height, width, generator=generator)}
    for name in ("first", "second", "sinc"):
        side = 2 * int(sizes(generator, 1, most=6)) - 1
        given[name] = torch.rand(batch, side, side, generator=generator)
    integers = torch.randint(1, 30, (batch, len(Integer)), generator=generator)
    integers[:, Integer.HEIGHT], integers[:, Integer.WIDTH] = height, width
    integers[:, [Integer.FINAL_HEIGHT, Integer.FINAL_WIDTH]] = integers[:1, [Integer.FINAL_HEIGHT, Integer.FINAL_WIDTH]]
    integers[:, [Integer.MODE1, Integer.MODE2, Integer.FINAL_MODE, Integer.BILINEAR]] %= 3
    return {
        **given,
        "integers": integers,
        "flags": torch.randint(0, 2, (batch, len(Flag)), generator=generator, dtype=torch.bool),
        "strengths": 30 * torch.rand(batch, 2, generator=generator, dtype=torch.float64),
        "keys": torch.randint(-(2**31), 2**31, (batch, 4), generator=generator).int(),
        "tables": 1 + 50 * torch.rand(batch, 4, 8, 8, generator=generator),
        "order": torch.randperm(batch, generator=generator),
        **dict(zip(("quantile", "chance", "alias"), noise_tables("cpu"), strict=True)),
    }


OPERATORS = (degrade_filter, degrade_resize, degrade_noise, degrade_jpeg, degrade_samples)


@pytest.mark.parametrize("make", OPERATORS, ids=lambda make: make.__name__)
def test_hostile_arguments(checked, make):
    answers = fuzz(getattr(checked, make.__name__), make, CALLS)
    assert not [answer for answer in answers if not is_plain(answer)]
    assert 0 < answers.count("") < CALLS  # values pass, sizes and types do not


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("make", OPERATORS, ids=lambda make: make.__name__)
def test_a_pixel_of_any_value_is_no_index(checked, make, bad):
    given = make(torch.Generator().manual_seed(1))
    first = next(iter(given))
    clean = getattr(checked, make.__name__)(*given.values())
    given[first] = torch.where(torch.rand(given[first].shape) < 0.2, bad, given[first])
    assert getattr(checked, make.__name__)(*given.values()).shape == clean.shape


def test_sizes_that_no_memory_holds(checked):
    """Refused by name: where an allocation fails inside a kernel, it ends the process."""
    one, long, side = torch.tensor([1, 1]), torch.tensor([2**20, 1]), torch.tensor([1, 2**20])
    images = torch.zeros(2, 1, 2**20, 1)
    with pytest.raises(RuntimeError, match="new_height, new_width: expected sizes that are not so far apart"):
        checked.degrade_resize(images, long, one, side, one, one - 1, 0, False)
    given = degrade_samples(torch.Generator().manual_seed(1))
    given["integers"][:, [Integer.HEIGHT1, Integer.WIDTH1]] = 2**20
    with pytest.raises(RuntimeError, match="integers: expected sizes that fit the memory"):
        checked.degrade_samples(*given.values())
    given["integers"][:, Integer.HEIGHT1] = 2**20 + 1
    with pytest.raises(RuntimeError, match=r"integers: height1: expected a size in \[1, 1048576\], got 1048577"):
        checked.degrade_samples(*given.values())


def test_flags_of_any_byte(checked):
    """A bool tensor may be a view of other bytes: what is not 0 is yes."""
    given = degrade_noise(torch.Generator().manual_seed(2))
    expected = checked.degrade_noise(*given.values())
    for name in ("gaussian", "grey"):
        given[name] = (given[name].byte() * 7).view(torch.bool)
    assert torch.equal(checked.degrade_noise(*given.values()), expected)
