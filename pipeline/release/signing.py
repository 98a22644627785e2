"""Sign the files of a package with model-signing and the user's own key.

The signature is a Sigstore bundle beside the directory, and covers the digest of every file.
`model_signing verify key` and `quantline verify` check it with the public key. Keyless signing,
which needs a browser or a workload identity, is not done here. model-signing takes seconds to
import, so that it is imported only to sign.

Format: https://github.com/ossf/model-signing-spec
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord
from pipeline.core.record import sha256_hex
from pipeline.release.signed_files import SignedFiles

PASSWORD_VARIABLE: Final = "QUANTLINE_SIGNING_PASSWORD"
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")


def public_key_sha256(key_path: Path) -> str:
    """Return the sha256 of the public key (DER, SubjectPublicKeyInfo) of the private `key_path`.

    Raises InputError for a file that is not a private elliptic-curve key that can sign.
    """
    try:
        key = load_pem_private_key(key_path.read_bytes(), _password())
    except FileNotFoundError as error:
        raise InputError(f"release.signing_key = {key_path}: no such file") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"release.signing_key = {key_path}: expected a private key in PEM, with its password "
            f"in {PASSWORD_VARIABLE} if it has one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise InputError(
            f"release.signing_key = {key_path}: expected an elliptic-curve key of {CURVES[0]}, "
            f"{CURVES[1]} or {CURVES[2]}"
        )
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256_hex(der)


def sign_files(
    files: Iterable[FileRecord], key_path: Path, signature_path: Path, *, name: str
) -> None:
    """Write the signature over `files` by their digests; `name` is that of their directory.

    No file is read. `key_path` is a private key that `public_key_sha256` accepted.
    """
    from model_signing.signing import Config

    # Untyped; and it declares a text for the password, but hands it to what takes bytes.
    config: Any = Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_signer(private_key=key_path, password=_password())
    config.set_hashing_config(SignedFiles(files, name=name))
    config.sign(Path(name), signature_path)


def _password() -> bytes | None:
    password = os.environ.get(PASSWORD_VARIABLE)
    return password.encode() if password else None
