"""Every registry that people use: what is pushed is there, and little is sent twice.

The registries are served with the habits of `registry_habits`; Debian's docker-registry is real.
"""

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
import requests

from pipeline.core.errors import FailureError
from pipeline.core.file_records import Digest
from pipeline.oci import part_sizes
from pipeline.oci import retry as registry_retry
from pipeline.oci.blob import Blob, bytes_blob, no_progress
from pipeline.oci.records import MANIFEST_TYPE, descriptor_of
from pipeline.oci.registry import Registry
from pipeline.oci.store import verified_chunks
from tests.oci.habits_server import TAGS, FakeRegistry, log_in, serving
from tests.oci.registry_habits import ALL_HABITS, GHCR, MIB, Habits, Login
from tests.registry_server import registry_server

MIDDLE = 8 * MIB + 123
REAL_SIZES, REAL_FIRST = part_sizes.PART_SIZES, part_sizes.FIRST_PART_BYTES
NAME = attrgetter("name")
LARGEST_PART_TRIED = 10 * MIB  # by all registries, whose blobs are not that large


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the sizes that MIB stands for."""
    sizes = tuple(size * MIB >> 20 for size in part_sizes.PART_SIZES)
    monkeypatch.setattr(part_sizes, "PART_SIZES", sizes)
    monkeypatch.setattr(part_sizes, "FIRST_PART_BYTES", part_sizes.FIRST_PART_BYTES * MIB >> 20)


@pytest.fixture(params=ALL_HABITS, ids=NAME)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeRegistry]:
    """A registry of each kind, with a login that may push."""
    with serving(request.param) as registry:
        log_in(registry, tmp_path / "docker")
        yield registry


in_parts = pytest.mark.parametrize(
    "fake", [habits for habits in ALL_HABITS if habits.takes_parts], indirect=True, ids=NAME
)


@cache
def weights(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere."""
    return random.Random(seed).randbytes(size)


def blob_of(habits: Habits, seed: int = 0) -> Blob:
    """A blob of the size that shows the registry's habits."""
    return bytes_blob(weights(habits.blob_bytes, seed), "x/y")


@pytest.mark.slow
def test_a_large_blob_is_there_and_little_of_it_was_sent_twice(fake: FakeRegistry) -> None:
    blob, moved = blob_of(fake.habits), list[int]()
    Registry(fake.url, "a/b").push_blob(blob, moved.append)
    size = fake.habits.blob_bytes
    assert Digest.of(fake.blobs[blob.descriptor.digest]) == blob.descriptor.digest
    assert fake.received <= size + fake.habits.resent
    assert sum(moved) == size


@pytest.mark.slow
def test_what_was_learned_from_one_blob_is_not_paid_for_again(fake: FakeRegistry) -> None:
    registry, second = Registry(fake.url, "a/b"), blob_of(fake.habits, seed=1)
    registry.push_blob(blob_of(fake.habits), no_progress)
    before = fake.received
    registry.push_blob(second, no_progress)
    assert Digest.of(fake.blobs[second.descriptor.digest]) == second.descriptor.digest
    assert fake.received - before == fake.habits.blob_bytes


@in_parts
def test_parts_are_nearly_as_large_as_the_registry_takes(fake: FakeRegistry) -> None:
    Registry(fake.url, "a/b").push_blob(blob_of(fake.habits), no_progress)
    largest = fake.habits.largest_part or LARGEST_PART_TRIED
    assert max(fake.part_bytes) >= 0.75 * largest


@pytest.mark.slow
def test_a_broken_connection_costs_little(fake: FakeRegistry) -> None:
    """In the middle of a part, or of the whole where there are no parts."""
    fake.break_after = MIDDLE
    blob, moved = blob_of(fake.habits), list[int]()
    Registry(fake.url, "a/b").push_blob(blob, moved.append)
    assert fake.break_after is None
    assert Digest.of(fake.blobs[blob.descriptor.digest]) == blob.descriptor.digest
    assert fake.received <= fake.habits.blob_bytes + fake.habits.resent_after_break
    assert sum(moved) == fake.habits.blob_bytes


@pytest.mark.slow
@in_parts
def test_another_run_goes_on_with_an_upload_that_was_killed(
    fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = blob_of(fake.habits)
    with monkeypatch.context() as patch:
        patch.setattr(registry_retry, "PAUSES_S", ())
        fake.break_after = MIDDLE
        with pytest.raises(FailureError, match="the connection broke"):
            Registry(fake.url, "a/b").push_blob(blob, no_progress)
    Registry(fake.url, "a/b").push_blob(blob, no_progress)
    assert Digest.of(fake.blobs[blob.descriptor.digest]) == blob.descriptor.digest
    again = fake.habits.resent if fake.habits.keeps_parts else 0  # limits have to be learned again
    assert fake.received <= fake.habits.blob_bytes + fake.habits.resent_after_break + again


@pytest.mark.slow
def test_a_release_is_pushed_found_and_read(fake: FakeRegistry) -> None:
    """What a small release needs, and no login reaches the storage behind the registry."""
    registry, config = Registry(fake.url, "a/b"), bytes_blob(b"{}", "x/config")
    manifest = bytes_blob(b'{"schemaVersion": 2}', MANIFEST_TYPE)
    assert registry.manifest("1.0.0") is None
    for _ in range(2):  # what is there is not sent again
        registry.push_blob(config, no_progress)
        registry.push_manifest(manifest, "1.0.0")
    assert fake.received == len(b"{}")
    stored = Registry(fake.url, "a/b").manifest("1.0.0")
    assert stored is not None
    assert stored.descriptor == manifest.descriptor
    assert b"".join(verified_chunks(registry, config.descriptor)) == b"{}"
    assert registry.tags() == TAGS
    assert set(fake.storage_logins) <= {None}
    assert bool(fake.storage_logins) == fake.habits.sends_on_to_storage


def test_only_those_who_push_ask_for_it(fake: FakeRegistry) -> None:
    """Some registries refuse a token for more than its owner may do."""
    Registry(fake.url, "a/b").manifest("1.0.0")
    Registry(fake.url, "a/b").push_blob(bytes_blob(b"{}", "x/y"), no_progress)
    asked = [form["scope"] for form in fake.token_requests]
    has_tokens = fake.habits.login is not Login.BASIC
    assert asked == [["repository:a/b:pull"], ["repository:a/b:pull,push"]] * has_tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_a_mixture_of_habits_ends_in_the_blob_or_in_one_line(tmp_path: Path, seed: int) -> None:
    """Each habit is that of any registry of the table, and the connection may break once."""
    chosen = random.Random(seed)
    habits = Habits(
        **{field.name: getattr(chosen.choice(ALL_HABITS), field.name) for field in fields(Habits)}
    )
    with serving(habits) as registry:
        log_in(registry, tmp_path / "docker")
        registry.break_after = chosen.choice([None, MIDDLE])
        blob = blob_of(habits)
        line = ""
        try:
            Registry(registry.url, "a/b").push_blob(blob, no_progress)
        except FailureError as error:
            line = str(error)
    if line:
        assert line.isprintable()
        assert habits.largest_whole is not None
    else:
        digest = blob.descriptor.digest
        assert Digest.of(registry.blobs[digest]) == digest


def test_a_part_that_is_refused_unread_is_sent_in_smaller_ones(tmp_path: Path) -> None:
    """The connection breaks before the answer is read or after it; sizes are real for that."""
    habits = replace(
        GHCR, largest_part=4 << 20, reads_what_is_too_large=False, blob_bytes=(9 << 20) + 7
    )
    with serving(habits) as registry, pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_sizes, "PART_SIZES", REAL_SIZES)
        patch.setattr(part_sizes, "FIRST_PART_BYTES", REAL_FIRST)
        log_in(registry, tmp_path / "docker")
        blob = blob_of(habits)
        Registry(registry.url, "a/b").push_blob(blob, no_progress)
    assert Digest.of(registry.blobs[blob.descriptor.digest]) == blob.descriptor.digest
    assert registry.part_bytes == [4 << 20, 4 << 20, (1 << 20) + 7]


def test_a_real_registry_takes_a_large_blob_in_parts(tmp_path: Path) -> None:
    data = weights(28 * MIB + 7)
    digest = descriptor_of(data, "x/y").digest
    with registry_server(tmp_path / "registry") as server:
        Registry(server.url, "a/b").push_blob(bytes_blob(data, "x/y"), no_progress)
        answer = requests.get(f"{server.url}/v2/a/b/blobs/{digest}", timeout=60)
        log = server.log_path.read_text()
    assert Digest.of(answer.content) == digest
    assert log.count('"PATCH ') == 3
