"""A registry server: tags, blobs and manifests over the OCI distribution protocol.

oras-py (0.2.43) covers this protocol too, and is not used: it holds whole layers in memory unless
told to cut them up, resumes nothing, does not compare digests on a pull, writes into place and
retries every error. It would do nothing here but build URLs.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urljoin

import requests

from pipeline.core.errors import FailureError
from pipeline.core.file_records import Digest
from pipeline.oci.blob import Advance, Blob
from pipeline.oci.blob_check import check_digest, has_blob
from pipeline.oci.docker_credentials import credentials_for
from pipeline.oci.errors import RefusedError, malformed, read_chunks, read_short
from pipeline.oci.http import RegistryHttp
from pipeline.oci.part_sizes import PartSizes
from pipeline.oci.records import (
    INDEX_TYPE,
    MANIFEST_TYPES,
    TAG_PATTERN,
    Descriptor,
    ImageIndex,
    OciRecord,
    descriptor_of,
)
from pipeline.oci.reference import is_digest
from pipeline.oci.store import StoredManifest
from pipeline.oci.upload import Upload
from pipeline.oci.upload_journal import UploadJournal

MAX_PAGES: Final = 100
NEXT_PAGE: Final = re.compile(r"<([^>]*)>; *rel=\"?next\"?")
NO_REFERRERS_API: Final = (400, 404, 405, 406, 501)
# How a registry says that it does not know a kind of manifest: by its status or by its code.
TYPE_REFUSED: Final = (406, 415)
TYPE_REFUSED_CODES: Final = ("MANIFEST_INVALID", "UNSUPPORTED")


class TagList(OciRecord):
    """One page of a repository's tags; Docker's registry answers null where there are none."""

    name: str
    tags: tuple[str, ...] | None


class Registry:
    """One repository of a registry server. All methods raise FailureError in one line."""

    def __init__(self, url: str, repository: str) -> None:
        host = url.split("://")[1]
        self._http = RegistryHttp(url, repository, credentials_for(host))
        self._journal = UploadJournal(self._http.url(""))
        self._part_sizes = PartSizes()
        self._repository = repository

    def reference(self, name: str) -> str:
        """Return how messages name a tag or digest of the repository."""
        separator = "@" if is_digest(name) else ":"
        return f"{self._http.host}/{self._repository}{separator}{name}"

    def tags(self) -> tuple[str, ...]:
        """Return all tags, in the registry's order; none when the repository does not exist."""
        tags: list[str] = []
        url = self._http.url("tags/list")
        for _ in range(MAX_PAGES):
            with self._http.read("GET", url, expect=(200, 404)) as answer:
                if answer.status_code == requests.codes.not_found:
                    return tuple(tags)
                page = TagList.from_untrusted(read_short(answer, self._http.host), source=url)
            tags += page.tags or ()
            if bad := next((tag for tag in tags if not re.fullmatch(TAG_PATTERN, tag)), None):
                raise malformed(self._http.host, f"the tag {bad!r}")
            following = NEXT_PAGE.match(answer.headers.get("Link", ""))
            if following is None:
                return tuple(tags)
            # Only the query is taken from the answer: the tags are this repository's.
            url = urljoin(url, "?" + following[1].partition("?")[2])
        raise malformed(self._http.host, f"more than {MAX_PAGES} pages of tags")

    def manifest(self, name: str) -> StoredManifest | None:
        """Return what a tag or digest names, or None when the registry does not have it.

        The digest is computed from the manifest's bytes, whatever the registry says it is.
        """
        with self._http.read(
            "GET",
            self._http.url(f"manifests/{name}"),
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
            expect=(200, 404),
        ) as answer:
            if answer.status_code == requests.codes.not_found:
                return None
            content_type = answer.headers.get("Content-Type", "").partition(";")[0]
            if content_type not in MANIFEST_TYPES:
                raise malformed(self._http.host, f"{content_type or 'something'} for a manifest")
            data = read_short(answer, self._http.host)
        if is_digest(name) and Digest.of(data) != name:
            raise FailureError(f"{self.reference(name)}: the registry has other bytes under it")
        check_digest(answer, Digest.of(data), self._http.host)
        return StoredManifest(descriptor_of(data, content_type), data)

    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a blob from `start`, not compared with its digest.

        Raises TransientError when the connection breaks.
        """
        part = {"Range": f"bytes={start}-"} if start else {}
        with self._http.read(
            "GET", self._http.url(f"blobs/{blob.digest}"), headers=part, expect=(200, 206)
        ) as answer:
            skipped = start
            if answer.status_code == requests.codes.partial_content:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise malformed(self._http.host, "another part of a blob than was asked for")
                skipped = 0
            for chunk in read_chunks(answer, self._http.host):
                if wanted := chunk[skipped:]:
                    yield wanted
                skipped = max(skipped - len(chunk), 0)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Do nothing: a registry server knows no locks."""
        yield

    def push_blob(self, blob: Blob, advance: Advance) -> None:
        """Upload a blob unless the registry has it."""
        self._http.ask_for_push()
        if has_blob(self._http, blob.descriptor):
            advance(blob.descriptor.size)
            return
        Upload(
            self._http,
            blob,
            journal=self._journal,
            part_sizes=self._part_sizes,
            advance=advance,
        ).run()

    def push_manifest(self, manifest: Blob, tag: str | None = None) -> None:
        """Store a manifest whose blobs are there, under its digest and `tag`."""
        digest, media_type = manifest.descriptor.digest, manifest.descriptor.media_type
        name = tag or digest
        self._http.ask_for_push()
        try:
            answer = self._http.send(
                "PUT",
                self._http.url(f"manifests/{name}"),
                headers={"Content-Type": media_type},
                body=lambda: b"".join(manifest.chunks()),
                expect=(201,),
            )
        except RefusedError as error:
            is_type = error.status in TYPE_REFUSED or error.reason.startswith(TYPE_REFUSED_CODES)
            if not is_type:
                raise
            raise FailureError(
                f"{self._http.host} refuses a manifest of the type {media_type} "
                f"({error.reason or f'answer {error.status}'}); a newer version of it, or another "
                "registry, takes OCI artifacts"
            ) from error
        check_digest(answer, digest, self._http.host)
        stored = self.manifest(name)
        if stored is None or stored.descriptor.digest != digest:
            raise malformed(
                self._http.host, f"another manifest under {name} than the one it was sent"
            )

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """Return what the referrers API lists, or None where there is no such API."""
        url = self._http.url(f"referrers/{digest}")
        with self._http.read("GET", url, expect=(200, *NO_REFERRERS_API)) as answer:
            content_type = answer.headers.get("Content-Type", "").partition(";")[0]
            if answer.status_code != requests.codes.ok or content_type != INDEX_TYPE:
                return None
            data = read_short(answer, self._http.host)
        return ImageIndex.from_untrusted(data, source=url).manifests
