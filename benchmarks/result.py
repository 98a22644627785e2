"""The result of a benchmark: key, value, interval and unit, with commit, date and machine."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS_DIR = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """`low` and `high` bound the value, null where there is no interval."""

    key: str
    value: float
    low: float | None
    high: float | None
    unit: str


def publish(name: str, rows: Sequence[Row], *, notes: Sequence[str] = ()) -> None:
    """Print the rows and write them to `benchmarks/results/NAME.json`.

    `notes` say what the figures alone do not: what was left out, and why.
    """
    width = max(len(row.key) for row in rows)
    for row in rows:
        interval = "" if row.low is None else f"  [{row.low:.4g}, {row.high:.4g}]"
        print(f"{row.key:<{width}}  {row.value:>10.5g} {row.unit}{interval}")
    for note in notes:
        print(note)
    result = {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_model()}",
        "rows": [asdict(row) for row in rows],
    }
    if notes:
        result["notes"] = list(notes)
    RESULTS_DIR.mkdir(exist_ok=True)
    (RESULTS_DIR / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def commit() -> str:
    """The commit of the code that measures, `-dirty` when it is changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
