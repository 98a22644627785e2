"""HTTP to one OCI registry: it signs in when asked, and sends credentials to no other host.

`send` tries again what is worth it: broken connections and answers that say the registry is busy.
`attempt` is one try, for requests that must not be repeated blindly.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from threading import Lock
from typing import Final
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from pipeline.core.errors import InputError
from pipeline.oci.docker_credentials import Credentials
from pipeline.oci.errors import (
    TIMEOUT,
    discard,
    malformed,
    readable_network_errors,
    refusal,
    split_url,
)
from pipeline.oci.login import Anonymous, sign_in
from pipeline.oci.retry import with_retries

MAX_REDIRECTS: Final = 5
REDIRECTS: Final = (301, 302, 303, 307, 308)
CONNECTIONS: Final = 16
PULL: Final = "pull"  # https://distribution.github.io/distribution/spec/auth/scope/
PUSH: Final = "pull,push"

Body = Iterable[bytes] | bytes | None


class RegistryHttp:
    """Requests to the registry at `url` that concern `repository`. Threads may share it.

    Only `read` leaves the body of an answer to be read, in a `with` block that frees its
    connection. The connections of all other answers are free again at once.
    """

    def __init__(self, url: str, repository: str, credentials: Credentials | None) -> None:
        self._url = split_url(url)
        if not self._url.hostname:
            raise InputError(f"registry.url = {url!r}: expected a URL such as https://host:5000")
        self._repository = repository
        self._credentials = credentials
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        self._auth: AuthBase = Anonymous()
        self._actions = PULL
        self._signing_in = Lock()

    @property
    def host(self) -> str:
        """Return the registry's `name` or `name:port`."""
        return self._url.netloc

    def ask_for_push(self) -> None:
        """Ask for the permission to push, too, at the next login."""
        self._actions = PUSH

    def url(self, path: str) -> str:
        """Return the URL of a resource of the repository, such as `manifests/TAG`."""
        return f"{self._url.scheme}://{self.host}/v2/{self._repository}/{path}"

    def location(self, answer: requests.Response) -> str:
        """Return the `Location` of an answer, relative or not, as a URL; TLS is never left."""
        given = answer.headers.get("Location", "")
        try:
            url = urljoin(answer.url or self.url(""), given)
        except ValueError:
            url = ""
        schemes = ("https",) if self._url.scheme == "https" else ("http", "https")
        if not given or split_url(url).scheme not in schemes:
            raise malformed(self.host, f"the location {given!r}")
        return url

    def send(
        self,
        method: str,
        url: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body] = lambda: None,
    ) -> requests.Response:
        """Send one request, again while the registry is busy, and return its answer's head.

        `body` is called for every try. Raises FailureError when the status is none of `expect`, or
        when there is no answer.
        """
        return with_retries(
            lambda: self.attempt(method, url, expect=expect, headers=headers, body=body)
        )

    def attempt(
        self,
        method: str,
        url: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body] = lambda: None,
    ) -> requests.Response:
        """Send one request once, or twice when the registry wants a login first.

        Raises TransientError for what is worth another try, FailureError for the rest.
        """
        answer = self._open(method, url, expect, headers, body)
        discard(answer)
        return answer

    def read(
        self,
        method: str,
        url: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send one request, follow redirects, and return an answer whose body is still to be read.

        Registries send readers of blobs on to their storage.
        """
        expected = (*expect, *REDIRECTS)
        for _ in range(MAX_REDIRECTS):
            answer = with_retries(partial(self._open, method, url, expected, headers))
            if method == "HEAD" or not answer.ok or answer.is_redirect:
                discard(answer)
            if not answer.is_redirect:
                return answer
            url = self.location(answer)
        raise malformed(self.host, f"with more than {MAX_REDIRECTS} redirects")

    def _open(
        self,
        method: str,
        url: str,
        expect: Collection[int],
        headers: Mapping[str, str] | None,
        body: Callable[[], Body] = lambda: None,
    ) -> requests.Response:
        """Try once; the answer holds its connection until it is closed or read to its end."""
        auth = self._auth
        answer = self._send_once(method, url, headers, body(), auth)
        if answer.status_code == requests.codes.unauthorized and self._is_own(url):
            discard(answer)
            auth = self._signed_in(answer, instead_of=auth)
            answer = self._send_once(method, url, headers, body(), auth)
        if answer.status_code not in expect:
            username = self._credentials.username if self._credentials else None
            error = refusal(method, url, answer, repository=self._repository, username=username)
            discard(answer)
            raise error
        return answer

    def _signed_in(self, answer: requests.Response, *, instead_of: AuthBase) -> AuthBase:
        """Return a new login, or the one that another thread has just got."""
        with self._signing_in:
            if self._auth is instead_of:
                self._auth = sign_in(
                    self._session,
                    answer.headers.get("WWW-Authenticate", ""),
                    registry=self._url,
                    repository=self._repository,
                    actions=self._actions,
                    credentials=self._credentials,
                )
            return self._auth

    def _is_own(self, url: str) -> bool:
        parts = split_url(url)
        return (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc)

    def _send_once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: Body,
        auth: AuthBase,
    ) -> requests.Response:
        with readable_network_errors(split_url(url).netloc):
            return self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                auth=auth if self._is_own(url) else Anonymous(),
                stream=True,
                allow_redirects=False,
                timeout=TIMEOUT,
            )
