"""Fuzz the examination of checkpoints: `python -m benchmarks.intake [--model DIR] [--case NUMBER]`.

Mutations of the real model's small files and of its weights' headers are planned or fetched, each
by a process of its own. Every case has to end in exit code 0 or 2, with one line that says why,
within limits of time and memory, and without a write outside of the workspace. The tokenizer and
the weights are cut to their first tokens and layers, since a case is to take less than a second.
"""

import argparse
import json
import os
import re
import shutil
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from random import Random
from typing import Any

from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from benchmarks import intake_cases, intake_twins
from benchmarks.mutations import INDEX, Mutation, mutated
from benchmarks.real_model import made_model
from benchmarks.result import Row, publish
from benchmarks.workspace import ROOT
from pipeline.core.progress import track
from pipeline.core.workspace import PARAMS_FILE
from tests.forks import ForkServer, started_libraries

NUM_CASES, NUM_WORKERS, SEED = 2050, 3, 0
SHARE_WITH_GGUF = 0.006  # a start of llama.cpp's converter takes longer than 20 other cases
NUM_TOKENS, NUM_LAYERS = 1000, 2
WEIGHTS = "model.safetensors"
SMALL_FILES = re.compile(r".*\.(json|jinja|md)|LICENSE")
OWN_LINE = re.compile(r"quantline( \w+)?: ")
NOTE_LINE = re.compile(r"(fetch|calibrate|README\.md|Found|exit code|peak memory in MiB): ")
MAX_LINE = 2000
SHOWN_LINES = 30
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@dataclass(frozen=True)
class Outcome:
    """How a case ended: exit code, what was wrong with that, output, CPU time and memory."""

    case: int
    command: str
    mutation: Mutation
    code: int
    problems: tuple[str, ...]
    log: str
    cpu_seconds: float
    peak_mib: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a directory that make.py of the model made")
    parser.add_argument("--case", type=int, help="try one case and print what it says")
    parser.add_argument("--cases", type=int, default=NUM_CASES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model_dir = arguments.model or made_model(Path(work) / "real")
        numbers = range(arguments.cases) if arguments.case is None else [arguments.case]
        outcomes = []
        for outcome in fuzz(model_dir, Path(work), numbers):
            outcomes.append(outcome)
            if outcome.problems or arguments.case is not None:
                lines = "\n".join(outcome.log.splitlines()[:SHOWN_LINES])
                print(
                    f"case {outcome.case}, {outcome.command}, {outcome.mutation.file}: "
                    f"{outcome.mutation.what[:200]}: exit code {outcome.code}: "
                    f"{', '.join(outcome.problems)}; {outcome.cpu_seconds:.1f} s, "
                    f"{outcome.peak_mib} MiB\n{lines}",
                    flush=True,
                )
        if arguments.case is None:
            rows = [*fuzz_rows(outcomes), *intake_twins.rows(Path(work))]
            publish("intake", rows, intake_twins.notes(Path(work)))


def fuzz_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    kinds = Counter(problem.partition(":")[0] for done in outcomes for problem in done.problems)
    rows = [
        Row("fuzz_cases", len(outcomes), None, None, "mutations"),
        Row("fuzz_accepted", sum(done.code == 0 for done in outcomes), None, None, "exit code 0"),
        Row("fuzz_refused", sum(done.code == 2 for done in outcomes), None, None, "exit code 2"),
    ]
    rows += [Row(f"fuzz_{key}", kinds[kind], None, None, kind) for key, kind in PROBLEMS.items()]
    slowest = max(outcomes, key=lambda done: done.cpu_seconds)
    largest = max(outcomes, key=lambda done: done.peak_mib)
    return [
        *rows,
        Row("fuzz_slowest", slowest.cpu_seconds, None, None, f"CPU-s, case {slowest.case}"),
        Row("fuzz_peak", largest.peak_mib, None, None, f"MiB, case {largest.case}"),
    ]


def fuzz(model_dir: Path, work: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
    """Try the cases of these numbers on a model; each is the same whatever the others are."""
    twins = {
        shards: cut_model(model_dir, work / f"twin-{shards}", shards=shards) for shards in (1, 2)
    }
    servers: Queue[tuple[ForkServer, Path]] = Queue()
    with ExitStack() as running:
        for worker in range(NUM_WORKERS):
            root = work / f"worker-{worker}"
            make_root(root)
            os.environ |= {"HF_HOME": str(root / "home"), "TOKENIZERS_PARALLELISM": "false"}
            libraries = running.enter_context(started_libraries())
            server = running.enter_context(libraries.fork_server("benchmarks.intake_imports"))
            servers.put((server, root))

        def tried(case: int) -> Outcome:
            server, root = servers.get()
            try:
                return run_case(server, root, twins, case)
            finally:
                servers.put((server, root))

        with ThreadPoolExecutor(NUM_WORKERS) as pool:
            yield from track(pool.map(tried, numbers), "cases", total=len(numbers))


def cut_model(model_dir: Path, target: Path, *, shards: int) -> Path:
    """Write the first tokens and layers of a model, in one file of weights or with an index."""
    target.mkdir()
    files = {path.name: path.read_bytes() for path in model_dir.iterdir() if path.name != WEIGHTS}
    config = json.loads(files["config.json"])
    config |= {"vocab_size": NUM_TOKENS, "num_hidden_layers": NUM_LAYERS}
    tokenizer = json.loads(files["tokenizer.json"])
    model = tokenizer["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < NUM_TOKENS}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
    settings = json.loads(files["tokenizer_config.json"])
    special = {key: value for key, value in settings.items() if key.endswith("_token")}
    files |= {
        "config.json": json.dumps(config, indent=2).encode(),
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }
    for name, data in files.items():
        (target / name).write_bytes(data)
    tensors = {
        name: (tensor[:NUM_TOKENS] if "embed_tokens" in name else tensor).contiguous()
        for name, tensor in load_file(model_dir / WEIGHTS).items()
        if not (layer := re.search(r"layers\.(\d+)\.", name)) or int(layer[1]) < NUM_LAYERS
    }
    if shards == 1:
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
        return target
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::shards]}
        save_file(part, target / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (target / INDEX).write_text(json.dumps(index))
    return target


def make_root(root: Path) -> None:
    """Make the directory of a worker: a workspace, and places that no case may change."""
    for name in ("workspace/eval/tasks", "workspace/eval/data", "temporary", "outside", "home"):
        (root / name).mkdir(parents=True)
    (root / "outside" / "secret.txt").write_text("secret\n")
    workspace = root / "workspace"
    text = "The baker of the old town sells bread and salt near the river. " * 20
    (workspace / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (workspace / "chat.jsonl").write_text(4 * (json.dumps(CHAT) + "\n"))
    shutil.copy(ROOT / "prices.yaml", workspace)
    shutil.copy(ROOT / "eval/tasks/demo_arithmetic.yaml", workspace / "eval/tasks")
    shutil.copy(ROOT / "eval/data/demo_arithmetic.jsonl", workspace / "eval/data")
    YAML().dump(
        {"suites": {"own": {"tasks": [{"name": "demo_arithmetic", "metric": "acc"}]}}},
        workspace / "eval/suites.yaml",
    )


def write_params(root: Path, *, chat: bool, gguf: bool) -> None:
    params: dict[str, Any] = YAML(typ="safe").load(ROOT / PARAMS_FILE)
    params["model"] = {"source": str(root / "model"), "license": None, "gguf_pre_tokenizer": None}
    params["calibration"] |= {
        "text": "chat.jsonl" if chat else "text.jsonl",
        "license": "own",
        "num_calibration_samples": 1,
        "max_seq_length": 16,
    }
    variants = {name: params["variants"][name] for name in ["awq-w4-g128", "gguf-q8-0"][: 1 + gguf]}
    params["variants"] = {**variants, "awq-w4-g128": variants["awq-w4-g128"] | {"group_size": 64}}
    params["evaluate"] |= {
        "suite": "own",
        "text": "text.jsonl",
        "window_tokens": 16,
        "num_windows": 2,
        "controls": ["llama.cpp"] if gguf else [],
    }
    YAML().dump(params, root / "workspace" / PARAMS_FILE)


def run_case(server: ForkServer, root: Path, twins: dict[int, Path], case: int) -> Outcome:
    chance = Random(f"{SEED} {case}")
    twin = twins[chance.choice([1, 1, 2])]
    files = {
        path.name: path.read_bytes()
        for path in sorted(twin.iterdir())
        if SMALL_FILES.fullmatch(path.name) or path.name.endswith(".safetensors")
    }
    mutation = mutated(files, chance)
    is_template = "template" in mutation.file + mutation.what
    commands = ["fetch", "calibrate"] if is_template else [chance.choice(["plan", "fetch"])]
    write_params(root, chat=is_template, gguf=chance.random() < SHARE_WITH_GGUF)
    model_dir = root / "model"
    for changed in (model_dir, root / "workspace" / "artifacts", root / "temporary"):
        shutil.rmtree(changed, ignore_errors=True)
    (root / "temporary").mkdir()
    model_dir.mkdir()
    for name in files:
        os.link(twin / name, model_dir / name)
    mutation.apply(model_dir)
    before, log_path = snapshot(root), root.with_suffix(".log")
    code = server.run(intake_cases.__name__, "run_case", str(root), commands, log_path=log_path)
    log = log_path.read_text(errors="backslashreplace")
    problems = list(wrong_with(log, code))
    problems += [f"written outside: {name}" for name in changed_names(before, snapshot(root))]
    peak = re.search(rf"^{intake_cases.MEMORY}(\d+)$", log, re.MULTILINE)
    seconds = re.search(rf"^{intake_cases.SECONDS}([\d.]+)$", log, re.MULTILINE)
    command = " and ".join(commands)
    return Outcome(
        case=case,
        command=command,
        mutation=mutation,
        code=code,
        problems=tuple(problems),
        log=log,
        cpu_seconds=float(seconds[1]) if seconds else 0.0,
        peak_mib=int(peak[1]) if peak else 0,
    )


PROBLEMS = {
    "tracebacks": "traceback",
    "crashes": "ended by a signal",
    "hangs": "no end in time",
    "other_codes": "another exit code",
    "unclear": "not one line",
    "control_characters": "control characters",
    "written_outside": "written outside",
}


def wrong_with(log: str, code: int) -> Iterator[str]:
    """Say what is not as designed in the output and the exit code of a case."""
    if "Traceback (most recent call last)" in log or "panicked at" in log:
        yield PROBLEMS["tracebacks"]
    if "Timeout (" in log:
        yield PROBLEMS["hangs"]
    if code == -signal.SIGXCPU:
        yield PROBLEMS["hangs"]
    elif code < 0:
        yield f"{PROBLEMS['crashes']}: {-code}"
    elif code not in (0, 2):
        yield f"{PROBLEMS['other_codes']}: {code}"
    lines = log.split("\n")
    own = [line for line in lines if OWN_LINE.match(line)]
    if len(own) != (code != 0) or any(len(line) > MAX_LINE for line in own):
        yield f"{PROBLEMS['unclear']}: {len(own)} lines, {sum(map(len, own))} characters"
    if any(not line.isprintable() for line in lines):
        yield PROBLEMS["control_characters"]
    for line in lines:
        if line.startswith(intake_cases.WRITTEN):
            yield line


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """List kind, size and time of change of everything that no case may change."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not name.startswith("workspace/artifacts"):
            status = path.lstat()
            by_commands = stat.S_ISDIR(status.st_mode) and name in ("workspace", "temporary")
            times = (0, 0) if by_commands else (status.st_size, status.st_mtime_ns)
            found[name] = (status.st_mode, *times)
    return found


def changed_names(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


if __name__ == "__main__":
    main()
