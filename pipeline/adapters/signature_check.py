"""Checking a model-signing signature over a directory with the signer's public key.

It covers the name and digest of every file. model-signing takes seconds to import, so that happens
only when there is something to check.

Format: https://github.com/ossf/model-signing-spec
"""

from pathlib import Path

from pipeline.domain.errors import FailureError, InputError, printable


def check_signature(directory: Path, signature_path: Path, *, key_path: Path, source: str) -> None:
    """Raise FailureError unless the owner of `key_path` signed exactly the files of `directory`.

    Raises InputError when there is no public key in `key_path`. `source` names the signature.
    """
    from model_signing.verifying import Config

    try:
        config = Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_verifier(public_key=key_path)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{key_path}: expected the signer's public key in PEM, an elliptic-curve one"
        ) from error
    try:
        config.verify(directory, signature_path)
    except Exception as error:  # a stranger's file: the library raises whatever it stumbles over
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise FailureError(
            f"{source}: not a signature of these files by the owner of {key_path} ({reason})"
        ) from error
