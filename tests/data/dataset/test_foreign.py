"""Data sets whose folder is in use, or whose manifest came from elsewhere."""

import json

import pytest

from finpercep.data import load_scenes
from finpercep.runs.lock import FolderInUseError, folder_lock
from tests.data import fgr

pytest.importorskip("pyarrow", reason="needs pyarrow")


def test_a_folder_in_use_is_left_alone(tmp_path):
    with folder_lock(tmp_path / "out"), pytest.raises(FolderInUseError, match="in use by process"):
        fgr.make(tmp_path / "scenes", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"files": 5}, r"manifest\.json: expected the manifest of a data set"),
        ([], r"manifest\.json: expected the manifest of a data set"),
        ({"files": [{"file": 3}]}, r"manifest\.json: expected the manifest of a data set"),
        ({"files": [{"file": "../x.parquet"}]}, r"expected files inside its folder, got '\.\./x\.parquet'"),
        ({"files": [{"file": "/x.parquet"}]}, r"expected files inside its folder, got '/x\.parquet'"),
    ],
)
def test_manifests_that_are_none(content, message, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_scenes(tmp_path, "train")
