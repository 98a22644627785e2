"""Define the interface of the sources that fetch reads: a hub, its cache, a directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline.checkpoint.safetensors_header import TensorInfo
from pipeline.core.file_records import FileRecord


class CheckpointSource(Protocol):
    """Offer the files of a checkpoint or data set."""

    @property
    def revision(self) -> str | None:
        """Return the full commit of a hub's repository, else None."""

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file, by name."""

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Bring a file into `target_dir` and verify it; call `advance` with the bytes moved."""

    def header(self, name: str) -> dict[str, TensorInfo]:
        """Read what the header of a safetensors file says about every tensor, by name."""

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Tell whether the source still has the same bytes for `files`."""
