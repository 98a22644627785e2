"""The OCI image layout: what an interrupted or damaged one leads to."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Event

import pytest

from pipeline.core.errors import InputError
from pipeline.core.file_records import Digest
from pipeline.oci.blob import Blob, no_progress
from pipeline.oci.layout import OciLayout
from pipeline.oci.records import MANIFEST_TYPE, Descriptor
from pipeline.oci.store import DamagedManifestError, StoredManifest, download, push_once
from pipeline.registry.alias_moves import promote, read_history

MANIFEST = b"{}"


def blob(data: bytes, *, digest: str | None = None) -> Blob:
    return Blob(
        Descriptor(media_type=MANIFEST_TYPE, digest=digest or Digest.of(data), size=len(data)),
        data,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def test_a_tag_names_its_manifest(directory: Path) -> None:
    layout = OciLayout(directory, shown_as="artifacts/registry")
    assert layout.manifest("1.0.0-x") is None
    layout.push_manifest(blob(MANIFEST), "1.0.0-x")
    stored = layout.manifest("1.0.0-x")
    assert stored is not None
    assert stored.descriptor.digest == Digest.of(MANIFEST)
    assert layout.tags() == ("1.0.0-x",)
    assert layout.reference("1.0.0-x") == "oci:artifacts/registry:1.0.0-x"
    assert json.loads((directory / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_what_other_tools_wrote_into_the_index_stays(directory: Path) -> None:
    layout = OciLayout(directory, shown_as="x")
    layout.push_manifest(blob(MANIFEST), "one")
    index = json.loads((directory / "index.json").read_bytes())
    foreign = {**index["manifests"][0], "annotations": {}, "platform": {"os": "linux"}}
    index["manifests"].append(foreign)
    index["annotations"] = {"made-by": "somebody"}
    (directory / "index.json").write_text(json.dumps(index))

    layout.push_manifest(blob(MANIFEST + b" "), "two")
    after = json.loads((directory / "index.json").read_bytes())
    assert after["manifests"][1] == foreign
    assert after["annotations"] == index["annotations"]
    assert len(after["manifests"]) == 3


def test_a_half_written_blob_is_written_again(directory: Path) -> None:
    layout = OciLayout(directory, shown_as="x")
    path = directory / "blobs" / Digest.of(b"whole").replace(":", "/")
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".partial").write_bytes(b"wh")
    layout.push_blob(blob(b"whole"), no_progress)
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_bytes_with_another_digest_are_not_stored(directory: Path) -> None:
    with pytest.raises(InputError, match="not the bytes that were recorded"):
        OciLayout(directory, shown_as="x").push_blob(
            blob(b"x", digest=Digest.of(b"y")), no_progress
        )
    assert not [path for path in directory.rglob("*") if path.is_file()]


def test_a_damaged_index_is_one_line(directory: Path) -> None:
    directory.mkdir()
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(
        '{"schemaVersion": 2, "manifests": [{"digest": "md5:0"}]}'
    )
    with pytest.raises(InputError, match=r"index\.json: manifests\.0\.mediaType: missing"):
        OciLayout(directory, shown_as="x").manifest("t")


def blob_path(directory: Path, data: bytes) -> Path:
    return directory / "blobs" / Digest.of(data).replace(":", "/")


@pytest.mark.parametrize("name", ["one", Digest.of(MANIFEST)])
def test_a_manifest_with_other_bytes_is_refused(directory: Path, name: str) -> None:
    layout = OciLayout(directory, shown_as="x")
    layout.push_manifest(blob(MANIFEST), "one")
    blob_path(directory, MANIFEST).write_bytes(b"[]")
    with pytest.raises(DamagedManifestError, match="other bytes than its digest says"):
        layout.manifest(name)


@pytest.mark.parametrize("damaged", [b"whOle", b"who", b""])
def test_a_damaged_blob_is_stored_again(directory: Path, damaged: bytes) -> None:
    layout = OciLayout(directory, shown_as="x")
    layout.push_blob(blob(b"whole"), no_progress)
    blob_path(directory, b"whole").write_bytes(damaged)
    moved: list[int] = []
    layout.push_blob(blob(b"whole"), moved.append)
    assert blob_path(directory, b"whole").read_bytes() == b"whole"
    assert sum(moved) == len(b"whole")


def test_a_link_in_the_place_of_a_blob_is_replaced_by_the_blob(
    directory: Path, tmp_path: Path
) -> None:
    layout = OciLayout(directory, shown_as="x")
    (tmp_path / "elsewhere").write_bytes(b"whole")
    path = blob_path(directory, b"whole")
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    layout.push_blob(blob(b"whole"), no_progress)
    assert not path.is_symlink()
    assert path.read_bytes() == b"whole"


def test_many_writers_lose_no_tag(directory: Path) -> None:
    """Each with a layout of its own, as processes have; they all begin at the same moment."""
    writers, tags = 8, 6
    together = Barrier(writers)

    def write(writer: int) -> None:
        layout = OciLayout(directory, shown_as="x")
        together.wait()
        for number in range(tags):
            layout.push_manifest(blob(MANIFEST), f"{writer}-{number}")

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    expected = {f"{writer}-{number}" for writer in range(writers) for number in range(tags)}
    assert set(OciLayout(directory, shown_as="x").tags()) == expected
    assert (directory / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'


def test_of_many_who_want_one_tag_one_gets_it(directory: Path) -> None:
    writers = 8
    together = Barrier(writers)

    def write(writer: int) -> bool:
        layout = OciLayout(directory, shown_as="x")
        manifest = blob(MANIFEST + b" " * writer)
        together.wait()
        try:
            push_once(layout, manifest, "tag")
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(write, range(writers))) == 1


def test_no_move_of_an_alias_is_lost(directory: Path) -> None:
    writers = 6
    together = Barrier(writers)

    def move(writer: int) -> None:
        layout = OciLayout(directory, shown_as="x")
        release = blob(MANIFEST + b" " * writer)
        layout.push_manifest(release)
        together.wait()
        stored = StoredManifest(release.descriptor, MANIFEST + b" " * writer)
        promote(layout, "prod", stored, f"release {writer}")

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(move, range(writers)))
    history = read_history(OciLayout(directory, shown_as="x"), "prod")
    assert {move.title for move in history.moves} == {
        f"release {writer}" for writer in range(writers)
    }


@dataclass(frozen=True)
class SlowBlob(Blob):
    """A blob whose bytes come in two halves; it waits before the second."""

    is_half_way: Event
    may_go_on: Event

    def chunks(self, start: int = 0, *, count: int | None = None) -> Iterator[bytes]:
        data = b"".join(super().chunks(start, count=count))
        yield data[: len(data) // 2]
        self.is_half_way.set()
        assert self.may_go_on.wait(30)
        yield data[len(data) // 2 :]


def test_a_second_writer_of_a_blob_waits_for_the_first(directory: Path) -> None:
    whole = blob(b"whole")
    slow = SlowBlob(whole.descriptor, b"whole", Event(), Event())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(OciLayout(directory, shown_as="x").push_blob, slow, no_progress)
        assert slow.is_half_way.wait(30)
        second = pool.submit(OciLayout(directory, shown_as="y").push_blob, whole, no_progress)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        slow.may_go_on.set()
        first.result(timeout=30)
        second.result(timeout=30)
    path = blob_path(directory, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


class HalfWay(OciLayout):
    """A layout whose blobs come in two halves; it waits before the second."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, shown_as="slow")
        self.is_half_way, self.may_go_on = Event(), Event()
        self.num_reads = 0

    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        self.num_reads += 1
        data = b"".join(super().chunks(blob, start))
        yield data[: len(data) // 2]
        self.is_half_way.set()
        assert self.may_go_on.wait(30)
        yield data[len(data) // 2 :]


def test_two_downloads_of_one_file_are_one(directory: Path, tmp_path: Path) -> None:
    store = HalfWay(directory)
    store.push_blob(blob(b"whole"), no_progress)
    target = tmp_path / "got"

    def bring() -> None:
        download(store, blob(b"whole").descriptor, target, no_progress)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bring)
        assert store.is_half_way.wait(30)
        second = pool.submit(bring)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        store.may_go_on.set()
        first.result(timeout=30)
        second.result(timeout=30)
    assert target.read_bytes() == b"whole"
    assert store.num_reads == 1
    assert {path.name for path in tmp_path.iterdir()} == {"got", "registry"}
