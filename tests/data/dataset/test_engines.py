"""Workers that cannot begin, or that others' errors end: what is said, and what is left."""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from finpercep.data.dataset.config import MakeConfig
from finpercep.data.dataset.engines import run_shards
from finpercep.data.dataset.shards import Job, Shard
from finpercep.data.sources.kinds import parse_sources
from finpercep.io.images import ImageError
from tests.conftest import REPOSITORY
from tests.data import fgr

pytest.importorskip("pyarrow", reason="needs pyarrow")
pytestmark = pytest.mark.training

UNGUARDED = """
import sys
from pathlib import Path
from tests.data import fgr

fgr.make(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    fgr.inputs(tmp_path / "scenes")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, tmp_path / "script.py", tmp_path / "scenes", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: workers: expected processes that start, got none; a script that makes a data set with several "
        'needs to do so below `if __name__ == "__main__":`'
    )


def test_what_keeps_a_worker_from_beginning_is_raised(tmp_path):
    sources = tuple(parse_sources(["builtin:smooth"]))
    job = Job(tmp_path, MakeConfig(features="none"), sources, "", "settings", device="toaster")
    with pytest.raises(RuntimeError, match="toaster"):
        list(run_shards(job, [Shard(f"data/{i}.parquet", ()) for i in range(2)], engine="local", workers=2))


def test_no_worker_outlives_an_error(tmp_path):
    fgr.inputs(tmp_path / "scenes", 8)
    (tmp_path / "scenes" / "train" / "scene0" / "gt.png").write_bytes(b"no image")
    config = replace(fgr.CONFIG, photos_per_shard=1, masks_per_image=50)
    with pytest.raises(ImageError, match=r"scene0/gt\.png: expected an image file"):
        fgr.make(tmp_path / "scenes", tmp_path / "out", config, workers=2)
    assert multiprocessing.active_children() == []
