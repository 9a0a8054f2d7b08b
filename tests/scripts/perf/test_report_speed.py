"""The script that times a report: its records are valid and rendered; no times are compared."""

from __future__ import annotations

from pathlib import Path

from scripts.perf.report_speed import measure, profiled, slowest, write_all


def test_a_small_grid_is_rendered_and_profiled(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    assert write_all(results, methods=2, benchmarks=1, seeds=2, tasks=2) == 4
    assert min(measure(results, out)) > 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "Cells: 4, of which 4 done" in text
    lines = list(slowest(profiled(results, tmp_path / "again"), 5))
    assert len(lines) == 5
    assert any("write_report" in line for line in lines)
