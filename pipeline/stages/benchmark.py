"""benchmark: the base and every approved variant are served by a real engine and loaded.

vLLM serves checkpoints, llama.cpp GGUF files; one load generator drives both through the same API.
Before the load, greedy text from the server is compared with the engine that scored the same
file, so that what is measured is what was evaluated. One model is served at a time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.adapters import vllm, xllamacpp
from pipeline.adapters.canary import reference_texts, served_texts
from pipeline.adapters.checkpoint import tokenizer_of, unpacked_model
from pipeline.adapters.engine import ModelRefusedError, Server, chosen_port
from pipeline.adapters.files import read_bytes, write_record
from pipeline.adapters.llama_cpp import LlamaCppScorer
from pipeline.adapters.load import run_loads
from pipeline.adapters.machine import this_machine
from pipeline.adapters.manifest_file import read_base_manifest
from pipeline.adapters.progress import note
from pipeline.adapters.scorer import Scorer
from pipeline.adapters.texts import read_texts, token_windows
from pipeline.adapters.transformers_scorer import TransformersScorer
from pipeline.domain.errors import InputError
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.params import GgufParams, Params, ServeParams
from pipeline.domain.quantized import VariantRecord
from pipeline.domain.selection import Selection
from pipeline.domain.serving import (
    BenchmarkResult,
    Benchmarks,
    Canary,
    LoadResult,
    ServedModel,
    SkippedModel,
)

NUM_CANARY_PROMPTS = 8
CANARY_PROMPT_TOKENS = 32
CANARY_NEW_TOKENS = 32
# Random text that is decoded and read again may come out a few tokens longer.
SPARE_TOKENS = 24


@dataclass(frozen=True)
class Candidate:
    """A model to serve: a checkpoint directory, or one GGUF file of `file_type`."""

    name: str
    digest: str
    path: Path
    file_type: str | None


def run(layout: Layout, params: Params) -> None:
    """Write `artifacts/benchmarks.json`.

    A model that its engine does not support, or whose context is too short for the load, is
    recorded as skipped. Raises InputError for a port that is taken or files that are not the
    approved ones, FailureError for a server that dies.
    """
    serve = params.serve
    chosen_port(serve.port)
    base = read_base_manifest(layout)
    candidates = candidates_of(layout)
    tokenizer = tokenizer_of(layout.base_dir)
    prompts = prompts_of(layout, params, tokenizer, num_prompts=NUM_CANARY_PROMPTS)
    models: dict[str, BenchmarkResult] = {}
    for number, candidate in enumerate(candidates, start=1):
        note(f"benchmark: {candidate.name} ({number} of {len(candidates)})")
        models[candidate.name] = _result(layout, serve, candidate, tokenizer, prompts)
    record = Benchmarks(base_digest=base.digest, machine=this_machine(), load=serve, models=models)
    write_record(layout.benchmarks_path, record)


def candidates_of(layout: Layout) -> list[Candidate]:
    """The base and the approved variants, each with the files that were approved."""
    base = read_base_manifest(layout)
    path = layout.selection_path
    selection = Selection.from_bytes(read_bytes(path, made_by="select"), source=str(path))
    candidates = [Candidate(BASE, base.digest, layout.base_dir, file_type=None)]
    for name in selection.approved():
        path = layout.variant_path(name)
        variant = VariantRecord.from_bytes(
            read_bytes(path, made_by=f"quantize {name}"), source=str(path)
        )
        if variant.digest != selection.variants[name].artifact_digest:
            raise InputError(f"{path}: not the files that were approved; run `dvc repro` again")
        candidates.append(_candidate(layout, variant))
    return candidates


def _candidate(layout: Layout, variant: VariantRecord) -> Candidate:
    model_dir = layout.model_dir(variant.name)
    if not isinstance(variant.recipe, GgufParams):
        return Candidate(variant.name, variant.digest, model_dir, file_type=None)
    (file,) = (file.path for file in variant.files if file.path.endswith(".gguf"))
    file_type = variant.recipe.type.value
    return Candidate(variant.name, variant.digest, model_dir / file, file_type=file_type)


def prompts_of(
    layout: Layout, params: Params, tokenizer: Any, *, num_prompts: int
) -> list[list[int]]:
    """The first held-out tokens, in pieces."""
    return token_windows(
        read_texts(layout.root / params.evaluate.text),
        tokenizer.encode,
        window_tokens=CANARY_PROMPT_TOKENS,
        num_windows=num_prompts,
        source=f"evaluate.text = {params.evaluate.text}",
    )


def _result(
    layout: Layout,
    serve: ServeParams,
    candidate: Candidate,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
) -> BenchmarkResult:
    with closing(scorer_of(candidate)) as scorer:
        context_tokens = serve.input_tokens + serve.output_tokens + SPARE_TOKENS
        if scorer.max_length < context_tokens:
            return _skipped(
                candidate,
                f"its context has {scorer.max_length} tokens, the load needs {context_tokens}: "
                "lower serve.input_tokens or serve.output_tokens",
            )
        expected = reference_texts(scorer, tokenizer, prompts, max_new_tokens=CANARY_NEW_TOKENS)
    try:
        with server_of(layout, serve, candidate, context_tokens=context_tokens) as server:
            texts = served_texts(server, prompts, max_new_tokens=CANARY_NEW_TOKENS)
            num_matches = sum(a == b for a, b in zip(texts, expected, strict=True))
            note(f"benchmark: {candidate.name}: {num_matches} of {len(expected)} texts as expected")
            loads = run_loads(
                server,
                tokenizer_dir=layout.base_dir,
                concurrency=serve.concurrency,
                requests_per_user=serve.requests_per_user,
                input_tokens=serve.input_tokens,
                output_tokens=serve.output_tokens,
            )
    except ModelRefusedError as error:
        return _skipped(candidate, str(error))
    for load in loads:
        _note_load(candidate.name, load)
    return ServedModel(
        artifact_digest=candidate.digest,
        engine=server.engine,
        engine_version=server.engine_version,
        kernel=server.kernel,
        dtype=server.dtype,
        command=server.command,
        startup_s=round(server.startup_s, 1),
        canary=Canary(reference=scorer.backend, num_matches=num_matches, num_prompts=len(expected)),
        loads=loads,
    )


def scorer_of(candidate: Candidate) -> Scorer:
    """The engine that scored this file, loaded."""
    if candidate.file_type is None:
        return TransformersScorer(unpacked_model(candidate.path), label=candidate.name)
    return LlamaCppScorer(candidate.path, label=candidate.name)


def server_of(
    layout: Layout, serve: ServeParams, candidate: Candidate, *, context_tokens: int
) -> AbstractContextManager[Server]:
    """The engine that serves this file, ready to be entered."""
    log_path = layout.benchmarks_path.with_suffix(".logs") / f"{candidate.name}.log"
    if candidate.file_type is None:
        return vllm.serve(
            candidate.path,
            name=candidate.name,
            context_tokens=context_tokens,
            port=serve.port,
            timeout_s=serve.startup_timeout_s,
            log_path=log_path,
        )
    return xllamacpp.serve(
        candidate.path,
        name=candidate.name,
        file_type=candidate.file_type,
        context_tokens=context_tokens,
        users=max(serve.concurrency),
        port=serve.port,
        timeout_s=serve.startup_timeout_s,
        log_path=log_path,
    )


def _note_load(name: str, load: LoadResult) -> None:
    note(
        f"benchmark: {name}: {load.concurrency} users: {load.output_tokens_per_s:.0f} tokens/s, "
        f"first token after {load.ttft_ms.p50:.0f} ms, then {load.tpot_ms.p50:.1f} ms each"
    )


def _skipped(candidate: Candidate, reason: str) -> SkippedModel:
    note(f"benchmark: {candidate.name}: skipped: {reason}")
    return SkippedModel(artifact_digest=candidate.digest, reason=reason)
