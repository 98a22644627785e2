"""Scoring with transformers in float32: the reference, and the engine for unpacked checkpoints.

Runs on the GPU when there is one, else on all CPUs this process may use; that number is the same
from run to run, and so are the results. Loading a model is not done here.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from pipeline.adapters.scorer import Finished, Logits, Span

DEFAULT_MAX_LENGTH = 2048
"""Context of a model whose config names none; lm-eval's default."""


class TransformersScorer:
    """A causal language model of the transformers library, in float32, as a Scorer."""

    backend = "transformers"
    backend_version = transformers.__version__

    def __init__(self, model: Any, *, label: str) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.label = label
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.max_length = int(getattr(config, "max_position_embeddings", DEFAULT_MAX_LENGTH))

    @torch.inference_mode()
    def logits(self, batch: Sequence[Span]) -> list[Logits]:
        """Padded on the right, where causal attention never looks."""
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
        """Padded on the left and masked, so that all prompts grow at the same column."""
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
        """Drop the model."""
        self._model = None
