import pytest
import torch

from finpercep.data.dataset.rle import decode_rle, encode_rle


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_round_trip(share):
    mask = torch.rand(1, 23, 31, generator=torch.Generator().manual_seed(0)) < share
    rle = encode_rle(mask)
    assert rle["size"] == [23, 31]
    assert torch.equal(decode_rle(rle), mask)


def test_runs_go_down_the_columns_and_start_with_zeros():
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    assert encode_rle(mask) == {"size": [2, 3], "counts": "022OO"}  # runs 0, 2, 2, 1, 1; O is -1


def test_is_what_pycocotools_writes_and_reads():
    coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    import numpy as np

    for seed in range(5):
        mask = torch.rand(40, 57, generator=torch.Generator().manual_seed(seed)) < 0.1 * (seed + 1)
        rle = encode_rle(mask)
        theirs = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert rle["counts"] == theirs["counts"].decode()
        assert np.array_equal(coco.decode(dict(rle)), mask.numpy())


def test_runs_must_fill_the_size():
    with pytest.raises(ValueError, match="expected runs of 6 pixels"):
        decode_rle({"size": [2, 3], "counts": "05"})
