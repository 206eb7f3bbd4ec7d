"""Where the time goes between files and scores: what counts as what."""

from __future__ import annotations

import pytest

from benchmarks.engine_shares import shares


def test_what_c_takes_is_named_and_the_rest_is_pythons() -> None:
    own = {
        ("~", 0, "<method 'decode' of 'ImagingDecoder' objects>"): 1.0,
        ("~", 0, "<method 'read' of '_io.BufferedReader' objects>"): 0.5,
        ("~", 0, "<built-in method torch._ops.finpercep.conv3x3>"): 3.0,
        ("~", 0, "<method 'clamp' of 'torch._C.TensorBase' objects>"): 1.0,
        ("~", 0, "<built-in method builtins.len>"): 4.0,
        ("/lib/python3/site-packages/torch/nn/modules/module.py", 7, "_call_impl"): 5.0,
        ("/lib/python3/site-packages/PIL/ImageFile.py", 7, "load"): 6.0,
    }
    found = shares({place: (1, 1, seconds, seconds, {}) for place, seconds in own.items()}, 10.0)
    assert found == pytest.approx({"computing": 0.4, "decoding": 0.15, "Python": 0.45})
