"""Which of two processes is which, whoever ran first."""

from __future__ import annotations

import pytest

from benchmarks import memory


def test_ratios_are_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[bool] = []

    def turn(name: str, keep: bool, seconds: float) -> dict[str, float]:
        assert (name, seconds) == ("case", 1.5)
        order.append(keep)
        slow = 1 + len(order) // 2  # 1, 2, 2, 3, 3, 4: the machine becomes slower
        return {"ms": 10.0 * slow, "peak_mib": 7.0} if keep else {"ms": 30.0 * slow, "peak_mib": 5.0}

    monkeypatch.setattr(memory, "turn", turn)
    row = memory.measure("case", 3, 1.5)
    assert order == [True, False, False, True, True, False]
    assert row["times"] == pytest.approx(4.0)  # of 6, 2 and 4
    assert row["times_range"] == pytest.approx([2.0, 6.0])
    assert [row[name] for name in ("plain_ms", "kept_ms", "plain_peak_mib", "kept_peak_mib")] == [60.0, 30.0, 5.0, 7.0]
    assert "| case | 60.0 ms | 30.0 ms | 4.00 (2.00–6.00) | 5 → 7 MiB |" in memory.markdown([row])


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        memory.main(["finpercep-huge"])
    assert "got 'finpercep-huge'" in capsys.readouterr().err
