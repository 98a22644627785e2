"""evaluate on a tiny random model and its real variants: right, repeatable, and clear when not."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import FailureError, InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, file_sha256, write_record
from pipeline.core.workspace import BASE, PARAMS_FILE, Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.scorer import BrokenModelError
from pipeline.engines.token_forest import Span
from pipeline.evaluation import scored_models
from pipeline.gate.comparison import rows_of
from pipeline.gguf import files as gguf
from pipeline.params.gate import GateParams, SequentialParams, Spending
from pipeline.params.params import EvaluateParams, PackedJudge, Params
from pipeline.params.reading import read_params
from pipeline.records.evaluation import DocumentRecord, EvaluationRecord
from pipeline.records.scored import read_scored
from pipeline.records.variant import VariantRecord
from pipeline.stages import calibrate, evaluate, fetch, quantize
from tests.models import CORPUS, tiny_llama, write_json
from tests.support import ROOT, serve_python

pytestmark = pytest.mark.slow

NUM_WINDOWS, WINDOW_TOKENS = 4, 48
INTEGERS = {
    "num_bits": 4,
    "group_size": 32,
    "clip_search": False,
    "rounding": "nearest",
    "refine_sweeps": 0,
    "dampening_frac": 0.01,
    "quantized_inputs": False,
    "align_samples": 0,
    "on_indivisible": "error",
}
GGUF = {
    "format": "gguf",
    "scale_search": False,
    "imatrix": False,
    "rounding": "gptq",
    "quantized_inputs": False,
    "align_samples": 0,
}
VARIANTS = {
    "awq-w4": INTEGERS | {"format": "awq", "scale_search": False},
    "gguf-q8-0": GGUF | {"type": "Q8_0"},
}
# Of other words than the evaluation, which must not be calibrated on.
CALIBRATION_TEXT = " ".join(f"hill {number} has {number + 2} goats" for number in range(99))
TASK = """
task: trades
dataset_path: json
dataset_kwargs:
  data_files: {test: eval/data/trades.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def write_inputs(root: Path) -> Params:
    """A model, texts, one task and the parameters, as a user would have them."""
    tiny_llama(root / "model", heads=2)  # vLLM has no attention for heads of 16 channels
    stories = [{"text": f"{line}. {number} {line[::-1]}"} for number in range(9) for line in CORPUS]
    write_jsonl(root / "text.jsonl", stories)
    write_jsonl(root / "calibration.jsonl", [{"text": CALIBRATION_TEXT}])
    words = " ".join(CORPUS).split()
    questions = [
        {"prompt": " ".join(words[it : it + 5]), "choices": words[it : it + 4], "answer": it % 4}
        for it in range(20)
    ]
    write_jsonl(root / "eval/data/trades.jsonl", questions)
    (root / "eval/tasks").mkdir()
    (root / "eval/tasks/trades.yaml").write_text(TASK)
    (root / "eval/suites.yaml").write_text(
        "suites: {demo: {tasks: [{name: trades, metric: acc}]}}\n"
    )
    params = read_params(ROOT / PARAMS_FILE).model_dump(mode="json")
    params["model"] = {"source": "model", "license": None, "gguf_pre_tokenizer": "gpt-2"}
    params["calibration"] |= {
        "text": "calibration.jsonl",
        "num_calibration_samples": 4,
        "max_seq_length": 32,
    }
    params["variants"] = VARIANTS
    params["evaluate"] |= {
        "text": "text.jsonl",
        "window_tokens": WINDOW_TOKENS,
        "num_windows": NUM_WINDOWS,
        "packed_judge": "transformers",
    }
    return Params.model_validate_json(json.dumps(params), strict=True)


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Params]:
    """A workspace up to and with the evaluations of the base and of every variant."""
    root = tmp_path_factory.mktemp("workspace")
    params = write_inputs(root)
    workspace = Workspace(root)
    fetch.run(workspace, params)
    calibrate.run(workspace, params)
    for name in params.variants:
        quantize.run(workspace, params, name)
    for name in (BASE, *params.variants):
        evaluate.run(workspace, params, name)
    return workspace, params


@pytest.fixture
def copied(made: tuple[Workspace, Params], tmp_path: Path) -> tuple[Workspace, Params]:
    """A workspace of one's own to break things in."""
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(made[0].root, workspace.root)
    return workspace, made[1]


def record_of(workspace: Workspace, name: str) -> EvaluationRecord:
    return EvaluationRecord.from_bytes(workspace.evaluation_path(name).read_bytes(), source=name)


def variant_of(workspace: Workspace, name: str) -> VariantRecord:
    return VariantRecord.from_bytes(workspace.variant_path(name).read_bytes(), source=name)


def changed(params: Params, **changes: object) -> Params:
    own = EvaluateParams.model_validate(params.evaluate.model_dump() | changes)
    return params.model_copy(update={"evaluate": own})


def kl_in_llama_cpp(workspace: Workspace, model_dir: Path, tmp_path: Path) -> float:
    """Of a GGUF to the base, both in llama.cpp, by the definition."""
    base_path, own_path = tmp_path / "base.gguf", next(model_dir.glob("*.gguf"))
    gguf.convert(
        workspace.base_dir, base_path, model_name=BASE, pre_tokenizer="gpt-2", weight_names=()
    )
    rows = []
    for path in (base_path, own_path):
        with closing(LlamaCppScorer(path, label="direct")) as scorer:
            spans = [Span(ids=tuple(it), start=0) for it in held_out(workspace).tolist()]
            rows.append(torch.from_numpy(np.stack(scorer.logits(spans)))[:, :-1])
    base, own = (torch.log_softmax(it.double(), dim=-1) for it in rows)
    return float((base.exp() * (base - own)).sum(-1).mean())


def log_probabilities(model_dir: Path, windows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(unpacked_model(model_dir)(windows).logits.double(), dim=-1)


def held_out(workspace: Workspace) -> torch.Tensor:
    """The windows, by the definition: all encoded documents end to end."""
    tokenizer = tokenizer_of(workspace.base_dir)
    rows = (workspace.root / "text.jsonl").read_text().splitlines()
    ids = [token for row in rows for token in tokenizer.encode(json.loads(row)["text"])]
    return torch.tensor(ids[: NUM_WINDOWS * WINDOW_TOKENS]).view(NUM_WINDOWS, WINDOW_TOKENS)


def test_distance_and_perplexity_are_those_of_a_direct_computation(
    made: tuple[Workspace, Params],
) -> None:
    workspace, _ = made
    windows = held_out(workspace)
    base = log_probabilities(workspace.base_dir, windows)[:, :-1]
    own = log_probabilities(workspace.model_dir("awq-w4"), windows)[:, :-1]
    kl = (base.exp() * (base - own)).sum(-1)
    losses = -own.gather(-1, windows[:, 1:, None])
    record = record_of(workspace, "awq-w4")
    assert record.distance is not None
    assert record.distance.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert record.distance.kl_max == pytest.approx(float(kl.max()), rel=1e-3)
    assert record.distance.kl_median == pytest.approx(float(np.median(kl)), rel=1e-3)
    same = (base.argmax(-1) == own.argmax(-1)).double().mean()
    assert record.distance.top1 == pytest.approx(float(same))
    assert record.perplexity == pytest.approx(float(losses.mean().exp()), rel=1e-5)
    assert record.num_tokens == NUM_WINDOWS * (WINDOW_TOKENS - 1)


def test_the_base_has_no_distance_and_eight_bits_are_near_it(
    made: tuple[Workspace, Params],
) -> None:
    workspace, _ = made
    base, eight, four = (record_of(workspace, name) for name in (BASE, "gguf-q8-0", "awq-w4"))
    assert base.distance is None
    assert eight.distance is not None
    assert four.distance is not None
    assert 0 < eight.distance.kl < 0.1 * four.distance.kl
    assert eight.distance.kl_low <= eight.distance.kl <= eight.distance.kl_high
    assert eight.perplexity == pytest.approx(base.perplexity, rel=0.02)
    assert (base.backend, eight.backend, four.backend) == (
        "transformers",
        "llama.cpp",
        "transformers",
    )


def test_a_gguf_is_as_far_from_the_base_as_both_are_in_llama_cpp(
    made: tuple[Workspace, Params], tmp_path: Path
) -> None:
    """What the engine changes in the base is no part of KL and of the perplexity ratio."""
    workspace, _ = made
    base, own = record_of(workspace, BASE), record_of(workspace, "gguf-q8-0")
    distance, control = own.distance, base.controls["llama.cpp"]
    assert distance is not None
    assert own.perplexity is not None
    kl = kl_in_llama_cpp(workspace, workspace.model_dir("gguf-q8-0"), tmp_path)
    assert distance.kl == pytest.approx(kl, rel=1e-5)
    ratio = own.perplexity / control.perplexity
    assert distance.perplexity_ratio == pytest.approx(ratio, rel=1e-12)


def test_a_gguf_is_evaluated_without_the_base_in_float32(
    copied: tuple[Workspace, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, params = copied
    before = directory_records(workspace.evaluation_dir("gguf-q8-0"))
    shutil.rmtree(workspace.scores_cache_dir)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model of transformers was loaded")

    monkeypatch.setattr(scored_models, "unpacked_model", refuse)
    evaluate.run(workspace, params, "gguf-q8-0")
    assert directory_records(workspace.evaluation_dir("gguf-q8-0")) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("awq-w4", {"device": "cuda"}),
        ("awq-w4", {"backend_version": "0.1"}),
        ("gguf-q8-0", {"controls": {}}),
    ],
)
def test_a_base_scored_elsewhere_is_one_line_before_a_model_is_loaded(
    copied: tuple[Workspace, Params],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: dict[str, object],
) -> None:
    workspace, params = copied
    path = workspace.evaluation_path(BASE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr(scored_models.LazyScorer, "_scorer", None)
    with pytest.raises(InputError, match=rf"which scores {name}: run `quantline evaluate base` ag"):
        evaluate.run(workspace, params, name)


def test_a_base_that_was_fetched_again_has_to_be_evaluated_again(
    copied: tuple[Workspace, Params],
) -> None:
    workspace, params = copied
    path = workspace.evaluation_path(BASE)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"artifact_digest": "ab" * 32}))
    with pytest.raises(InputError, match="scores another base; run `quantline evaluate base`"):
        evaluate.run(workspace, params, "gguf-q8-0")


def test_fewer_documents_than_looks_are_one_line(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    gate = params.gate.model_copy(
        update={"sequential": SequentialParams(looks=4, spending=Spending.POCOCK)}
    )
    few = changed(params, max_documents=3).model_copy(update={"gate": gate})
    evaluate.run(workspace, few, BASE)
    with pytest.raises(InputError, match=r"looks = 4: trades has 3 documents, .* use at most 3"):
        evaluate.run(workspace, few, "gguf-q8-0")


def test_memory_that_is_not_there_is_one_line(
    copied: tuple[Workspace, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, params = copied
    shutil.rmtree(workspace.scores_cache_dir)

    def huge(_: Path) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(scored_models, "unpacked_model", huge)
    with pytest.raises(FailureError, match=r"^evaluate base: memory ran out; lower eval") as caught:
        evaluate.run(workspace, params, BASE)
    assert "\n" not in str(caught.value)


def test_every_evaluation_names_what_it_was_made_from(made: tuple[Workspace, Params]) -> None:
    workspace, params = made
    base = record_of(workspace, BASE)
    assert base.artifact_digest == base.base_digest
    for name in params.variants:
        record = record_of(workspace, name)
        assert record.artifact_digest == variant_of(workspace, name).digest
        assert record.base_digest == base.artifact_digest
        assert record.token_ids_sha256 == base.token_ids_sha256
        assert record.text_sha256 == file_sha256(workspace.root / "text.jsonl")
        assert record.documents_sha256 == file_sha256(workspace.documents_path(name))


def test_rows_and_scores_say_the_same(made: tuple[Workspace, Params]) -> None:
    workspace, params = made
    for name in (BASE, *params.variants):
        rows = [
            DocumentRecord.from_bytes(line, source=name)
            for line in workspace.documents_path(name).read_bytes().splitlines()
        ]
        score = record_of(workspace, name).tasks["trades"]
        assert [row.doc_id for row in rows] == list(range(20))
        assert score.num_documents == 20
        assert score.value == pytest.approx(np.mean([row.metrics["acc"] for row in rows]))
        for row in rows:
            assert row.logprobs is not None
            assert row.metrics["acc"] == (np.argmax(row.logprobs) == row.doc_id % 4)


def test_the_same_inputs_give_the_same_bytes_also_all_in_one_run(
    copied: tuple[Workspace, Params],
) -> None:
    workspace, params = copied
    names = (BASE, *params.variants)
    before = [directory_records(workspace.evaluation_dir(name)) for name in names]
    shutil.rmtree(workspace.evaluation_dir(BASE).parent)
    shutil.rmtree(workspace.scores_cache_dir)
    evaluate.run(workspace, params, *names)
    assert [directory_records(workspace.evaluation_dir(name)) for name in names] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "quick"}, "evaluate.suite = 'quick': not in eval/suites.yaml"),
        ({"text": "no.jsonl"}, "no.jsonl: no such file"),
        ({"num_windows": 1}, "evaluate.num_windows = 1: expected at least 2"),
        ({"num_windows": 10_000}, r"evaluate.text = text.jsonl: [\d,]+ tokens, 480,000 needed"),
        (
            {"window_tokens": 1025, "num_windows": 2},
            "evaluate.window_tokens = 1025: expected at most 1024",
        ),
    ],
)
def test_wrong_parameters_are_one_line_and_keep_the_old_result(
    made: tuple[Workspace, Params], changes: dict[str, object], message: str
) -> None:
    workspace, params = made
    before = directory_records(workspace.evaluation_dir(BASE))
    with pytest.raises(InputError, match=message):
        evaluate.run(workspace, changed(params, **changes), BASE)
    assert directory_records(workspace.evaluation_dir(BASE)) == before


def test_an_unknown_name_is_refused(made: tuple[Workspace, Params]) -> None:
    workspace, params = made
    with pytest.raises(InputError, match=r"awq-w9: not in params\.yaml; known: base, awq-w4, gguf"):
        evaluate.run(workspace, params, "awq-w9")


def test_a_variant_that_is_not_there_names_its_stage(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    shutil.rmtree(workspace.variant_dir("awq-w4"))
    with pytest.raises(InputError, match="run `quantline quantize awq-w4` first"):
        evaluate.run(workspace, params, "awq-w4")


def test_a_variant_of_another_base_is_refused(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    other = variant_of(workspace, "awq-w4").model_copy(update={"base_digest": "ab" * 32})
    write_record(workspace.variant_path("awq-w4"), other)
    with pytest.raises(InputError, match="made from another base"):
        evaluate.run(workspace, params, "awq-w4")


def accept_files(workspace: Workspace, name: str) -> None:
    """Let the variant's record name the files as they are now."""
    files = directory_records(workspace.model_dir(name))
    record = variant_of(workspace, name)
    write_record(
        workspace.variant_path(name),
        record.model_copy(update={"files": files, "digest": tree_digest(files)}),
    )


def test_files_that_quantize_did_not_write_are_refused(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    (workspace.model_dir("awq-w4") / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not the files that quantize wrote"):
        evaluate.run(workspace, params, "awq-w4")


def test_a_variant_with_another_tokenizer_is_refused(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    path = workspace.model_dir("awq-w4") / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    path.write_text(json.dumps(tokenizer))
    accept_files(workspace, "awq-w4")
    with pytest.raises(InputError, match=r"^awq-w4: its tokenizer is not the base's"):
        evaluate.run(workspace, params, "awq-w4")


def test_a_gguf_of_another_model_is_refused(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    other_dir = tiny_llama(workspace.root / "other", vocab_size=300)
    gguf_path = next(workspace.model_dir("gguf-q8-0").glob("*.gguf"))
    path = workspace.root / "other.gguf"
    gguf.convert(other_dir, path, model_name="other", pre_tokenizer="gpt-2", weight_names=())
    path.replace(gguf_path)
    accept_files(workspace, "gguf-q8-0")
    with pytest.raises(InputError, match=r"^gguf-q8-0: its tokenizer"):
        evaluate.run(workspace, params, "gguf-q8-0")


def test_a_vocabulary_of_another_size_is_refused(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    model_dir = workspace.model_dir("awq-w4")
    config = json.loads((model_dir / "config.json").read_text())
    write_json(model_dir / "config.json", config | {"vocab_size": 328})
    for path in model_dir.glob("*.safetensors"):
        tensors = load_file(path)
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(tensors):
            tensors[name] = torch.cat([tensors[name], tensors[name][:8]])
        save_file(tensors, path, metadata={"format": "pt"})
    accept_files(workspace, "awq-w4")
    with pytest.raises(InputError, match=r"^awq-w4: a vocabulary of 328 tokens, the base has 320"):
        evaluate.run(workspace, params, "awq-w4")


def test_a_broken_variant_is_recorded_and_the_run_goes_on(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    path = next(workspace.model_dir("awq-w4").glob("*00003-of-*.safetensors"))
    tensors = {name: it * float("nan") for name, it in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    accept_files(workspace, "awq-w4")
    evaluate.run(workspace, params, "awq-w4")
    record = record_of(workspace, "awq-w4")
    assert (record.broken or "").startswith("awq-w4: transformers computed logits that are not fin")
    assert (record.tasks, record.perplexity, record.distance) == ({}, None, None)
    assert workspace.documents_path("awq-w4").read_bytes() == b""


def test_a_base_that_is_broken_ends_the_run(copied: tuple[Workspace, Params]) -> None:
    workspace, params = copied
    path = workspace.base_dir / "model.safetensors"
    tensors = {name: it * float("nan") for name, it in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    shutil.rmtree(workspace.scores_cache_dir)
    with pytest.raises(BrokenModelError, match=r"^base: .* not finite"):
        evaluate.run(workspace, params, BASE)


def test_the_base_is_its_own_control_in_every_engine(made: tuple[Workspace, Params]) -> None:
    workspace, _ = made
    base, eight = record_of(workspace, BASE), record_of(workspace, "gguf-q8-0")
    control = base.controls["llama.cpp"]
    assert control.backend == eight.backend
    assert eight.distance is not None
    assert 0 < control.distance.kl < eight.distance.kl
    exact, own = base.tasks["trades"], control.tasks["trades"]
    assert exact.stderr is not None
    assert abs(own.value - exact.value) < 1.96 * exact.stderr
    path = workspace.control_documents_path("llama.cpp")
    assert control.documents_sha256 == file_sha256(path)
    rows = path.read_text().splitlines()
    others = workspace.documents_path("gguf-q8-0").read_text().splitlines()
    assert [json.loads(row)["doc_hash"] for row in rows] == [
        json.loads(row)["doc_hash"] for row in others
    ]
    assert not record_of(workspace, "awq-w4").controls


def test_vllm_judges_the_packed_files_and_the_base_is_its_control(
    made: tuple[Workspace, Params], copied: tuple[Workspace, Params]
) -> None:
    serve_python()
    workspace, params = copied
    evaluate.run(workspace, changed(params, packed_judge=PackedJudge.VLLM), BASE, "awq-w4")
    base, own, exact = (
        record_of(workspace, BASE),
        record_of(workspace, "awq-w4"),
        record_of(made[0], "awq-w4"),
    )
    assert set(base.controls) == {"llama.cpp", "vllm"}
    control = base.controls["vllm"]
    assert control.backend == own.backend == "vllm"
    assert control.backend_version == own.backend_version
    assert control.artifact_digest == base.artifact_digest
    assert own.distance is not None
    assert exact.distance is not None
    assert 0 <= control.distance.kl < 1e-4 < own.distance.kl
    assert own.distance.kl == pytest.approx(exact.distance.kl, rel=0.02)
    assert own.perplexity == pytest.approx(exact.perplexity, rel=0.002)
    rows, others = (
        rows_of(read_scored(it, "awq-w4").rows, "trades") for it in (workspace, made[0])
    )
    for row, other in zip(rows, others, strict=True):
        assert row.prompt_hash == other.prompt_hash
        assert row.logprobs == pytest.approx(other.logprobs, abs=0.02)


def test_what_was_scored_once_is_not_scored_again(
    copied: tuple[Workspace, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, params = copied

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(scored_models, "unpacked_model", refuse)
    monkeypatch.setattr(scored_models.LlamaCppScorer, "__init__", refuse)
    for name in (BASE, *params.variants):
        before = directory_records(workspace.evaluation_dir(name))
        shutil.rmtree(workspace.evaluation_dir(name))
        evaluate.run(workspace, params, name)
        assert directory_records(workspace.evaluation_dir(name)) == before
    with pytest.raises(AssertionError, match="a model was loaded"):
        evaluate.run(workspace, changed(params, num_windows=3), BASE)


def test_a_sequential_evaluation_stops_when_the_verdict_is_clear(
    copied: tuple[Workspace, Params],
) -> None:
    workspace, params = copied
    wide = {"margin": 0.9, "sequential": {"looks": 2, "spending": "pocock"}}
    gate = GateParams.model_validate_json(
        json.dumps(params.gate.model_dump(mode="json") | wide), strict=True
    )
    base = read_scored(workspace, BASE)
    evaluate.run(workspace, params.model_copy(update={"gate": gate}), "gguf-q8-0")
    own = read_scored(workspace, "gguf-q8-0")
    assert own.record.tasks["trades"].num_documents == 10
    first = rows_of(base.rows, "trades")[:10]
    assert [it.doc_id for it in rows_of(own.rows, "trades")] == [it.doc_id for it in first]
