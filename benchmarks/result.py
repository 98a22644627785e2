"""Results of benchmarks: key, value, interval and unit, with commit, date and machine."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS_DIR = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure. `low` and `high` are the bounds of its interval, null where there is none."""

    key: str
    value: float
    low: float | None
    high: float | None
    unit: str


def publish(name: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print the rows and write them to `benchmarks/results/NAME.json`.

    `notes` explain the figures, such as what was left out and why.
    """
    show(rows)
    print("\n".join(notes))
    result = {
        "commit": commit(),
        "date": today(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_model()}",
        "rows": [asdict(row) for row in rows],
    }
    if notes:
        result["notes"] = list(notes)
    RESULTS_DIR.mkdir(exist_ok=True)
    _write(name, result)


def republish(name: str, rows: Sequence[Row], notes: Sequence[str] = (), *, what: str) -> None:
    """Replace the rows of a part `what` that was measured again, and say so in a note."""
    show(rows)
    print("\n".join(notes))
    result = json.loads((RESULTS_DIR / f"{name}.json").read_text())
    known = {row["key"]: row for row in result["rows"]} | {row.key: asdict(row) for row in rows}
    result["rows"] = list(known.values())
    result["notes"] = [
        *(note for note in result.get("notes", []) if not note.startswith(f"{what}: ")),
        f"{what}: measured at {commit()}, {today()}",
        *notes,
    ]
    _write(name, result)


def show(rows: Sequence[Row]) -> None:
    width = max(len(row.key) for row in rows)
    for row in rows:
        interval = "" if row.low is None else f"  [{row.low:.4g}, {row.high:.4g}]"
        print(f"{row.key:<{width}}  {row.value:>10.5g} {row.unit}{interval}")


def _write(name: str, result: dict[str, Any]) -> None:
    (RESULTS_DIR / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def commit() -> str:
    """Return the commit of the code that measures, `-dirty` when it is changed.

    Results are no code: a benchmark may go on after it has written some.
    """
    describe = ["git", "describe", "--always", "--abbrev=12"]
    name = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    changes = ["git", "diff", "--quiet", "HEAD", "--", f":(exclude){RESULTS_DIR}"]
    return name if subprocess.run(changes, check=False).returncode == 0 else f"{name}-dirty"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
