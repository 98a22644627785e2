"""Uploading one blob in parts, so that what a kill or a broken line interrupts goes on later.

Registries follow the protocol to different degrees, and none says which. So whatever they answer,
the blob ends there with its digest, or in one line with the registry's own reason:

- A part is taken when the status says so. The `Range` beside it is not believed: Amazon's stays at
  the first part although all are stored.
- A part that is too large is sent again in smaller ones (`part_sizes`).
- A registry that takes no parts, as Google's, or has not kept all of them, as Artifactory, gets the
  blob in one request.
- An interrupted upload goes on where the registry says it is, else after the last part that it
  took, else from the beginning: Quay counts one byte too many, Amazon's says nothing before it is
  sent something, and distribution 2.x gives up what was under way unless a proxy passes on whole
  parts only.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-a-blob-in-chunks
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import requests

from pipeline.core.errors import FailureError, InputError
from pipeline.oci.blob import Advance, Blob, BlobPart
from pipeline.oci.blob_check import check_digest, has_blob
from pipeline.oci.errors import BrokenConnectionError, RefusedError, TransientError
from pipeline.oci.http import RegistryHttp
from pipeline.oci.part_sizes import PartSizes
from pipeline.oci.retry import RetryPolicy
from pipeline.oci.upload_journal import UnfinishedUpload, UploadJournal

UPLOAD_TYPE: Final = "application/octet-stream"
MIN_PART_HEADER: Final = "OCI-Chunk-Min-Length"
RECEIVED: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
ANY_STATUS: Final = range(200, 500)
PART_TAKEN: Final = (201, 202, 204)  # 202 in the specification, 201 from Amazon's, 204 from Pulp
BLOB_TAKEN: Final = (201, 204)
TOO_LARGE: Final = (413, 416)  # 416 from GHCR
MOUNT_REFUSED: Final = (400, 405)  # by older Quays, when a mount names no repository
NO_PERMISSION: Final = (401, 403)
EXPECTED_START: Final = re.compile(r"First byte .* is \d+ instead of (\d{1,18})")  # Amazon's words


@dataclass(frozen=True)
class _Place:
    """Where the next part goes, how many bytes the registry has, and the least it takes at once.

    A place is sure when the registry has just taken a part there, or has nothing yet.
    """

    url: str
    received: int
    least: int = 0
    is_sure: bool = True


class _WrongPlaceError(Exception):
    """The registry does not go on with an upload at the place where it seemed to be."""


class _OtherWayError(Exception):
    """The registry does not take the blob in this way; what was learned leads to another one."""


class Upload:
    """One blob that the registry does not have yet."""

    def __init__(
        self,
        http: RegistryHttp,
        blob: Blob,
        *,
        journal: UploadJournal,
        part_sizes: PartSizes,
        advance: Advance,
    ) -> None:
        self._http = http
        self._blob = blob
        self._digest = blob.descriptor.digest
        self._size = blob.descriptor.size
        self._journal = journal
        self._part_sizes = part_sizes
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
                if self._part_sizes.are_needed_for(self._size):
                    self._run_in_parts()
                else:
                    self._run_at_once()
            except TransientError as error:
                self._retries.wait(error)
            except _OtherWayError:
                self._journal.forget(self._digest)
            else:
                break
        self._journal.forget(self._digest)
        self._report(self._size)

    def _run_at_once(self) -> None:
        """Send the blob in one request; it is read twice, so that nothing wrong is ever sent."""
        digest = hashlib.sha256()
        for chunk in self._blob.chunks():
            digest.update(chunk)
        self._check(digest)
        place = self._begin()
        if place is None:
            return
        body = BlobPart(self._blob, 0, self._size, digest=hashlib.sha256(), report=self._report)
        try:
            self._finish(place, body if self._size else b"")
        except RefusedError as error:
            is_too_large = error.status in TOO_LARGE and self._part_sizes.are_taken
            if is_too_large and self._part_sizes.refused(self._size):
                raise _OtherWayError from error
            raise

    def _run_in_parts(self) -> None:
        for place in self._places():
            try:
                self._run_from(place)
                return
            except _WrongPlaceError:
                continue

    def _places(self) -> Iterator[_Place]:
        """Yield where the upload may go on, best first; nothing when the registry has the blob."""
        note = self._journal.find(self._digest)
        if note is not None:
            self._part_sizes.go_on_with(note.part_bytes)
            known = self._known_place(note.url)
            if known is not None:
                yield known
            if known is None or known.received != note.received:
                yield _Place(note.url, note.received, is_sure=False)
            self._journal.forget(self._digest)
        if (place := self._begin()) is not None:
            yield place

    def _run_from(self, place: _Place) -> None:
        """Send the blob's bytes from `place` to its end.

        Raises _WrongPlaceError where the upload does not go on there, _OtherWayError where only
        the whole blob in one request is left to try.
        """
        was_resumed = not place.is_sure
        digest = hashlib.sha256()
        for chunk in self._blob.chunks(count=place.received):
            digest.update(chunk)
        self._report(place.received)
        while place.received < self._size:
            count = min(max(self._part_sizes.bytes, place.least), self._size - place.received)
            part = BlobPart(self._blob, place.received, count, digest=digest)
            try:
                place = self._send(part, place)
            except BrokenConnectionError:
                self._part_sizes.broke_connection(count)
                raise
            except RefusedError as error:
                start = _expected_start(error)
                if place.received < start <= self._size:
                    self._run_from(replace(place, received=start, is_sure=False))
                    return
                self._consider(error, place, count)
                continue
            digest = part.digest
            self._part_sizes.taken(count)
            if place.received > self._reported:
                self._retries.progress()
            self._report(place.received)
        self._check(digest)
        self._close(place, was_resumed=was_resumed)

    def _consider(self, error: RefusedError, place: _Place, count: int) -> None:
        """Raise what follows from a refused part; return when smaller ones may be taken."""
        if error.status in NO_PERMISSION:
            raise error
        if not place.is_sure:
            raise _WrongPlaceError from error
        if error.status in TOO_LARGE and count > place.least and self._part_sizes.refused(count):
            return
        if error.status == requests.codes.not_found and place.received:  # it forgot the upload
            self._journal.forget(self._digest)
            raise TransientError(str(error)) from error
        self._part_sizes.are_taken = False
        raise _OtherWayError from error

    def _close(self, place: _Place, *, was_resumed: bool) -> None:
        """Close the upload at its last place, and see whether the registry has all of the blob.

        Raises _OtherWayError when it does not: a resumed upload that is refused starts over.
        """
        is_refused = False
        try:
            self._finish(place, b"")
            if has_blob(self._http, self._blob.descriptor):
                return
        except TransientError:
            raise
        except RefusedError as error:
            if error.status in NO_PERMISSION:
                raise
            is_refused = True
        except FailureError:
            pass  # it has something else under the digest: not all of the parts
        self._part_sizes.are_taken = was_resumed and is_refused
        raise _OtherWayError

    def _begin(self) -> _Place | None:
        """Return a new upload; None when the registry found the blob in another repository."""
        url = self._http.url("blobs/uploads/")
        try:
            answer = self._http.send("POST", f"{url}?mount={self._digest}", expect=(201, 202))
        except RefusedError as error:
            if error.status not in MOUNT_REFUSED:
                raise
            answer = self._http.send("POST", url, expect=(202,))
        if answer.status_code == requests.codes.created:
            check_digest(answer, self._digest, self._http.host)
            if has_blob(self._http, self._blob.descriptor):
                return None
            answer = self._http.send("POST", url, expect=(202,))
        least = answer.headers.get(MIN_PART_HEADER, "")
        least_bytes = int(least) if re.fullmatch(r"[0-9]{1,18}", least) else 0
        return _Place(self._http.location(answer), 0, least_bytes)

    def _known_place(self, url: str) -> _Place | None:
        """Return where the registry says an upload is; None when it does not say it."""
        answer = self._http.send("GET", url, expect=ANY_STATUS)
        received = RECEIVED.fullmatch(answer.headers.get("Range", ""))
        if answer.status_code != requests.codes.no_content or received is None:
            return None
        count = int(received[1]) + 1
        if not 1 < count <= self._size:  # registries answer `0-0` for an empty upload
            return None
        return _Place(self._next_url(answer, url), count, is_sure=False)

    def _send(self, part: BlobPart, place: _Place) -> _Place:
        """Send one part, and return where the next one goes."""
        end = place.received + len(part)
        answer = self._http.attempt(
            "PATCH",
            place.url,
            headers={"Content-Type": UPLOAD_TYPE, "Content-Range": f"{place.received}-{end - 1}"},
            body=lambda: part,
            expect=PART_TAKEN,
        )
        url = self._next_url(answer, place.url)
        self._journal.keep(
            UnfinishedUpload(
                digest=self._digest, url=url, received=end, part_bytes=self._part_sizes.bytes
            )
        )
        return _Place(url, end, place.least)

    def _next_url(self, answer: requests.Response, url: str) -> str:
        return self._http.location(answer) if "Location" in answer.headers else url

    def _finish(self, place: _Place, body: BlobPart | bytes) -> None:
        separator = "&" if "?" in place.url else "?"
        answer = self._http.attempt(
            "PUT",
            f"{place.url}{separator}digest={self._digest}",
            headers={"Content-Type": UPLOAD_TYPE},
            body=lambda: body,
            expect=BLOB_TAKEN,
        )
        check_digest(answer, self._digest, self._http.host)

    def _check(self, digest: "hashlib._Hash") -> None:
        if digest.hexdigest() != self._digest.hex:
            self._journal.forget(self._digest)
            raise InputError(
                f"{self._blob.source}: not the bytes that were recorded; make it again"
            )

    def _report(self, received: int) -> None:
        self._advance(received - self._reported)
        self._reported = received


def _expected_start(error: RefusedError) -> int:
    """Return the byte with which the next part has to begin, where a registry says so; else 0."""
    found = EXPECTED_START.search(error.reason)
    return int(found[1]) if found else 0
