"""What `ollama pull` sends to a registry, and what it wants to hear: a replay of its protocol.

Manifest, then for each blob a HEAD for the size, a GET that is not followed and whose answer has to
carry a `Location`, and ranged GETs of that address, several at a time. It knows no user and
password; asked for one, it gives up.

Source: https://github.com/ollama/ollama/blob/main/server/download.go and images.go
"""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import requests

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
PARTS = 3
TIMEOUT_S = 30


class PullError(Exception):
    """What `ollama pull` would print."""


def pull(registry: str, model: str, tag: str) -> dict[str, list[bytes]]:
    """The blobs of a model by the last part of their media type. Raises PullError."""
    base = f"{registry}/v2/{model}"
    accept = {"Accept": MANIFEST_TYPE}
    answer = requests.get(f"{base}/manifests/{tag}", headers=accept, timeout=TIMEOUT_S)
    if answer.status_code != requests.codes.ok:
        raise PullError(f"pull model manifest: {answer.status_code}")
    manifest = answer.json()
    blobs: dict[str, list[bytes]] = {}
    for layer in (*manifest["layers"], manifest["config"]):
        data = _download(f"{base}/blobs/{layer['digest']}")
        if "sha256:" + hashlib.sha256(data).hexdigest() != layer["digest"]:
            raise PullError("digest mismatch, file must be downloaded again")
        blobs.setdefault(layer["mediaType"].split(".")[-1], []).append(data)
    return blobs


def _download(url: str) -> bytes:
    size = int(requests.head(url, timeout=TIMEOUT_S).headers["Content-Length"])
    with requests.get(url, allow_redirects=False, stream=True, timeout=TIMEOUT_S) as answer:
        if "Location" not in answer.headers:
            raise PullError("http: no Location header in response")
        direct = urljoin(url, answer.headers["Location"])
    bounds = [size * part // PARTS for part in range(PARTS + 1)]
    ranges = [pair for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    with ThreadPoolExecutor(PARTS) as pool:
        return b"".join(pool.map(lambda it: _part(direct, *it), ranges))


def _part(url: str, start: int, end: int) -> bytes:
    wanted = {"Range": f"bytes={start}-{end - 1}"}
    answer = requests.get(url, headers=wanted, timeout=TIMEOUT_S)
    if answer.status_code != requests.codes.partial_content:
        raise PullError(f"unexpected status {answer.status_code}")
    return answer.content
