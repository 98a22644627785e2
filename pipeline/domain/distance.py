"""How far two models' next-token distributions are apart on the same tokens.

All arithmetic is float64 on log-softmax, whatever the models computed in. A window is one stretch
of text that both models read from an empty context; its positions depend on each other, so the
confidence interval is over windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from pipeline.domain.evaluated import Distance

CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WindowDistance:
    """One window: KL(base ‖ variant) in nats and agreement of the top token, by position."""

    kl: Floats
    same_top1: Flags


def log_softmax(logits: npt.NDArray[np.floating]) -> Floats:
    """Natural log-probabilities along the last axis, in float64."""
    shifted: Floats = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def negative_log_likelihoods(log_probabilities: Floats, token_ids: Sequence[int]) -> Floats:
    """-log p of each token given those before it: [T, vocabulary] and T ids give T - 1 values."""
    targets = np.asarray(token_ids[1:])
    losses: Floats = -log_probabilities[np.arange(len(targets)), targets]
    return losses


def window_distance(base: Floats, variant: Floats) -> WindowDistance:
    """Compare two models on one window, from log-probabilities [positions, vocabulary].

    KL is never negative; what rounding leaves below zero is set to zero.
    """
    kl = (np.exp(base) * (base - variant)).sum(axis=-1)
    return WindowDistance(
        kl=np.maximum(kl, 0.0), same_top1=base.argmax(axis=-1) == variant.argmax(axis=-1)
    )


def summarize(windows: Sequence[WindowDistance]) -> Distance:
    """The distance over all windows, which are of equal length; at least two.

    The interval is Student's t over the window means, cut at zero.
    """
    means = np.array([window.kl.mean() for window in windows])
    kl = np.concatenate([window.kl for window in windows])
    mean = float(kl.mean())
    quantile = float(stdtrit(len(means) - 1, 0.5 + CONFIDENCE / 2))
    half_width = quantile * float(means.std(ddof=1)) / len(means) ** 0.5
    return Distance(
        kl=mean,
        kl_low=max(0.0, mean - half_width),
        kl_high=mean + half_width,
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1=float(np.concatenate([window.same_top1 for window in windows]).mean()),
    )


def perplexity(losses: Sequence[Floats]) -> float:
    """exp of the mean negative log-likelihood over all windows."""
    return float(np.exp(np.concatenate(losses).mean()))
