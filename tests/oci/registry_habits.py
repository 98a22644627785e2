"""The registries that people use, as they answer: a table of habits, and a server that has them.

Each habit comes from public reports or from the registry's own source, named beside it. What no
report tells is as the specification has it.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

MIB: Final = 1 << 12  # stands for a mebibyte, in the product's sizes of parts, too
HANG_UP: Final = 0  # in place of a status: the connection is closed while the body is being sent


class Login(Enum):
    """How a registry lets people in."""

    BASIC = "a name and a password with every request"
    TOKEN = "a token for a name and a password, good for the actions that it was asked for"
    IDENTITY = "a token for an identity token, by OAuth's refresh_token grant"


class Range(Enum):
    """What the `Range` of an answer to a part says."""

    ALL = "all that was received"
    FIRST = "the first part, whatever came later"
    NONE = "nothing: there is no such header"


class Progress(Enum):
    """What a registry says when it is asked how much of an upload it has."""

    RIGHT = "so many bytes as it has"
    ONE_TOO_MANY = "one byte more than it has"
    UNKNOWN = "that it knows no such upload"


@dataclass(frozen=True)
class Habits:
    """How one registry differs from the specification.

    Sizes are bytes; MIB is far less than a mebibyte, so that tests are fast. Of a first blob of
    `blob_bytes`, `resent` may be sent twice, and when the connection breaks once in its middle,
    `resent_after_break`.
    """

    name: str
    login: Login = Login.TOKEN
    takes_parts: bool = True
    keeps_parts: bool = True
    part_status: int = 202
    part_range: Range = Range.ALL
    least_part: int = 0
    largest_part: int | None = None
    largest_whole: int | None = None
    too_large_status: int = 413
    reads_what_is_too_large: bool = True
    too_large_body: bytes = b"<html><h1>413 Request Entity Too Large</h1></html>"
    progress: Progress = Progress.RIGHT
    keeps_broken_parts: bool = True
    skips_overlap: bool = False
    names_expected_start: bool = False
    state_in_location: bool = False
    absolute_locations: bool = False
    mount_status: int = 202
    sends_on_to_storage: bool = False
    sends_head_on: bool = False
    names_digests: bool = True
    challenge_scope: str | None = None
    sets_cookies: bool = False
    opaque_cursor: bool = False
    blob_bytes: int = 28 * MIB + 7
    resent: int = 0
    resent_after_break: int = 0


ECR: Final = Habits(
    # A part is answered 201 (tart 273, mise 11376), and `Range` stays at the first one although
    # all are stored (aws/containers-roadmap 2831). Parts have at least 5 MB but for the last, and
    # neither they nor whole blobs more than 10 MB (dotnet/sdk 33019; sdk-container-builds 424: the
    # connection breaks). The progress of an upload is not found (dotnet/sdk 33019), and what came
    # of a broken part stays (apple/containerization 790: "First byte of the layer part is 0
    # instead of 11304960"). Blobs lie in S3, which takes no second login (opa 6580). A cursor of
    # tags is opaque (drydock 927).
    "ecr",
    login=Login.BASIC,
    part_status=201,
    part_range=Range.FIRST,
    least_part=5 * MIB * 1_000_000 // (1 << 20),
    largest_part=10 * MIB,
    largest_whole=10 * MIB * 1_000_000 // (1 << 20),
    too_large_status=HANG_UP,
    progress=Progress.UNKNOWN,
    names_expected_start=True,
    absolute_locations=True,
    sends_on_to_storage=True,
    opaque_cursor=True,
    resent=10 * MIB,
    resent_after_break=15 * MIB,
)
GHCR: Final = Habits(
    # Parts of more than 4 MiB are answered 416 (ocx 237, wash-archive 268), whole blobs are not
    # (kitops upload-format.go). The scope of a challenge may be an example
    # (cloudflare/serverless-registry 148). Storage answers HEAD with 403 (stargz-snapshotter 167).
    "ghcr",
    largest_part=4 * MIB,
    too_large_status=416,
    too_large_body=b'{"errors":[{"code":"REQUESTED_RANGE_NOT_SATISFIABLE","message":"the request '
    b'body is too large and exceeds the maximum permissible limit of 4.00MiB"}]}\n',
    challenge_scope="repository:user/image:pull",
    sends_on_to_storage=True,
    sends_head_on=True,
    resent=5 * MIB,
    resent_after_break=5 * MIB,
)
GOOGLE: Final = Habits(
    # No upload in parts at all: a page of HTML with 400 (skopeo 1101; kitops 777, 780;
    # dotnet/sdk-container-builds 287).
    "google",
    takes_parts=False,
    sends_on_to_storage=True,
    resent=5 * MIB,
    resent_after_break=14 * MIB,
)
ACR: Final = Habits(
    # An identity token, as `az acr login` writes it (devcontainers/cli 444, acr-cli 127,
    # oras 1876). Requests of more than about 20 MB are answered 413 (goharbor/harbor 23015).
    "acr",
    login=Login.IDENTITY,
    largest_part=20 * MIB,
    largest_whole=20 * MIB,
    sends_on_to_storage=True,
    blob_bytes=52 * MIB + 7,
    resent=22 * MIB,
    resent_after_break=22 * MIB,
)
GITLAB: Final = Habits(
    # The state of an upload is in its address, and an old one is not found (oras-py 150). Blobs
    # lie in S3, which takes no second login (renovate 3877).
    "gitlab",
    state_in_location=True,
    absolute_locations=True,
    keeps_broken_parts=False,
    sends_on_to_storage=True,
    resent_after_break=4 * MIB,
)
ARTIFACTORY: Final = Habits(
    # Of a blob in parts it keeps the last one, says 201, and has it under the digest of the whole
    # (wasmCloud 3405).
    "artifactory",
    login=Login.BASIC,
    keeps_parts=False,
    part_range=Range.NONE,
    names_digests=False,
    resent=29 * MIB,
    resent_after_break=29 * MIB,
)
QUAY: Final = Habits(
    # A mount needs a repository to mount from, else 400 (quay's endpoints/v2/blob.py until 2025).
    # Its progress says `bytes=0-N` for N bytes, and a part that begins too early is taken but for
    # what is there (same file, and data/registry_model/blobuploader.py). A token is good for what
    # it was asked for, though the challenge of a read names `pull` only (helm 32156).
    "quay",
    mount_status=400,
    progress=Progress.ONE_TOO_MANY,
    skips_overlap=True,
    absolute_locations=True,
    challenge_scope="repository:user/image:pull",
    opaque_cursor=True,
    sends_on_to_storage=True,
    resent_after_break=10 * MIB,
)
HARBOR: Final = Habits(
    # Behind nginx's default of 1 MB a request (goharbor/harbor 22353); with a cookie it wants a
    # CSRF token, too (dotnet/sdk 33019).
    "harbor",
    largest_part=MIB,
    largest_whole=MIB,
    sets_cookies=True,
    resent=11 * MIB,
    resent_after_break=11 * MIB,
)
ALL_HABITS: Final = (ECR, GHCR, GOOGLE, ACR, GITLAB, ARTIFACTORY, QUAY, HARBOR)
