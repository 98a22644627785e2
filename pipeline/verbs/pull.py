"""pull: a release becomes a directory, or a model of Ollama, on this machine.

`dir` is the package as it was published; `vllm` the same, where vLLM can serve it; `ollama` an
OLLAMA_MODELS tree. Nothing appears in its place before all of it is verified, nothing that is there
is replaced, and a killed pull goes on where it was.
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
from pipeline.registry.stored_release import StoredRelease, read_release


def run(
    workspace: Workspace, *, ref: str, to: Literal["vllm", "ollama", "dir"], into: Path | None
) -> None:
    """Pull and print where it is, or the command that serves it.

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
    target = into or Path(_directory_name(release))
    pull_files(store, release, target)
    print(f"vllm serve {shlex.quote(str(target))}" if to == "vllm" else target)


def _directory_name(release: StoredRelease) -> str:
    package = release.package
    return f"{package.name}-{release_tag(package.version, package.variant)}"
