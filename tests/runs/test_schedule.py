import pytest

from finpercep.runs.schedule import cosine


def test_cosine():
    assert cosine(0, 10, 100) == pytest.approx(0.1)
    assert cosine(10, 10, 100) == 1
    assert cosine(55, 10, 100) == pytest.approx(0.5)
    assert cosine(100, 10, 100) == pytest.approx(0, abs=1e-12)
