"""Measure pushes to and pulls from a registry: speed, memory, kills, flipped bits, hostile answers.

`python -m benchmarks.registry [LAYER_MIB]` needs docker-registry, nginx, htpasswd and openssl, and
five times the layer (2048 MiB) of disk. Speeds are ratios to `sha256sum` and `cp` of the same
file, timed right before: 1 is as fast as these two. oras-py is measured in `.venv-oras`, which is
made when it is missing.
"""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.counting_proxy import Counted, counting_proxy
from benchmarks.damage import count_found
from benchmarks.result import Row, publish
from pipeline.core.files import file_sha256, remove_tree
from pipeline.core.workspace import Workspace
from pipeline.records.release import Receipts
from tests.nginx_server import nginx_server
from tests.registry_server import (
    PASSWORD,
    USER,
    Server,
    docker_config,
    registry_server,
    write_packages,
)

ROOT = Path(__file__).resolve().parent.parent
ORAS_PYTHON = ROOT / ".venv-oras" / "bin" / "python"
ORAS = "oras==0.2.43"
LAYER_MIB = 2048
KILLED_LAYER_MIB = 256
REPEATS = 3
KILLS = 10
FLIPS = 100
VARIANT, TAG = "awq-w4-g128", "1.2.3-awq-w4-g128"
REPOSITORY = "quantline/demo"
PASSED = re.compile(r"(\d+) passed")


def main(layer_mib: int = LAYER_MIB) -> None:
    with tempfile.TemporaryDirectory(prefix="registry-", dir=ROOT / "artifacts") as directory:
        work = Path(directory)
        os.environ |= {"XDG_STATE_HOME": str(work / "state"), "DOCKER_CONFIG": str(work / "docker")}
        rows = [
            *speed_rows(work, layer_mib),
            *kill_rows(work, min(layer_mib, KILLED_LAYER_MIB)),
            Row("bit_flips_found", count_found(work / "flips", FLIPS), None, None, f"of {FLIPS}"),
            Row("hostile_refused", hostile_refused(), None, None, "cases"),
        ]
    publish("registry", rows)


def speed_rows(work: Path, layer_mib: int) -> list[Row]:
    """Measure the ratio of the time of sha256sum and cp to that of a push and of a pull."""
    workspace = new_workspace(work / "speed", layer_mib)
    weights = workspace.package_dir(VARIANT) / "model.safetensors"
    install_oras()
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}

    def note(name: str, run: dict[str, float]) -> None:
        times.setdefault(name, []).append(run["wall_s"])
        peaks[name] = max(peaks.get(name, 0.0), run["peak_rss_mib"])

    for _ in range(REPEATS):
        with registry_server(work / "server") as server:
            ours = f"{server.host}/{REPOSITORY}:{TAG}"
            theirs = f"{server.host}/oras/demo:1"
            for direction, us, file, oras in (
                ("push", server.url, weights, weights),
                ("pull", ours, weights, work / "oras"),
            ):
                reference_s = hash_and_copy_s(file, work / "copy")
                times.setdefault(f"{direction}_reference", []).append(reference_s)
                note(direction, measured("benchmarks.registry_runs", direction, workspace.root, us))
                note(f"oras_{direction}", measured_oras(direction, oras, theirs))
            assert file_sha256(workspace.root / "pulled" / weights.name) == file_sha256(weights)
        for path in (work / "server", work / "oras", workspace.root / "pulled"):
            remove_tree(path)
    rows = []
    for name in ("push", "pull", "oras_push", "oras_pull"):
        reference = times[f"{name.removeprefix('oras_')}_reference"]
        ratios = [base / own for base, own in zip(reference, times[name], strict=True)]
        median = statistics.median(ratios)
        unit = "sha256sum + cp"
        rows.append(Row(f"{name}_ratio", median, min(ratios), max(ratios), unit))
    rows.append(Row("peak_rss_mib", max(peaks["push"], peaks["pull"]), None, None, "MiB"))
    oras_peak = max(peaks["oras_push"], peaks["oras_pull"])
    return [*rows, Row("oras_peak_rss_mib", oras_peak, None, None, "MiB")]


def kill_rows(work: Path, layer_mib: int) -> list[Row]:
    """Kill runs at random moments and repeat them.

    Counts those that end in the right files, and the bytes that are moved twice.
    """
    workspace = new_workspace(work / "kills", layer_mib)
    random_moment = random.Random(0)
    size = sum(path.stat().st_size for path in workspace.package_dir(VARIANT).rglob("*"))
    servers: dict[str, Callable[[], AbstractContextManager[Server]]] = {
        "push": partial(nginx_server, work / "killed"),
        "push_without_nginx": partial(registry_server, work / "killed"),
        "pull": partial(registry_server, work / "killed"),
    }
    ok, rows = 0, []
    for name, serve in servers.items():
        direction = name.partition("_")[0]
        moved_again = []
        for _ in range(KILLS):
            with serve() as server, counted(server) as (url, bytes_moved):
                docker_config(work / "docker", url.split("://")[1], USER, PASSWORD)
                place = url
                if direction == "pull":
                    measured("benchmarks.registry_runs", "push", workspace.root, url)
                    place = f"{url}/{REPOSITORY}:{TAG}"
                before = bytes_moved(direction)
                limit = before + random_moment.uniform(0.02, 0.98) * size
                kill_when(bytes_moved, limit, direction, workspace.root, place)
                measured("benchmarks.registry_runs", direction, workspace.root, place)
                moved_again.append((bytes_moved(direction) - before - size) / size)
                right = ends_right(workspace, server, direction)
                ok += right and name != "push_without_nginx"
            for path in (work / "killed", workspace.root / "pulled", work / "state"):
                remove_tree(path)
        share = statistics.mean(moved_again)
        unit = "of the layer, twice"
        rows.append(Row(f"{name}_moved_again", share, min(moved_again), max(moved_again), unit))
    return [Row("kill_reruns_ok", ok, None, None, f"of {2 * KILLS}"), *rows]


@contextmanager
def counted(server: Server) -> Iterator[tuple[str, Callable[[str], int]]]:
    """Yield the URL of a proxy of `server`, and a function that counts bytes of a direction."""
    scheme, _, host = server.url.partition("://")
    with counting_proxy(int(host.split(":")[1])) as proxy:
        yield f"{scheme}://127.0.0.1:{proxy.port}", lambda direction: moved(proxy, direction)


def moved(proxy: Counted, direction: str) -> int:
    return proxy.sent if direction == "push" else proxy.received


def kill_when(
    bytes_moved: Callable[[str], int], limit: float, direction: str, root: Path, place: str
) -> None:
    """Start a push or pull and kill it as soon as `limit` bytes have moved in its direction."""
    command = command_of("benchmarks.registry_runs", direction, root, place)
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        while bytes_moved(direction) < limit and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)


def ends_right(workspace: Workspace, server: Server, direction: str) -> bool:
    """Tell whether every file is there, with the digests of the package."""
    if direction == "pull":
        package = workspace.package_dir(VARIANT)
        pulled = workspace.root / "pulled"
        names = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
        return all(file_sha256(pulled / name) == file_sha256(package / name) for name in names)
    source = str(workspace.receipts_path)
    receipt = Receipts.from_bytes(workspace.receipts_path.read_bytes(), source=source)
    blobs = server.storage / "docker/registry/v2/blobs/sha256"
    digests = [layer.digest.removeprefix("sha256:") for layer in receipt.releases[VARIANT].layers]
    return all(file_sha256(blobs / digest[:2] / digest / "data") == digest for digest in digests)


def hostile_refused() -> int:
    """Count the cases of the tests of hostile registries and archives that are refused."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/registry/test_hostile.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = PASSED.search(done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def new_workspace(root: Path, layer_mib: int) -> Workspace:
    """Make a workspace with one package whose weights are random bytes."""
    workspace = Workspace(root)
    write_packages(
        workspace, VARIANT, content=random.Random(layer_mib).randbytes(1 << 20) * layer_mib
    )
    return workspace


def hash_and_copy_s(source: Path, target: Path) -> float:
    started = time.monotonic()
    subprocess.run(["sha256sum", source], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", source, target], check=True)
    wall_s = time.monotonic() - started
    target.unlink()
    return wall_s


def command_of(module: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def measured(module: str, *arguments: str | Path) -> dict[str, float]:
    return last_line(command_of(module, *arguments))


def measured_oras(*arguments: str | Path) -> dict[str, float]:
    program = ROOT / "benchmarks" / "oras_runs.py"
    return last_line([str(ORAS_PYTHON), str(program), *map(str, arguments)])


def last_line(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def install_oras() -> None:
    if not ORAS_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", ORAS_PYTHON.parent.parent], check=True)
        subprocess.run([ORAS_PYTHON, "-m", "pip", "install", "-q", ORAS], check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
