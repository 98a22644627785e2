"""The OCI image layout: what an interrupted or damaged one leads to."""

import json
from pathlib import Path

import pytest

from pipeline.adapters.oci_blob import Blob, no_progress
from pipeline.adapters.oci_layout import ImageLayout
from pipeline.domain.errors import InputError
from pipeline.domain.oci import MANIFEST_TYPE, Descriptor, blob_digest

MANIFEST = b"{}"


def blob(data: bytes, *, digest: str | None = None) -> Blob:
    return Blob(
        Descriptor(media_type=MANIFEST_TYPE, digest=digest or blob_digest(data), size=len(data)),
        data,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def test_a_tag_names_its_manifest(directory: Path) -> None:
    layout = ImageLayout(directory, shown_as="artifacts/registry")
    assert layout.manifest("1.0.0-x") is None
    layout.push_manifest(blob(MANIFEST), "1.0.0-x")
    stored = layout.manifest("1.0.0-x")
    assert stored is not None
    assert stored.descriptor.digest == blob_digest(MANIFEST)
    assert layout.tags() == ("1.0.0-x",)
    assert layout.reference("1.0.0-x") == "oci:artifacts/registry:1.0.0-x"
    assert json.loads((directory / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_what_other_tools_wrote_into_the_index_stays(directory: Path) -> None:
    layout = ImageLayout(directory, shown_as="x")
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
    layout = ImageLayout(directory, shown_as="x")
    path = directory / "blobs" / blob_digest(b"whole").replace(":", "/")
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".partial").write_bytes(b"wh")
    layout.push_blob(blob(b"whole"), no_progress)
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_bytes_with_another_digest_are_not_stored(directory: Path) -> None:
    with pytest.raises(InputError, match="not the bytes that were recorded"):
        ImageLayout(directory, shown_as="x").push_blob(
            blob(b"x", digest=blob_digest(b"y")), no_progress
        )
    assert not [path for path in directory.rglob("*") if path.is_file()]


def test_a_damaged_index_is_one_line(directory: Path) -> None:
    directory.mkdir()
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(
        '{"schemaVersion": 2, "manifests": [{"digest": "md5:0"}]}'
    )
    with pytest.raises(InputError, match=r"index\.json: manifests\.0\.mediaType: missing"):
        ImageLayout(directory, shown_as="x").manifest("t")
