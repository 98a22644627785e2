"""evaluate: what the base or one variant scores, and how far a variant is from the base.

What is scored is the packed file itself: AWQ and GPTQ checkpoints by the weights their files stand
for, GGUF files in llama.cpp. Base and variant read the same token ids, made by the base's
tokenizer. Logits for the distance are compared window by window and never stored.
"""

from collections.abc import Sequence
from contextlib import closing
from itertools import repeat
from typing import Any

from pipeline.adapters.checkpoint import tokenizer_of, unpacked_model
from pipeline.adapters.files import file_sha256, new_directory, read_bytes, write_record
from pipeline.adapters.llama_cpp import LlamaCppScorer
from pipeline.adapters.lm_eval import SuiteResult, loaded_tasks, read_suite, run_tasks
from pipeline.adapters.lm_eval_model import ScoredModel
from pipeline.adapters.manifest_file import read_base_manifest
from pipeline.adapters.progress import note, track
from pipeline.adapters.room import fetched_source, require_room
from pipeline.adapters.scorer import Scorer, window_logits
from pipeline.adapters.texts import read_texts, token_ids_sha256, token_windows
from pipeline.adapters.transformers_scorer import TransformersScorer
from pipeline.domain.distance import (
    Floats,
    WindowDistance,
    negative_log_likelihoods,
    perplexity,
    summarize,
    window_distance,
)
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import Distance, EvaluationRecord
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.manifest import BaseManifest
from pipeline.domain.params import EvaluateParams, Params
from pipeline.domain.quantized import VariantRecord
from pipeline.domain.record import sha256_hex
from pipeline.domain.stage_needs import evaluate_need
from pipeline.domain.vocabulary import require_same_size, require_same_tokens

MIN_WINDOWS = 2

SHOWN_TOKENS = 24
"""Of the text where KL is largest."""


def run(layout: Layout, params: Params, name: str) -> None:
    """Write `artifacts/evaluations/<name>`; `name` is `base` or a variant.

    Everything cheap is checked before a model is loaded. Raises InputError for wrong parameters,
    texts or tasks, or a variant that does not belong to this base, FailureError for a variant whose
    logits are not finite.
    """
    evaluate = params.evaluate
    base = read_base_manifest(layout)
    digest = _artifact_digest(layout, params, base, name)
    require_room(layout, evaluate_need(fetched_source(layout), params, name, suite_tokens=0))
    tokenizer = tokenizer_of(layout.base_dir)
    text_path = layout.root / evaluate.text
    texts = read_texts(text_path)
    windows = _windows(evaluate, texts, tokenizer)
    suite = read_suite(layout.root, evaluate.suite)
    with loaded_tasks(layout.root, suite) as tasks, closing(_scorer(layout, name)) as scorer:
        note(f"evaluate: {name}: suite {evaluate.suite}, {len(tasks)} tasks, {scorer.backend}")
        _require_room(evaluate, scorer)
        if name == BASE:
            held_out_perplexity, distance = measure(
                scorer, None, windows, tokenizer, batch_size=evaluate.batch_size
            )
        else:
            _require_own_tokens(layout, name, scorer, tokenizer, texts)
            with closing(_scorer(layout, BASE)) as reference:
                require_same_size(name, base_size=reference.vocab_size, own_size=scorer.vocab_size)
                held_out_perplexity, distance = measure(
                    scorer, reference, windows, tokenizer, batch_size=evaluate.batch_size
                )
        model = ScoredModel(scorer, tokenizer, batch_size=evaluate.batch_size)
        result = run_tasks(tasks, model, max_documents=evaluate.max_documents)
    documents = _rows(result)
    with new_directory(layout.evaluation_dir(name)) as partial:
        (partial / layout.documents_path(name).name).write_bytes(documents)
        record = EvaluationRecord(
            name=name,
            artifact_digest=digest,
            base_digest=base.digest,
            backend=scorer.backend,
            backend_version=scorer.backend_version,
            suite=evaluate.suite,
            tasks=result.scores,
            perplexity=held_out_perplexity,
            distance=distance,
            text_sha256=file_sha256(text_path),
            token_ids_sha256=token_ids_sha256(windows),
            num_tokens=sum(len(window) - 1 for window in windows),
            documents_sha256=sha256_hex(documents),
            looks=(),
            broken=None,
            controls={},
        )
        write_record(partial / layout.evaluation_path(name).name, record)
    note(_summary(record))


def _artifact_digest(layout: Layout, params: Params, base: BaseManifest, name: str) -> str:
    if name == BASE:
        return base.digest
    if name not in params.variants:
        raise InputError(f"{name}: not in params.yaml; known: {BASE}, {', '.join(params.variants)}")
    path = layout.variant_path(name)
    variant = VariantRecord.from_bytes(
        read_bytes(path, made_by=f"quantize {name}"), source=str(path)
    )
    if variant.base_digest != base.digest:
        raise InputError(f"{path}: made from another base; run `quantline quantize {name}` again")
    return variant.digest


def _windows(evaluate: EvaluateParams, texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    if evaluate.num_windows < MIN_WINDOWS:
        raise InputError(
            f"evaluate.num_windows = {evaluate.num_windows}: expected at least {MIN_WINDOWS}, for "
            "a confidence interval"
        )
    return token_windows(
        texts,
        tokenizer.encode,
        window_tokens=evaluate.window_tokens,
        num_windows=evaluate.num_windows,
        source=f"evaluate.text = {evaluate.text}",
    )


def _scorer(layout: Layout, name: str) -> Scorer:
    """The engine for the model's format, loaded."""
    model_dir = layout.model_dir(name)
    for gguf_path in sorted(model_dir.glob("*.gguf")):
        return LlamaCppScorer(gguf_path, label=name)
    return TransformersScorer(unpacked_model(model_dir), label=name)


def _require_own_tokens(
    layout: Layout, name: str, scorer: Scorer, tokenizer: Any, texts: Sequence[str]
) -> None:
    """The variant's own tokenizer gives the ids that it is scored on."""
    if isinstance(scorer, LlamaCppScorer):
        own_encode = scorer.tokenize
    else:
        own_encode = tokenizer_of(layout.model_dir(name)).encode
    require_same_tokens(
        name,
        base_encode=tokenizer.encode,
        own_encode=own_encode,
        unknown_id=tokenizer.unk_token_id,
        texts=texts,
    )


def _require_room(evaluate: EvaluateParams, scorer: Scorer) -> None:
    if evaluate.window_tokens > scorer.max_length:
        raise InputError(
            f"evaluate.window_tokens = {evaluate.window_tokens}: expected at most "
            f"{scorer.max_length}, the model's context"
        )


def measure(
    scorer: Scorer,
    reference: Scorer | None,
    windows: Sequence[list[int]],
    tokenizer: Any,
    *,
    batch_size: int,
) -> tuple[float, Distance | None]:
    """Perplexity on the windows, and the distance to `reference` where there is one.

    Both models read each window in turn, and of its logits only a few numbers for each token stay.
    """
    losses: list[Floats] = []
    distances: list[WindowDistance] = []
    own_windows = window_logits(scorer, windows, batch_size=batch_size)
    base_windows = (
        window_logits(reference, windows, batch_size=batch_size) if reference else repeat(None)
    )
    pairs = zip(windows, own_windows, base_windows, strict=False)
    for window, own, base in track(pairs, f"{scorer.label}: windows", total=len(windows)):
        if base is None:
            losses.append(negative_log_likelihoods(own, window))
        else:
            distances.append(window_distance(base, own, window))
            losses.append(distances[-1].own_losses)

    def text_at(window: int, position: int) -> str:
        ids = windows[window][max(0, position + 2 - SHOWN_TOKENS) : position + 2]
        return str(tokenizer.decode(ids))

    return perplexity(losses), summarize(distances, text_at) if distances else None


def _rows(result: SuiteResult) -> bytes:
    return b"".join(row.model_dump_json().encode() + b"\n" for row in result.documents)


def _summary(record: EvaluationRecord) -> str:
    scores = ", ".join(f"{task} {score.value:.4g}" for task, score in record.tasks.items())
    distance = f", KL {record.distance.kl:.4g}" if record.distance else ""
    return f"evaluate: {record.name}: {scores}, perplexity {record.perplexity:.4g}{distance}"
