"""Two processes that agree."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import together

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
    environment = {**os.environ, **together()}
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env={**environment, "RANK": rank}, stdout=subprocess.PIPE)
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[0].decode() for process in running]
    assert said == ["[2.0, 1.0, 1.0, 1.0, 1.0, 1.0] 3 1.0\n"] * 2
