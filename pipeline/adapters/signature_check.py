"""Checking a model-signing signature over a directory: by a public key, or by who signed it.

A signature without a key (Sigstore, "keyless") was made with a certificate for an identity, such as
an address or a workflow, that an issuer vouched for, and stands in a public log. Who trusts which
authorities and logs is Sigstore's client trust configuration: a file, or else the one of the public
instance, which needs a network. A signature covers the name and digest of every file. model-signing
takes seconds to import, so that happens only when there is something to check.

Format: https://github.com/ossf/model-signing-spec
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.domain.errors import FailureError, InputError, printable


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
    trust_config_path: Path | None

    def __str__(self) -> str:
        return f"{self.name}, whom {self.issuer} vouched for"

    def configure(self, config: Any) -> None:
        """Raises InputError when the trust configuration is none, FailureError when none is had."""
        if self.trust_config_path is not None and not self.trust_config_path.is_file():
            raise InputError(
                f"{self.trust_config_path}: no such file; expected Sigstore's client trust "
                "configuration"
            )
        try:
            config.use_sigstore_verifier(
                identity=self.name, oidc_issuer=self.issuer, trust_config=self.trust_config_path
            )
        except Exception as error:  # the library raises whatever parsing and downloading raise
            if self.trust_config_path is not None:
                raise InputError(
                    f"{self.trust_config_path}: expected Sigstore's client trust configuration, "
                    "a JSON file"
                ) from error
            raise FailureError(
                "Sigstore's public trust configuration cannot be fetched "
                f"({_reason(error)}); --trust-config has one from a file"
            ) from error


def check_signature(directory: Path, signature_path: Path, *, signer: Signer, source: str) -> None:
    """Raise FailureError unless `signer` signed exactly the files of `directory`.

    Raises InputError when nobody could be checked against `signer`. `source` names the signature.
    """
    from model_signing.verifying import Config

    config = Config()  # type: ignore[no-untyped-call]
    signer.configure(config)
    try:
        config.verify(directory, signature_path)
    except Exception as error:  # a stranger's file: the library raises whatever it stumbles over
        raise FailureError(
            f"{source}: not a signature of these files by {signer} ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
