"""benchmark: the base, every approved variant and the user's endpoints are served and loaded.

vLLM serves checkpoints, llama.cpp GGUF files; one load generator drives all through the same API.
Before the load, greedy text from the server is compared with the engine that scored the same file,
so that what is measured is what was evaluated; that engine writes it before any server runs, and
gives its memory back. The base runs in the fastest of the types that it
may have. Then all models run in rounds, one load after the other, until their ratios to the base
are known well enough or the time is spent. What it costs is not reckoned here but in the report.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic

from pipeline.checkpoint.reading import tokenizer_of
from pipeline.core.allocator import readable_memory_errors
from pipeline.core.errors import FailureError
from pipeline.core.files import write_record
from pipeline.core.machine import memory_for_servers, this_machine
from pipeline.core.progress import note
from pipeline.core.texts import read_texts, token_windows
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.params.reading import chosen_judge
from pipeline.params.serving import ServeParams
from pipeline.records.base import read_base_manifest
from pipeline.records.benchmarks import Benchmarks
from pipeline.serving.canary import Prompts, Reference, reference_of
from pipeline.serving.candidates import (
    SPARE_TOKENS,
    Candidate,
    candidates_of,
    kv_bytes_of,
    launch_of,
    scorer_of,
)
from pipeline.serving.contender import CANARY_NEW_TOKENS, WARM_UP_SEED, Cell, Contender
from pipeline.serving.endpoint import require_usable
from pipeline.serving.fleet import Fleet
from pipeline.serving.load import LoadGenerator
from pipeline.serving.server import chosen_port
from pipeline.serving.vllm import AUTO_DTYPE

NUM_CANARY_PROMPTS = 8
CANARY_PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Contest:
    """What all contenders share."""

    workspace: Workspace
    serve: ServeParams
    base_digest: str
    prompts: Prompts
    fleet: Fleet
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
    candidates = candidates_of(workspace, serve)
    for name, endpoint in serve.endpoints.items():
        require_usable(name, endpoint)
    chosen_port(serve.port)
    ports = _ports(serve)
    prompts = prompts_of(workspace, params, num_prompts=NUM_CANARY_PROMPTS)
    references = _references(workspace, params, candidates, prompts)
    generator = LoadGenerator(
        workspace.base_dir,
        service_level=serve.service_level,
        log_path=workspace.benchmarks_path.with_suffix(".logs") / "load.log",
    )
    with Fleet(free_bytes=memory_for_servers) as fleet, generator:
        base_digest = read_base_manifest(workspace).digest
        contest = Contest(workspace, serve, base_digest, prompts, fleet, generator)
        contenders: list[Contender] = []
        for candidate in candidates:
            base = contenders[0] if contenders else None
            reference = references[candidate.path]
            contenders.append(_brought_forward(contest, candidate, reference, base, ports))
        _run_rounds(contest, contenders)
    failed = [it for it in contenders if it.problem is not None]
    _write(contest, contenders, complete=not failed)
    if failed:
        raise FailureError(
            f"{failed[0].problem} ({len(failed)} of {len(contenders)} models failed; "
            f"{workspace.benchmarks_path.name} has what was measured, marked as partial)"
        )


def _ports(serve: ServeParams) -> Iterator[int | None]:
    """A port for each server: free ones, or those from `serve.port` on."""
    if serve.port is None:
        while True:
            yield None
    yield from count(serve.port)


def prompts_of(workspace: Workspace, params: Params, *, num_prompts: int) -> Prompts:
    """The first held-out tokens, in pieces."""
    tokenizer = tokenizer_of(workspace.base_dir)
    ids = token_windows(
        read_texts(workspace.root / params.evaluate.text),
        tokenizer.encode,
        window_tokens=CANARY_PROMPT_TOKENS,
        num_windows=num_prompts,
        source=f"evaluate.text = {params.evaluate.text}",
    )
    return Prompts(tokenizer, ids)


def _references(
    workspace: Workspace, params: Params, candidates: Sequence[Candidate], prompts: Prompts
) -> dict[Path, Reference]:
    """What the engine that scored each file writes, by its path; one model is loaded at a time."""
    packed_judge = chosen_judge(params.evaluate.packed_judge)
    references: dict[Path, Reference] = {}
    for candidate in candidates:
        if candidate.path in references:  # an endpoint serves it as well
            continue
        note(f"benchmark: {candidate.name}: the text to expect")
        with (
            readable_memory_errors(f"benchmark: {candidate.name}", "use a machine with more"),
            closing(scorer_of(workspace, candidate, packed_judge)) as scorer,
        ):
            references[candidate.path] = reference_of(
                scorer, prompts, max_new_tokens=CANARY_NEW_TOKENS
            )
    return references


def _brought_forward(
    contest: Contest,
    candidate: Candidate,
    reference: Reference,
    base: Contender | None,
    ports: Iterator[int | None],
) -> Contender:
    """A model with its server up, compared and warmed up, in the fastest of its types."""
    note(f"benchmark: {candidate.name}")
    fastest: Contender | None = None
    for dtype in _dtypes(contest.serve, candidate, base):
        contender = _contender(contest, candidate, reference, dtype=dtype, port=next(ports))
        if contender.refusal is None:
            contender.bring_forward(
                contest.fleet, contest.generator, contest.serve, contest.prompts
            )
        fastest = contender if fastest is None else _faster(contest, fastest, contender)
    assert fastest is not None
    return fastest


def _dtypes(serve: ServeParams, candidate: Candidate, base: Contender | None) -> Sequence[str]:
    """The types of activations to try.

    A variant has what vLLM chooses, except where quantline's own kernels run it: they take any
    type, and the base's is the fastest for everything else in the model.
    """
    if base is None:
        return serve.base_dtypes
    is_ours = candidate.file_type is None and this_machine().lacks_4_bit_kernels
    return (base.server.dtype if is_ours and base.server is not None else AUTO_DTYPE,)


def _contender(
    contest: Contest,
    candidate: Candidate,
    reference: Reference,
    *,
    dtype: str,
    port: int | None,
) -> Contender:
    needed = contest.serve.context_tokens + SPARE_TOKENS
    refusal = None
    if reference.context_tokens < needed:
        refusal = (
            f"its context has {reference.context_tokens} tokens, the load needs {needed}: "
            "lower the tokens of serve.scenarios"
        )
        note(f"benchmark: {candidate.name}: skipped: {refusal}")
    return Contender(
        candidate,
        launch_of(contest.workspace, contest.serve, candidate, port=port, dtype=dtype),
        kv_bytes_of(contest.workspace, contest.serve, dtype=dtype),
        reference,
        refusal=refusal,
    )


def _faster(contest: Contest, one: Contender, other: Contender) -> Contender:
    """The one with more tokens per second in the warm-up; the other one's server ends."""
    winner, loser = one, other
    if other.warm_up_tokens_per_s > one.warm_up_tokens_per_s:
        winner, loser = other, one
    contest.fleet.stop(loser.launch.name)
    winner.slower_dtypes |= loser.slower_dtypes
    if loser.server is not None and loser.canary is not None:
        winner.slower_dtypes[loser.server.dtype] = loser.warm_up_tokens_per_s
    return winner


def _run_rounds(contest: Contest, contenders: list[Contender]) -> None:
    """Round after round over all loads that are not known well enough yet.

    Every round begins with another model, so that none always runs after the same one.
    """
    serve, base = contest.serve, contenders[0]
    waiting = [(name, users) for name, it in serve.scenarios.items() for users in it.concurrency]
    seeds = count(WARM_UP_SEED + 1)  # no prompts twice: a server may remember the first time
    began = monotonic()
    for number in range(serve.max_rounds):
        for cell in waiting:
            if number > 0 and monotonic() - began > serve.time_budget_s:
                note(f"benchmark: {serve.time_budget_s} s are spent; no more rounds")
                return
            first, seed = number % len(contenders), next(seeds)
            for contender in (*contenders[first:], *contenders[:first]):
                if contender.is_running:
                    contender.run_round(contest.fleet, contest.generator, serve, cell, seed)
            _note_cell(contenders, base, cell)
            _write(contest, contenders, complete=False)
        waiting = [cell for cell in waiting if not _is_known(contenders, base, cell, serve)]


def _is_known(contenders: list[Contender], base: Contender, cell: Cell, serve: ServeParams) -> bool:
    ratios = [it.over(base, cell) for it in contenders if it.is_running and it is not base]
    return bool(ratios) and all(
        it is not None and it.is_narrow(serve.narrow_enough) for it in ratios
    )


def _note_cell(contenders: list[Contender], base: Contender, cell: Cell) -> None:
    scenario, users = cell
    parts = []
    for it in contenders:
        if rounds := it.rounds.get(cell):
            ratio = it.over(base, cell)
            times = f" ({ratio.median:.2f} times the base)" if ratio else ""
            parts.append(f"{it.name} {rounds[-1].output_tokens_per_s:.0f}{times}")
    note(f"benchmark: {scenario}, {users} users: output tokens per second: {', '.join(parts)}")


def _write(contest: Contest, contenders: list[Contender], *, complete: bool) -> None:
    base = contenders[0]
    record = Benchmarks(
        complete=complete,
        base_digest=contest.base_digest,
        machine=this_machine(),
        load=contest.serve,
        models={it.name: it.result(base) for it in contenders},
    )
    write_record(contest.workspace.benchmarks_path, record)
