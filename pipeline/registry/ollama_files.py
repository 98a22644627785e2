"""GGUF releases for Ollama: read from a package, and written as the tree that Ollama serves from.

Format: https://github.com/ollama/ollama/blob/main/docs/faq.mdx (OLLAMA_MODELS) and
https://github.com/ollama/ollama/blob/main/manifest/paths.go
"""

import os
from pathlib import Path
from typing import Final

from pipeline.core.errors import InputError
from pipeline.core.file_records import Digest
from pipeline.core.files import read_bytes, require_free_space, write_bytes
from pipeline.oci.blob import Advance, bytes_blob, no_progress
from pipeline.oci.records import Descriptor
from pipeline.oci.store import (
    ReadableStore,
    Store,
    download,
    push_once,
    read_blob,
    transfer,
)
from pipeline.records.release import MODELFILE, PackageManifest
from pipeline.registry.ollama_manifest import LIBRARY, OllamaModel, ollama_model
from pipeline.registry.stored_release import StoredRelease

MODELS_VARIABLE: Final = "OLLAMA_MODELS"


def read_ollama_model(package: PackageManifest, directory: Path) -> OllamaModel:
    """Return what Ollama gets of the package in `directory`. Raises InputError."""
    return ollama_model(package, read_bytes(directory / MODELFILE, made_by="package").decode())


def push_ollama_model(store: Store, model: OllamaModel) -> None:
    """Store Ollama's manifest of a release whose weights are there; its tag never moves."""
    for data, media_type in model.texts:
        store.push_blob(bytes_blob(data, media_type), no_progress)
    push_once(store, bytes_blob(model.manifest, model.manifest_type), model.tag)


def default_models_dir() -> Path:
    """Return where Ollama looks unless it is told otherwise."""
    return Path(os.environ.get(MODELS_VARIABLE) or Path.home() / ".ollama" / "models")


def pull_into_models(store: ReadableStore, release: StoredRelease, models_dir: Path) -> str:
    """Write a GGUF release into an OLLAMA_MODELS tree; return the name that `ollama run` takes.

    Blobs come first and the manifest last, so that Ollama never sees half a model. Raises
    InputError for a release of another format, or when the name stands for something else there.
    """
    if release.package.format != "gguf" or MODELFILE not in release.contents.files:
        raise InputError(
            f"{release.reference}: {release.package.format}, and Ollama takes gguf; pull it "
            "with --to vllm"
        )
    modelfile = read_blob(store, release.contents.files[MODELFILE])
    model = ollama_model(release.package, modelfile.decode(errors="replace"))
    manifest_path = models_dir / "manifests" / LIBRARY / model.name / model.tag
    if manifest_path.exists() and manifest_path.read_bytes() != model.manifest:
        raise InputError(f"{manifest_path}: stands for another model; `ollama rm` it first")
    (weights,) = [layer for path, layer in release.contents.files.items() if path.endswith(".gguf")]
    require_free_space(models_dir, weights.size)

    def bring(blob: Descriptor, advance: Advance) -> None:
        download(store, blob, _blob_path(models_dir, blob.digest), advance)

    transfer([weights], bring, label=f"pull {release.package.title}", total_bytes=weights.size)
    for data, _ in model.texts:
        write_bytes(_blob_path(models_dir, Digest.of(data)), data)
    write_bytes(manifest_path, model.manifest)
    return f"{model.name}:{model.tag}"


def _blob_path(models_dir: Path, digest: str) -> Path:
    return models_dir / "blobs" / digest.replace(":", "-")
