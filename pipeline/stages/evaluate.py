"""Evaluate the base or variants: their scores, and how far a variant is from the base.

The packed files themselves are scored: checkpoints in vLLM, or unpacked in transformers; GGUF files
in llama.cpp. The base and the variants read the same token ids, from the base's tokenizer.
Transformers scores the base, and every other engine that scores variants scores the base too. These
controls show the differences between engines. Scores, KL and perplexity of a variant are compared
with the base in the variant's own engine. An engine or a kind of device that did not score the base
scores no variant.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from pipeline.checkpoint.chat_rendering import template_date
from pipeline.checkpoint.model_config import vocabulary_size
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import InputError
from pipeline.core.files import (
    directory_records,
    new_directory,
    read_record,
    write_bytes,
    write_record,
)
from pipeline.core.progress import note
from pipeline.core.record import sha256_hex
from pipeline.core.system_errors import readable_memory_errors
from pipeline.core.workspace import BASE, Workspace
from pipeline.engines.scorer import BrokenModelError, engine_of
from pipeline.evaluation.evaluator import EvaluationResult, Evaluator, ScoredModel
from pipeline.evaluation.held_out import read_held_out
from pipeline.evaluation.scored_models import ScoredModels, base_model
from pipeline.evaluation.stopping import stopping_rule
from pipeline.evaluation.task_runs import TaskQuestions
from pipeline.params.params import LLAMA_CPP, PackedJudge, Params
from pipeline.params.reading import chosen_judge, require_judge
from pipeline.params.suites import Suite, read_suite
from pipeline.planning.capacity import fetched_source, require_room
from pipeline.planning.stage_needs import evaluate_need
from pipeline.records.base import read_base_manifest
from pipeline.records.evaluation import Control, DocumentRecord, EvaluationRecord
from pipeline.records.scored import control_in, read_base_in, read_scored
from pipeline.records.variant import VariantRecord, quantized_bits
from pipeline.tasks.loading import loaded_tasks

NO_MEMORY_REMEDY = "lower evaluate.batch_size or evaluate.window_tokens, or use a larger machine"


def run(workspace: Workspace, params: Params, *names: str) -> None:
    """Write `artifacts/evaluations/<name>` of each name: `base` or a variant.

    Everything cheap is checked before a model is loaded. Raises InputError for wrong parameters,
    texts or tasks, for a variant that does not belong to this base, and for a base that was not
    scored in the engine of the variant; BrokenModelError for a base whose logits are not finite;
    FailureError for too little memory. A variant whose logits are not finite is recorded as broken.
    """
    evaluate = params.evaluate
    packed_judge = chosen_judge(evaluate.packed_judge)
    require_judge(packed_judge)
    base = read_base_manifest(workspace)
    tokenizer = tokenizer_of(workspace.base_dir)
    variants = {
        name: _variant(workspace, params, base.digest, name) for name in names if name != BASE
    }
    for name in names:
        require_room(
            workspace, evaluate_need(fetched_source(workspace), params, name, suite_tokens=0)
        )
    held_out = read_held_out(workspace.root, evaluate, tokenizer)
    vocab_size = vocabulary_size(workspace.base_dir)
    models = ScoredModels(
        base_model(workspace.base_dir, base.digest),
        workspace.base_dir,
        tokenizer,
        vocab_size,
        held_out.texts,
        packed_judge,
        params.model.gguf_pre_tokenizer,
        base.unused_tensors,
        base.copied_tensors,
    )
    suite = read_suite(workspace.root, evaluate.suite)
    with loaded_tasks(workspace.root, suite) as tasks, closing(models.base.scorer):
        questions = [
            TaskQuestions(task, tokenizer, max_documents=evaluate.max_documents) for task in tasks
        ]
        evaluator = Evaluator(
            base.digest,
            tokenizer,
            vocab_size,
            held_out,
            questions,
            evaluate,
            workspace.scores_cache_dir,
        )
        # The base first: the others are compared with it.
        for name in sorted(names, key=lambda name: name != BASE):
            with readable_memory_errors(f"evaluate {name}", NO_MEMORY_REMEDY):
                if name == BASE:
                    _evaluate_base(workspace, params, evaluator, models)
                else:
                    _evaluate_variant(workspace, params, suite, evaluator, models, variants[name])


def _evaluate_base(
    workspace: Workspace, params: Params, evaluator: Evaluator, models: ScoredModels
) -> None:
    note(f"evaluate: {BASE}: suite {params.evaluate.suite}, {models.base.scorer.backend}")
    with new_directory(workspace.evaluation_dir(BASE)) as partial:
        own = evaluator.evaluate(models.base, None, is_reference=True)
        controls = _controls(workspace, params, evaluator, models, partial)
        _write(workspace, evaluator, BASE, models.base, partial, own=own, controls=controls)


def _evaluate_variant(
    workspace: Workspace,
    params: Params,
    suite: Suite,
    evaluator: Evaluator,
    models: ScoredModels,
    variant: VariantRecord,
) -> None:
    """Compare a variant with the base in the engine that scores the variant."""
    name = variant.name
    model = models.variant(name, variant.digest, workspace.model_dir(name))
    base = read_scored(workspace, BASE)
    if base.record.artifact_digest != evaluator.base_digest:
        raise InputError(
            f"{workspace.evaluation_path(BASE)}: scores another base; run "
            "`quantline evaluate base` again"
        )
    engine = engine_of(model.scorer)
    control = control_in(workspace, base.record, engine, name=name)
    stopping = stopping_rule(
        read_base_in(workspace, base, engine, name=name),
        params.gate,
        suite,
        name,
        bits=quantized_bits(variant.coverage),
    )
    note(f"evaluate: {name}: suite {evaluator.params.suite}, {model.scorer.backend}")
    with new_directory(workspace.evaluation_dir(name)) as partial:
        reference = models.reference(control, work_dir=partial)
        own, broken = None, None
        with closing(model.scorer), closing(reference.scorer):
            try:
                own = evaluator.evaluate(model, reference, stopping=stopping)
            except BrokenModelError as error:
                broken = str(error)
        _write(workspace, evaluator, name, model, partial, own=own, broken=broken)


def _write(
    workspace: Workspace,
    evaluator: Evaluator,
    name: str,
    model: ScoredModel,
    partial: Path,
    *,
    own: EvaluationResult | None,
    broken: str | None = None,
    controls: Mapping[str, Control] | None = None,
) -> None:
    """Write the record and the rows of one model into `partial`."""
    documents_path = partial / workspace.documents_path(name).name
    uses_template = any(task.loaded.chat for task in evaluator.questions)
    record = EvaluationRecord(
        name=name,
        artifact_digest=model.digest,
        base_digest=evaluator.base_digest,
        backend=model.scorer.backend,
        backend_version=model.scorer.backend_version,
        device=model.scorer.device,
        suite=evaluator.params.suite,
        tasks=own.scores if own else {},
        perplexity=own.perplexity if own else None,
        distance=own.distance if own else None,
        text_sha256=evaluator.held_out.text_sha256,
        token_ids_sha256=evaluator.held_out.token_ids_sha256,
        num_tokens=evaluator.held_out.num_tokens,
        documents_sha256=_write_rows(documents_path, own.documents if own else ()),
        broken=broken,
        controls=dict(controls or {}),
        template_date=template_date(evaluator.tokenizer) if uses_template else None,
    )
    write_record(partial / workspace.evaluation_path(name).name, record)
    note(_summary(record))


def _variant(workspace: Workspace, params: Params, base_digest: str, name: str) -> VariantRecord:
    """Read the record of a variant of this base, and check its files."""
    if name not in params.variants:
        raise InputError(f"{name}: not in params.yaml; known: {BASE}, {', '.join(params.variants)}")
    path = workspace.variant_path(name)
    variant = read_record(VariantRecord, path, made_by=f"quantize {name}")
    if variant.base_digest != base_digest:
        raise InputError(f"{path}: made from another base; run `quantline quantize {name}` again")
    if directory_records(workspace.model_dir(name)) != variant.files:
        raise InputError(
            f"{workspace.model_dir(name)}: not the files that quantize wrote; run "
            f"`quantline quantize {name}` again"
        )
    return variant


def _controls(
    workspace: Workspace, params: Params, evaluator: Evaluator, models: ScoredModels, partial: Path
) -> dict[str, Control]:
    """Evaluate the base in each engine that scores variants; its rows go into `partial`."""
    controls: dict[str, Control] = {}
    backends: list[str] = [*params.evaluate.controls]
    if models.packed_judge is not PackedJudge.TRANSFORMERS:
        backends.append(models.packed_judge.value)
    for backend in backends:
        try:
            with models.control(backend, work_dir=partial) as model:
                own = evaluator.evaluate(model, models.base, is_reference=True)
        except InputError as error:
            if backend != LLAMA_CPP or params.makes_gguf:
                raise
            note(f"evaluate: {BASE}: not scored in {backend}, which no variant needs: {error}")
            continue
        assert own.distance is not None, "there is a reference"
        controls[backend] = Control(
            backend=model.scorer.backend,
            backend_version=model.scorer.backend_version,
            device=model.scorer.device,
            artifact_digest=model.digest,
            tasks=own.scores,
            perplexity=own.perplexity,
            distance=own.distance,
            documents_sha256=_write_rows(
                partial / workspace.control_documents_path(backend).name, own.documents
            ),
        )
        note(f"evaluate: {BASE} in {backend}: KL to transformers {own.distance.kl:.2g}")
    return controls


def _write_rows(path: Path, documents: Sequence[DocumentRecord]) -> str:
    """Write one row of JSON for each document; return the file's sha256."""
    data = b"".join(row.model_dump_json().encode() + b"\n" for row in documents)
    write_bytes(path, data)
    return sha256_hex(data)


def _summary(record: EvaluationRecord) -> str:
    if record.perplexity is None:
        return f"evaluate: {record.name}: broken: {record.broken}"
    scores = ", ".join(f"{task} {score.value:.4g}" for task, score in record.tasks.items())
    distance = f", KL {record.distance.kl:.4g}" if record.distance else ""
    return f"evaluate: {record.name}: {scores}, perplexity {record.perplexity:.4g}{distance}"
