"""Benchmark the base, every approved variant and the user's endpoints under load.

vLLM serves checkpoints and llama.cpp serves GGUF files. One load generator sends requests to all of
them through the same API. Before the load, a parity check compares greedy texts of the server with
those of the engine that scored the same files. The base runs in the fastest of `serve.base_dtypes`.
Servers start side by side, first the base's, then all others. The base's start while the texts are
made, if memory has room for both. Loads run only while nothing starts and no text is made: all
models in rounds, one load after the other, until their ratios to the base are precise enough or the
time is spent. The report computes the costs.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from time import monotonic

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.documents import read_texts
from pipeline.core.errors import FailureError
from pipeline.core.files import write_record
from pipeline.core.machine import memory_for_servers, this_machine
from pipeline.core.progress import note
from pipeline.core.system_errors import readable_memory_errors
from pipeline.core.texts import token_windows
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.params.reading import chosen_judge
from pipeline.params.serving import ServeParams
from pipeline.records.base import read_base_manifest
from pipeline.records.benchmarks import Benchmarks
from pipeline.serving.endpoint import require_usable
from pipeline.serving.load import LoadGenerator
from pipeline.serving.model_run import PARITY_NEW_TOKENS, WARM_UP_SEED, Cell, ModelRun
from pipeline.serving.parity_check import Prompts, Reference, reference_of
from pipeline.serving.servable import (
    SPARE_TOKENS,
    ServableModel,
    kv_bytes_of,
    scorer_bytes,
    scorer_of,
    servable_models,
    server_spec,
)
from pipeline.serving.server import chosen_port
from pipeline.serving.server_pool import ServerPool, ServerSpec
from pipeline.serving.vllm import AUTO_DTYPE

NUM_PARITY_PROMPTS = 8
PARITY_PROMPT_TOKENS = 32


@dataclass(frozen=True)
class BenchmarkRun:
    """Hold the settings, servers and load generator that all model runs share.

    `references` has the texts of the engine that scored the model at a path.
    """

    workspace: Workspace
    serve: ServeParams
    base_digest: str
    prompts: Prompts
    references: Mapping[Path, Reference]
    pool: ServerPool
    generator: LoadGenerator


def run(workspace: Workspace, params: Params) -> None:
    """Write `artifacts/benchmarks.json`.

    A model that its engine does not support, or whose context is too short for the load, is
    recorded as skipped. The file is written after every load, marked as partial until all is done.
    Raises InputError for a port that is taken, a key that is not set or files that are not the
    approved ones; FailureError for too little memory before any server starts, and when a server
    failed after everything else was measured.
    """
    serve = params.serve
    models = servable_models(workspace, serve)
    for name, endpoint in serve.endpoints.items():
        require_usable(name, endpoint)
    chosen_port(serve.port)
    ports = repeat(None) if serve.port is None else count(serve.port)
    prompts = prompts_of(workspace, params, num_prompts=NUM_PARITY_PROMPTS)
    base_specs: dict[str, ServerSpec] = {
        dtype: server_spec(workspace, serve, models[0], port=next(ports), dtype=dtype)
        for dtype in serve.base_dtypes
    }
    generator = LoadGenerator(
        workspace.base_dir,
        service_level=serve.service_level,
        log_path=workspace.benchmarks_path.with_suffix(".logs") / "load.log",
    )
    with ServerPool(free_bytes=memory_for_servers) as pool, generator:
        references = _references(workspace, params, models, prompts, pool, [*base_specs.values()])
        base_digest = read_base_manifest(workspace).digest
        shared = BenchmarkRun(workspace, serve, base_digest, prompts, references, pool, generator)
        base_model, *other_models = models
        base = _fastest_base(shared, base_model, base_specs)
        others = []
        for model in other_models:
            dtype = _dtype(model, base)
            spec = server_spec(workspace, serve, model, port=next(ports), dtype=dtype)
            others.append(_model_run(shared, model, dtype, spec))
        _start_and_warm_up(shared, others)
        model_runs = [base, *others]
        _run_rounds(shared, model_runs)
    failed = [one for one in model_runs if one.problem is not None]
    _write(shared, model_runs, complete=not failed)
    if failed:
        raise FailureError(
            f"{failed[0].problem} ({len(failed)} of {len(model_runs)} models failed; "
            f"{workspace.benchmarks_path.name} has what was measured, marked as partial)"
        )


def prompts_of(workspace: Workspace, params: Params, *, num_prompts: int) -> Prompts:
    """Cut the first held-out tokens into prompts of equal length."""
    tokenizer = tokenizer_of(workspace.base_dir)
    ids = token_windows(
        read_texts(workspace.root / params.evaluate.text),
        tokenizer.encode,
        window_tokens=PARITY_PROMPT_TOKENS,
        num_windows=num_prompts,
        source=f"evaluate.text = {params.evaluate.text}",
    )
    return Prompts(tokenizer, ids)


def _references(
    workspace: Workspace,
    params: Params,
    models: Sequence[ServableModel],
    prompts: Prompts,
    pool: ServerPool,
    first_specs: Sequence[ServerSpec],
) -> dict[Path, Reference]:
    """Let the engine that scored each model write its texts; one model is loaded at a time.

    Meanwhile the servers of `first_specs` start, as far as memory has room for them beside it.
    """
    packed_judge = chosen_judge(params.evaluate.packed_judge)
    largest = max(scorer_bytes(workspace, model, packed_judge) for model in models)
    pool.launch(first_specs, spare_bytes=largest)
    references: dict[Path, Reference] = {}
    for model in models:
        if model.path in references:  # an endpoint serves the same weights
            continue
        note(f"benchmark: {model.name}: reference texts of the engine that scored it")
        with (
            readable_memory_errors(f"benchmark: {model.name}", "use a machine with more"),
            closing(scorer_of(workspace, model, packed_judge)) as scorer,
        ):
            references[model.path] = reference_of(scorer, prompts, max_new_tokens=PARITY_NEW_TOKENS)
    return references


def _fastest_base(
    shared: BenchmarkRun, model: ServableModel, specs: Mapping[str, ServerSpec]
) -> ModelRun:
    """Serve the base in each activation type, and keep only the fastest in the warm-up."""
    model_runs = [_model_run(shared, model, dtype, spec) for dtype, spec in specs.items()]
    _start_and_warm_up(shared, model_runs)
    fastest, *slower = sorted(model_runs, key=lambda one: -one.warm_up_tokens_per_s)
    if fastest.refusal is not None:  # its server started before that was known
        shared.pool.stop(fastest.spec.name)
    for one in slower:
        shared.pool.stop(one.spec.name)
        if one.server is not None and one.parity_check is not None:
            fastest.slower_dtypes[one.server.dtype] = one.warm_up_tokens_per_s
    return fastest


def _dtype(model: ServableModel, base: ModelRun) -> str:
    """Return the type of activations to serve a variant or an endpoint with.

    vLLM chooses it, except where quantline's own kernels run the variant. They take any type, and
    the base's type is the fastest for all other layers of the model.
    """
    is_ours = model.file_type is None and this_machine().lacks_4_bit_kernels
    return base.server.dtype if is_ours and base.server is not None else AUTO_DTYPE


def _model_run(
    shared: BenchmarkRun, model: ServableModel, dtype: str, spec: ServerSpec
) -> ModelRun:
    """Plan to serve a model; refuse one whose context is too short for the load."""
    reference = shared.references[model.path]
    needed = shared.serve.context_tokens + SPARE_TOKENS
    refusal = None
    if reference.context_tokens < needed:
        refusal = (
            f"its context has {reference.context_tokens} tokens, the load needs {needed}: "
            "lower the tokens of serve.scenarios"
        )
        note(f"benchmark: {model.name}: skipped: {refusal}")
    return ModelRun(
        model,
        spec,
        kv_bytes_of(shared.workspace, shared.serve, dtype=dtype),
        reference,
        refusal=refusal,
    )


def _start_and_warm_up(shared: BenchmarkRun, model_runs: Sequence[ModelRun]) -> None:
    """Start as many servers side by side as memory has room for, and warm them up one by one."""
    waiting = [one for one in model_runs if one.refusal is None]
    while waiting:
        shared.generator.start()
        num_launched = shared.pool.launch([one.spec for one in waiting])
        # Where not even one has room, the pool makes room for the next one.
        group, waiting = waiting[: max(1, num_launched)], waiting[max(1, num_launched) :]
        for one in group:
            one.start(shared.pool, shared.prompts)
        for one in group:
            if one.is_running:
                one.warm_up(shared.pool, shared.generator, shared.serve)


def _run_rounds(shared: BenchmarkRun, model_runs: list[ModelRun]) -> None:
    """Run rounds over all loads whose ratios are not precise enough yet.

    Every round begins with another model, so that no model always runs after the same one.
    """
    serve, base = shared.serve, model_runs[0]
    waiting = [
        (name, users)
        for name, scenario in serve.scenarios.items()
        for users in scenario.concurrency
    ]
    seeds = count(WARM_UP_SEED + 1)  # never the same prompts twice: a server may have cached them
    began = monotonic()
    for number in range(serve.max_rounds):
        for cell in waiting:
            if number > 0 and monotonic() - began > serve.time_budget_s:
                note(
                    f"benchmark: serve.time_budget_s = {serve.time_budget_s} is spent; "
                    "no more rounds"
                )
                return
            first, seed = number % len(model_runs), next(seeds)
            for model_run in (*model_runs[first:], *model_runs[:first]):
                if model_run.is_running:
                    model_run.run_round(shared.pool, shared.generator, serve, cell, seed)
            _note_cell(model_runs, base, cell)
            _write(shared, model_runs, complete=False)
        waiting = [
            cell for cell in waiting if not _is_precise_enough(model_runs, base, cell, serve)
        ]


def _is_precise_enough(
    model_runs: list[ModelRun], base: ModelRun, cell: Cell, serve: ServeParams
) -> bool:
    ratios = [
        one.throughput_ratio(base, cell) for one in model_runs if one.is_running and one is not base
    ]
    return bool(ratios) and all(
        ratio is not None and ratio.is_narrow(serve.narrow_enough) for ratio in ratios
    )


def _note_cell(model_runs: list[ModelRun], base: ModelRun, cell: Cell) -> None:
    scenario, users = cell
    parts = []
    for one in model_runs:
        if rounds := one.rounds.get(cell):
            ratio = one.throughput_ratio(base, cell)
            times = f" ({ratio.median:.2f} times the base)" if ratio else ""
            parts.append(f"{one.name} {rounds[-1].output_tokens_per_s:.0f}{times}")
    note(f"benchmark: {scenario}, {users} users: output tokens per second: {', '.join(parts)}")


def _write(shared: BenchmarkRun, model_runs: list[ModelRun], *, complete: bool) -> None:
    base = model_runs[0]
    record = Benchmarks(
        complete=complete,
        base_digest=shared.base_digest,
        machine=this_machine(),
        load=shared.serve,
        models={one.name: one.result(base) for one in model_runs},
    )
    write_record(shared.workspace.benchmarks_path, record)
