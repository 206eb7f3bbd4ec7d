"""C++, Triton and Python mean the same by the numbers that the schemas carry."""

from __future__ import annotations

from importlib import import_module

import pytest

from finpercep.data.degradations.compiled import Flag, Integer
from finpercep.data.degradations.ragged import MODES


def of_python() -> dict[str, dict[str, int]]:
    names = ("modulate", "advantage", "sde", "degradation_target")
    module = {
        name: import_module(f"finpercep.ops.{name}") for name in names
    }  # the package has functions of these names
    tables = {
        "gate": module["modulate"].GATES,
        "resample": module["modulate"].RESAMPLES,
        "normalize": module["degradation_target"].NORMALIZATIONS,
        "advantage_scale": module["advantage"].SCALES,
        "sde_kind": module["sde"].KINDS,
        "resize_mode": MODES,
    }
    values = {name: {member: i for i, member in enumerate(members)} for name, members in tables.items()}
    for name, columns in (("drawn_integer", Integer), ("drawn_flag", Flag)):
        values[name] = {column.name.lower(): int(column) for column in columns}
    return values


def test_cpp_and_python(cpp: str) -> None:
    from finpercep import _C

    assert _C.enumerations() == of_python()


def test_triton_and_python() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from finpercep.kernels import advantage, degradation_target, modulate, sde

    python = of_python()
    for table, kernels in (
        ("gate", modulate),
        ("normalize", degradation_target),
        ("advantage_scale", advantage),
        ("sde_kind", sde),
    ):
        assert {name: getattr(kernels, name.upper()).value for name in python[table]} == python[table]
    assert python["resample"]["bilinear"] == modulate.BILINEAR
