"""Two processes that agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
PROGRAM = """
import os, torch
from torch import nn
from finpercep.runs.ranks import Ranks
ranks = Ranks(torch.device("cpu"))
mine = float(os.environ["RANK"]) + 1
model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
for tensor in model.state_dict().values():
    tensor.fill_(mine)
ranks.take_first(model.state_dict().values())
print([float(tensor.sum()) for tensor in model.state_dict().values()], ranks.total(int(mine)), ranks.agreed(mine))
"""


def test_the_first_process_is_followed():
    """Weights, buffers and counts of a module become the first one's; numbers are added, values taken from it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    together = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env={**together, "RANK": rank}, stdout=subprocess.PIPE)
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[0].decode() for process in running]
    assert said == ["[2.0, 1.0, 1.0, 1.0, 1.0, 1.0] 3 1.0\n"] * 2
