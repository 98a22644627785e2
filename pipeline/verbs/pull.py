"""Pull a release onto this machine, as a directory or as a model of Ollama.

`dir` gives the package as it was published. `vllm` gives the same, and refuses what vLLM cannot
serve. `ollama` gives an OLLAMA_MODELS tree. Nothing appears at its place before all of it is
verified, and nothing there is replaced. A killed pull continues where it stopped.
"""

import shlex
from pathlib import Path
from typing import Literal

from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.records.release import release_tag
from pipeline.registry.ollama_files import default_models_dir, pull_into_models
from pipeline.registry.places import open_release
from pipeline.registry.pulling import pull_files
from pipeline.registry.stored_release import read_release


def run(
    workspace: Workspace, *, ref: str, to: Literal["vllm", "ollama", "dir"], into: Path | None
) -> None:
    """Pull the release `ref`, and print its directory or the command that serves it.

    Raises InputError for a release that the target cannot use, FailureError when the store fails.
    """
    store, name = open_release(workspace, ref)
    release = read_release(store, name)
    if to == "ollama":
        models_dir = into or default_models_dir()
        model = pull_into_models(store, release, models_dir)
        print(f"OLLAMA_MODELS={shlex.quote(str(models_dir))} ollama run {model}")
        return
    if to == "vllm" and release.package.format == "gguf":
        raise InputError(f"{release.reference}: gguf, which vLLM does not serve; use --to ollama")
    package = release.package
    target = into or Path(f"{package.name}-{release_tag(package.version, package.variant)}")
    pull_files(store, release, target)
    print(f"vllm serve {shlex.quote(str(target))}" if to == "vllm" else target)
