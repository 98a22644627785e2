"""Set up the two environments: `.venv` runs the pipeline, `.venv-serve` has vLLM.

`make setup` runs it with any Python 3.11 or newer and nothing else installed. Both are made side by
side. An environment that is up to date is left alone: it has a file with the digest of everything
it was made from. An interrupted set-up continues where it stopped.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NoReturn

import llama_cpp_build
from environment import (
    ENVS_DIR,
    ROOT,
    Environment,
    SetupError,
    install_pins,
    interrupted,
    pip,
    read_pins,
    remove_unfinished_packages,
    run,
    say,
)

NOTICE_SECONDS = 0.1
BUILD_TOOLS = ("pip", "setuptools", "scikit-build-core", "packaging", "pathspec", "cmake", "ninja")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever `python3` is runs this file
        stop(f"Python {sys.version.split()[0]}: expected 3.11 or newer")
    has_gpu = nvidia_gpu_answers()
    serve_pins_path = ENVS_DIR / "serve" / ("serve-cuda.txt" if has_gpu else "serve-cpu.txt")
    plugin_dir = ENVS_DIR / "vllm-plugin"
    torch_path = torch_list(has_gpu=has_gpu)
    pipeline = Environment(
        ROOT / ".venv",
        torch_path,
        ENVS_DIR / "pipeline" / "pipeline.txt",
        (ROOT / "pyproject.toml",),
    )
    serve = Environment(
        ROOT / ".venv-serve", torch_path, serve_pins_path, (plugin_dir / "pyproject.toml",)
    )
    set_up_all({pipeline: ROOT, serve: plugin_dir})


def nvidia_gpu_answers() -> bool:
    """Tell whether the driver's own tool finds a GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def torch_list(*, has_gpu: bool) -> Path:
    """Return the path of the list with the builds of torch for this machine."""
    return ENVS_DIR / "pipeline" / ("torch-cuda.txt" if has_gpu else "torch-cpu.txt")


def set_up_all(packages: dict[Environment, Path | None]) -> None:
    """Bring environments up to date, side by side, and install the package of a directory in each.

    When one fails, the others are finished all the same.
    """
    stale = {
        environment: package
        for environment, package in packages.items()
        if not environment.is_up_to_date()
    }
    if not stale:
        return
    has_failed = False
    try:
        # One more worker: llama.cpp is compiled while packages arrive.
        with ThreadPoolExecutor(len(stale) + 1) as pool:
            try:
                jobs = {
                    pool.submit(set_up, environment, package, pool)
                    for environment, package in stale.items()
                }
                while jobs:
                    # Another thread may get the signal: this one notices it when it wakes up.
                    done, jobs = wait(jobs, timeout=NOTICE_SECONDS, return_when=FIRST_COMPLETED)
                    for job in done:
                        try:
                            job.result()
                        except (SetupError, OSError) as error:
                            output = error.output if isinstance(error, SetupError) else ""
                            print(f"{output}setup: {error}", file=sys.stderr, flush=True)
                            has_failed = True
            except KeyboardInterrupt:
                # A running command got the signal too; a thread between two commands did not.
                interrupted.set()
                raise
    except KeyboardInterrupt:
        stop("interrupted; the same command goes on where it stopped")
    if has_failed:
        sys.exit(1)


def set_up(environment: Environment, package: Path | None, pool: ThreadPoolExecutor) -> None:
    """Bring one environment up to date."""
    started = time.monotonic()
    pins = read_pins(environment.pins_path)
    torch_pins = read_pins(environment.torch_path)
    # The environment's own list decides where it pins a package that torch needs too.
    torch_pins = {name: pin for name, pin in torch_pins.items() if name not in pins}
    tools = [pins.pop(name) for name in BUILD_TOOLS if name in pins]
    llama_cpp = pins.pop(llama_cpp_build.NAME, None)
    if llama_cpp and shutil.which("c++") is None:
        raise SetupError("llama.cpp is built from source: install a C++ compiler (apt install g++)")

    environment.stamp_path.unlink(missing_ok=True)
    if not environment.python.exists():
        run(environment, sys.executable, "-m", "venv", environment.directory)
    remove_unfinished_packages(environment)
    install_pins(environment, tools)
    building = None
    if llama_cpp and not llama_cpp_build.is_installed(environment, llama_cpp):
        building = pool.submit(llama_cpp_build.build, environment, llama_cpp)

    torch = torch_pins["torch"]
    say(environment, f"{torch.split()[0]} by {environment.torch_path.name}")
    if environment.torch_path == torch_list(has_gpu=False):
        refuse_other_builds(environment, torch)
    install_pins(environment, torch_pins.values())
    say(environment, f"{len(pins)} packages by {environment.pins_path.name}")
    install_pins(environment, pins.values())
    if building and llama_cpp:
        llama_cpp_build.install(environment, llama_cpp, building.result())
    if package:
        pip(environment, "install", "--no-deps", "--no-build-isolation", "--editable", package)
    environment.stamp_path.write_text(environment.digest())
    say(environment, f"ready after {(time.monotonic() - started) / 60:.1f} minutes")


def refuse_other_builds(environment: Environment, torch: str) -> None:
    """Stop before pip downloads several GB of CUDA packages on a machine without a GPU."""
    with tempfile.TemporaryDirectory() as work:
        report_path = Path(work) / "report.json"
        plan = ("--dry-run", "--ignore-installed", "--no-deps", "--report", report_path)
        pip(environment, "install", *plan, torch.split()[0])
        report = json.loads(report_path.read_text())
    hashes = report["install"][0]["download_info"]["archive_info"]["hashes"]
    if f"sha256:{hashes.get('sha256')}" not in torch:
        raise SetupError(
            f"{torch.split()[0]}: pip would take another build than those for CPUs that "
            f"{environment.torch_path.name} lists; point pip at one of these (README.md, Set-up)"
        )


def stop(message: str) -> NoReturn:
    """End set-up with one line."""
    sys.exit(f"setup: {message}")


if __name__ == "__main__":
    main()
