"""HTTP to one OCI registry: signing in when it asks, never following anywhere with credentials.

Failed requests are not tried again, apart from the one that asked for a login.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final
from urllib.parse import urljoin

import requests
from requests.auth import AuthBase

from pipeline.adapters.docker_credentials import Credentials
from pipeline.adapters.registry_errors import (
    TIMEOUT,
    nonsense,
    refusal,
    split_url,
    unreachable,
)
from pipeline.adapters.registry_login import Anonymous, sign_in
from pipeline.domain.errors import InputError

MAX_REDIRECTS: Final = 5

Body = Iterable[bytes] | bytes | None


class RegistryHttp:
    """Requests to the registry at `url` that concern `repository`."""

    def __init__(self, url: str, repository: str, credentials: Credentials | None) -> None:
        self._url = split_url(url)
        if not self._url.hostname:
            raise InputError(f"registry.url = {url!r}: expected a URL such as https://host:5000")
        self._repository = repository
        self._credentials = credentials
        self._session = requests.Session()
        self._auth: AuthBase = Anonymous()

    @property
    def host(self) -> str:
        return self._url.netloc

    def url(self, path: str) -> str:
        """The URL of a resource of the repository, such as `manifests/TAG`."""
        return f"{self._url.scheme}://{self.host}/v2/{self._repository}/{path}"

    def location(self, answer: requests.Response) -> str:
        """The `Location` of an answer, relative or not, as a URL."""
        given = answer.headers.get("Location", "")
        try:
            url = urljoin(f"{self._url.scheme}://{self.host}/", given)
        except ValueError:
            url = ""
        if not given or split_url(url).scheme not in ("http", "https"):
            raise nonsense(self.host, f"the location {given!r}")
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
        """One request; its answer, with the body not read yet.

        `body` is called again when the request has to be repeated after signing in. Raises
        FailureError when the status is none of `expect`, or when there is no answer.
        """
        answer = self._send_once(method, url, headers, body())
        if answer.status_code == requests.codes.unauthorized and self._is_own(url):
            self._auth = sign_in(
                self._session,
                answer.headers.get("WWW-Authenticate", ""),
                registry=self._url,
                repository=self._repository,
                credentials=self._credentials,
            )
            answer = self._send_once(method, url, headers, body())
        if answer.status_code not in expect:
            username = self._credentials.username if self._credentials else None
            raise refusal(method, url, answer, repository=self._repository, username=username)
        return answer

    def head(self, url: str, *, expect: Collection[int]) -> requests.Response:
        """HEAD, following redirects: registries send readers of blobs on to their storage."""
        for _ in range(MAX_REDIRECTS):
            answer = self.send("HEAD", url, expect=(*expect, 301, 302, 303, 307, 308))
            if not answer.is_redirect:
                return answer
            url = self.location(answer)
        raise nonsense(self.host, f"with more than {MAX_REDIRECTS} redirects")

    def _is_own(self, url: str) -> bool:
        parts = split_url(url)
        return (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc)

    def _send_once(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: Body
    ) -> requests.Response:
        try:
            return self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                auth=self._auth if self._is_own(url) else Anonymous(),
                stream=True,
                allow_redirects=False,
                timeout=TIMEOUT,
            )
        except requests.RequestException as error:
            raise unreachable(split_url(url).netloc, error) from error
