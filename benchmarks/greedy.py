"""Compare greedy texts of every served model with those of the engine that scored it.

`python -m benchmarks.greedy` needs the artifacts of `dvc repro`. It continues 20 prompts from the
held-out text by the server and by the engine that scored the same files. Where a text differs,
`gap` is the difference of two log-probabilities of that engine at the first other token, in nats:
of its own token and of the server's. A server with wrong weights has few matches and large gaps.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.result import Row, publish
from pipeline.core.workspace import Workspace
from pipeline.engines.distance import log_softmax
from pipeline.engines.scorer import Scorer
from pipeline.engines.token_forest import Span
from pipeline.params.reading import chosen_judge, read_workspace
from pipeline.serving.parity_check import reference_texts, served_texts
from pipeline.serving.servable import scorer_of, servable_models, server_spec
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
    for model in servable_models(workspace, params.serve):
        with closing(scorer_of(workspace, model, packed_judge)) as scorer:
            expected = reference_texts(scorer, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
            with server_spec(workspace, params.serve, model, port=None).serve() as answer:
                texts = served_texts(answer.result(), prompts, max_new_tokens=NEW_TOKENS)
            gaps = [
                gap(scorer, tokenizer, prompt, ours, theirs)
                for prompt, ours, theirs in zip(prompts, expected, texts, strict=True)
                if ours != theirs
            ]
        matches = float(NUM_PROMPTS - len(gaps))
        rows.append(Row(f"matches_{model.name}", matches, None, None, f"of {NUM_PROMPTS}"))
        rows.append(Row(f"largest_gap_{model.name}", max(gaps, default=0.0), None, None, "nats"))
    publish("greedy", rows)


def gap(scorer: Scorer, tokenizer: Any, prompt: Sequence[int], ours: str, theirs: str) -> float:
    """Return the reference's log-probability of its own first other token less the server's."""
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
