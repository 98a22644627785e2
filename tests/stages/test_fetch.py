"""fetch: what it leaves behind, what it refuses before moving weights, and what a rerun costs."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import FailureError, InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, file_sha256
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.records.base import BaseManifest
from pipeline.records.intake import Intake, read_intake
from pipeline.stages import fetch
from tests.disk import run_on_tiny_disk
from tests.hub_server import COMMIT, Hub, serve_hub
from tests.models import tiny_llama
from tests.support import ROOT, shared_dir

REPO = "org/tiny"
SOURCE = f"hf:{REPO}@{COMMIT}"
FIRST_SHARD = "model-00001-of-00002.safetensors"
SECOND_SHARD = "model-00002-of-00002.safetensors"
UNWANTED = ("pytorch_model.bin", "modeling.py", "x.gguf", "consolidated.safetensors")


def params_for(source: str, *, license_id: str | None = None) -> Params:
    params = read_params(ROOT / PARAMS_FILE)
    model = params.model.model_copy(update={"source": source, "license": license_id})
    return params.model_copy(update={"model": model})


def manifest_of(workspace: Workspace) -> BaseManifest:
    path = workspace.base_manifest_path
    return BaseManifest.from_bytes(path.read_bytes(), source=str(path))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_nothing_is_kept_as_whole(workspace: Workspace) -> None:
    assert not workspace.base_dir.exists()
    assert not workspace.base_manifest_path.exists()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    root.mkdir()
    return Workspace(root)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tiny_llama(tmp_path / "model", shards=2)
    for name in UNWANTED:
        (path / name).write_bytes(b"x")
    (path / "original").mkdir()
    (path / "original" / "consolidated.pth").write_bytes(b"x")
    return path


@pytest.fixture
def hub(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub(Hub({REPO: model})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_a_hub_model_becomes_the_base_with_its_manifest(hub: Hub, workspace: Workspace) -> None:
    fetch.run(workspace, params_for(SOURCE))
    manifest = manifest_of(workspace)
    original = hub.repos[REPO]
    assert manifest.files == directory_records(workspace.base_dir)
    assert all(file.sha256 == file_sha256(original / file.path) for file in manifest.files)
    assert manifest.digest == tree_digest(manifest.files)
    assert (manifest.source, manifest.revision) == (SOURCE, COMMIT)
    assert manifest.architecture == "LlamaForCausalLM"
    assert manifest.license.id == "mit"
    assert manifest.license.text_sha256 == file_sha256(original / "LICENSE")
    names = {file.path for file in manifest.files}
    assert names == {path.name for path in original.iterdir()} - {*UNWANTED, "original"}
    assert sorted(path.name for path in workspace.artifacts_dir.iterdir()) == [
        "base",
        "base.manifest.json",
        "calibration",
        "intake.json",
    ]


def test_a_hub_and_a_directory_with_the_same_files_give_the_same_digest(
    hub: Hub, workspace: Workspace, tmp_path: Path
) -> None:
    fetch.run(workspace, params_for(SOURCE))
    other = Workspace(tmp_path / "other")
    fetch.run(other, params_for(str(hub.repos[REPO])))
    assert manifest_of(other).digest == manifest_of(workspace).digest
    assert manifest_of(other).revision is None


def test_nothing_that_could_carry_code_is_downloaded(hub: Hub, workspace: Workspace) -> None:
    fetch.run(workspace, params_for(SOURCE))
    assert not set(hub.downloads()) & {*UNWANTED, "original/consolidated.pth"}


def test_a_rerun_with_an_intact_result_asks_the_hub_for_nothing(
    hub: Hub, workspace: Workspace
) -> None:
    fetch.run(workspace, params_for(SOURCE))
    before = workspace.base_manifest_path.stat().st_mtime_ns
    hub.requests.clear()
    fetch.run(workspace, params_for(SOURCE))
    assert hub.requests == []
    assert workspace.base_manifest_path.stat().st_mtime_ns == before


def mended_files(intake: Intake) -> list[str]:
    """The files that findings are about, without those that stayed behind."""
    return [it.file for it in intake.findings if not it.done.startswith("not taken")]


def test_what_is_odd_is_mended_once_and_recorded(hub: Hub, workspace: Workspace) -> None:
    original = hub.repos[REPO]
    (original / "model.safetensors.index.json").unlink()
    edit(original / "config.json", auto_map={"AutoModel": "modeling.X"}, pad_token_id=320)
    before = directory_records(original)
    fetch.run(workspace, params_for(SOURCE))
    intake, manifest = read_intake(workspace), manifest_of(workspace)
    assert mended_files(intake) == ["model.safetensors.index.json", "config.json", "config.json"]
    assert manifest.files == directory_records(workspace.base_dir)
    assert set(intake.files_of_source(manifest.files)) < set(before)
    config = json.loads((workspace.base_dir / "config.json").read_text())
    assert "auto_map" not in config
    assert config["pad_token_id"] is None
    names = Checkpoint(workspace.base_dir).names
    assert len(names) == len(Checkpoint(tiny_llama(workspace.root / "same")).names)

    hub.requests.clear()
    fetch.run(workspace, params_for(SOURCE))
    assert hub.downloads() == []
    assert manifest_of(workspace) == manifest


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda base: (base / FIRST_SHARD).write_bytes(b"x"),
        lambda base: (base / "config.json").unlink(),
        lambda base: (base / "extra").write_bytes(b"x"),
        shutil.rmtree,
    ],
)
def test_a_rerun_mends_a_damaged_result(
    hub: Hub, workspace: Workspace, damage: Callable[[Path], object]
) -> None:
    fetch.run(workspace, params_for(SOURCE))
    whole = manifest_of(workspace)
    damage(workspace.base_dir)
    fetch.run(workspace, params_for(SOURCE))
    assert directory_records(workspace.base_dir) == whole.files
    assert manifest_of(workspace) == whole


def test_an_interrupted_download_continues_with_what_is_whole(
    hub: Hub, workspace: Workspace
) -> None:
    hub.vanished = {SECOND_SHARD}
    with pytest.raises(FailureError, match=f"{SECOND_SHARD}: listed by"):
        fetch.run(workspace, params_for(SOURCE))
    assert_nothing_is_kept_as_whole(workspace)
    hub.vanished = set()
    hub.requests.clear()
    fetch.run(workspace, params_for(SOURCE))
    assert hub.downloads() == [SECOND_SHARD]
    assert manifest_of(workspace).files == directory_records(workspace.base_dir)


def test_a_corrupted_shard_is_the_only_one_downloaded_again(hub: Hub, workspace: Workspace) -> None:
    hub.corrupt = {FIRST_SHARD}
    with pytest.raises(FailureError, match=f"{FIRST_SHARD}: sha256 .* the download is damaged"):
        fetch.run(workspace, params_for(SOURCE))
    assert_nothing_is_kept_as_whole(workspace)
    hub.corrupt = set()
    hub.requests.clear()
    fetch.run(workspace, params_for(SOURCE))
    assert hub.downloads() == [FIRST_SHARD, SECOND_SHARD]


def test_a_shard_the_index_names_but_the_hub_lacks_stops_before_weights(
    hub: Hub, workspace: Workspace
) -> None:
    (hub.repos[REPO] / SECOND_SHARD).unlink()
    with pytest.raises(InputError, match=f"{SECOND_SHARD}: missing, though"):
        fetch.run(workspace, params_for(SOURCE))
    assert FIRST_SHARD not in hub.downloads()
    assert_nothing_is_kept_as_whole(workspace)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: (path / "LICENSE").unlink(), "no LICENSE, LICENCE or COPYING"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer: "),
        (
            lambda path: edit(
                path / "config.json", model_type="mine", auto_map={"AutoConfig": "m.M"}
            ),
            "has auto_map, so it needs Python code",
        ),
        (lambda path: (path / "config.json").unlink(), "config.json: missing"),
        (
            lambda path: (path / "config.json").write_text('{"quantization_config": {}}'),
            "quantized already",
        ),
    ],
)
def test_what_small_files_can_refuse_is_refused_before_weights(
    hub: Hub, workspace: Workspace, spoil: Callable[[Path], object], expected: str
) -> None:
    spoil(hub.repos[REPO])
    with pytest.raises(InputError, match=expected):
        fetch.run(workspace, params_for(SOURCE))
    assert not any(name.endswith(".safetensors") for name in hub.downloads())
    assert_nothing_is_kept_as_whole(workspace)


def decide(workspace: Workspace, text: Path, **changes: str) -> None:
    """Sign the decision `tiny` on the license in the file `text`."""
    decision = {
        "license": "mit",
        "text": None,
        "text_sha256": file_sha256(text),
        "decided_by": "Jane Doe",
        "decided_on": "2026-11-21",
        "reason": "the owner said so",
        **changes,
    }
    workspace.decisions_path.write_text(json.dumps({"tiny": decision}))


def test_a_decided_license_continues_where_the_text_is_unknown(
    hub: Hub, workspace: Workspace
) -> None:
    text = hub.repos[REPO] / "LICENSE"
    text.write_text("Do as you like.\n")
    with pytest.raises(InputError, match="none that a rule was written from"):
        fetch.run(workspace, params_for(SOURCE))
    small_files = hub.downloads()
    decide(workspace, text)
    fetch.run(workspace, params_for(SOURCE, license_id="tiny"))
    assert hub.downloads() == [*small_files, FIRST_SHARD, SECOND_SHARD]
    applied = manifest_of(workspace).applied_license
    assert applied.id == "mit"
    assert applied.decision is not None
    assert applied.decision.decided_by == "Jane Doe"


def test_a_changed_text_wants_another_decision(hub: Hub, workspace: Workspace) -> None:
    text = hub.repos[REPO] / "LICENSE"
    text.write_text("Do as you like.\n")
    decide(workspace, text)
    text.write_text("Do as you like, on weekdays.\n")
    with pytest.raises(InputError, match="Jane Doe on 2026-11-21 decided on the text"):
        fetch.run(workspace, params_for(SOURCE, license_id="tiny"))


def test_another_decision_needs_no_other_files(hub: Hub, workspace: Workspace) -> None:
    fetch.run(workspace, params_for(SOURCE))
    downloads = hub.downloads()
    decide(workspace, workspace.base_dir / "LICENSE", license="apache-2.0")
    fetch.run(workspace, params_for(SOURCE, license_id="tiny"))
    assert manifest_of(workspace).applied_license.id == "apache-2.0"
    assert hub.downloads() == downloads


def test_a_license_that_forbids_the_release_stops_before_weights(
    hub: Hub, workspace: Workspace
) -> None:
    decide(workspace, hub.repos[REPO] / "LICENSE", license="mrl")
    with pytest.raises(InputError, match=r"release.commercial = true: the Mistral AI Research"):
        fetch.run(workspace, params_for(SOURCE, license_id="tiny"))
    assert FIRST_SHARD not in hub.downloads()


def test_pickled_weights_alone_are_refused(hub: Hub, workspace: Workspace) -> None:
    for path in hub.repos[REPO].glob("model*"):
        if path.name != "modeling.py":
            path.unlink()
    with pytest.raises(InputError, match=r"weights as a pickle, which can run code"):
        fetch.run(workspace, params_for(SOURCE))
    assert_nothing_is_kept_as_whole(workspace)


def test_a_giant_small_file_is_refused_unseen(hub: Hub, workspace: Workspace) -> None:
    hub.listed_with = {"tokenizer.json": {"size": 1 << 40}}
    with pytest.raises(InputError, match=r"tokenizer.json: 1099511627776 bytes, expected at most"):
        fetch.run(workspace, params_for(SOURCE))
    assert hub.downloads() == []


def test_weights_that_do_not_fit_on_the_disk_are_refused_unseen(
    hub: Hub, workspace: Workspace
) -> None:
    giant: dict[str, object] = {"lfs": {"size": 1 << 60, "sha256": "0" * 64, "pointerSize": 1}}
    hub.listed_with = {FIRST_SHARD: giant}
    with pytest.raises(FailureError, match="MiB of disk needed"):
        fetch.run(workspace, params_for(SOURCE))
    assert FIRST_SHARD not in hub.downloads()


def test_leftovers_of_another_model_do_not_get_in(hub: Hub, workspace: Workspace) -> None:
    download_dir = workspace.artifacts_dir / "base.download"
    download_dir.mkdir(parents=True)
    for name in ("added_tokens.json", "config.json", "x.safetensors", "LICENSE.md"):
        (download_dir / name).write_text("{}")
    fetch.run(workspace, params_for(SOURCE))
    assert manifest_of(workspace).files == directory_records(workspace.base_dir)
    assert manifest_of(workspace).license.text_path == "LICENSE"
    assert not download_dir.exists()


def test_another_source_replaces_the_base(hub: Hub, workspace: Workspace, tmp_path: Path) -> None:
    fetch.run(workspace, params_for(SOURCE))
    other = tiny_llama(tmp_path / "other", seed=1)
    fetch.run(workspace, params_for(str(other)))
    assert (workspace.base_dir / "model.safetensors").is_file()
    assert not (workspace.base_dir / FIRST_SHARD).exists()
    assert manifest_of(workspace).source == str(other)


def test_a_directory_is_relative_to_the_workspace(workspace: Workspace) -> None:
    tiny_llama(workspace.root / "models" / "mine")
    fetch.run(workspace, params_for("models/mine"))
    assert manifest_of(workspace).source == "models/mine"


def test_the_demo_is_the_model_of_the_workspace(workspace: Workspace) -> None:
    tiny_llama(workspace.demo_model_dir)
    fetch.run(workspace, params_for("demo"))
    assert manifest_of(workspace).source == "demo"


@pytest.mark.parametrize("source", ["demo", "models/none", "params.yaml"])
def test_a_missing_directory_is_one_line(workspace: Workspace, source: str) -> None:
    (workspace.root / "params.yaml").write_text("")
    with pytest.raises(InputError, match=f"model.source = '{source}': no such directory; expected"):
        fetch.run(workspace, params_for(source))
    assert not workspace.artifacts_dir.exists()


def test_a_changed_directory_is_fetched_again_and_an_unchanged_one_is_not(
    workspace: Workspace, model: Path
) -> None:
    fetch.run(workspace, params_for(str(model)))
    before = workspace.base_manifest_path.stat().st_mtime_ns
    fetch.run(workspace, params_for(str(model)))
    assert workspace.base_manifest_path.stat().st_mtime_ns == before
    (model / "README.md").write_text("---\nlicense: MIT\n---\n")
    fetch.run(workspace, params_for(str(model)))
    assert manifest_of(workspace).license.id == "MIT"


def test_a_directory_of_links_is_copied_as_files(
    workspace: Workspace, model: Path, tmp_path: Path
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for path in model.iterdir():
        (links / path.name).symlink_to(path)
    fetch.run(workspace, params_for(str(links)))
    assert not any(path.is_symlink() for path in workspace.base_dir.iterdir())
    assert manifest_of(workspace).files == directory_records(workspace.base_dir)


def test_a_damaged_directory_is_refused_and_the_old_base_stays(
    workspace: Workspace, model: Path
) -> None:
    fetch.run(workspace, params_for(str(model)))
    whole = manifest_of(workspace)
    shard = model / FIRST_SHARD
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{FIRST_SHARD}: .*the file is damaged"):
        fetch.run(workspace, params_for(str(model)))
    assert manifest_of(workspace) == whole
    assert directory_records(workspace.base_dir) == whole.files


def test_a_shard_with_other_tensors_than_the_index_says_is_refused(
    workspace: Workspace, model: Path
) -> None:
    shutil.copyfile(model / FIRST_SHARD, model / SECOND_SHARD)
    with pytest.raises(InputError, match=rf"tensor '.*' is in {FIRST_SHARD} too"):
        fetch.run(workspace, params_for(str(model)))
    assert_nothing_is_kept_as_whole(workspace)


def test_an_index_that_says_otherwise_than_the_shards_is_made_again(
    workspace: Workspace, model: Path
) -> None:
    path = model / "model.safetensors.index.json"
    right = json.loads(path.read_text())
    before = directory_records(model)
    other = {**right["weight_map"], "model.norm.weight": FIRST_SHARD}
    del other["model.embed_tokens.weight"]
    edit(path, weight_map=other)
    assert directory_records(model) != before
    fetch.run(workspace, params_for(str(model)))
    made = json.loads((workspace.base_dir / path.name).read_text())
    assert made["weight_map"] == right["weight_map"]
    intake = read_intake(workspace)
    assert mended_files(intake) == [path.name]
    of_source = intake.files_of_source(manifest_of(workspace).files)
    assert set(of_source) <= set(directory_records(model))


def test_a_single_numbered_shard_is_read_by_its_index(workspace: Workspace, model: Path) -> None:
    whole = tiny_llama(workspace.root / "whole")
    for path in model.glob("model*"):
        path.unlink()
    (whole / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    fetch.run(workspace, params_for(str(model)))
    assert "model.embed_tokens.weight" in Checkpoint(workspace.base_dir).names


def test_a_damaged_manifest_of_ours_says_what_to_do(workspace: Workspace, model: Path) -> None:
    fetch.run(workspace, params_for(str(model)))
    workspace.base_manifest_path.write_text("{}")
    with pytest.raises(InputError, match=r"base.manifest.json: .*delete it and run"):
        fetch.run(workspace, params_for(str(model)))


def test_a_workspace_that_cannot_be_written_is_one_line(workspace: Workspace, model: Path) -> None:
    workspace.artifacts_dir.write_text("not a directory")
    with pytest.raises(FailureError, match="a file is where a directory of this path should be"):
        fetch.run(workspace, params_for(str(model)))


def test_a_real_model_is_licensed_by_its_text(workspace: Workspace) -> None:
    source = str(shared_dir() / "models/babyllama-105")
    fetch.run(workspace, params_for(source))
    assert manifest_of(workspace).applied_license.id == "mit"
    manifest = manifest_of(workspace)
    assert manifest.architecture == "LlamaForCausalLM"
    assert json.loads((workspace.base_dir / "config.json").read_text())["hidden_size"] == 128
    assert manifest.weight_bytes == (workspace.base_dir / "model.safetensors").stat().st_size


def test_a_real_model_comes_through_a_hub(hub: Hub, workspace: Workspace) -> None:
    hub.repos["en10/babyllama"] = shared_dir() / "models/babyllama-105"
    fetch.run(workspace, params_for(f"hf:en10/babyllama@{COMMIT}"))
    assert manifest_of(workspace).files == directory_records(workspace.base_dir)
    assert manifest_of(workspace).revision == COMMIT


ON_TINY_DISK = """
import shutil
import sys
from pathlib import Path
from pipeline.params.reading import read_params
from pipeline.core.errors import FailureError
from pipeline.core.workspace import Workspace
from pipeline.stages import fetch
layout = Workspace(Path(sys.argv[1]))
params = read_params(Path("params.yaml"))
model = params.model.model_copy(update={"source": sys.argv[2]})
for left_bytes in map(int, sys.argv[3:]):
    free_bytes = shutil.disk_usage(sys.argv[1]).free
    (layout.root / f"filler-{left_bytes}").write_bytes(bytes(free_bytes - left_bytes))
    try:
        fetch.run(layout, params.model_copy(update={"model": model}))
    except FailureError as error:
        print(error)
    print(layout.base_dir.exists(), layout.base_manifest_path.exists())
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_nothing_as_whole(tmp_path: Path, model: Path) -> None:
    """With too little space for the weights, and then for the tokenizer."""
    mount_dir = tmp_path / "disk"
    mount_dir.mkdir()
    arguments = (str(mount_dir), str(model), "131072", "4096")
    done = run_on_tiny_disk(ON_TINY_DISK, mount_dir, *arguments, size_bytes=1 << 20)
    weights, kept, small_file, kept_again = done.stdout.splitlines()
    assert "MiB of disk needed, 0 MiB free" in weights
    assert "tokenizer.json: the disk is full" in small_file
    assert kept == kept_again == "False False"


def test_an_interrupted_run_is_followed_by_a_whole_one(
    workspace: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.fetch.write_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch.run(workspace, params_for(str(model)))
    assert not workspace.base_manifest_path.exists()
    fetch.run(workspace, params_for(str(model)))
    assert manifest_of(workspace).files == directory_records(workspace.base_dir)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "LICENSE", FIRST_SHARD])
def test_a_pointer_of_git_lfs_is_named(workspace: Workspace, model: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    (model / name).write_text(pointer)
    with pytest.raises(InputError, match=rf"{name}: a Git LFS pointer in place of the file; run"):
        fetch.run(workspace, params_for(str(model)))


def test_a_link_to_nothing_is_named(workspace: Workspace, model: Path) -> None:
    (model / FIRST_SHARD).unlink()
    (model / FIRST_SHARD).symlink_to("../../blobs/gone")
    (model / "notes").symlink_to("gone")
    with pytest.raises(InputError, match=rf"{FIRST_SHARD}: a link to ../../blobs/gone, where noth"):
        fetch.run(workspace, params_for(str(model)))


def test_a_repository_of_the_cache_is_no_commit(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "models--org--x" / "snapshots").mkdir(parents=True)
    with pytest.raises(InputError, match=r"name one of the directories in its snapshots$"):
        fetch.run(workspace, params_for(str(tmp_path / "models--org--x")))
