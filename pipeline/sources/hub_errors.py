"""Turn the errors of huggingface_hub into one line each.

No line quotes a request or the text of an exception, which could contain the token.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.core.errors import FailureError, InputError, QuantlineError
from pipeline.params.hub_source import HubSource

TRY_AGAIN = "run the same command again: what is whole is kept"


@contextmanager
def readable_hub_errors(
    source: HubSource, *, endpoint: str, name: str | None = None
) -> Iterator[None]:
    """Turn an error of huggingface_hub into an InputError or FailureError; `name` is the file."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise _problem(error.__cause__ or error, source, endpoint, name) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, UnicodeError) as error:
        raise _problem(error, source, endpoint, name) from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the hub's
            raise
        raise _problem(error, source, endpoint, name) from error


def _problem(
    error: BaseException, source: HubSource, endpoint: str, name: str | None
) -> QuantlineError:
    hub = redacted_endpoint(endpoint)
    what = f"{source}: {name}" if name else str(source)
    match error:
        case GatedRepoError():
            return InputError(
                f"{what}: access is restricted; accept the terms at {hub}/{source.repo}, then log "
                "in with `hf auth login` or set HF_TOKEN"
            )
        case RepositoryNotFoundError():
            return InputError(
                f"{what}: {hub} has no such repository, or a private one; check the name, or log "
                "in with `hf auth login` or HF_TOKEN"
            )
        case RevisionNotFoundError():
            return InputError(
                f"{what}: {hub} has no such revision of {source.repo}; copy the full commit from "
                "the repository's history"
            )
        case DisabledRepoError():
            return InputError(f"{what}: {hub} has disabled this repository; use another one")
        case RemoteEntryNotFoundError():
            return FailureError(f"{what}: listed by {hub}, but not there; {TRY_AGAIN}")
        case HFValidationError():
            return InputError(f"{what}: not a name that {hub} could have; expected hf:ORG/NAME")
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return InputError(
                f"{what}: {hub} refuses access ({error.response.status_code}); log in with "
                "`hf auth login`, or set HF_TOKEN to a token that may read it"
            )
        case HfHubHTTPError() if error.response.status_code == 404:
            return FailureError(f"{what}: {hub} answers 404; check the name and HF_ENDPOINT")
        case HfHubHTTPError():
            return FailureError(f"{what}: {hub} answers {error.response.status_code}; {TRY_AGAIN}")
        case (
            httpx2.LocalProtocolError()
            | httpx2.InvalidURL()
            | httpx2.UnsupportedProtocol()
            | UnicodeError()
        ):
            return InputError(
                f"{what}: no request can be made to {hub}; check HF_ENDPOINT and HF_TOKEN for "
                "stray characters"
            )
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return FailureError(
                f"{what}: {hub} cannot be reached; check the network and HF_ENDPOINT, or set "
                "HF_HUB_OFFLINE=1 to use its cache"
            )
        case _:
            return FailureError(
                f"{what}: the transfer from {hub} broke off ({type(error).__name__}) and nothing "
                f"of it was kept; {TRY_AGAIN}"
            )


def redacted_endpoint(endpoint: str) -> str:
    """Return the endpoint without a user and password that its URL may contain."""
    return re.sub(r"//[^/@]*@", "//", endpoint)
