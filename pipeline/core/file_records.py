"""Records of files by size and sha256, and the two notations of a sha256: hex and OCI digest."""

import unicodedata
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipeline.core.record import Record, sha256_hex


def relative_posix(path: str) -> str:
    """Refuse names that could leave the directory they are written to."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path:
        raise ValueError("expected a relative path with forward slashes")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("expected a path without empty, '.' or '..' parts")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise ValueError("expected a path without control characters")
    return path


DIGEST_ALGORITHM: Final = "sha256:"
DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"


class Digest(str):
    """A sha256 in OCI's notation, `sha256:` and 64 hex digits; a plain string in files.

    quantline's own records hold the digits alone: `Digest.of_hex` and `hex` convert between them.
    https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests
    """

    __slots__ = ()

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the digest of `data`."""
        return cls.of_hex(sha256_hex(data))

    @classmethod
    def of_hex(cls, sha256: str) -> Self:
        """Return the digest whose hex digits are `sha256`."""
        return cls(DIGEST_ALGORITHM + sha256)

    @property
    def hex(self) -> str:
        """The 64 hex digits, as a `Sha256` field holds them."""
        return self.removeprefix(DIGEST_ALGORITHM)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Tell pydantic to check a string against the pattern and to make it a Digest."""
        text = core_schema.str_schema(pattern=DIGEST_PATTERN)
        return core_schema.no_info_after_validator_function(cls, text)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, AfterValidator(relative_posix)]


class FileRecord(Record):
    """One file of a directory: path relative to it, size in bytes, sha256 of its bytes."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @property
    def digest(self) -> Digest:
        """The sha256 in OCI's notation."""
        return Digest.of_hex(self.sha256)


def tree_digest(files: tuple[FileRecord, ...]) -> str:
    """Return one sha256, in hex, over the lines that `sha256sum` prints of `files`.

    A line is `<sha256>  <path>`; lines are sorted by path.
    """
    lines = [f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda f: f.path)]
    return sha256_hex("".join(lines).encode())
