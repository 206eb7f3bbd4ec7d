"""The photos of a run: by the settings, and never the pictures of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace

from finpercep.rl.config import RLConfig
from finpercep.rl.generators import GeneratorConfig, SRTiny
from finpercep.rl.run_data import run_data


def test_what_a_run_writes_beside_its_photos_changes_nothing(photo_set, tmp_path):
    photos = tmp_path / "mine"
    photos.mkdir()
    for number, scene in enumerate(sorted((photo_set / "train").iterdir())):
        shutil.copy(scene / "gt.png", photos / f"{number}.png")
    config = RLConfig(
        data=(f"photos:{photos}",),
        out=str(photos / "runs" / "rl"),
        side=32,
        dev_every=2,
        eval_photos=1,
        generator_options=GeneratorConfig(prompt="a photo"),
    )
    generator = SRTiny((16, 24), 1)
    before = run_data(config, generator)
    assert before.kept == 0
    assert len(before.held_out.batch) == 1
    assert {before.held_out.batch.prompt, before.crops.batch(0, 2).prompt} == {"a photo"}
    made = photos / "runs" / "rl" / "pictures"
    made.mkdir(parents=True)
    for step in range(3):
        shutil.copy(photos / "0.png", made / f"step-{step:06d}.png")
    another = replace(config, out=str(tmp_path / "run"))
    assert run_data(another, generator).fingerprint != before.fingerprint
    (made.parent / "rl.json").write_text("{}")  # which a run writes before it draws anything
    assert run_data(config, generator).fingerprint == before.fingerprint
    assert run_data(another, generator).fingerprint == before.fingerprint
    shutil.rmtree(photos / "runs")
    above = replace(config, out=str(tmp_path))  # whose photos lie beneath its own folder
    assert run_data(above, generator).fingerprint == before.fingerprint
