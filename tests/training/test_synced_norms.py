import torch
from torch import nn

from finpercep.training import synced_norms
from finpercep.training.synced_norms import SyncedNorm, sync_norms


def test_the_statistics_are_those_of_all_processes(monkeypatch):
    """Two processes with the same images: their sums are twice one's own, and the batch is the images twice."""
    monkeypatch.setattr(synced_norms, "_summed", lambda x: 2 * x)
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 4, 5, 6, generator=draw) + 100).requires_grad_(
        True
    )  # far from 0: a difference of squares fails
    factor = torch.randn(3, 4, 5, 6, generator=draw)
    whole = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=0.03)).train()
    with torch.no_grad():
        whole[1].weight.uniform_(0.5, 2, generator=draw)
        whole[1].bias.uniform_(-1, 1, generator=draw)
    synced = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=0.03)).train()
    synced.load_state_dict(whole.state_dict())
    sync_norms(synced)
    assert type(synced[1]) is SyncedNorm
    expected, found = whole(torch.cat([x, x])), synced(x)
    torch.testing.assert_close(found, expected[:3], atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad((found * factor).sum(), x)
    (both,) = torch.autograd.grad((expected * torch.cat([factor, factor])).sum(), x)
    torch.testing.assert_close(2 * gradient, both, atol=1e-4, rtol=1e-3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[name], value, atol=1e-4, rtol=1e-4, msg=name)
    torch.testing.assert_close(synced.eval()(x), whole.eval()(x), atol=1e-4, rtol=1e-4)
