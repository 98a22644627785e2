"""The held-out texts of `benchmarks.quantizers`, and the base's logits on them.

The logits are kept in the workspace, so that the base is not scored again for each variant.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.real_model import DATA_DIR
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.progress import track
from pipeline.core.workspace import BASE, Workspace
from pipeline.engines.distance import Logits, WindowDistance, window_distance
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import Scorer, window_logits
from pipeline.evaluation.held_out import read_held_out
from pipeline.params.reading import read_workspace

OTHER_TEXT = "other.txt"


def write_other_text(root: Path) -> None:
    """Write HellaSwag's contexts with their right endings to `root` (arXiv 1905.07830)."""
    lines = (DATA_DIR / "hellaswag/validation_1000.jsonl").read_text().splitlines()
    texts = [f"{row['ctx']} {row['endings'][int(row['label'])]}" for row in map(json.loads, lines)]
    (root / OTHER_TEXT).write_text("\n".join(texts))


class HeldOut:
    """A text of a workspace that calibration did not read: that of the evaluation, or another."""

    def __init__(self, workspace: Workspace, text: str | None = None) -> None:
        self._workspace = workspace
        self._evaluate = read_workspace(workspace).evaluate
        self._text = text or self._evaluate.text
        evaluate = self._evaluate.model_copy(update={"text": self._text})
        tokenizer = tokenizer_of(workspace.base_dir)
        self.windows = read_held_out(workspace.root, evaluate, tokenizer).windows

    def distances(self, scorer: Scorer) -> list[WindowDistance]:
        """Measure the distance of a model to the base on each window."""
        own = window_logits(scorer, self.windows, batch_size=self._evaluate.batch_size)
        triples = zip(self._base_logits(), own, self.windows, strict=True)
        label = f"{scorer.label}: windows"
        return [
            window_distance(base, logits, ids)
            for base, logits, ids in track(triples, label, total=len(self.windows))
        ]

    def _base_logits(self) -> Iterator[Logits]:
        name = f"base-logits-{Path(self._text).stem}"
        paths = [
            self._workspace.root / name / f"{number}.npy" for number in range(len(self.windows))
        ]
        if not paths[-1].is_file():
            paths[0].parent.mkdir(exist_ok=True)
            model = unpacked_model(self._workspace.model_dir(BASE))
            with closing(TransformersScorer(model, label=BASE)) as base:
                logits = window_logits(base, self.windows, batch_size=self._evaluate.batch_size)
                for path, of_window in zip(paths, logits, strict=True):
                    np.save(path, of_window)
        return map(np.load, paths)
