"""Flip one bit at a time in a registry's storage, an image layout and a package with evidence.

`verify` must find it in the first two, `publish` in the last. Each must name the damaged file, its
digest or the release. Two kinds of files are left out, because neither command reads them: the
history of tags, which docker-registry writes and never reads, and the index of all packages.
"""

import contextlib
import io
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import main as quantline
from pipeline.core.errors import QuantlineError
from pipeline.core.files import remove_tree
from pipeline.core.workspace import Workspace
from pipeline.oci import retry as registry_retry
from pipeline.records.release import Receipts
from pipeline.stages import publish
from tests.registry_server import registry_server, release_params, write_packages

VARIANT, TAG = "awq-w4-g128", "1.2.3-awq-w4-g128"
HEX = re.compile(r"[0-9a-f]{64}")
UNREAD = ("/tags/", "/index/")


@dataclass(frozen=True)
class Area:
    """Files to damage, and a check that returns its error message, or "" when it finds no fault."""

    files: tuple[Path, ...]
    check: Callable[[], str]


def count_found(work: Path, num_flips: int) -> int:
    """Count how many of `num_flips` random flips are found and named; the others are printed."""
    registry_retry.PAUSES_S = ()  # type: ignore[misc, assignment]
    workspace = Workspace(work / "workspace")
    write_packages(workspace, VARIANT, content=random.Random(1).randbytes(1 << 16))
    signature = workspace.packages_dir / f"{VARIANT}.signature.json"
    signature.write_text('{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}')
    write_packages(workspace, VARIANT, content=random.Random(1).randbytes(1 << 16))
    publish.run(workspace, release_params())
    with registry_server(work / "server") as server:
        publish.run(workspace, release_params(url=server.url))
        areas = [
            Area(
                tuple(
                    path
                    for path in files_below(server.storage)
                    if not all(part in str(path) for part in UNREAD)
                ),
                lambda: verified(f"{server.host}/quantline/demo:{TAG}"),
            ),
            Area(
                files_below(workspace.registry_dir),
                lambda: verified(f"oci:{workspace.registry_dir}:{TAG}"),
            ),
            Area(
                tuple(
                    path
                    for path in files_below(workspace.packages_dir)
                    if path != workspace.packages_path
                ),
                lambda: published(workspace, work / "again"),
            ),
        ]
        for area in areas:
            assert area.check() == "", area.check()
        source = str(workspace.receipts_path)
        receipts = Receipts.from_bytes(workspace.receipts_path.read_bytes(), source=source)
        release = receipts.releases[VARIANT].manifest_digest.removeprefix("sha256:")
        chance = random.Random(0)
        found = 0
        for number in range(num_flips):
            area = areas[number % len(areas)]
            path = chance.choice([file for file in area.files if file.stat().st_size])
            found += is_found(area, path, chance, release=release)
        return found


def is_found(area: Area, path: Path, chance: random.Random, *, release: str) -> bool:
    """Flip one bit of a file, check, and flip the bit back; `release` is its digest in hex."""
    intact = path.read_bytes()
    place, bit = chance.randrange(len(intact)), chance.randrange(8)
    path.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << bit]) + intact[place + 1 :])
    said = area.check()
    path.write_bytes(intact)
    hexes = [*HEX.findall(str(path)), *HEX.findall(intact.decode(errors="replace"))]
    names = [TAG, release, path.name, *hexes]
    if any(name in said for name in names):
        return True
    print(f"not found or not named: {path}, byte {place}, bit {bit}: {said or 'nothing said'}")
    return False


def verified(ref: str) -> str:
    """Return the error of `quantline verify REF`, or "" when it succeeds."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = quantline(["verify", ref])
    return errors.getvalue() if code else ""


def published(workspace: Workspace, registry_dir: Path) -> str:
    """Return the error of publishing a workspace's packages into a new layout, or ""."""
    kept = workspace.registry_dir.rename(registry_dir)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            publish.run(workspace, release_params())
    except QuantlineError as error:
        return str(error)
    finally:
        remove_tree(workspace.registry_dir)
        kept.rename(workspace.registry_dir)
    return ""


def files_below(directory: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in directory.rglob("*") if path.is_file()))
