"""A blob on its way to a registry: its descriptor, and its bytes in chunks of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.adapters.files import CHUNK_BYTES
from pipeline.adapters.progress import track
from pipeline.domain.oci import Descriptor

REPORTED_CHUNKS = 64  # from here on the transfer of one file reports its progress


@dataclass(frozen=True)
class Blob:
    """Bytes to store under `descriptor.digest`: a file, or the bytes themselves."""

    descriptor: Descriptor
    content: Path | bytes

    def __len__(self) -> int:
        """Size in bytes; the HTTP client sends it as Content-Length."""
        return self.descriptor.size

    def __iter__(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        total = -(-self.descriptor.size // CHUNK_BYTES)
        chunks = _file_chunks(self.content)
        if total < REPORTED_CHUNKS:
            yield from chunks
        else:
            label = f"{self.content.name} (chunks of {CHUNK_BYTES >> 20} MiB)"
            yield from track(chunks, label, total=total)


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
