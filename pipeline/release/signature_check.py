"""Check a model-signing signature over a release, by a public key or by the signer's identity.

A signature without a key (Sigstore, "keyless") carries a certificate for an identity, such as an
address or a workflow. An issuer vouched for the identity, and a public log has the signature. The
trusted root names the authorities and logs to trust; it comes from a file, or from Sigstore's
public instance, which needs a network. A signature covers the name and sha256 of every file. A
release names its layers by the same sha256, so that no file is read. model-signing takes seconds to
import, so that it is imported only for a check.

Formats: https://github.com/ossf/model-signing-spec and
https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from pipeline.core.errors import FailureError, InputError, printable, short_repr
from pipeline.core.file_records import FileRecord
from pipeline.release.signed_files import SignedFiles

TRUST_CONFIG_TYPE: Final = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
SIGNING_CONFIG_TYPE: Final = "application/vnd.dev.sigstore.signingconfig.v0.2+json"


class Signer(Protocol):
    """Describe who is expected to have signed; `str()` names them."""

    def configure(self, config: Any) -> None:
        """Make a model-signing configuration accept this signer alone."""


@dataclass(frozen=True)
class KeyOwner:
    """Expect the owner of a public key (PEM, elliptic curve)."""

    key_path: Path

    def __str__(self) -> str:
        return f"the owner of {self.key_path}"

    def configure(self, config: Any) -> None:
        """Accept this key alone. Raises InputError when the file is no such key."""
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
    """Expect a signer without a key: an address or URI `name` that the URL `issuer` vouched for."""

    name: str
    issuer: str
    trusted_root_path: Path | None

    def __str__(self) -> str:
        return f"{self.name}, whom {self.issuer} vouched for"

    def configure(self, config: Any) -> None:
        """Accept this identity alone.

        Raises InputError when the file has no trusted root, FailureError when Sigstore's cannot be
        fetched.
        """
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
        """Trust the roots of a file; the library wants the addresses for signing beside them."""
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
    signature: bytes, files: Iterable[FileRecord], *, signer: Signer, source: str
) -> None:
    """Raise FailureError unless `signer` signed exactly `files`.

    Raises InputError when the key or the trusted root of `signer` cannot be used. Messages call the
    signature `source`.
    """
    from model_signing.verifying import Config

    config: Any = Config()  # type: ignore[no-untyped-call]
    signer.configure(config)
    config.set_hashing_config(SignedFiles(files, name=source))
    _require_sha256_of_files(signature, source)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "signature.json"
        path.write_bytes(signature)
        try:
            config.verify(Path(), path)
        except Exception as error:  # untrusted bytes: the library raises any kind
            raise FailureError(
                f"{source}: not a signature of these files by {signer} ({_reason(error)})"
            ) from error


def _require_sha256_of_files(signature: bytes, source: str) -> None:
    """Raise FailureError for a signature over parts of files, or over other digests than sha256.

    model-signing's library can make those; its command line does not. A file that is no signature
    passes here, and the library refuses it.
    """
    try:
        payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        stated = payload["predicate"]["serialization"]
        kind = (stated["method"], stated["hash_type"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    if kind != ("files", "sha256"):
        raise FailureError(
            f"{source}: signs {short_repr(kind)}; expected the sha256 of whole files: sign it with "
            "model-signing's default settings"
        )


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
