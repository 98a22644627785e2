"""Signing in to a registry: basic authentication, and bearer tokens from the server it names.

Passwords are sent over TLS only, except to this machine. Nothing here is written or logged.

Format: https://www.rfc-editor.org/rfc/rfc7235#section-4.1 for challenges,
https://distribution.github.io/distribution/spec/auth/token/ for tokens and
https://distribution.github.io/distribution/spec/auth/oauth/ for identity tokens.
"""

import json
import re
from typing import Final
from urllib.parse import SplitResult

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from requests.structures import CaseInsensitiveDict

from pipeline.core.errors import FailureError, InputError
from pipeline.oci.docker_credentials import Credentials
from pipeline.oci.errors import (
    BUSY,
    TIMEOUT,
    discard,
    malformed,
    no_login,
    read_short,
    readable_network_errors,
    refusal,
    refused_login,
    registry_reason,
    split_url,
)
from pipeline.oci.reference import LOOPBACK_HOSTS

CHALLENGE_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')
TOKEN: Final = re.compile(r"[\x21-\x7e]+")
DENIED: Final = (requests.codes.unauthorized, requests.codes.forbidden)
# https://www.rfc-editor.org/rfc/rfc6749#section-5.2
REFUSED_GRANT: Final = requests.codes.bad_request
CLIENT_ID: Final = "quantline"


class Anonymous(AuthBase):
    """No credentials at all: without it the HTTP client would look into ~/.netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class BearerToken(AuthBase):
    """A token in the `Authorization` header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = "Bearer " + self._token
        return request


def sign_in(
    session: requests.Session,
    challenge: str,
    *,
    registry: SplitResult,
    repository: str,
    actions: str,
    credentials: Credentials | None,
) -> AuthBase:
    """Return what answers the `WWW-Authenticate` challenge of `registry`.

    A token is asked for `actions` on `repository` (`pull` or `pull,push`), whatever scope the
    challenge names: GHCR names a repository that is only an example, and others name `pull` to
    those who look before they push. Docker does the same.

    Raises FailureError when there is no login, when it is refused, or when the challenge is none.
    """
    scheme, _, parameters = challenge.partition(" ")
    if scheme.lower() == "bearer":
        given = CaseInsensitiveDict(CHALLENGE_PARAMETER.findall(parameters))
        realm = split_url(given.get("realm", ""))
        if realm.scheme != "https" and realm.scheme != registry.scheme:
            raise malformed(registry.netloc, f"with the token server {realm.geturl()!r}")
        query = {
            "service": given.get("service", registry.netloc),
            "scope": f"repository:{repository}:{actions}",
        }
        return BearerToken(
            _fetch_token(
                session,
                realm,
                query,
                registry=registry,
                repository=repository,
                credentials=credentials,
            )
        )
    if scheme.lower() == "basic":
        if credentials is None:
            raise FailureError(no_login(registry.netloc))
        if credentials.is_identity_token:
            raise InputError(
                f"{registry.netloc}: wants a password, and its login is an identity token; run "
                f"`docker login {registry.netloc}` with a user name and a password"
            )
        return _basic(credentials, registry)
    raise malformed(registry.netloc, f"with the login scheme {scheme!r}")


def _basic(credentials: Credentials, target: SplitResult) -> AuthBase:
    _require_tls(target)
    return HTTPBasicAuth(credentials.username.encode(), credentials.password.encode())


def _require_tls(target: SplitResult) -> None:
    """Raise InputError where a secret could be read on its way."""
    if target.scheme != "https" and target.hostname not in LOOPBACK_HOSTS:
        raise InputError(
            f"{target.scheme}://{target.netloc}: a password is not sent without TLS; use https"
        )


def _fetch_token(
    session: requests.Session,
    realm: SplitResult,
    query: dict[str, str],
    *,
    registry: SplitResult,
    repository: str,
    credentials: Credentials | None,
) -> str:
    """Return the token that the server at `realm` gives for the login, or for none.

    An identity token is exchanged by OAuth's refresh_token grant.
    """
    form: dict[str, str] | None = None
    denied: tuple[int, ...] = DENIED
    if credentials is not None and credentials.is_identity_token:
        _require_tls(realm)
        grant = {"grant_type": "refresh_token", "refresh_token": credentials.password}
        form, query = {**query, **grant, "client_id": CLIENT_ID}, {}
        denied = (*DENIED, REFUSED_GRANT)
    method = "POST" if form else "GET"
    with readable_network_errors(realm.netloc):
        answer = session.request(
            method,
            realm.geturl(),
            params=query,
            data=form,
            auth=_basic(credentials, realm) if credentials and not form else Anonymous(),
            stream=True,
            allow_redirects=False,
            timeout=TIMEOUT,
        )
    if answer.status_code in denied:
        host, reason = registry.netloc, registry_reason(answer)
        discard(answer)
        if credentials is None:
            raise FailureError(no_login(host, reason))
        reason = reason.replace(credentials.password, "…")
        raise FailureError(refused_login(host, credentials.username, reason))
    if answer.status_code in BUSY:
        error = refusal(method, realm.geturl(), answer, repository=repository, username=None)
        discard(answer)
        raise error
    try:
        fields = json.loads(read_short(answer, realm.netloc))
        token = fields.get("token") or fields.get("access_token")
    except (ValueError, AttributeError) as error:
        raise malformed(realm.netloc, "something else than a token") from error
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise malformed(realm.netloc, "something else than a token")
    return token
