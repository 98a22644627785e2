"""Uploading one blob in parts, so that what a kill or a broken line interrupts goes on later.

After each part the registry says where the next one goes; that address is kept in the user's own
state directory until the blob is whole. The next run asks the registry how much it has and goes on
there, or starts over where the registry has given the upload up: distribution 2.x does so when
a part was under way at that moment, unless a proxy in front of it passes on whole parts only.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-a-blob-in-chunks
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests

from pipeline.core.errors import InputError
from pipeline.core.files import write_record
from pipeline.core.record import Record, sha256_hex
from pipeline.oci.blob import Advance, Blob
from pipeline.oci.errors import TransientError, malformed
from pipeline.oci.http import RegistryHttp
from pipeline.oci.retry import RetryPolicy

PART_BYTES: Final = 32 << 20
UPLOAD_TYPE: Final = "application/octet-stream"
DIGEST_HEADER: Final = "Docker-Content-Digest"
MIN_PART_HEADER: Final = "OCI-Chunk-Min-Length"
RECEIVED: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
ANY_STATUS: Final = range(200, 500)


class UnfinishedUpload(Record):
    """Where an upload goes on. The address may hold a token of the registry's own."""

    digest: str
    url: str


class UploadJournal:
    """The unfinished uploads to one repository, a file each, readable by their user alone."""

    def __init__(self, repository_url: str) -> None:
        state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        self._directory = Path(state_home) / "quantline" / "uploads"
        self._repository_url = repository_url

    def url(self, digest: str) -> str | None:
        path = self._path(digest)
        try:
            return UnfinishedUpload.from_bytes(path.read_bytes(), source=str(path)).url
        except (FileNotFoundError, InputError):
            return None  # a damaged note is as good as none: the upload starts over

    def keep(self, digest: str, url: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_record(self._path(digest), UnfinishedUpload(digest=digest, url=url))

    def forget(self, digest: str) -> None:
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / (sha256_hex(f"{self._repository_url}{digest}".encode()) + ".json")


@dataclass(frozen=True)
class _Place:
    """Where the next part goes, how many bytes the registry has, and the least it takes at once."""

    url: str
    received: int
    part_bytes: int = PART_BYTES


class _Part:
    """The body of one request: as long as announced, and hashed while it is read."""

    def __init__(self, blob: Blob, place: _Place, digest: "hashlib._Hash") -> None:
        self._blob, self._start = blob, place.received
        self._count = min(place.part_bytes, blob.descriptor.size - place.received)
        self._before = digest
        self.digest = digest

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        self.digest = self._before.copy()
        for chunk in self._blob.chunks(self._start, count=self._count):
            self.digest.update(chunk)
            yield chunk


class Upload:
    """One blob that the registry does not have yet."""

    def __init__(
        self, http: RegistryHttp, blob: Blob, *, journal: UploadJournal, advance: Advance
    ) -> None:
        self._http = http
        self._blob = blob
        self._digest = blob.descriptor.digest
        self._size = blob.descriptor.size
        self._journal = journal
        self._advance = advance
        self._reported = 0
        self._retries = RetryPolicy()

    def run(self) -> None:
        """Send what the registry lacks.

        Raises InputError when the bytes are not those of the blob's digest, FailureError when the
        registry fails.
        """
        while True:
            try:
                if self._size > PART_BYTES:
                    self._run_in_parts()
                else:
                    self._run_at_once()
            except TransientError as error:
                self._retries.wait(error)
            else:
                break
        self._journal.forget(self._digest)
        self._report(self._size)

    def _run_at_once(self) -> None:
        place = self._begin()
        if place is not None:
            part = _Part(self._blob, place, hashlib.sha256())
            for _ in part:  # read twice, as it is small: nothing wrong is ever sent
                pass
            self._check(part.digest)
            self._finish(place, part if self._size else b"")

    def _run_in_parts(self) -> None:
        place = self._resumed() or self._begin()
        if place is None:
            return
        digest = hashlib.sha256()
        for chunk in self._blob.chunks(count=place.received):
            digest.update(chunk)
        self._report(place.received)
        while place.received < self._size:
            part = _Part(self._blob, place, digest)
            place = self._send(part, place)
            digest = part.digest
            self._report(place.received)
        self._check(digest)
        self._finish(place, b"")

    def _begin(self) -> _Place | None:
        """A new upload; None when the registry found the blob in another of its repositories."""
        answer = self._http.send(
            "POST", self._http.url(f"blobs/uploads/?mount={self._digest}"), expect=(201, 202)
        )
        if answer.status_code == requests.codes.created:
            check_digest(answer, self._digest, self._http.host)
            return None
        least = answer.headers.get(MIN_PART_HEADER, "")
        wanted = int(least) if least.isascii() and least.isdigit() else 0
        return _Place(self._http.location(answer), 0, min(max(PART_BYTES, wanted), self._size))

    def _resumed(self) -> _Place | None:
        """Where an earlier run stopped; None when there was none, or the registry forgot it."""
        url = self._journal.url(self._digest)
        if url is None:
            return None
        answer = self._http.send("GET", url, expect=ANY_STATUS)
        received = RECEIVED.fullmatch(answer.headers.get("Range", ""))
        if answer.status_code != requests.codes.no_content or received is None:
            self._journal.forget(self._digest)
            return None
        count = int(received[1]) + 1
        if not 1 < count <= self._size:  # `0-0` says one byte, and is said of none
            return None
        return _Place(self._http.location(answer) if "Location" in answer.headers else url, count)

    def _send(self, part: _Part, place: _Place) -> _Place:
        """Send one part; where the next one goes."""
        end = place.received + len(part)
        answer = self._http.attempt(
            "PATCH",
            place.url,
            headers={"Content-Type": UPLOAD_TYPE, "Content-Range": f"{place.received}-{end - 1}"},
            body=lambda: part,
            expect=(202,),
        )
        received = RECEIVED.fullmatch(answer.headers.get("Range", f"0-{end - 1}"))
        if received is None or int(received[1]) + 1 != end:
            raise malformed(
                self._http.host, f"that it has {answer.headers['Range']} of 0-{end - 1}"
            )
        url = self._http.location(answer)
        self._journal.keep(self._digest, url)
        if end > self._reported:
            self._retries.progress()
        return _Place(url, end, place.part_bytes)

    def _finish(self, place: _Place, body: "_Part | bytes") -> None:
        separator = "&" if "?" in place.url else "?"
        answer = self._http.attempt(
            "PUT",
            f"{place.url}{separator}digest={self._digest}",
            headers={"Content-Type": UPLOAD_TYPE},
            body=lambda: body,
            expect=(201,),
        )
        check_digest(answer, self._digest, self._http.host)

    def _check(self, digest: "hashlib._Hash") -> None:
        if "sha256:" + digest.hexdigest() != self._digest:
            self._journal.forget(self._digest)
            raise InputError(
                f"{self._blob.source}: not the bytes that were recorded; make it again"
            )

    def _report(self, received: int) -> None:
        self._advance(received - self._reported)
        self._reported = received


def check_digest(answer: requests.Response, digest: str, host: str) -> None:
    """The header is optional in the specification; when it is there it has to be right."""
    answered = answer.headers.get(DIGEST_HEADER, digest)
    if answered != digest:
        raise malformed(host, f"the digest {answered[:80]!r} for {digest}")
