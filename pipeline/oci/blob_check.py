"""Asking a registry whether it has a blob, and with which digest."""

from typing import Final

import requests

from pipeline.oci.errors import RefusedError, malformed
from pipeline.oci.http import RegistryHttp
from pipeline.oci.records import Descriptor

DIGEST_HEADER: Final = "Docker-Content-Digest"


def has_blob(http: RegistryHttp, blob: Descriptor) -> bool:
    """Whether the registry has a blob. Raises FailureError when it has another one in its place."""
    try:
        answer = http.read("HEAD", http.url(f"blobs/{blob.digest}"), expect=(200, 404))
    except RefusedError as error:
        if error.host == http.host:
            raise
        return True  # it sent us on to its storage, which allows GET alone
    if answer.status_code == requests.codes.not_found:
        return False
    size = answer.headers.get("Content-Length", str(blob.size))
    if size != str(blob.size):
        raise malformed(http.host, f"the size {size} for a blob of {blob.size} bytes")
    check_digest(answer, blob.digest, http.host)
    return True


def check_digest(answer: requests.Response, digest: str, host: str) -> None:
    """Raise FailureError when an answer names another digest; naming none is allowed."""
    answered = answer.headers.get(DIGEST_HEADER, digest)
    if answered != digest:
        raise malformed(host, f"the digest {answered[:80]!r} for {digest}")
