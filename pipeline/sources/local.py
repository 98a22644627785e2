"""Read a checkpoint from a directory of this machine, which is never written."""

from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint.safetensors_header import read_shapes
from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord
from pipeline.core.files import copy_file, file_record


class LocalCheckpoint:
    """Offer the files of a directory as a CheckpointSource."""

    def __init__(self, model_dir: Path, *, source: str) -> None:
        """Raise InputError when there is no directory; `source` is the value of the parameter."""
        if not model_dir.is_dir():
            raise InputError(
                f"model.source = {source!r}: no such directory; expected demo, "
                "hf:ORG/NAME@COMMIT or the directory of a checkpoint"
            )
        self._model_dir = model_dir

    @property
    def revision(self) -> None:
        """Return None: a directory has no revision."""
        return None

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file there and one directory down, by name."""
        paths = (path for pattern in ("*", "*/*") for path in self._model_dir.glob(pattern))
        return {
            path.relative_to(self._model_dir).as_posix(): path.stat().st_size
            for path in paths
            if path.is_file()
        }

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Copy a file into `target_dir`; return its record."""
        copy_file(self._model_dir / name, target_dir / name, advance=advance)
        return file_record(target_dir / name, target_dir)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Read the shapes of a safetensors file where it is."""
        return read_shapes(self._model_dir / name)

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Tell whether each of `files` is still there with the same bytes."""
        return all(
            (self._model_dir / file.path).is_file()
            and file_record(self._model_dir / file.path, self._model_dir) == file
            for file in files
        )
