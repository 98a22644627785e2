"""A calibration data set from a hub: only data files, each verified, nothing twice."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, snapshot_download

from pipeline.core.documents import open_documents
from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.licensing.reading import read_data_license
from pipeline.licensing.rules import license_rules
from pipeline.params.params import DatasetParams
from pipeline.records.base import DatasetManifest
from pipeline.records.licenses import DataLicense
from pipeline.sources.dataset import fetch_dataset
from tests.hub_server import COMMIT, TOKEN, Hub, serve_hub

REPO = "org/stories"
OWN = DataLicense(stated="own", applied=None)
SOURCE = f"hf:datasets/{REPO}@{COMMIT}"
PARTS = ("data/train-0.parquet", "data/train-1.parquet")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "stories"
    (directory / "data").mkdir(parents=True)
    for number, name in enumerate(PARTS):
        pq.write_table(pa.table({"text": [f"story {number}"] * 3}), directory / name)
    (directory / "more.json.gz").write_bytes(gzip.compress(b'{"text": "one more"}\n', mtime=0))
    (directory / "stories.py").write_text("raise SystemExit('a loading script was run')\n")
    with serve_hub(Hub({f"datasets/{REPO}": directory})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def dataset(*files: str, source: str = SOURCE) -> DatasetParams:
    return DatasetParams(source=source, files=files)


def manifest_of(workspace: Workspace) -> DatasetManifest:
    return DatasetManifest.from_bytes(
        workspace.dataset_manifest_path.read_bytes(), source="manifest"
    )


def test_the_matching_files_come_and_are_what_the_hub_has(hub: Hub, workspace: Workspace) -> None:
    fetch_dataset(workspace, dataset("data/train-*.parquet", "more.json.gz"), OWN)
    manifest = manifest_of(workspace)
    assert manifest.source == SOURCE
    assert [file.path for file in manifest.files] == [*PARTS, "more.json.gz"]
    assert manifest.files == directory_records(workspace.dataset_dir)
    original = hub.repos[f"datasets/{REPO}"]
    for name in PARTS:
        assert (workspace.dataset_dir / name).read_bytes() == (original / name).read_bytes()
    with open_documents(workspace.dataset_dir) as documents:
        assert documents.num_rows == 7


def test_nothing_is_downloaded_twice_and_other_files_replace_the_old(
    hub: Hub, workspace: Workspace
) -> None:
    fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    assert hub.downloads() == [PARTS[0]]
    fetch_dataset(workspace, dataset(PARTS[1]), OWN)
    assert [file.path for file in manifest_of(workspace).files] == [PARTS[1]]


def test_another_license_needs_no_other_files(hub: Hub, workspace: Workspace) -> None:
    fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    stated = read_data_license(workspace, "cc-by-sa-3.0", license_rules())
    fetch_dataset(workspace, dataset(PARTS[0]), stated)
    assert hub.downloads() == [PARTS[0]]
    assert manifest_of(workspace).license == stated


@pytest.mark.slow
def test_an_interrupted_fetch_keeps_what_is_whole(hub: Hub, workspace: Workspace) -> None:
    hub.cut = {PARTS[1]}
    with pytest.raises(FailureError, match="broke off"):
        fetch_dataset(workspace, dataset(*PARTS), OWN)
    assert not workspace.calibration_dir.exists()
    hub.cut = set()
    fetch_dataset(workspace, dataset(*PARTS), OWN)
    assert hub.downloads().count(PARTS[0]) == 1


def test_a_damaged_file_is_refused(hub: Hub, workspace: Workspace) -> None:
    hub.corrupt = {PARTS[0]}
    with pytest.raises(FailureError, match=rf"{PARTS[0]}: sha256 .*the download is damaged"):
        fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    assert not workspace.calibration_dir.exists()


def test_a_gated_data_set_takes_the_token(
    hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    with pytest.raises(InputError, match=rf"hf:datasets/{REPO}@.*access is restricted"):
        fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch_dataset(workspace, dataset(PARTS[0]), OWN)


@pytest.mark.parametrize(
    ("files", "source", "said"),
    [
        (
            ("stories.py",),
            SOURCE,
            "'stories.py': expected .jsonl, .json, .parquet, .txt, .raw, each",
        ),
        (("*",), SOURCE, "each also with .gz or .zst; choose other files"),
        (
            ("test-*.parquet",),
            SOURCE,
            "'test-*.parquet': no such file in the data set; data files there: data/train-0.parq",
        ),
        (PARTS, f"hf:datasets/{REPO}@main", f"main is now at {COMMIT}: write {SOURCE}"),
        (PARTS, f"hf:{REPO}@{COMMIT}", "expected hf:datasets/ORG/NAME@COMMIT"),
        (PARTS, f"hf:datasets/org/none@{COMMIT}", "has no such repository"),
    ],
)
def test_what_cannot_be_taken_is_one_line(
    hub: Hub, workspace: Workspace, files: tuple[str, ...], source: str, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        fetch_dataset(workspace, dataset(*files, source=source), OWN)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.downloads() == []


def test_offline_the_cache_serves_named_files(
    hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_download(
        REPO,
        repo_type="dataset",
        revision=COMMIT,
        endpoint=hub.endpoint,
        cache_dir=constants.HF_HUB_CACHE,
        allow_patterns=PARTS[0],
    )
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    assert [file.path for file in manifest_of(workspace).files] == [PARTS[0]]
    with pytest.raises(InputError, match="name the files one by one"):
        fetch_dataset(workspace, dataset("data/*.parquet"), OWN)
    with pytest.raises(InputError, match="no such file in the data set"):
        fetch_dataset(workspace, dataset(*PARTS), OWN)
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(InputError, match=rf"not in the cache.*hf download {REPO} --repo-type data"):
        fetch_dataset(workspace, dataset(PARTS[0], "more.json.gz"), OWN)
    assert hub.requests == []


def test_without_a_data_set_there_is_an_empty_manifest(hub: Hub, workspace: Workspace) -> None:
    fetch_dataset(workspace, dataset(PARTS[0]), OWN)
    fetch_dataset(workspace, None, OWN)
    assert manifest_of(workspace) == DatasetManifest(
        source=None, patterns=(), files=(), license=OWN
    )
    assert list(workspace.dataset_dir.iterdir()) == []
