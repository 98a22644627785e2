"""Credentials for a registry, from where `docker login` and `oras login` keep them.

Reads `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. Credential helper programs
(`credsStore`, `credHelpers`) and identity tokens are not supported; the error names them.

Format: https://docs.docker.com/reference/cli/docker/login/#credential-stores
"""

import base64
import binascii
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.domain.errors import InputError

CONFIG_FILE: Final = "config.json"
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

    def login(self, host: str) -> _Login | None:
        for server, login in self.auths.items():
            # Older tools wrote a URL with a scheme and a path here.
            if server.removeprefix("https://").removeprefix("http://").split("/")[0] == host:
                return login
        return _Login() if host in self.credHelpers else None


def credentials_for(host: str) -> Credentials | None:
    """The login for `host` (`name` or `name:port`), or None when there is none.

    Raises InputError when the file is damaged or keeps this login where it cannot be read.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / CONFIG_FILE
    config = _read(path)
    server = DOCKER_HUB.get(host, host)
    login = config.login(server)
    if login is None:
        return None
    if login.identitytoken:
        raise InputError(
            f"{path}: the login for {host} is an identity token; log in with a user name and an "
            "access token instead"
        )
    if login.auth:
        return _decoded(login.auth, host, path)
    helper = config.credHelpers.get(server) or config.credsStore
    if helper:
        raise InputError(
            f"{path}: the login for {host} is kept by the program docker-credential-{helper}; "
            f"log in with DOCKER_CONFIG set to a directory whose {CONFIG_FILE} names no helper"
        )
    return None


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
