"""The whole report of fixed records, byte for byte.

After an intended change of the report, write the file again and read the difference before committing it:

    WRITE_GOLDEN=1 python -m pytest tests/reports/test_golden.py; git diff tests/reports/golden
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.record import Record
from reports.report import write_report

GOLDEN = Path(__file__).parent / "golden" / "report.md"


def test_the_report_is_the_golden_one(eventful: list[Record], tmp_path: Path) -> None:
    written = write_report(eventful, tmp_path).read_bytes()
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_bytes(written)
    assert written.decode("utf-8") == GOLDEN.read_bytes().decode("utf-8")
