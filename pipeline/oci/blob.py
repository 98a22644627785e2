"""A blob on its way into a registry: its descriptor, and its bytes from any offset in chunks."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.files import CHUNK_BYTES
from pipeline.oci.records import Descriptor, descriptor_of

Advance = Callable[[int], None]


@dataclass(frozen=True)
class FilePart:
    """The bytes of a file that begin at `offset`: a member of an archive."""

    path: Path
    offset: int


@dataclass(frozen=True)
class Blob:
    """Bytes to store under `descriptor.digest`: a file, a part of one, or the bytes themselves."""

    descriptor: Descriptor
    content: Path | FilePart | bytes

    @property
    def source(self) -> str:
        """Return where the bytes come from, for messages."""
        if isinstance(self.content, bytes):
            return self.descriptor.digest
        return str(self.content.path if isinstance(self.content, FilePart) else self.content)

    def chunks(self, start: int = 0, *, count: int | None = None) -> Iterator[bytes]:
        """Yield `count` bytes from `start`, or all to the end; fewer when a file is too short."""
        count = self.descriptor.size - start if count is None else count
        if isinstance(self.content, bytes):
            yield self.content[start : start + count]
            return
        part = FilePart(self.content, 0) if isinstance(self.content, Path) else self.content
        with part.path.open("rb") as file:
            file.seek(part.offset + start)
            while count > 0 and (chunk := file.read(min(CHUNK_BYTES, count))):
                count -= len(chunk)
                yield chunk


def no_progress(num_bytes: int) -> None:
    """Report nothing: an `Advance` for what is too small."""


class BlobPart:
    """`count` bytes of a blob from `start`, as the body of one request.

    It is as long as announced, hashed and reported while it is read. `digest` is that of all bytes
    before `start`, and once the part was read, of all up to its end.
    """

    def __init__(
        self,
        blob: Blob,
        start: int,
        count: int,
        *,
        digest: "hashlib._Hash",
        report: Callable[[int], None] = no_progress,
    ) -> None:
        self._blob, self._start, self._count, self._report = blob, start, count, report
        self._before = digest
        self.digest = digest

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        self.digest = self._before.copy()
        end = self._start
        for chunk in self._blob.chunks(self._start, count=self._count):
            self.digest.update(chunk)
            end += len(chunk)
            yield chunk
            self._report(end)


def bytes_blob(data: bytes, media_type: str) -> Blob:
    """Return the blob that has the bytes `data`."""
    return Blob(descriptor_of(data, media_type), data)
