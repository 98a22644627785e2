"""Measure 4-bit weights under load on a CPU without AVX-512, beside the base.

`python -m benchmarks.serving` makes a random model of Qwen2's shape (250 million parameters; AWQ
and GPTQ rounded to nearest, GGUF) in a temporary directory. vLLM, whose own 4-bit operator needs
AVX-512, and llama.cpp serve it. AVX-512 is hidden from vLLM, PyTorch, oneDNN and MKL. Each round
loads all servers in turn; a ratio is the median over rounds with its bootstrap interval.
`over_fastest` is the ratio to the faster of the base in bfloat16 and in float32 at that number of
users. `prefill_over_fastest` compares times to the first of 500 tokens; above 1 is faster.
`self_ratio` are the widest bounds of a server's ratio to itself over five repeats, at one user and
with no other server running. Errors of log-probabilities are against float32 on the unpacked
weights: of 4 bit with activations in bfloat16, of 4 bit with activations in float32 (which the
other rows use), and of the base in bfloat16.
"""

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path

import torch

from benchmarks.result import Row, publish, republish
from benchmarks.serving_models import write_base, write_packed
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.environments import ENVIRONMENT, HOST, OFFLINE, SERVE_PYTHON
from pipeline.core.errors import FailureError
from pipeline.core.progress import note
from pipeline.gguf import files as gguf
from pipeline.params.params import GgufType
from pipeline.params.serving import Scenario, ServiceLevel
from pipeline.records.benchmarks import LoadRound
from pipeline.records.rounds import Estimate, estimate, ratio
from pipeline.serving import llama_cpp as xllamacpp
from pipeline.serving.load import LoadGenerator
from pipeline.serving.server import SERVED_NAME, Server, chosen_port, launch, local_session
from pipeline.serving.server_pool import ServerPool, ServerSpec
from pipeline.serving.vllm import described_by_log

PLAIN_SERVER = Path(__file__).resolve().parent.parent / "tests/plugin/serve_without_avx512.py"
PLAIN_CPU = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
USERS = (1, 8, 32)
DECODE = Scenario(prefix_tokens=0, input_tokens=32, output_tokens=48, concurrency=USERS)
PREFILL = Scenario(prefix_tokens=0, input_tokens=500, output_tokens=2, concurrency=(1,))
LEVEL = ServiceLevel(ttft_ms=2000, tpot_ms=200)
CONTEXT_TOKENS = 768
KV_BYTES = 1 << 30
GGUF_USERS = 8
# Short loads, many of them: a shared machine changes its speed for a minute at a time.
SELF_REPEATS, SELF_ROUNDS, SELF_USERS, SELF_SEED = 5, 40, 1, 10_000
LOGPROB_TEXT = "the baker of the old town sells bread and salt near the river. "
# Kernels run few tokens as in decoding, and many as in prefill.
LOGPROB_TOKENS = (48, 400)
TIMEOUT_S = 1800.0

Rounds = dict[tuple[str, int], list[LoadRound]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument(
        "--self-only", action="store_true", help="measure only the server against itself again"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        base_dir = Path(work) / "base"
        write_base(base_dir, chosen.layers)
        if chosen.self_only:
            model_dir = write_packed(base_dir, Path(work) / "awq", "awq")
            rows = against_itself(Path(work), base_dir, model_dir)
            republish("serving", rows, what="self_ratio")
        else:
            publish("serving", *measured(Path(work), base_dir, num_rounds=chosen.rounds))


def measured(work: Path, base_dir: Path, *, num_rounds: int) -> tuple[list[Row], list[str]]:
    models = {name: write_packed(base_dir, work / name, name) for name in ("awq", "gptq")}
    served = {"bf16": (base_dir, "bfloat16"), "f32": (base_dir, "float32")}
    served |= {name: (path, "float32") for name, path in models.items()}
    generator = LoadGenerator(base_dir, service_level=LEVEL, log_path=work / "load.log")
    with ServerPool(free_bytes=lambda: 1 << 50) as pool, generator:
        servers = {
            name: pool.server(ServerSpec(name, 0, partial(plain_vllm, work, name, path, dtype)))
            for name, (path, dtype) in served.items()
        }
        notes = [f"{name}: {server.kernel}, {server.dtype}" for name, server in servers.items()]
        errors = [logprob_error(servers[name], path) for name, path in models.items()]
        rows = [
            Row("logprob_error_float32", max(errors), None, None, "nats, mean"),
            Row("logprob_error_base", logprob_error(servers["bf16"], base_dir), None, None, "nats"),
        ]
        decode = run_rounds(generator, servers, DECODE, num_rounds)
        prefill = run_rounds(generator, servers, PREFILL, num_rounds)
        rows += [row for name in models for row in ratio_rows(decode, name)]
        rows.append(prefill_row(prefill))
        rows += resident_rows(servers)
        rows += speed_rows(decode)
    rows += against_itself(work, base_dir, models["awq"])
    rows.append(bfloat16_error_row(work, models))
    rows += gguf_rows(work, base_dir, num_rounds)
    notes.append(f"vLLM without the plugin: {stock_message(work, models['awq'])}")
    return rows, notes


def plain_vllm(
    work: Path, name: str, model_dir: Path, dtype: str, *, plugins: str | None = None
) -> AbstractContextManager[Future[Server]]:
    """Serve with vLLM as on a CPU without AVX-512; with `plugins` None, those of the pipeline."""
    port = chosen_port(None)
    command: list[str | Path] = [
        SERVE_PYTHON,
        PLAIN_SERVER,
        f"--model={model_dir}",
        f"--served-model-name={SERVED_NAME}",
        f"--host={HOST}",
        f"--port={port}",
        f"--dtype={dtype}",
        f"--max-model-len={CONTEXT_TOKENS}",
        f"--kv-cache-memory-bytes={KV_BYTES}",
        "--generation-config=vllm",
        "--disable-uvicorn-access-log",
        "--enforce-eager",
    ]
    environment = OFFLINE | ENVIRONMENT | PLAIN_CPU
    if plugins is not None:
        environment |= {"VLLM_PLUGINS": plugins}
    server = Server(name, f"http://{HOST}:{port}", "vllm", "", (), work / f"{name}.log")
    return launch(
        server,
        command,
        environment=environment,
        timeout_s=TIMEOUT_S,
        read_log=described_by_log,
    )


def run_rounds(
    generator: LoadGenerator, servers: dict[str, Server], scenario: Scenario, num_rounds: int
) -> Rounds:
    """Load every server with every number of users, in turn; round 0 is a warm-up."""
    rounds: Rounds = {}
    names = list(servers)
    for number in range(num_rounds + 1):
        first = number % len(names)
        for users in scenario.concurrency:
            for name in (*names[first:], *names[:first]):
                found = generator.run(
                    servers[name],
                    scenario,
                    users=users,
                    requests_per_user=1,
                    seed=100 * number + users,
                    timeout_s=TIMEOUT_S,
                )
                if number:
                    rounds.setdefault((name, users), []).append(found)
        note(f"round {number} of {num_rounds}, {scenario.input_tokens} tokens in")
    return rounds


def throughputs(rounds: Rounds, name: str, users: int) -> list[float]:
    return [result.output_tokens_per_s for result in rounds[name, users]]


def ratio_rows(rounds: Rounds, name: str) -> list[Row]:
    rows = []
    for users in USERS:
        own = throughputs(rounds, name, users)
        over_bf16, over_f32 = (
            found
            for base in ("bf16", "f32")
            if (found := ratio(own, throughputs(rounds, base, users)))
        )
        fastest = min(over_bf16, over_f32, key=lambda own_ratio: own_ratio.median)
        rows.append(estimate_row(f"{name}_over_bf16_{users}", over_bf16, "times"))
        rows.append(estimate_row(f"{name}_over_fastest_{users}", fastest, "times"))
    return rows


def prefill_row(rounds: Rounds) -> Row:
    """Compare the slower of the two formats with the faster base."""

    def first_token_ms(name: str) -> list[float]:
        return [result.ttft_ms.p50 for result in rounds[name, 1]]

    ratios = [
        found
        for name in ("awq", "gptq")
        for base in ("bf16", "f32")
        if (found := ratio(first_token_ms(base), first_token_ms(name)))
    ]
    slowest = min(ratios, key=lambda found: found.median)
    return estimate_row("prefill_over_fastest", slowest, "times")


def against_itself(work: Path, base_dir: Path, model_dir: Path) -> list[Row]:
    """Load one server twice in every round, in alternating order: the spread of a ratio of 1."""
    generator = LoadGenerator(base_dir, service_level=LEVEL, log_path=work / "self.load.log")
    with plain_vllm(work, "self", model_dir, "float32") as answer, generator:
        found = list(self_estimates(generator, answer.result()))
    low = min(own.median if own.low is None else own.low for own in found)
    high = max(own.median if own.high is None else own.high for own in found)
    return [
        Row("self_ratio_low", low, None, None, "times"),
        Row("self_ratio_high", high, None, None, "times"),
    ]


def self_estimates(generator: LoadGenerator, server: Server) -> Iterator[Estimate]:
    seeds = count(SELF_SEED)

    def tokens_per_s() -> float:
        return generator.run(
            server,
            DECODE,
            users=SELF_USERS,
            requests_per_user=1,
            seed=next(seeds),
            timeout_s=TIMEOUT_S,
        ).output_tokens_per_s

    for _ in range(SELF_REPEATS):
        pairs = [(tokens_per_s(), tokens_per_s()) for _ in range(SELF_ROUNDS)]
        in_turns = [pair[:: 1 if number % 2 else -1] for number, pair in enumerate(pairs)]
        own = estimate([one / other for one, other in in_turns])
        note(f"the same server against itself: {own.median:.3f}, {own.low} to {own.high}")
        yield own


def resident_rows(servers: dict[str, Server]) -> list[Row]:
    return [
        Row(f"resident_{name}", server.process.resident_bytes() / 2**30, None, None, "GiB")
        for name, server in servers.items()
        if server.process is not None
    ]


def speed_rows(rounds: Rounds) -> list[Row]:
    return [
        estimate_row(f"tokens_per_s_{name}_{users}", estimate(throughputs(rounds, name, users)), "")
        for name, users in rounds
    ]


def estimate_row(key: str, of: Estimate, unit: str) -> Row:
    return Row(key, of.median, of.low, of.high, unit)


def logprob_error(server: Server, model_dir: Path) -> float:
    """Measure the mean absolute error over prompts of few and of many tokens."""
    model = unpacked_model(model_dir)
    ids = tokenizer_of(model_dir).encode(60 * LOGPROB_TEXT)
    errors: list[float] = []
    for num_tokens in LOGPROB_TOKENS:
        prompt = ids[:num_tokens]
        with torch.inference_mode():
            exact = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        body = {"model": SERVED_NAME, "prompt": prompt, "max_tokens": 1, "prompt_logprobs": 0}
        answer = local_session().post(f"{server.url}/v1/completions", json=body, timeout=300)
        entries = answer.json()["choices"][0]["prompt_logprobs"][1:]
        own = [
            abs(entry[str(token)]["logprob"] - exact[position, token].item())
            for position, (entry, token) in enumerate(zip(entries, prompt[1:], strict=True))
        ]
        note(f"{server.what}: error {sum(own) / len(own):.4f} over {num_tokens} tokens")
        errors.append(sum(own) / len(own))
    return max(errors)


def bfloat16_error_row(work: Path, models: dict[str, Path]) -> Row:
    """Measure the error of 4-bit weights with all activations in bfloat16."""
    with plain_vllm(work, "awq-bf16", models["awq"], "bfloat16") as answer:
        error = logprob_error(answer.result(), models["awq"])
    return Row("logprob_error", error, None, None, "nats, mean")


def gguf_rows(work: Path, base_dir: Path, num_rounds: int) -> list[Row]:
    """Measure llama.cpp's server with Q8_0: tokens per second with 8 users ÷ those with 1."""
    full_path, path = work / "full.gguf", work / "model-Q8_0.gguf"
    gguf.convert(base_dir, full_path, model_name="m", pre_tokenizer="gpt-2", weight_names=())
    gguf.quantize(full_path, path, GgufType.Q8_0, {})
    generator = LoadGenerator(base_dir, service_level=LEVEL, log_path=work / "gguf.load.log")
    serving = xllamacpp.serve(
        path,
        name="gguf",
        file_type="Q8_0",
        context_tokens=DECODE.context_tokens + 24,
        users=GGUF_USERS,
        port=None,
        timeout_s=TIMEOUT_S,
        log_path=work / "gguf.log",
    )
    scenario = DECODE.model_copy(update={"concurrency": (1, GGUF_USERS)})
    with serving as answer, generator:
        rounds = run_rounds(generator, {"gguf": answer.result()}, scenario, num_rounds)
    found = ratio(throughputs(rounds, "gguf", GGUF_USERS), throughputs(rounds, "gguf", 1))
    assert found is not None
    return [estimate_row("gguf_batching_8", found, "times one user"), *speed_rows(rounds)]


def stock_message(work: Path, model_dir: Path) -> str:
    """Return vLLM's error for the same model without the plugin, or that it serves."""
    try:
        with plain_vllm(work, "stock", model_dir, "auto", plugins="") as answer:
            answer.result()
            return "it serves"
    except FailureError as error:
        return str(error).partition(" (the whole log")[0]


if __name__ == "__main__":
    main()
