"""Set up the two environments: `.venv` runs the pipeline, `.venv-serve` holds vLLM.

Run by `make setup` with any Python 3.11 or newer and nothing else installed. What is up to date is
left alone: each environment remembers the digest of everything it was made from. A set-up that was
interrupted goes on where it stopped.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVS_DIR = ROOT / "envs"
STAMP_FILE = "quantline-setup.sha256"

LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# Only the libraries that quantize and score are used; the image and audio part stays unbuilt. Built
# for any x86-64 with AVX2 instead of for this very machine: files and scores are then the same on
# all of them, and a build may be moved.
LLAMA_CPP_CMAKE_ARGS = "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF"
# The converter is not on the package index by itself; the source distribution carries it.
CONVERTER_IN_SDIST = "vendor/llama.cpp/"
CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
BUILD_TOOLS = ("setuptools", "scikit_build_core", "packaging", "pathspec", "cmake", "ninja")


@dataclass(frozen=True)
class Environment:
    """A virtual environment and everything it is made from."""

    directory: Path
    pins_path: Path
    usual_minutes: int
    sources: tuple[Path, ...]

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def stamp_path(self) -> Path:
        return self.directory / STAMP_FILE

    def digest(self) -> str:
        """sha256 over the pins, this script, the Python version and the place."""
        parts = [sys.version, str(self.directory)]
        parts += [path.read_text() for path in (self.pins_path, Path(__file__), *self.sources)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def is_up_to_date(self) -> bool:
        return self.stamp_path.exists() and self.stamp_path.read_text() == self.digest()


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever `python3` is runs this file
        stop(f"Python {sys.version.split()[0]}: expected 3.11 or newer")
    has_gpu = nvidia_gpu_answers()
    serve_pins = ENVS_DIR / ("serve-cuda.txt" if has_gpu else "serve-cpu.txt")
    plugin_dir = ENVS_DIR / "vllm-plugin"
    pipeline = Environment(
        ROOT / ".venv", ENVS_DIR / "pipeline.txt", 15, (ROOT / "pyproject.toml",)
    )
    serve = Environment(ROOT / ".venv-serve", serve_pins, 6, (plugin_dir / "pyproject.toml",))
    set_up(pipeline, has_gpu=has_gpu, finish=finish_pipeline)
    set_up(serve, has_gpu=has_gpu, finish=lambda it: install_editable(it, plugin_dir))


def set_up(
    environment: Environment, *, has_gpu: bool, finish: Callable[[Environment], None]
) -> None:
    """Bring one environment up to date."""
    name = environment.directory.name
    if environment.is_up_to_date():
        return
    started = time.monotonic()
    say(f"{name}: setting up from {environment.pins_path.relative_to(ROOT)}")
    say(f"{name}: usually {environment.usual_minutes} minutes, less when pip's cache is warm")
    environment.stamp_path.unlink(missing_ok=True)
    if not environment.python.exists():
        run(sys.executable, "-m", "venv", environment.directory)
    pins = read_pins(environment.pins_path)
    install_torch(environment, pins["torch"], has_gpu=has_gpu)
    install_pins(environment, pins)
    finish(environment)
    environment.stamp_path.write_text(environment.digest())
    say(f"{name}: ready after {(time.monotonic() - started) / 60:.1f} minutes")


def read_pins(path: Path) -> dict[str, str]:
    """Requirement by package name, from lines of the form `name==version`."""
    lines = (line.split("#")[0].split(";")[0].strip() for line in path.read_text().splitlines())
    return {line.split("==")[0]: line for line in lines if line}


def install_torch(environment: Environment, requirement: str, *, has_gpu: bool) -> None:
    """Install torch; without a GPU, stop before several GB of CUDA packages arrive."""
    say(f"{environment.directory.name}: {requirement}")
    if has_gpu:
        pip(environment, "install", requirement)
        return
    with tempfile.TemporaryDirectory() as work:
        report_path = Path(work) / "report.json"
        plan = ("--dry-run", "--ignore-installed", "--no-deps", "--report", report_path)
        pip(environment, "install", *plan, requirement)
        report = json.loads(report_path.read_text())
    wanted = report["install"][0]["metadata"].get("requires_dist", [])
    if any(name.startswith(("nvidia-", "cuda-")) for name in wanted):
        stop(
            f"{requirement}: pip would take the CUDA build on a machine without a GPU; point pip "
            "at a CPU build (README.md, section Set-up) and run the same command again"
        )
    pip(environment, "install", "--no-deps", requirement)


def install_pins(environment: Environment, pins: dict[str, str]) -> None:
    """Install every other pin exactly as it stands, the build tools first."""
    tools = [pins[name] for name in BUILD_TOOLS if name in pins]
    rest = [pin for name, pin in pins.items() if name != "torch" and name not in BUILD_TOOLS]
    say(f"{environment.directory.name}: {len(tools) + len(rest)} pinned packages")
    pip(environment, "install", "--no-deps", *tools)
    pip(environment, "install", "--no-deps", "--no-build-isolation", *rest)


def finish_pipeline(environment: Environment) -> None:
    install_llama_cpp(environment)
    install_editable(environment, ROOT)


def install_llama_cpp(environment: Environment) -> None:
    """Build llama.cpp's libraries and unpack its converter from one verified archive."""
    if shutil.which("c++") is None:
        stop("no C++ compiler: llama.cpp is built from source; install g++ (apt-get install g++)")
    say(f"{environment.directory.name}: building {LLAMA_CPP_PYTHON}, usually 5 to 8 minutes")
    with tempfile.TemporaryDirectory() as work:
        requirement = Path(work) / "requirement.txt"
        requirement.write_text(f"{LLAMA_CPP_PYTHON} --hash=sha256:{LLAMA_CPP_SHA256}\n")
        from_source = (
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
            "-r",
            requirement,
        )
        pip(environment, "download", *from_source, "--dest", work)
        # Never from pip's cache: it does not know with which CMAKE_ARGS a wheel was built.
        pip(environment, "--no-cache-dir", "install", *from_source, CMAKE_ARGS=LLAMA_CPP_CMAKE_ARGS)
        (archive,) = Path(work).glob("*.tar.gz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != LLAMA_CPP_SHA256:
            stop(f"{archive.name}: not the archive that is pinned; its sha256 is another one")
        unpack_converter(archive, environment.directory / "share" / "llama.cpp")


def unpack_converter(archive: Path, target: Path) -> None:
    """Unpack llama.cpp's converter, atomically."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2].removeprefix(CONVERTER_IN_SDIST)
            if member.isfile() and inside.startswith(CONVERTER_PARTS):
                member.name = inside
                tar.extract(member, partial, filter="data")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def install_editable(environment: Environment, directory: Path) -> None:
    say(f"{environment.directory.name}: {directory.name}")
    pip(environment, "install", "--no-deps", "--no-build-isolation", "--editable", directory)


def nvidia_gpu_answers() -> bool:
    """Whether the driver's own tool finds a GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def pip(environment: Environment, *arguments: object, **variables: str) -> None:
    run(
        environment.python,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
        **variables,
    )


def run(*command: object, **variables: str) -> None:
    result = subprocess.run([str(it) for it in command], env={**os.environ, **variables})
    if result.returncode != 0:
        stop(f"set-up failed in: {' '.join(str(it) for it in command[:6])} … ; its output is above")


def say(message: str) -> None:
    print(message, flush=True)


def stop(message: str) -> None:
    sys.exit(f"setup: {message}")


if __name__ == "__main__":
    main()
