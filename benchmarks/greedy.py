"""Greedy text from every served variant beside its reference engine's, and why some differ.

`python -m benchmarks.greedy` needs `dvc repro` to have run. For 20 prompts from the held-out text
it compares what vLLM says with what transformers says in float32 on the weights the file stands
for (llama.cpp's server with llama.cpp in-process). Where a text differs, `gap` tells how undecided
the reference was at the first other token: its log-probability of its own choice less that of the
server's, in nats. A server with the wrong weights has few matches and large gaps.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.serving.canary import reference_texts, served_texts
from pipeline.serving.candidates import candidates_of, launch_of, scorer_of

from benchmarks.result import Row, publish
from pipeline.core.workspace import Workspace
from pipeline.engines.distance import log_softmax
from pipeline.engines.scorer import Scorer
from pipeline.engines.token_forest import Span
from pipeline.params.reading import chosen_judge, read_workspace
from pipeline.stages.benchmark import prompts_of

NUM_PROMPTS = 20
NEW_TOKENS = 32


def main() -> None:
    workspace = Workspace(Path.cwd())
    params = read_workspace(workspace)
    asked = prompts_of(workspace, params, num_prompts=NUM_PROMPTS)
    tokenizer, prompts = asked.tokenizer, asked.ids
    rows: list[Row] = []
    packed_judge = chosen_judge(params.evaluate.packed_judge)
    for candidate in candidates_of(workspace, params.serve):
        with closing(scorer_of(workspace, candidate, packed_judge)) as scorer:
            expected = reference_texts(scorer, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
            with launch_of(workspace, params.serve, candidate, port=None).serve() as server:
                texts = served_texts(server, prompts, max_new_tokens=NEW_TOKENS)
            gaps = [
                gap(scorer, tokenizer, prompt, ours, theirs)
                for prompt, ours, theirs in zip(prompts, expected, texts, strict=True)
                if ours != theirs
            ]
        matches = float(NUM_PROMPTS - len(gaps))
        rows.append(Row(f"matches_{candidate.name}", matches, None, None, f"of {NUM_PROMPTS}"))
        rows.append(
            Row(f"largest_gap_{candidate.name}", max(gaps, default=0.0), None, None, "nats")
        )
    publish("greedy", rows)


def gap(scorer: Scorer, tokenizer: Any, prompt: Sequence[int], ours: str, theirs: str) -> float:
    """Compute how much more likely the reference finds its own text where the two texts differ."""
    own, other = (tokenizer.encode(text, add_special_tokens=False) for text in (ours, theirs))
    shared = next(
        (at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b),
        min(len(own), len(other)),
    )
    if shared == min(len(own), len(other)):
        own, other = ([*ids, tokenizer.eos_token_id] for ids in (own, other))
    ids = (*prompt, *own[:shared])
    (logits,) = scorer.logits([Span(ids=ids, start=len(ids) - 1)])
    log_probabilities = log_softmax(logits)[0]
    return float(log_probabilities[own[shared]] - log_probabilities[other[shared]])


if __name__ == "__main__":
    main()
