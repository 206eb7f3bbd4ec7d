"""What does not need a cluster."""

import pytest

from finpercep.runs.cluster import worker_device


def test_where_a_worker_computes():
    assert [worker_device(name, {"CPU": 4.0}) for name in ("auto", "cpu", "cuda")] == ["cpu", "cpu", "cuda"]
    assert worker_device("auto", {"GPU": 2.0}) == "cuda"
    with pytest.raises(ValueError, match=r"^device: expected auto, cpu or cuda for workers of Ray.*, got cuda:1$"):
        worker_device("cuda:1", {"GPU": 2.0})
