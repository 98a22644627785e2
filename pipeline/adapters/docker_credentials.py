"""Credentials for a registry, from where `docker login` and `oras login` keep them.

Reads `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`, and asks the helper programs that
it names (`credHelpers` for one server, `credsStore` for all others). Identity tokens are not
supported; the error says so.

Format: https://docs.docker.com/reference/cli/docker/login/#credential-stores and, of the helpers,
https://github.com/docker/docker-credential-helpers#development
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.adapters.process import ask_program
from pipeline.domain.errors import InputError, shown

CONFIG_FILE: Final = "config.json"
HELPER_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
HELPER_TIMEOUT_S: Final = 60.0  # some ask a person, or a cloud
IDENTITY_TOKEN_USER: Final = "<token>"
DOCKER_HUB: Final = {"registry-1.docker.io": "index.docker.io"}  # whose login has another name


@dataclass(frozen=True)
class Credentials:
    """A user name and a password or access token; the password never shows in a repr."""

    username: str
    password: str = field(repr=False)


class _Foreign(BaseModel):
    """Docker's file, which other tools extend: unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class _Login(_Foreign):
    auth: str | None = None
    identitytoken: str | None = None


class _DockerConfig(_Foreign):
    auths: dict[str, _Login] = {}
    credHelpers: dict[str, str] = {}  # noqa: N815
    credsStore: str | None = None  # noqa: N815

    def name_of(self, host: str) -> str:
        """How the file spells a host: older tools wrote a URL with a scheme and a path."""
        for server in self.auths:
            if server.removeprefix("https://").removeprefix("http://").split("/")[0] == host:
                return server
        return host

    def login(self, host: str) -> _Login | None:
        return self.auths.get(self.name_of(host))


class _HelperAnswer(_Foreign):
    Username: str
    Secret: str


def credentials_for(host: str) -> Credentials | None:
    """The login for `host` (`name` or `name:port`), or None when there is none.

    Raises InputError when the file is damaged or keeps this login where it cannot be read.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / CONFIG_FILE
    config = _read(path)
    server = DOCKER_HUB.get(host, host)
    login = config.login(server)
    if login and login.identitytoken:
        raise _identity_token(str(path), host)
    if login and login.auth:
        return _decoded(login.auth, host, path)
    helper = config.credHelpers.get(server) or config.credsStore
    return _from_helper(helper, config.name_of(server), host, path) if helper else None


def _from_helper(helper: str, server: str, host: str, path: Path) -> Credentials | None:
    """What `docker-credential-HELPER get` knows; None when it has no login for `server`."""
    if not HELPER_NAME.fullmatch(helper):
        raise InputError(f"{path}: {shown(helper)} is no name of a credential helper")
    program = f"docker-credential-{helper}"
    answer = ask_program([program, "get"], server.encode(), timeout_s=HELPER_TIMEOUT_S)
    if answer is None:
        return None
    try:
        found = _HelperAnswer.model_validate_json(answer)
    except ValidationError as error:
        raise InputError(f"{program}: its answer for {host} is no login") from error
    if found.Username == IDENTITY_TOKEN_USER:
        raise _identity_token(program, host)
    return Credentials(found.Username, found.Secret)


def _identity_token(source: str, host: str) -> InputError:
    return InputError(
        f"{source}: the login for {host} is an identity token; log in with a user name and an "
        "access token instead"
    )


def _read(path: Path) -> _DockerConfig:
    try:
        return _DockerConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _DockerConfig()
    except (ValidationError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as Docker's configuration; repair it or log in again"
        ) from error


def _decoded(encoded: str, host: str, path: Path) -> Credentials:
    try:
        username, separator, password = (
            base64.b64decode(encoded, validate=True).decode().partition(":")
        )
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the login for {host} is damaged; log in again") from error
    if not separator:
        raise InputError(f"{path}: the login for {host} has no password; log in again")
    return Credentials(username, password)
