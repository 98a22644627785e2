"""package: self-contained, licensed, proven copies of what was evaluated."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.core.errors import InputError
from pipeline.core.files import directory_records, file_sha256, write_record
from pipeline.core.workspace import Workspace
from pipeline.records.release import PackageIndex, PackageManifest
from pipeline.records.selection import Selection, Verdict
from pipeline.records.variant import VariantRecord
from pipeline.stages import package, publish
from tests.modelfile_reader import read_modelfile
from tests.workspace import MadeRun, make_workspace, write_benchmarks

VERDICTS = {
    "awq-w4-g128": Verdict.APPROVED,
    "gguf-q4-k-m": Verdict.APPROVED,
    "gguf-q2-k": Verdict.REJECTED,
}


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return make_workspace(tmp_path, VERDICTS)


def run(made: MadeRun) -> None:
    package.run(made.workspace, made.params)


def manifest(workspace: Workspace, name: str) -> PackageManifest:
    data = (workspace.package_dir(name) / "manifest.json").read_bytes()
    return PackageManifest.from_bytes(data, source="manifest")


def index(workspace: Workspace) -> PackageIndex:
    return PackageIndex.from_bytes(workspace.packages_path.read_bytes(), source="packages")


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_only_approved_variants_are_packaged_whole(made: MadeRun) -> None:
    run(made)
    workspace = made.workspace
    assert [entry.variant for entry in index(workspace).packages] == ["awq-w4-g128", "gguf-q4-k-m"]
    assert {path.name for path in workspace.packages_dir.iterdir()} == {
        "packages.json",
        *(
            name + suffix
            for name in ("awq-w4-g128", "gguf-q4-k-m")
            for suffix in ("", ".bom.json", ".provenance.json")
        ),
    }
    assert set(files_of(workspace.package_dir("awq-w4-g128"))) == {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
        "LICENSE", "NOTICE", "README.md", "manifest.json",
    }  # fmt: skip
    assert set(files_of(workspace.package_dir("gguf-q4-k-m"))) == {
        "model-Q4_K_M.gguf", "Modelfile", "LICENSE", "NOTICE", "README.md", "manifest.json",
    }  # fmt: skip
    assert not workspace.package_dir("gguf-q2-k").exists()


def test_the_manifest_names_every_file_and_every_origin(made: MadeRun) -> None:
    run(made)
    workspace = made.workspace
    for entry in index(workspace).packages:
        directory = workspace.package_dir(entry.variant)
        record = manifest(workspace, entry.variant)
        others = tuple(it for it in directory_records(directory) if it.path != "manifest.json")
        variant = VariantRecord.from_bytes(
            workspace.variant_path(entry.variant).read_bytes(), source="variant"
        )
        assert record.files == others
        assert entry.manifest_sha256 == file_sha256(directory / "manifest.json")
        assert record.variant_digest == variant.digest
        assert record.base.digest == variant.base_digest
        assert record.evaluation_sha256 == file_sha256(workspace.evaluation_path(entry.variant))


def test_the_model_files_are_those_that_were_evaluated(made: MadeRun) -> None:
    run(made)
    workspace = made.workspace
    source, copy = workspace.model_dir("awq-w4-g128"), workspace.package_dir("awq-w4-g128")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()


def test_the_same_inputs_give_the_same_bytes(made: MadeRun) -> None:
    run(made)
    first = files_of(made.workspace.packages_dir)
    run(made)
    assert files_of(made.workspace.packages_dir) == first


def test_the_card_says_to_a_hub_what_the_model_is(made: MadeRun) -> None:
    run(made)
    card = ModelCard(made.read("packages/awq-w4-g128/README.md"))
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["base_model"] == "org/tiny"
    assert data["base_model_relation"] == "quantized"
    assert data["quantized_by"] == made.params.release.quantized_by
    assert data["language"] == ["en", "es"]
    assert "vllm serve . --served-model-name quantline-demo-awq-w4-g128" in card.text
    assert manifest(made.workspace, "awq-w4-g128").variant_digest in card.text
    assert "python -m vllm --model=. --max-model-len=704" in card.text
    assert "| trades\\_en, acc of 400 documents | 0.910 | 0.906 ± 0.014 |" in card.text


def test_the_card_has_the_base_in_the_engine_of_the_variant(made: MadeRun) -> None:
    """A base of another engine would not fit the ratio beside it."""
    base_path = made.workspace.evaluation_path("base")
    base = json.loads(base_path.read_bytes())
    assert base["perplexity"] == 5.25
    base["controls"]["llama.cpp"]["perplexity"] = 6.5
    base_path.write_text(json.dumps(base))
    path = made.workspace.evaluation_path("gguf-q4-k-m")
    variant = json.loads(path.read_bytes())
    control = base["controls"]["llama.cpp"]
    variant |= {key: control[key] for key in ("backend", "backend_version", "device")}
    path.write_text(json.dumps(variant))
    run(made)
    card = made.read("packages/gguf-q4-k-m/README.md")
    assert "| Perplexity on held-out text | 6.500 |" in card
    assert card.count("llama.cpp (llama-cpp-python 0.3.36) on cpu") == 2
    assert "transformers (5.19.0) on cpu" in made.read("packages/awq-w4-g128/README.md")


def test_the_card_carries_results_with_intervals_to_a_hub(made: MadeRun) -> None:
    run(made)
    results = ModelCard(made.read("packages/awq-w4-g128/README.md")).data.eval_results
    assert results is not None
    names = {(it.dataset_name, it.metric_type): it.metric_name for it in results}
    assert names["trades_en", "acc"] == "acc, 95 % interval 0.8786 to 0.9334"
    assert names["held-out text", "kl_divergence"].endswith("95 % interval 0.0036 to 0.0044")


def test_a_model_that_was_not_served_says_why(made: MadeRun) -> None:
    selection = json.loads(made.workspace.selection_path.read_bytes())["variants"]
    write_benchmarks(
        made,
        speeds={"gguf-q4-k-m": 20.0},
        skipped={"awq-w4-g128": "no kernel for it"},
        digests={name: it["artifact_digest"] for name, it in selection.items()},
    )
    run(made)
    card = made.read("packages/awq-w4-g128/README.md")
    assert "It was not served here: no kernel for it." in card
    assert "Served and measured" not in card


def test_a_benchmark_of_other_files_is_refused(made: MadeRun) -> None:
    write_benchmarks(made, speeds={"awq-w4-g128": 20.0, "gguf-q4-k-m": 20.0}, skipped={})
    with pytest.raises(InputError, match="measures other files than the approved awq-w4-g128"):
        run(made)


def test_the_modelfile_serves_the_file_beside_it(made: MadeRun) -> None:
    run(made)
    commands = dict(read_modelfile(made.read("packages/gguf-q4-k-m/Modelfile")))
    assert commands["from"] == "./model-Q4_K_M.gguf"
    assert commands["parameter stop"] == "</s>"
    assert commands["parameter num_ctx"] == 1024
    assert commands["license"] == made.read("base/LICENSE").strip()
    assert "requires" not in commands
    assert "template" not in commands


def test_a_chat_template_asks_for_the_version_that_runs_it(made: MadeRun) -> None:
    (made.workspace.base_dir / "chat_template.jinja").write_text("{{ messages }}")
    run(made)
    commands = dict(read_modelfile(made.read("packages/gguf-q4-k-m/Modelfile")))
    assert commands["requires"] == "0.30.0"
    assert "0.30.0 or newer" in made.read("packages/gguf-q4-k-m/README.md")


def test_the_notice_states_the_changes(made: MadeRun) -> None:
    run(made)
    notice = made.read("packages/awq-w4-g128/NOTICE")
    assert "modified copy of org/tiny at revision " + "ab" * 20 in notice
    assert "Changed files: config.json, model.safetensors." in notice
    assert "Unchanged files: LICENSE, tokenizer.json, tokenizer_config.json." in notice


def test_a_directory_is_named_without_its_place(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, VERDICTS, source="/home/somebody/secret/tiny-model")
    run(made)
    for path, data in files_of(made.workspace.packages_dir).items():
        assert b"secret" not in data, path
    assert "base_model: tiny-model" in made.read("packages/awq-w4-g128/README.md")


def test_changed_model_files_are_refused_and_nothing_is_left(made: MadeRun) -> None:
    weights = made.workspace.model_dir("gguf-q4-k-m") / "model-Q4_K_M.gguf"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"model-Q4_K_M\.gguf: not the bytes that were recorded"):
        run(made)
    assert not made.workspace.packages_dir.exists()
    assert not list(made.workspace.artifacts_dir.glob("*.partial"))


def test_a_link_is_not_followed(made: MadeRun) -> None:
    weights = made.workspace.model_dir("gguf-q4-k-m") / "model-Q4_K_M.gguf"
    weights.rename(weights.with_suffix(".elsewhere"))
    weights.symlink_to(weights.with_suffix(".elsewhere"))
    with pytest.raises(InputError, match="not a regular file"):
        run(made)


def test_a_variant_that_was_made_again_is_refused(made: MadeRun) -> None:
    workspace = made.workspace
    selection = Selection.from_bytes(workspace.selection_path.read_bytes(), source="selection")
    verdict = selection.variants["awq-w4-g128"].model_copy(update={"artifact_digest": "0" * 64})
    write_record(
        workspace.selection_path,
        selection.model_copy(update={"variants": {**selection.variants, "awq-w4-g128": verdict}}),
    )
    with pytest.raises(InputError, match="not the files that were evaluated and approved"):
        run(made)


def test_nothing_approved_leaves_an_empty_index(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, {"gguf-q2-k": Verdict.REJECTED})
    run(made)
    assert index(made.workspace).packages == ()


def test_what_is_no_longer_approved_disappears(made: MadeRun) -> None:
    run(made)
    workspace = made.workspace
    selection = Selection.from_bytes(workspace.selection_path.read_bytes(), source="selection")
    variants = {name: selection.variants[name] for name in ("gguf-q4-k-m",)}
    write_record(workspace.selection_path, selection.model_copy(update={"variants": variants}))
    run(made)
    assert not workspace.package_dir("awq-w4-g128").exists()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": 10**9}, "eos_token_id = 1000000000, expected the id of a token"),
        ({"eos_token_id": "x"}, "eos_token_id = 'x'"),
        ({"temperature": "hot"}, "temperature = 'hot', expected a number"),
        ({"top_k": True}, "top_k = True, expected a number"),
    ],
)
def test_wrong_generation_values_are_named(
    made: MadeRun, generation: dict[str, object], expected: str
) -> None:
    path = made.workspace.base_dir / "generation_config.json"
    path.write_text(json.dumps(generation))
    with pytest.raises(InputError, match=expected):
        run(made)


def test_hostile_names_stay_text_in_the_card(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, VERDICTS, source="dir/<img src=x>|`rm`[a](b)")
    run(made)
    text = ModelCard(made.read("packages/awq-w4-g128/README.md")).text
    assert "<img" not in text.replace("\\<img", "")
    assert "\\[a\\](b)" in text


def test_a_package_can_be_published(made: MadeRun) -> None:
    run(made)
    publish.run(made.workspace, made.params)
    assert set(json.loads(made.workspace.receipts_path.read_bytes())["releases"]) == {
        "awq-w4-g128",
        "gguf-q4-k-m",
    }


def test_without_a_selection_the_error_names_the_stage(made: MadeRun) -> None:
    made.workspace.selection_path.unlink()
    with pytest.raises(InputError, match="run `quantline select` first"):
        run(made)
