"""Score with transformers in float32: the reference, and the engine for unpacked checkpoints.

The model runs on the GPU when there is one, else on all CPUs that this process may use. Results
depend on the number of CPUs, which is the same from run to run.
"""

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import transformers

from pipeline.checkpoint.model_config import context_tokens
from pipeline.core.allocator import release_gpu_memory
from pipeline.core.system_errors import exhausted_memory
from pipeline.engines.scorer import Finished, Logits
from pipeline.engines.token_forest import Forest, Span, forests

PROBE = (Span((3, 1, 2), start=1), Span((3, 1, 2, 5, 4), start=2), Span((3, 6, 2), start=0))
PROBE_TOLERANCE = 1e-3
"""Tolerance, as a share of the largest logit."""


class TransformersScorer:
    """Offer a causal language model of transformers, in float32, as a Scorer."""

    backend = "transformers"
    backend_version = transformers.__version__

    def __init__(self, model: Any, *, label: str) -> None:
        """Take a loaded model; `label` names it in errors."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.label = label
        self.device = torch_device()
        self._device = torch.device(self.device)
        self._model = model.to(self._device).eval()
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.max_length = context_tokens(model.config)
        window = getattr(config, "sliding_window", None) or self.max_length
        self.max_shared_length = min(window, self.max_length)
        self._shares = self._can_share()

    @property
    def sharing(self) -> Self | None:
        """Return itself where the model can share prefixes, else None."""
        return self if self._shares else None

    def _can_share(self) -> bool:
        """Test whether the model gives a forest the logits that it gives each sequence alone.

        Attention with an arbitrary mask does, recurrent layers do not. Only a trial can show it.
        """
        (forest,) = forests(PROBE, max_nodes=64, max_sequences=len(PROBE))
        try:
            rows = self.forest_logits(forest)
        except Exception as error:  # a model can refuse a mask in as many ways as there are models
            if exhausted_memory(error) is not None:
                raise
            return False
        if not np.isfinite(rows).all():
            return False
        node_rows = {node: rows[row] for row, node in enumerate(forest.wanted)}
        for span, path in zip(forest.spans, forest.paths, strict=True):
            (alone,) = self.logits([span])
            together = np.stack([node_rows[node] for node in path[span.start :]])
            if not np.allclose(alone, together, atol=PROBE_TOLERANCE * np.abs(alone).max()):
                return False
        return True

    @torch.inference_mode()
    def forest_logits(self, forest: Forest) -> Logits:
        """Return the logits [wanted nodes, vocabulary] of a forest.

        The forest is one row of ids. Each node has its own position, and a mask of its ancestors.
        """
        visible = torch.from_numpy(forest.visible())
        mask = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)
        output = self._model(
            input_ids=torch.tensor([forest.ids]).to(self._device),
            position_ids=torch.tensor([forest.positions]).to(self._device),
            attention_mask=mask[None, None].to(self._device),
            logits_to_keep=torch.tensor(forest.wanted).to(self._device),
            use_cache=False,
        )
        logits: Logits = output.logits[0].float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def logits(self, batch: Sequence[Span]) -> list[Logits]:
        """Return the logits [positions from `start` on, vocabulary] of each span.

        Padding is on the right, where causal attention does not read it.
        """
        width = max(len(span.ids) for span in batch)
        first = min(span.start for span in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, span in enumerate(batch):
            ids[row, : len(span.ids)] = torch.tensor(span.ids)
        output = self._model(
            input_ids=ids.to(self._device), logits_to_keep=width - first, use_cache=False
        )
        logits = output.logits.float().cpu().numpy()
        return [
            logits[row, span.start - first : len(span.ids) - first]
            for row, span in enumerate(batch)
        ]

    @torch.inference_mode()
    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, finished: Finished
    ) -> list[list[int]]:
        """Continue all prompts together.

        Padding is on the left and masked, so that new tokens are in the same column.
        """
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        new: list[list[int]] = [[] for _ in prompts]
        active = set(range(len(prompts)))
        cache = None
        for _ in range(max_new_tokens):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                past_key_values=cache,
                logits_to_keep=1,
                use_cache=True,
            )
            cache = output.past_key_values
            ids = output.logits[:, -1].argmax(dim=-1, keepdim=True).cpu()
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            for row in sorted(active):
                new[row].append(int(ids[row]))
                if finished(new[row]):
                    active.remove(row)
            if not active:
                break
        return new

    def close(self) -> None:
        """Release the model and its GPU memory. Closing twice is allowed."""
        self._model = None
        release_gpu_memory()


def torch_device() -> str:
    """Return the device that transformers computes on: cuda or cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"
