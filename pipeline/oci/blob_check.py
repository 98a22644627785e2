"""Asking a registry whether it has a blob, and with which digest."""

from typing import Final

import requests

from pipeline.oci.errors import RefusedError, malformed
from pipeline.oci.http import RegistryHttp
from pipeline.oci.records import Descriptor

DIGEST_HEADER: Final = "Docker-Content-Digest"


def has_blob(http: RegistryHttp, blob: Descriptor) -> bool:
    """Whether the registry has a blob. Raises FailureError when it has another one in its place."""
    url = http.url(f"blobs/{blob.digest}")
    try:
        answer = http.read("HEAD", url, expect=(200, 404))
    except RefusedError as error:
        if error.host == http.host:
            raise
        size = _size_by_get(http, url)  # it sent us on to its storage, which allows GET alone
    else:
        if answer.status_code == requests.codes.not_found:
            return False
        check_digest(answer, blob.digest, http.host)
        size = answer.headers.get("Content-Length")
    if size not in (None, str(blob.size)):
        raise malformed(http.host, f"the size {size} for a blob of {blob.size} bytes")
    return True


def _size_by_get(http: RegistryHttp, url: str) -> str | None:
    """Return the size of a blob, from an answer to a request for its first byte."""
    first_byte = {"Range": "bytes=0-0"}
    with http.read("GET", url, headers=first_byte, expect=(200, 206, 416)) as answer:
        if answer.status_code == requests.codes.ok:
            return answer.headers.get("Content-Length")
        return answer.headers.get("Content-Range", "").partition("/")[2] or None


def check_digest(answer: requests.Response, digest: str, host: str) -> None:
    """Raise FailureError when an answer names another digest; naming none is allowed."""
    answered = answer.headers.get(DIGEST_HEADER, digest)
    if answered != digest:
        raise malformed(host, f"the digest {answered[:80]!r} for {digest}")
