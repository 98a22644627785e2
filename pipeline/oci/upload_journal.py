"""Where unfinished uploads go on, for the next run: a file each in the user's state directory.

A registry says after each part where the next one goes. That address is kept until the blob is
whole; it may hold a token of the registry's own, so only its user can read it.
"""

import os
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import write_record
from pipeline.core.record import Record, sha256_hex


class UnfinishedUpload(Record):
    """Where the next part goes, how many bytes the registry has taken, and how many at once."""

    digest: str
    url: str
    received: int
    part_bytes: int


class UploadJournal:
    """The unfinished uploads to one repository."""

    def __init__(self, repository_url: str) -> None:
        state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        self._directory = Path(state_home) / "quantline" / "uploads"
        self._repository_url = repository_url

    def find(self, digest: str) -> UnfinishedUpload | None:
        """Return the unfinished upload of a blob; None when its note is damaged or missing."""
        path = self._path(digest)
        try:
            return UnfinishedUpload.from_bytes(path.read_bytes(), source=str(path))
        except (FileNotFoundError, InputError):
            return None

    def keep(self, upload: UnfinishedUpload) -> None:
        """Note an upload in place of what was noted of its blob."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_record(self._path(upload.digest), upload)

    def forget(self, digest: str) -> None:
        """Drop the note on a blob, if there is one."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / (sha256_hex(f"{self._repository_url}{digest}".encode()) + ".json")
