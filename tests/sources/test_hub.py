"""Fetching from a hub: what is asked for, what is believed, and what every failure says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import FailureError, InputError, QuantlineError
from pipeline.core.files import file_sha256
from pipeline.core.process import free_port
from pipeline.params.hub_source import HubSource
from pipeline.sources.hub import open_hub
from tests.hub_server import COMMIT, TOKEN, Hub, serve_hub
from tests.models import tiny_llama
from tests.support import ROOT

REPO = "org/tiny"
PINNED = HubSource(REPO, COMMIT)
WEIGHTS = "model.safetensors"


def ignore(_: int) -> None:
    """Progress is not of interest here."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one tiny model that HF_ENDPOINT points to; no token is known."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub(Hub({REPO: tiny_llama(tmp_path / "model")})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def take(name: str, target: Path, source: HubSource = PINNED) -> None:
    open_hub(source).take(name, target, advance=ignore)


def test_takes_each_file_as_the_hub_has_it(hub: Hub, target: Path) -> None:
    checkpoint = open_hub(PINNED)
    moved: list[int] = []
    for name, size in checkpoint.sizes().items():
        record = checkpoint.take(name, target, advance=moved.append)
        original = hub.repos[REPO] / name
        assert (record.size, record.sha256) == (size, file_sha256(original))
        assert (target / name).read_bytes() == original.read_bytes()
    assert sum(moved) == sum(checkpoint.sizes().values())


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_is_whole_is_not_downloaded_again(hub: Hub, target: Path, name: str) -> None:
    take(name, target)
    take(name, target)
    assert hub.downloads() == [name]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_was_changed_is_downloaded_again(hub: Hub, target: Path, name: str) -> None:
    take(name, target)
    whole = (target / name).read_bytes()
    (target / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    take(name, target)
    assert (target / name).read_bytes() == whole
    assert hub.downloads() == [name, name]


@pytest.mark.parametrize(
    ("name", "expected"), [(WEIGHTS, "sha256"), ("config.json", "git blob id")]
)
def test_a_corrupted_file_is_refused_and_not_kept(
    hub: Hub, target: Path, name: str, expected: str
) -> None:
    hub.corrupt = {name}
    with pytest.raises(FailureError, match=f"{name}: {expected} .*the download is damaged"):
        take(name, target)
    assert not (target / name).exists()
    hub.corrupt = set()
    take(name, target)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_truncated_file_is_refused_and_not_kept(hub: Hub, target: Path, name: str) -> None:
    hub.short = {name}
    with pytest.raises(FailureError, match=rf"{name}: \d+ bytes, the hub lists \d+: the download"):
        take(name, target)
    assert not (target / name).exists()


@pytest.mark.slow
def test_a_transfer_that_keeps_breaking_off_is_one_line(hub: Hub, target: Path) -> None:
    hub.cut = {WEIGHTS}
    with pytest.raises(FailureError, match=f"{WEIGHTS}: the transfer from http.* broke off"):
        take(WEIGHTS, target)
    assert not (target / WEIGHTS).exists()


def test_a_listed_file_that_is_gone_is_one_line(hub: Hub, target: Path) -> None:
    hub.vanished = {WEIGHTS}
    with pytest.raises(FailureError, match=f"{WEIGHTS}: listed by http.*, but not there"):
        take(WEIGHTS, target)


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_branch_or_tag_is_refused_with_the_commit_it_points_to(hub: Hub, revision: str) -> None:
    with pytest.raises(InputError) as caught:
        open_hub(HubSource(REPO, revision))
    assert str(caught.value) == (
        f"hf:{REPO}@{revision}: expected a full commit (40 hex digits); {revision} is now at "
        f"{COMMIT}: write hf:{REPO}@{COMMIT}"
    )


def test_an_unknown_branch_is_one_line(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"hf:org/tiny@nope: http.* has no such revision"):
        open_hub(HubSource(REPO, "nope"))


def test_an_unknown_commit_is_one_line(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"has no such revision of org/tiny; copy the full commit"):
        open_hub(HubSource(REPO, "a" * 40)).sizes()


def test_an_unknown_repository_is_one_line(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"hf:org/none@.*has no such repository, or a private one"):
        open_hub(HubSource("org/none", COMMIT)).sizes()


def test_a_name_the_hub_cannot_have_is_one_line(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"not a name that http.* could have"):
        open_hub(HubSource("org/a--b", COMMIT)).sizes()


def test_a_gated_repository_wants_a_token(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    with pytest.raises(
        InputError, match=r"access is restricted; accept the terms at http.*HF_TOKEN"
    ):
        take("config.json", target)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    take("config.json", target)
    assert hub.downloads()[-1] == "config.json"


def test_the_token_of_the_credential_store_is_used(hub: Hub, target: Path, tmp_path: Path) -> None:
    hub.gated = True
    (tmp_path / "no-token").write_text(TOKEN)
    take("config.json", target)


def test_a_malformed_token_is_one_line_that_does_not_show_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret é")
    with pytest.raises(InputError, match="check HF_ENDPOINT and HF_TOKEN for stray") as caught:
        open_hub(PINNED).sizes()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (401, InputError, r"refuses access \(401\); log in"),
        (403, InputError, r"refuses access \(403\); log in"),
        (404, FailureError, "answers 404; check the name and HF_ENDPOINT"),
        (429, FailureError, "answers 429; run the same command again"),
        (503, FailureError, "answers 503; run the same command again"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    hub: Hub, status: int, kind: type[QuantlineError], expected: str
) -> None:
    hub.failing = status
    with pytest.raises(kind, match=expected):
        open_hub(PINNED).sizes()


@pytest.mark.parametrize(
    "endpoint",
    [
        lambda: f"http://127.0.0.1:{free_port()}",
        lambda: f"http://user:secret@127.0.0.1:{free_port()}",
        lambda: "http://no-such-host.invalid",
    ],
)
def test_an_unreachable_hub_is_one_line_without_a_password(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], endpoint: Callable[[], str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint())
    with pytest.raises(FailureError, match="cannot be reached; check the network") as caught:
        open_hub(PINNED).sizes()
    assert "secret" not in str(caught.value) + capfd.readouterr().err


@pytest.mark.parametrize("endpoint", ["ftp://host", "nonsense", "http://[::1", "http://a b"])
def test_an_endpoint_that_is_no_url_is_one_line(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(QuantlineError, match="HF_ENDPOINT"):
        open_hub(PINNED).sizes()


@pytest.mark.parametrize(
    "page",
    [b"<html>welcome</html>", b"[1]", b'"x"', b"{}", b'{"id": "a", "siblings": [{"x": 1}]}'],
)
def test_a_server_that_is_no_hub_is_one_line(hub: Hub, page: bytes) -> None:
    hub.page = page
    with pytest.raises(FailureError, match="does not describe a repository; check HF_ENDPOINT"):
        open_hub(PINNED).sizes()


@pytest.mark.parametrize("name", ["../LICENSE", "/etc/LICENSE", "..\\LICENSE", "a\nb", "a//b"])
def test_a_listed_name_that_could_leave_the_directory_is_refused(hub: Hub, name: str) -> None:
    hub.listed_as = {"LICENSE": name}
    with pytest.raises(InputError, match=r"the hub lists a file named .*use another repository"):
        open_hub(PINNED).sizes()


@pytest.mark.parametrize(
    "values",
    [
        {"size": -1},
        {"size": "9"},
        {"blobId": None},
        {"blobId": "x" * 40},
        {"lfs": {"size": 1, "sha256": "../x", "pointerSize": 1}},
    ],
)
def test_a_listing_without_a_usable_digest_is_refused(hub: Hub, values: dict[str, object]) -> None:
    hub.listed_with = {"LICENSE": values}
    with pytest.raises(FailureError, match=r"'LICENSE': the hub lists .* cannot be checked"):
        open_hub(PINNED).sizes()


def test_requests_say_nothing_about_this_machine(hub: Hub, target: Path) -> None:
    take("config.json", target)
    agents = {request.headers.get("user-agent", "") for request in hub.requests}
    assert not any("torch" in agent or "agent/" in agent for agent in agents)
    assert all(REPO in request.path for request in hub.requests)


PROGRAM = """
import sys
from pathlib import Path
from pipeline.sources.hub import open_hub
from pipeline.params.hub_source import HubSource
from pipeline.core.errors import QuantlineError
try:
    checkpoint = open_hub(HubSource("org/tiny", sys.argv[1]))
    for name in checkpoint.sizes():
        checkpoint.take(name, Path(sys.argv[2]), advance=lambda _: None)
except QuantlineError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
FILL = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("org/tiny", revision=sys.argv[1])
"""


def run_python(program: str, *arguments: str, **environment: str) -> str:
    """Run a program in a process of its own, whose environment huggingface_hub reads at import."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stderr if done.returncode else ""


@pytest.fixture
def filled_cache(hub: Hub, tmp_path: Path) -> Path:
    cache = tmp_path / "filled"
    assert run_python(FILL, COMMIT, HF_HUB_CACHE=str(cache)) == ""
    hub.requests.clear()
    return cache


@pytest.mark.slow
def test_offline_takes_everything_from_the_cache(
    hub: Hub, filled_cache: Path, target: Path
) -> None:
    error = run_python(
        PROGRAM, COMMIT, str(target), HF_HUB_CACHE=str(filled_cache), HF_HUB_OFFLINE="1"
    )
    assert error == ""
    assert hub.requests == []
    original = hub.repos[REPO]
    assert {path.name for path in target.iterdir()} == {path.name for path in original.iterdir()}
    assert (target / WEIGHTS).read_bytes() == (original / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_online_takes_from_the_cache_what_is_whole_there(
    hub: Hub, filled_cache: Path, target: Path
) -> None:
    snapshot = next(filled_cache.glob("models--org--tiny/snapshots/*"))
    (snapshot / "config.json").resolve().write_text("{}")
    assert run_python(PROGRAM, COMMIT, str(target), HF_HUB_CACHE=str(filled_cache)) == ""
    assert hub.downloads() == ["config.json"]
    assert (target / "config.json").read_bytes() != b"{}"


@pytest.mark.slow
def test_offline_refuses_a_damaged_cache(hub: Hub, filled_cache: Path, target: Path) -> None:
    snapshot = next(filled_cache.glob("models--org--tiny/snapshots/*"))
    (snapshot / "config.json").resolve().write_text("{}")
    error = run_python(
        PROGRAM, COMMIT, str(target), HF_HUB_CACHE=str(filled_cache), HF_HUB_OFFLINE="1"
    )
    assert "InputError: " in error
    assert "config.json: damaged in the cache" in error
    assert not (target / "config.json").exists()


@pytest.mark.slow
def test_offline_refuses_a_cached_file_without_a_digest(
    hub: Hub, filled_cache: Path, target: Path
) -> None:
    config = next(filled_cache.glob("models--org--tiny/snapshots/*")) / "config.json"
    data = config.read_bytes()
    config.unlink()
    config.write_bytes(data)
    error = run_python(
        PROGRAM, COMMIT, str(target), HF_HUB_CACHE=str(filled_cache), HF_HUB_OFFLINE="1"
    )
    assert "config.json: the cache does not say its digest" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        (COMMIT, "not in the cache, and HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE, or fill the"),
        ("main", "expected a full commit (40 hex digits); HF_HUB_OFFLINE is set"),
    ],
)
def test_offline_without_a_cache_is_one_line(
    tmp_path: Path, target: Path, revision: str, expected: str
) -> None:
    error = run_python(
        PROGRAM, revision, str(target), HF_HUB_CACHE=str(tmp_path / "empty"), HF_HUB_OFFLINE="1"
    )
    assert expected in error
    assert len(error.strip().splitlines()) == 1
