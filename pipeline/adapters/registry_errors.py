"""What a registry can do wrong, each in one line for the user.

Text from a registry is hostile: it is shortened, and shown without control characters, without
queries (which may hold tokens) and without credentials.
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

import requests

from pipeline.domain.errors import FailureError

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 300.0  # a registry hashes a finished upload before it answers
TIMEOUT: Final = (CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S)
MAX_ANSWER_BYTES: Final = 4 << 20
MAX_SHOWN_CHARACTERS: Final = 200


def shown(text: str) -> str:
    """Text from outside as one short printable line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_SHOWN_CHARACTERS]


def split_url(url: str) -> SplitResult:
    """The parts of a URL; all empty when it is malformed."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises, too
    except ValueError:
        return urlsplit("")
    return parts


def read_short(answer: requests.Response, host: str) -> bytes:
    """The body of an answer. Raises FailureError above MAX_ANSWER_BYTES or on a broken line."""
    data = b""
    try:
        for chunk in answer.iter_content(1 << 16):
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise nonsense(host, f"more than {MAX_ANSWER_BYTES >> 20} MiB")
    except requests.RequestException as error:
        raise unreachable(host, error) from error
    return data


def nonsense(host: str, what: str) -> FailureError:
    return FailureError(
        f"{host} answers {shown(what)}, which a registry does not; check registry.url"
    )


def unreachable(host: str, error: requests.RequestException) -> FailureError:
    found = re.search(r"\[Errno -?\d+\] ([\w .]+)", str(error))
    if isinstance(error, requests.exceptions.SSLError):
        reason = "its TLS certificate is not trusted (REQUESTS_CA_BUNDLE names your own authority)"
    elif isinstance(error, requests.ConnectTimeout):
        reason = f"no connection within {CONNECT_TIMEOUT_S:.0f} s"
    elif isinstance(error, requests.Timeout):
        reason = f"no answer within {ANSWER_TIMEOUT_S:.0f} s"
    else:
        reason = found[1].lower() if found else "the connection broke"
    return FailureError(
        f"the registry {shown(host)} cannot be reached: {reason}; check registry.url and run the "
        "same command again"
    )


def no_login(host: str) -> FailureError:
    return FailureError(
        f"{host} wants a login and there is none; run `docker login {host}`, then the same "
        "command again"
    )


def refused_login(host: str, username: str) -> FailureError:
    return FailureError(
        f"{host} refuses the login of {shown(username)}; run `docker login {host}` again"
    )


def refusal(
    method: str, url: str, answer: requests.Response, *, repository: str, username: str | None
) -> FailureError:
    """The line for an answer that was not expected."""
    where = split_url(url)
    host, status = shown(where.netloc), answer.status_code
    if status == requests.codes.unauthorized:
        return refused_login(host, username) if username else no_login(host)
    if status == requests.codes.forbidden:
        return FailureError(
            f"{host}: {shown(username or 'an anonymous user')} has no permission for {repository}; "
            f"ask its owner, change registry.repository, or `docker login {host}` as somebody else"
        )
    if 300 <= status < 400:
        target = shown(split_url(answer.headers.get("Location", "")).netloc)
        return FailureError(
            f"{host} sends {method} on to {target or 'nowhere'}; set registry.url to the registry "
            "itself"
        )
    return FailureError(
        f"{host}: answer {status} to {method} {shown(where.path)}; check registry.url, or run the "
        "same command again later"
    )
