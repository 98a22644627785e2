"""select on written records: verdicts, the order of params.yaml, and stale inputs."""

import json
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.core.record import sha256_hex
from pipeline.core.workspace import BASE, Workspace
from pipeline.params.gate import GateClass, SequentialParams, Spending
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.records.selection import Selection, Verdict
from pipeline.stages import select
from tests.models import tiny_llama
from tests.support import ROOT
from tests.workspace import (
    base_digest,
    write_base_manifest,
    write_evaluation,
    write_suite,
    write_variant,
)

HARM = {
    "awq-w4-g128": 0.0025,
    "gptq-w4-g128": 0.005,
    "ct-w4a16-g128": 0.0051,
    "gguf-q8-0": 0.0001,
    "gguf-q4-k-m": 0.008,
    "gguf-q2-k": 0.3,
}


@pytest.fixture
def workspace(tmp_path: Path) -> tuple[Workspace, Params]:
    """The records of a base and of every variant of params.yaml, harmed by as much as `HARM`."""
    workspace, params = Workspace(tmp_path), read_params(ROOT / "params.yaml")
    workspace.artifacts_dir.mkdir()
    tiny_llama(workspace.base_dir)
    write_base_manifest(workspace, source="model")
    write_suite(workspace)
    write_evaluation(workspace, BASE, base_digest(workspace), harm=0.0)
    for name, harm in HARM.items():
        digest = write_variant(workspace, params, name).digest
        write_evaluation(workspace, name, digest, harm=harm)
    return workspace, params


def selected(workspace: Workspace, params: Params) -> Selection:
    select.run(workspace, params)
    return Selection.from_bytes(workspace.selection_path.read_bytes(), source="selection")


def test_good_ones_pass_and_the_bad_one_falls(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    selection = selected(workspace, params)
    assert list(selection.variants) == list(params.variants)
    assert selection.approved() == tuple(it for it in params.variants if it != "gguf-q2-k")
    fallen = selection.variants["gguf-q2-k"]
    assert fallen.verdict is Verdict.REJECTED
    assert "KL in nats per token 0.3, at least 0.27, above 0.05" in fallen.reasons
    assert any(it.startswith("tales_es: drop 0.3, at least 0.26") for it in fallen.reasons)
    assert selection.choices["laptop"].variant == "gguf-q8-0"
    assert selection.base_digest == base_digest(workspace)
    formats = {it.format for it in selection.variants.values()}
    assert formats == {"awq", "gptq", "compressed-tensors", "gguf"}


def test_sizes_are_those_of_the_weight_files(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    selection = selected(workspace, params)
    for name, verdict in selection.variants.items():
        weights = [
            it.stat().st_size
            for it in workspace.model_dir(name).iterdir()
            if it.suffix in (".safetensors", ".gguf")
        ]
        assert verdict.weight_bytes == sum(weights)
    assert selection.base_weight_bytes == sum(
        it.stat().st_size for it in workspace.base_dir.glob("*.safetensors")
    )


def test_nothing_approved_is_a_result_too(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    strict = GateClass(
        min_bits=0, margin_factor=1e-6, max_mean_drop=1e-6, max_kl=1e-9, max_perplexity_ratio=1.0
    )
    gate = params.gate.model_copy(update={"classes": {"strict": strict}})
    selection = selected(workspace, params.model_copy(update={"gate": gate}))
    assert selection.approved() == ()
    assert all(it.reasons for it in selection.variants.values())
    assert all(it.variant is None for it in selection.choices.values())
    assert "no approved variant in gguf" in selection.choices["laptop"].reason


def test_the_same_inputs_give_the_same_bytes(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    select.run(workspace, params)
    before = workspace.selection_path.read_bytes()
    select.run(workspace, params)
    assert workspace.selection_path.read_bytes() == before


def test_a_variant_made_again_has_to_be_evaluated_again(
    workspace: tuple[Workspace, Params],
) -> None:
    workspace, params = workspace
    write_evaluation(workspace, "gguf-q8-0", "ab" * 32, harm=0.0)
    with pytest.raises(InputError, match="run `quantline evaluate gguf-q8-0` again"):
        select.run(workspace, params)


def test_a_base_fetched_again_has_to_be_evaluated_again(
    workspace: tuple[Workspace, Params],
) -> None:
    workspace, params = workspace
    write_evaluation(workspace, BASE, "ab" * 32, harm=0.0)
    with pytest.raises(InputError, match="run `quantline evaluate base` again"):
        select.run(workspace, params)


def test_a_missing_evaluation_names_its_stage(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    workspace.evaluation_path("awq-w4-g128").unlink()
    with pytest.raises(InputError, match="run `quantline evaluate awq-w4-g128` first"):
        select.run(workspace, params)


def test_a_damaged_evaluation_is_named(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    workspace.evaluation_path("awq-w4-g128").write_text("{}")
    with pytest.raises(InputError, match=r"evaluation\.json: name: missing"):
        select.run(workspace, params)


def test_rows_that_were_edited_are_refused(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    path = workspace.documents_path("awq-w4-g128")
    path.write_bytes(path.read_bytes().replace(b'"acc":0.0', b'"acc":1.0', 1))
    with pytest.raises(InputError, match=r"documents\.jsonl: not the rows that were scored"):
        select.run(workspace, params)


def test_a_suite_that_changed_has_to_be_evaluated_again(
    workspace: tuple[Workspace, Params],
) -> None:
    workspace, params = workspace
    path = workspace.root / "eval/suites.yaml"
    path.write_text(path.read_text().replace("tales_es", "tales_de"))
    with pytest.raises(InputError, match="scores other tasks than suite demo has now"):
        select.run(workspace, params)


def test_a_task_without_a_margin_gets_that_of_the_gate(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    gate = params.gate.model_copy(update={"margin": 0.08})
    tasks = (
        selected(workspace, params.model_copy(update={"gate": gate})).variants["awq-w4-g128"].tasks
    )
    assert {task: it.margin for task, it in tasks.items()} == {"trades_en": 0.05, "tales_es": 0.08}


def test_a_gguf_is_compared_with_the_base_in_llama_cpp(workspace: tuple[Workspace, Params]) -> None:
    """What the engine changes in the base is no loss of the variant."""
    workspace, params = workspace
    path = workspace.evaluation_path("gguf-q8-0")
    path.write_text(path.read_text().replace('"backend": "transformers"', '"backend": "llama.cpp"'))
    rows = (
        workspace.documents_path("gguf-q8-0").read_bytes().replace(b'"acc":1.0', b'"acc":0.0', 60)
    )
    workspace.documents_path("gguf-q8-0").write_bytes(rows)
    workspace.control_documents_path("llama.cpp").write_bytes(rows)
    for name, old in (("gguf-q8-0", None), (BASE, "llama.cpp")):
        record = json.loads(workspace.evaluation_path(name).read_text())
        if old is None:
            record["backend_version"] = "llama-cpp-python 0.3.36"
        where = record["controls"][old] if old else record
        where["documents_sha256"] = sha256_hex(rows)
        where["tasks"]["trades_en"]["value"] = (0.91 * 400 - 60) / 400
        workspace.evaluation_path(name).write_text(json.dumps(record))
    verdict = selected(workspace, params).variants["gguf-q8-0"]
    assert verdict.verdict is Verdict.APPROVED
    assert verdict.tasks["trades_en"].right_to_wrong == 0


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("vllm", {"backend": "vllm", "backend_version": "vllm 0.32.0"}),
        (
            "llama-cpp-python 9.9",
            {"backend": "llama.cpp", "backend_version": "llama-cpp-python 9.9"},
        ),
        ("on cuda", {"device": "cuda"}),
    ],
)
def test_a_base_that_this_engine_did_not_score_is_refused(
    workspace: tuple[Workspace, Params], own: str, other: dict[str, str]
) -> None:
    """Neither another engine nor another version or device stands in for it."""
    workspace, params = workspace
    path = workspace.evaluation_path("gguf-q8-0")
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    with pytest.raises(
        InputError, match=r"the base was scored by transformers \(5\.19\.0\) on cpu, l"
    ):
        select.run(workspace, params)
    with pytest.raises(
        InputError, match=rf"expected .*{own}.* which scores gguf-q8-0: run `quantline "
    ):
        select.run(workspace, params)


def test_more_looks_than_documents_are_refused(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    gate = params.gate.model_copy(
        update={"sequential": SequentialParams(looks=20, spending=Spending.POCOCK)}
    )
    for name in (BASE, *params.variants):
        record = json.loads(workspace.evaluation_path(name).read_text())
        rows = workspace.documents_path(name).read_bytes().splitlines(keepends=True)
        few = b"".join([*rows[:400], *rows[400:403]])
        record["documents_sha256"] = sha256_hex(few)
        record["tasks"]["tales_es"] |= {"num_documents": 3, "value": 1.0}
        workspace.documents_path(name).write_bytes(few)
        workspace.evaluation_path(name).write_text(json.dumps(record))
    message = r"gate\.sequential\.looks = 20: tales_es has 3 documents, .* use at most 3"
    with pytest.raises(InputError, match=message):
        select.run(workspace, params.model_copy(update={"gate": gate}))
