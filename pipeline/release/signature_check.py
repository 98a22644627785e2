"""Checking a model-signing signature over a release: by a public key, or by who signed it.

A signature without a key (Sigstore, "keyless") was made with a certificate for an identity, such as
an address or a workflow, that an issuer vouched for, and stands in a public log. Which authorities
and logs are trusted is in Sigstore's trusted root: a file, or else the one of the public instance,
which needs a network. A signature covers the name and sha256 of every file, and a release's layers
are named by the same sha256, so no file is read for it. model-signing takes seconds to import, so
that happens only when there is something to check.

Formats: https://github.com/ossf/model-signing-spec and
https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from pipeline.core.errors import FailureError, InputError, printable, short_repr

TRUST_CONFIG_TYPE: Final = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
SIGNING_CONFIG_TYPE: Final = "application/vnd.dev.sigstore.signingconfig.v0.2+json"


class Signer(Protocol):
    """Whoever is to have signed; `str()` names them."""

    def configure(self, config: Any) -> None:
        """Make a model-signing configuration accept this signer alone."""


@dataclass(frozen=True)
class KeyOwner:
    """The owner of a public key (PEM, elliptic curve)."""

    key_path: Path

    def __str__(self) -> str:
        return f"the owner of {self.key_path}"

    def configure(self, config: Any) -> None:
        """Raises InputError when it is no such key."""
        if not self.key_path.is_file():
            raise InputError(f"{self.key_path}: no such file; expected the signer's public key")
        try:
            config.use_elliptic_key_verifier(public_key=self.key_path)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.key_path}: expected the signer's public key in PEM, an elliptic-curve one"
            ) from error


@dataclass(frozen=True)
class Identity:
    """Who signed without a key: `name` is an address or URI that `issuer`, a URL, vouched for."""

    name: str
    issuer: str
    trusted_root_path: Path | None

    def __str__(self) -> str:
        return f"{self.name}, whom {self.issuer} vouched for"

    def configure(self, config: Any) -> None:
        """Raises InputError when the trusted root is none, FailureError when none can be had."""
        if self.trusted_root_path is not None and not self.trusted_root_path.is_file():
            raise InputError(
                f"{self.trusted_root_path}: no such file; expected Sigstore's trusted root"
            )
        try:
            if self.trusted_root_path is None:
                config.use_sigstore_verifier(identity=self.name, oidc_issuer=self.issuer)
            else:
                self._trust(config, self.trusted_root_path.read_bytes())
        except Exception as error:  # the library raises whatever parsing and downloading raise
            if self.trusted_root_path is not None:
                raise InputError(
                    f"{self.trusted_root_path}: expected Sigstore's trusted root, such as "
                    "trusted_root.json"
                ) from error
            raise FailureError(
                f"Sigstore's trusted root cannot be fetched ({_reason(error)}); --trusted-root "
                "has it from a file"
            ) from error

    def _trust(self, config: Any, trusted_root: bytes) -> None:
        """The library takes a trusted root only with the addresses that signing would need."""
        trust_config = {
            "mediaType": TRUST_CONFIG_TYPE,
            "trustedRoot": json.loads(trusted_root),
            "signingConfig": {"mediaType": SIGNING_CONFIG_TYPE},
        }
        with TemporaryDirectory() as directory:
            path = Path(directory) / "trust_config.json"
            path.write_text(json.dumps(trust_config))
            config.use_sigstore_verifier(
                identity=self.name, oidc_issuer=self.issuer, trust_config=path
            )


def check_signature(
    signature: bytes, files: Mapping[str, str], *, signer: Signer, source: str
) -> None:
    """Raise FailureError unless `signer` signed exactly `files`, the sha256 (hex) of each by name.

    Raises InputError when nobody could be checked against `signer`. `source` names the signature.
    """
    from model_signing.verifying import Config

    config: Any = Config()  # type: ignore[no-untyped-call]
    signer.configure(config)
    config.set_hashing_config(_KnownDigests(files))
    _require_sha256_of_files(signature, source)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "signature.json"
        path.write_bytes(signature)
        try:
            config.verify(Path(), path)
        except Exception as error:  # a stranger's: the library raises whatever it stumbles over
            raise FailureError(
                f"{source}: not a signature of these files by {signer} ({_reason(error)})"
            ) from error


class _KnownDigests:
    """What model-signing asks for the digests of a model: those that the release states.

    It stands for a `model_signing.hashing.Config`, which would read the files of a directory.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def add_ignored_paths(self, *, model_path: Path, paths: object) -> None:
        """Ignore nothing: a file that the signer left out is not signed."""

    def hash(self, model_path: Path, *, files_to_hash: object) -> Any:
        """Return a `model_signing.manifest.Manifest` of all files."""
        # Its public modules take a Digest and do not offer the class.
        from model_signing._hashing.hashing import Digest
        from model_signing.manifest import FileManifestItem, Manifest, SerializationType

        items = [
            FileManifestItem(
                path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(sha256))
            )
            for name, sha256 in self._files.items()
        ]
        kind = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
        return Manifest("release", items, SerializationType.from_args(kind))


def _require_sha256_of_files(signature: bytes, source: str) -> None:
    """Raise FailureError for a signature over pieces of files, or over other digests than sha256.

    model-signing's library can make those, its command line does not. What is no signature at all
    is left to the library to refuse.
    """
    try:
        payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        stated = payload["predicate"]["serialization"]
        kind = (stated["method"], stated["hash_type"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    if kind != ("files", "sha256"):
        raise FailureError(
            f"{source}: signs {short_repr(kind)}, and the digests of a release are the sha256 of "
            "whole "
            "files; sign it with model-signing's own settings"
        )


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
