"""How an operator names a release: `TAG`, `HOST/REPOSITORY:TAG`, `oci:DIRECTORY:TAG`, `…@DIGEST`.

A reference without a place means the registry of params.yaml. As Docker does, a host without a
scheme is spoken to over TLS, unless it is this machine.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.core.errors import InputError, short_repr
from pipeline.core.file_records import DIGEST_PATTERN
from pipeline.oci.records import TAG_PATTERN
from pipeline.params.params import REGISTRY_URL, REPOSITORY

LAYOUT_PREFIX: Final = "oci:"
LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
EXPECTED: Final = (
    "expected TAG, HOST/REPOSITORY:TAG or oci:DIRECTORY:TAG, where @sha256:… may stand for :TAG"
)
DIGEST_END: Final = re.compile(r"(?P<place>.*?)@?(?P<name>sha256:[0-9a-f]{64})")
TAG_END: Final = re.compile(r"(?P<place>.*):(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})")


@dataclass(frozen=True)
class Server:
    """One repository of a registry server."""

    url: str
    repository: str


@dataclass(frozen=True)
class LayoutPath:
    """An OCI image layout on disk."""

    path: Path


Place = Server | LayoutPath


@dataclass(frozen=True)
class Reference:
    """`place` None is the registry of params.yaml; `name` is a tag, a digest, or None for all."""

    place: Place | None
    name: str | None


def parse_reference(text: str) -> Reference:
    """Return the reference that `text` means. Raises InputError."""
    if re.fullmatch(TAG_PATTERN, text) or re.fullmatch(DIGEST_PATTERN, text):
        return Reference(None, text)
    place, name = _split(text)
    return Reference(_place(place, text), name)


def is_digest(name: str) -> bool:
    """Whether a name is a digest and no tag."""
    return re.fullmatch(DIGEST_PATTERN, name) is not None


def _split(text: str) -> tuple[str, str | None]:
    """Return the place and the name; a colon before the last slash is a port's or a directory's."""
    if match := DIGEST_END.fullmatch(text):
        return match["place"], match["name"]
    match = TAG_END.fullmatch(text)
    if match and match["place"] + ":" != LAYOUT_PREFIX and not _is_scheme(match["place"]):
        return match["place"], match["name"]
    return text, None


def _is_scheme(text: str) -> bool:
    return text in ("http", "https")


def _place(text: str, whole: str) -> Place:
    if text.startswith(LAYOUT_PREFIX) and text != LAYOUT_PREFIX:
        return LayoutPath(Path(text.removeprefix(LAYOUT_PREFIX)))
    scheme, separator, rest = text.rpartition("://")
    host, _, repository = rest.partition("/")
    if not separator:
        bare_host = host.rsplit(":", 1)[0].strip("[]")
        scheme = "http" if bare_host in LOOPBACK_HOSTS else "https"
    url = f"{scheme}://{host}"
    if not re.fullmatch(REGISTRY_URL, url) or not re.fullmatch(REPOSITORY, repository):
        raise InputError(f"{short_repr(whole)}: {EXPECTED}")
    return Server(url, repository)
