"""A blob on its way into a registry: its descriptor, and its bytes from any offset in chunks."""

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
        """Where the bytes come from, for messages."""
        if isinstance(self.content, bytes):
            return self.descriptor.digest
        return str(self.content.path if isinstance(self.content, FilePart) else self.content)

    def chunks(self, start: int = 0, *, count: int | None = None) -> Iterator[bytes]:
        """`count` bytes from `start`, to the end by default; fewer when a file is too short."""
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


def bytes_blob(data: bytes, media_type: str) -> Blob:
    return Blob(descriptor_of(data, media_type), data)


def no_progress(num_bytes: int) -> None:
    """An `Advance` for what is too small to report."""
