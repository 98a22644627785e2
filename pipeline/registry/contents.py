"""Checks of a release in a registry, before a byte of it is written anywhere.

A manifest is not trusted: names that leave the target, names that collide, kinds of layers
that would have to be unpacked, configs and layers that contradict each other are refused here.
Layers are the files themselves; nothing is ever decompressed, so nothing can expand.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pydantic import ValidationError

from pipeline.core.errors import InputError, short_repr
from pipeline.core.file_records import FileRecord
from pipeline.oci.records import (
    MAX_MANIFEST_BYTES,
    TITLE_ANNOTATION,
    Descriptor,
    ImageManifest,
)
from pipeline.records.licenses import LICENSE_FILE
from pipeline.records.release import MANIFEST_FILE, PackageManifest
from pipeline.registry.modelpack import (
    FILE_PATH_ANNOTATION,
    LAYER_TYPES,
    MODEL_ARTIFACT_TYPE,
    MODEL_CONFIG_TYPE,
    ModelConfig,
)

MAX_PATH_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 240  # file systems allow 255, and suffixes are added while files arrive


@dataclass(frozen=True)
class Contents:
    """The files of a release, each with the layer that holds it, in the manifest's order."""

    manifest: ImageManifest
    files: dict[str, Descriptor]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(layer.size for layer in self.files.values())

    def file_records(self) -> tuple[FileRecord, ...]:
        """Return the files sorted by path, as a manifest on disk would list them."""
        return tuple(
            FileRecord(path=path, size=layer.size, sha256=layer.digest.hex)
            for path, layer in sorted(self.files.items())
        )


def contents_of(data: bytes, *, source: str) -> Contents:
    """Return the contents of the release whose manifest is `data`. Raises InputError."""
    manifest = ImageManifest.from_untrusted(data, source=source)
    if manifest.artifact_type != MODEL_ARTIFACT_TYPE:
        kind = manifest.artifact_type or manifest.config.media_type
        raise InputError(f"{source}: {short_repr(kind)}, expected a release of quantline")
    if manifest.config.media_type != MODEL_CONFIG_TYPE:
        raise InputError(f"{source}: its config is {short_repr(manifest.config.media_type)}")
    if manifest.config.size > MAX_MANIFEST_BYTES:
        raise InputError(f"{source}: its config has {manifest.config.size} bytes, too many")
    files: dict[str, Descriptor] = {}
    for layer in manifest.layers:
        path = _path(layer, source)
        if path in files:
            raise InputError(f"{source}: two layers are named {short_repr(path)}")
        files[path] = layer
    _require_distinct(files, source)
    for required in (MANIFEST_FILE, LICENSE_FILE):
        if required not in files:
            raise InputError(f"{source}: no file {required}, which every release has")
    if files[MANIFEST_FILE].size > MAX_MANIFEST_BYTES:
        raise InputError(f"{source}: its {MANIFEST_FILE} is larger than any can be")
    return Contents(manifest, files)


def check_config(contents: Contents, data: bytes, *, source: str) -> ModelConfig:
    """Return the config blob. Raises InputError when it names other layers than the manifest."""
    config = ModelConfig.from_untrusted(data, source=f"{source}: config")
    if list(config.modelfs.diff_ids) != [layer.digest for layer in contents.manifest.layers]:
        raise InputError(f"{source}: its config names other layers than its manifest")
    return config


def check_package(contents: Contents, data: bytes, *, source: str) -> PackageManifest:
    """Return the package's own manifest. Raises InputError when the layers are not its files."""
    package = PackageManifest.from_untrusted(data, source=f"{source}: {MANIFEST_FILE}")
    stated = {file.path: (file.digest, file.size) for file in package.files}
    held = {path: (layer.digest, layer.size) for path, layer in contents.files.items()}
    del held[MANIFEST_FILE]
    for path in sorted(stated.keys() | held.keys()):
        if stated.get(path) != held.get(path):
            raise InputError(
                f"{source}: {short_repr(path)} is not the one that {MANIFEST_FILE} names"
            )
    return package


def _path(layer: Descriptor, source: str) -> str:
    """Return the name of a layer's file. Raises InputError unless it stays in the target."""
    if layer.media_type not in LAYER_TYPES:
        raise InputError(
            f"{source}: {short_repr(layer.media_type)} is no kind of layer a release has"
        )
    annotations = layer.annotations or {}
    path = annotations.get(FILE_PATH_ANNOTATION)
    if path is None:
        raise InputError(f"{source}: the layer {layer.digest} has no name")
    if annotations.get(TITLE_ANNOTATION, path) != path:
        raise InputError(f"{source}: the layer {short_repr(path)} has a second name")
    try:
        FileRecord(path=path, size=layer.size, sha256=layer.digest.hex)
    except ValidationError as error:
        raise InputError(
            f"{source}: the layer name {short_repr(path)} would leave the target"
        ) from error
    if len(path.encode()) > MAX_PATH_BYTES or any(
        len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")
    ):
        raise InputError(f"{source}: the layer name {short_repr(path)} is too long")
    return path


def _require_distinct(files: dict[str, Descriptor], source: str) -> None:
    """Raise InputError for names that are one file on some systems, or a file and a directory."""
    folded = Counter(path.casefold() for path in files)
    for path in files:
        if folded[path.casefold()] > 1:
            raise InputError(f"{source}: {short_repr(path)} differs from another name only in case")
        for parent in PurePosixPath(path.casefold()).parents:
            if str(parent) in folded:
                raise InputError(f"{source}: {short_repr(path)} is below a file, not a directory")
