"""Compare the KL that is predicted for mixtures of GGUF types with the real one.

`benchmarks.quantizers` calls it. Each mixture gives every matrix a type at random, leaning to few
bits or to many. llama.cpp rounds it, with the importance matrix, and scores it beside the F16 file.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from benchmarks.result import Row
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.progress import track
from pipeline.core.workspace import Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.scorer import window_logits
from pipeline.gguf import files as gguf
from pipeline.params.gguf_variants import GgufType
from pipeline.quantization.bit_allocation import Choice
from pipeline.quantization.gguf_budget import choices_of
from pipeline.quantization.gguf_variant import linears_by_tensor
from pipeline.records.base import read_base_manifest

NUM_MIXTURES, NUM_WINDOWS = 20, 4
BATCH_SIZE = 8
# The weights of smollm2 were rounded to Q4_1 before it was made: these types would change nothing.
LEFT_OUT = ("Q4_1", "Q5_1")


def rank_correlation(workspace: Workspace, windows: Sequence[Sequence[int]]) -> list[Row]:
    """Measure Spearman's correlation over random mixtures, and the ratios of predicted to real KL.

    `windows` are token ids of text that calibration did not read.
    """
    base, statistics = read_base_manifest(workspace), Statistics(workspace)
    with TemporaryDirectory() as work:
        full_path, mixed_path = Path(work) / "full.gguf", Path(work) / "mixed.gguf"
        names = gguf.convert(
            workspace.base_dir,
            full_path,
            model_name="mixtures",
            pre_tokenizer=None,
            unused=base.unused_tensors,
            copies=base.copied_tensors,
            weight_names=tuple(f"{name}.weight" for name in statistics.linears),
        )
        linears_of = linears_by_tensor(names)
        found = choices_of(
            Checkpoint(workspace.base_dir), full_path, linears_of, statistics.gram, statistics
        )
        choices = {
            name: [choice for choice in of_tensor if choice.type not in LEFT_OUT]
            for name, of_tensor in found.items()
        }
        importance = {
            name: statistics.diagonal(linear).numpy() for name, (linear,) in linears_of.items()
        }
        reference = _log_probabilities(full_path, windows)
        draw = random.Random(0)
        predicted, real = [], []
        for _ in track(range(NUM_MIXTURES), "mixtures", total=NUM_MIXTURES):
            mixture = random_mixture(choices, draw)
            types = {name: choice.type for name, choice in mixture.items()}
            gguf.quantize(full_path, mixed_path, GgufType.Q8_0, importance, types)
            predicted.append(sum(choice.loss for choice in mixture.values()))
            own = _log_probabilities(mixed_path, windows)
            kl = (np.exp(reference) * (reference - own)).sum(-1).mean()
            real.append(float(kl))
    ratios = sorted(np.divide(predicted, real))
    correlation = float(spearmanr(predicted, real).statistic)
    middle = float(np.median(ratios))
    return [
        Row("budget_rank_correlation", correlation, None, None, f"of {NUM_MIXTURES} mixtures"),
        Row("budget_predicted_over_real", middle, ratios[0], ratios[-1], "ratio of KL"),
    ]


def random_mixture(
    choices: Mapping[str, Sequence[Choice]], draw: random.Random
) -> dict[str, Choice]:
    """Draw a choice for each matrix; how many bits they lean to is drawn first."""
    lean = draw.random()
    mixture = {}
    for name, of_tensor in choices.items():
        place = draw.betavariate(1 + 3 * lean, 4 - 3 * lean)
        mixture[name] = of_tensor[min(int(place * len(of_tensor)), len(of_tensor) - 1)]
    return mixture


def _log_probabilities(path: Path, windows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Score windows by llama.cpp, windows × tokens × vocabulary."""
    with closing(LlamaCppScorer(path, label=path.name)) as scorer:
        logits = [
            torch.from_numpy(it) for it in window_logits(scorer, windows, batch_size=BATCH_SIZE)
        ]
    return np.asarray(torch.stack(logits).float().log_softmax(-1))
