"""Credentials for a registry, from where `docker login` and `oras login` keep them.

The `docker` package understands `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. What
it (7.2.0) does badly is done here: it passes over a file that is no JSON, looks into the home
directory although DOCKER_CONFIG names another one, fails on damaged logins of other servers, waits
for ever for a helper program, and repeats what a helper printed, which may be a secret. It takes
half a second to import, so that happens only when there is a file.

Format: https://docs.docker.com/reference/cli/docker/login/#credential-stores and, for helpers,
https://github.com/docker/docker-credential-helpers#development
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.core.errors import FailureError, InputError, printable
from pipeline.core.process import ask_program

CONFIG_FILE: Final = "config.json"
DOCKER_HUB: Final = "registry-1.docker.io"  # whose login has another name
HELPER_TIMEOUT_S: Final = 60.0  # some ask a person for a password, or a cloud for a token
NOT_FOUND: Final = b"credentials not found in native keychain"  # a helper's words for "no login"
TOKEN_USERNAME: Final = "<token>"  # a helper's user name beside an identity token


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

    Raises InputError when the file is damaged, or when its helper program is missing or fails, and
    FailureError when the helper does not answer within HELPER_TIMEOUT_S.
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
        own = {
            name: login for name, login in logins.items() if auth.resolve_index_name(name) == server
        }
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
    if program:
        if not shutil.which(program):
            raise InputError(f"{program}: no such program, which {path} names; install it")
        asked_name = auth.INDEX_URL if name == auth.INDEX_NAME else name
        if (login := _ask_helper(program, asked_name, host)) is not None:
            return login
    return _login_in_file(config.auths.values())


def _ask_helper(program: str, server: str, host: str) -> Credentials | None:
    """Return the login that a helper program keeps for `server`, or None when it has none."""
    try:
        answer = ask_program([program, "get"], server.encode(), timeout_s=HELPER_TIMEOUT_S)
    except FailureError as error:
        raise FailureError(
            f"{error}; see what it waits for with `echo {server} | {program} get`"
        ) from error
    if answer.exit_code != 0:
        if NOT_FOUND in answer.output:
            return None
        raise InputError(f"{program}: fails for {host}; log in again")
    try:
        fields = json.loads(answer.output)
        username, secret = fields["Username"], fields["Secret"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{program}: its answer for {host} is no login") from error
    if not isinstance(username, str) or not isinstance(secret, str):
        raise InputError(f"{program}: its answer for {host} is no login")
    if username == TOKEN_USERNAME:
        return _identity_token(secret)
    return Credentials(username, secret) if username or secret else None


def _login_in_file(logins: Iterable[dict[str, Any]]) -> Credentials | None:
    """Return the login that the configuration itself holds."""
    for login in logins:
        if token := login.get("IdentityToken"):
            return _identity_token(str(token))
        if "password" in login:
            return Credentials(login["username"], login["password"])
    return None


def _identity_token(token: str) -> Credentials:
    return Credentials("an identity token", token, is_identity_token=True)


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: cannot be read as Docker's configuration; repair it or log in again"
    )
