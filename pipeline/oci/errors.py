"""What a registry can do wrong, each in one line for the user, with the registry's own reason.

Text from a registry is hostile: it is shortened, and shown without control characters, without
queries (which may hold tokens) and without credentials.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes for
reasons, and https://www.rfc-editor.org/rfc/rfc6749#section-5.2 for those of token servers
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import SplitResult, urlsplit

import requests
from urllib3.exceptions import HTTPError, ProtocolError

from pipeline.core.errors import FailureError, InputError, printable
from pipeline.oci.tls import bundle_setting, is_broken_line, tls_problem

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 300.0  # a registry hashes a finished upload before it answers
TIMEOUT: Final = (CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S)
MAX_ANSWER_BYTES: Final = 4 << 20
READ_BYTES: Final = 1 << 20
# https://www.rfc-editor.org/rfc/rfc9110#section-15.6 and https://www.rfc-editor.org/rfc/rfc6585
BUSY: Final = (429, 500, 502, 503, 504)
QUERY: Final = re.compile(r"(https?://[^\s?]*)\?\S*")


class TransientError(FailureError):
    """A failure that may be gone in a moment; `retry_after_s` is what the registry asks for."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BrokenConnectionError(TransientError):
    """The connection broke before there was an answer."""


class RefusedError(FailureError):
    """An answer with a status that was not expected: which host gave it, and why in its words."""

    def __init__(self, message: str, *, status: int, host: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.host = host
        self.reason = reason


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL; all empty when it is malformed."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises, too
    except ValueError:
        return urlsplit("")
    return parts


def read_chunks(answer: requests.Response, host: str) -> Iterator[bytes]:
    """Yield the body of an answer as it was sent: nothing is decompressed, so nothing can expand.

    Raises TransientError when the connection breaks before the last byte.
    """
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise malformed(host, f"in the encoding {encoding!r}")
    try:
        while chunk := answer.raw.read(READ_BYTES, decode_content=False):
            yield chunk
    except (HTTPError, OSError) as error:
        raise TransientError(
            f"the registry {printable(host)} cannot be reached: the connection broke; run the same "
            "command again"
        ) from error
    finally:
        answer.close()


def read_short(answer: requests.Response, host: str) -> bytes:
    """Return the body of an answer.

    Raises FailureError above MAX_ANSWER_BYTES, TransientError when the connection breaks.
    """
    data = b""
    for chunk in read_chunks(answer, host):
        data += chunk
        if len(data) > MAX_ANSWER_BYTES:
            raise malformed(host, f"more than {MAX_ANSWER_BYTES >> 20} MiB")
    return data


def discard(answer: requests.Response) -> None:
    """Close an answer whose body does not matter.

    Its connection is kept for the next request, unless the body is too long to read.
    """
    with answer, suppress(HTTPError, OSError):
        answer.raw.read(READ_BYTES, decode_content=False)


def malformed(host: str, what: str) -> FailureError:
    """Return the error for an answer that no registry gives; `what` says which it was."""
    return FailureError(
        f"{host} answers {printable(what)}, which a registry does not; check its address"
    )


@contextmanager
def readable_network_errors(host: str) -> Iterator[None]:
    """Turn a request without an answer into one line."""
    try:
        yield
    except requests.RequestException as error:
        raise _unreachable(host, error) from error
    except OSError as error:  # requests looks for the file itself, and has no error of its own
        raise InputError(f"{bundle_setting()}: no such file; expected certificates") from error


def _unreachable(host: str, error: requests.RequestException) -> FailureError:
    """Return the line for a request without an answer; transient when a connection broke."""
    found = re.search(r"\[Errno -?\d+\] ([\w .]+)", str(error))
    broke = is_broken_line(error) or (error.args and isinstance(error.args[0], ProtocolError))
    if isinstance(error, requests.exceptions.SSLError) and not broke:
        reason = tls_problem(error, host)
    elif isinstance(error, requests.ConnectTimeout):
        reason = f"no connection within {CONNECT_TIMEOUT_S:.0f} s"
    elif isinstance(error, requests.Timeout):
        reason = f"no answer within {ANSWER_TIMEOUT_S:.0f} s"
    else:
        reason = found[1].lower() if found else "the connection broke"
    return (BrokenConnectionError if broke else FailureError)(
        f"the registry {printable(host)} cannot be reached: {reason}; check its address and run "
        "the same command again"
    )


def no_login(host: str, reason: str = "") -> str:
    """Return the line for a registry that lets nobody in without a login."""
    return (
        f"{host} wants a login and there is none{_in_brackets(reason)}; run `docker login {host}`, "
        "then the same command again"
    )


def refused_login(host: str, username: str, reason: str = "") -> str:
    """Return the line for a login that a registry, or its token server, does not accept."""
    return (
        f"{host} refuses the login of {printable(username)}{_in_brackets(reason)}; "
        f"run `docker login {host}` again"
    )


def refusal(
    method: str, url: str, answer: requests.Response, *, repository: str, username: str | None
) -> RefusedError | TransientError:
    """Return the error for an answer that was not expected. Reads its body."""
    where = split_url(url)
    host, status, reason = printable(where.netloc), answer.status_code, registry_reason(answer)
    if status == requests.codes.unauthorized:
        line = refused_login(host, username, reason) if username else no_login(host, reason)
    elif status == requests.codes.forbidden:
        line = (
            f"{host}: {printable(username or 'an anonymous user')} has no permission for "
            f"{repository}{_in_brackets(reason)}; "
            f"ask its owner, change registry.repository, or `docker login {host}` as somebody else"
        )
    elif 300 <= status < 400:
        target = printable(split_url(answer.headers.get("Location", "")).netloc)
        line = (
            f"{host} sends {method} on to {target or 'nowhere'}; use the address of the "
            "registry itself"
        )
    else:
        https = f" (https://{host}, if it speaks TLS)" if where.scheme == "http" else ""
        advice = f"check its address{https}, or run the same command again later"
        if reason:
            advice = "see to that, then run the same command again"
        line = (
            f"{host}: answer {status} to {method} {printable(where.path)}{_in_brackets(reason)}; "
            f"{advice}"
        )
    if status in BUSY:
        return TransientError(line, retry_after_s=_retry_after_s(answer))
    return RefusedError(line, status=status, host=where.netloc, reason=reason)


def registry_reason(answer: requests.Response) -> str:
    """Return why a registry or a token server refuses, as `CODE: message`; nothing if it is silent.

    Reads the body of the answer.
    """
    try:
        fields = json.loads(answer.raw.read(READ_BYTES, decode_content=False))
        if "errors" in fields:
            first = fields["errors"][0]
            said = (first.get("code"), first.get("message"))
        else:
            said = (fields.get("error"), fields.get("error_description"))
    except (HTTPError, OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""
    text = ": ".join(text for text in said if isinstance(text, str) and text.strip())
    return printable(QUERY.sub(r"\1", text.strip()))


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _retry_after_s(answer: requests.Response) -> float:
    """Return what `Retry-After` asks for in seconds; its other form, a date, counts as nothing."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0.0
