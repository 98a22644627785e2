"""What can go wrong with TLS, each kind in words of its own.

A certificate that is not trusted, one that has expired, one of another name, a port without TLS and
a server that is too old need different remedies. OpenSSL tells them apart by codes.

Codes: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/ for certificates and
https://github.com/openssl/openssl/blob/openssl-3.0/include/openssl/sslerr.h for the rest
"""

import os
import ssl
from typing import Final

import requests

from pipeline.core.errors import printable

NOT_YET_VALID: Final = 9
EXPIRED: Final = 10
OTHER_NAME: Final = (62, 64)  # of a host, of an IP address
UNKNOWN_AUTHORITY: Final = (2, 18, 19, 20, 21)
NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
NOTHING_IN_COMMON: Final = (
    "NO_PROTOCOLS_AVAILABLE",
    "NO_SHARED_CIPHER",
    "TLSV1_ALERT_INSUFFICIENT_SECURITY",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
)
WANTS_CERTIFICATE: Final = ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE")
REFUSED: Final = "SSLV3_ALERT_HANDSHAKE_FAILURE"  # the reason is not said
NO_CERTIFICATES: Final = ("X509", "PEM")  # where OpenSSL fails on what the bundle holds
BUNDLE_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # in requests' own order


def bundle_setting() -> str:
    """Return the variable that names the trusted authorities, with its value, for a message."""
    name = next((name for name in BUNDLE_VARIABLES if os.environ.get(name)), BUNDLE_VARIABLES[0])
    return f"{name} = {printable(os.environ.get(name, ''))}"


def is_broken_line(error: requests.RequestException) -> bool:
    """Whether the other side hung up in the middle of TLS, which may be gone in a moment."""
    return isinstance(_cause(error), ssl.SSLEOFError | ssl.SSLZeroReturnError)


def tls_problem(error: requests.exceptions.SSLError, host: str) -> str:
    """Return what is wrong between this machine and `host`, and what to do about it."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _certificate_problem(cause)
    reason = (cause.reason if cause else None) or "an unknown error"
    if reason in NO_TLS:
        return f"it does not speak TLS on that port (http://{printable(host)}, if that is meant)"
    if reason in NOTHING_IN_COMMON:
        return "it offers no version or cipher of TLS that this machine accepts"
    if reason in WANTS_CERTIFICATE:
        return "it wants a TLS certificate of its clients, and quantline has none to show"
    if reason == REFUSED:
        return "it refuses TLS: no cipher in common, or it wants a certificate of its clients"
    if cause is not None and cause.library in NO_CERTIFICATES:
        return f"{bundle_setting()}: expected certificates in PEM"
    return f"TLS failed with {printable(reason.lower().replace('_', ' '))}"


def _certificate_problem(cause: ssl.SSLCertVerificationError) -> str:
    code = cause.verify_code
    if code in UNKNOWN_AUTHORITY:
        return "its TLS certificate is not trusted (REQUESTS_CA_BUNDLE names your own authority)"
    if code == EXPIRED:
        return "its TLS certificate has expired; have it renewed"
    if code == NOT_YET_VALID:
        return "its TLS certificate is not valid yet; compare the clocks of both machines"
    if code in OTHER_NAME:
        return "its TLS certificate is for another name; use a name that it is for"
    return f"its TLS certificate is refused: {printable(cause.verify_message)}"


def _cause(error: BaseException) -> ssl.SSLError | None:
    """Return OpenSSL's error in what requests and urllib3 wrapped around it."""
    found: object = error
    while isinstance(found, BaseException) and not isinstance(found, ssl.SSLError):
        found = getattr(found, "reason", None) or next(iter(found.args), None)
    return found if isinstance(found, ssl.SSLError) else None
