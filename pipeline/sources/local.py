"""Read a checkpoint from a directory of this machine, which is never written."""

from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint.names import CONFIG_FILE, is_taken
from pipeline.checkpoint.safetensors_header import TensorInfo, read_header
from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord
from pipeline.core.files import copy_file, file_record, require_content

SNAPSHOTS_DIR = "snapshots"
"""Where the hub's cache keeps commits: https://huggingface.co/docs/huggingface_hub/guides/manage-cache"""


class LocalCheckpoint:
    """Offer the files of a directory as a CheckpointSource."""

    def __init__(self, model_dir: Path, *, source: str) -> None:
        """Raise InputError when there is no directory; `source` is the value of the parameter."""
        if not model_dir.is_dir():
            raise InputError(
                f"model.source = {source!r}: no such directory; expected demo, "
                "hf:ORG/NAME@COMMIT or the directory of a checkpoint"
            )
        if (model_dir / SNAPSHOTS_DIR).is_dir() and not (model_dir / CONFIG_FILE).exists():
            raise InputError(
                f"model.source = {source!r}: a repository in the hub's cache, expected a commit of "
                f"it: name one of the directories in its {SNAPSHOTS_DIR}"
            )
        self._model_dir = model_dir

    @property
    def revision(self) -> None:
        """Return None: a directory has no revision."""
        return None

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file there and one directory down, by name.

        Raises InputError for a link to nothing in the place of a file that fetch takes.
        """
        sizes = {}
        for path in (*self._model_dir.glob("*"), *self._model_dir.glob("*/*")):
            name = path.relative_to(self._model_dir).as_posix()
            if path.is_file():
                sizes[name] = path.stat().st_size
            elif path.is_symlink() and not path.exists() and is_taken(name):
                raise InputError(
                    f"{path}: a link to {path.readlink()}, where nothing is; download the file "
                    "again"
                )
        return sizes

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Copy a file into `target_dir`; return its record."""
        require_content(self._model_dir / name)
        copy_file(self._model_dir / name, target_dir / name, advance=advance)
        return file_record(target_dir / name, target_dir)

    def header(self, name: str) -> dict[str, TensorInfo]:
        """Read the header of a safetensors file where it is."""
        require_content(self._model_dir / name)
        return read_header(self._model_dir / name)

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Tell whether each of `files` is still there with the same bytes."""
        return all(
            (self._model_dir / file.path).is_file()
            and file_record(self._model_dir / file.path, self._model_dir) == file
            for file in files
        )
