"""What fetch gets a checkpoint from: the interface of every kind of source."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline.core.file_records import FileRecord


class CheckpointSource(Protocol):
    """Where a checkpoint's files come from: a hub, its cache on this machine, or a directory."""

    @property
    def revision(self) -> str | None:
        """The full commit of a hub model, else None."""

    def sizes(self) -> dict[str, int]:
        """Return every file at the top level, with its size in bytes."""

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Bring a file into `target_dir`, proven whole; `advance` is told the bytes moved."""

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Whether taking the same files again would give the same bytes."""
