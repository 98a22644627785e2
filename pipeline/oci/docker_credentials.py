"""Credentials for a registry, from where `docker login` and `oras login` keep them.

The `docker` package reads `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`, and asks the
helper programs that the file names. What the package (7.2.0) leaves open is done here: it passes
over a file that is no JSON, looks into the home directory although DOCKER_CONFIG names another one,
fails on damaged logins of other servers, and repeats what a helper printed, which may be a secret.
It takes half a second to import, so that happens only when there is a file.

Format: https://docs.docker.com/reference/cli/docker/login/#credential-stores
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.core.errors import InputError, printable

CONFIG_FILE: Final = "config.json"
DOCKER_HUB: Final = "registry-1.docker.io"  # whose login has another name


@dataclass(frozen=True)
class Credentials:
    """A user name and a password or access token, or else an identity token.

    The secret never shows in a repr. An identity token is exchanged for access tokens, and is no
    password.
    """

    username: str
    password: str = field(repr=False)
    is_identity_token: bool = False


def credentials_for(host: str) -> Credentials | None:
    """Return the login for `host` (`name` or `name:port`), or None when there is none.

    Raises InputError when the file is damaged, or when its helper program is missing or fails.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / CONFIG_FILE
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    from docker import auth, errors

    server = auth.INDEX_NAME if host == DOCKER_HUB else host
    try:
        logins = values.get("auths") or {}
        own = {name: it for name, it in logins.items() if auth.resolve_index_name(name) == server}
        config = auth.AuthConfig(
            {key: values[key] for key in ("credsStore", "credHelpers") if values.get(key)}
        )
        name = server if server in config.cred_helpers else next(iter(own), server)
        helper = config.get_credential_store(name)
        program = f"docker-credential-{printable(helper)}" if helper else None
    except (AttributeError, TypeError) as error:  # another shape than Docker's
        raise _unreadable(path) from error
    try:
        config["auths"] = auth.parse_auth(own, raise_on_error=True)
    except (errors.DockerException, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: the login for {host} is damaged; log in again") from error
    if program and not shutil.which(program):
        raise InputError(f"{program}: no such program, which {path} names; install it")
    try:
        found = config.resolve_authconfig(name)
    except errors.DockerException as error:
        raise InputError(f"{program}: fails for {host}; log in again") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{program}: its answer for {host} is no login") from error
    return _credentials(found or {})


def _credentials(found: dict[str, Any]) -> Credentials | None:
    """Return what the package found; logins of helpers have their keys in capitals."""
    login = {key.lower(): value for key, value in found.items()}
    if token := login.get("identitytoken"):
        return Credentials("an identity token", token, is_identity_token=True)
    if "password" in login:
        return Credentials(login["username"], login["password"])
    return None


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: cannot be read as Docker's configuration; repair it or log in again"
    )
