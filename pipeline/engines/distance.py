"""Measure how far two models' next-token distributions are apart on the same tokens.

All arithmetic is float64 on log-softmax, whatever type the models computed in. It takes a few
positions at a time, and keeps four numbers for each. A window is one piece of text that both models
read from an empty context. Its positions depend on each other, so that confidence intervals are
over windows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from pipeline.records.evaluation import CONFIDENCE, Distance

CHUNK_ENTRIES = 1 << 16
"""Most log-probabilities of each model at a time: half a MiB of float64, which caches hold."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.floating]
TextAt = Callable[[int, int], str]


@dataclass(frozen=True)
class WindowDistance:
    """Hold four arrays [positions] of one window.

    They are KL(base ‖ variant) in nats, whether both models have the same top token, and the
    negative log-likelihood of the next token by each model, in nats.
    """

    kl: Floats
    same_top1: Flags
    base_losses: Floats
    own_losses: Floats


def log_softmax(logits: Logits) -> Floats:
    """Return natural log-probabilities along the last axis, in float64."""
    log_probabilities: Floats = special.log_softmax(logits.astype(np.float64), axis=-1)
    return log_probabilities


def negative_log_likelihoods(logits: Logits, token_ids: Sequence[int]) -> Floats:
    """Return -log p in nats, [T - 1], of each token after the first.

    `logits` are [T, vocabulary], `token_ids` are T.
    """
    return np.concatenate(
        [_losses(log_softmax(logits[part]), token_ids, part) for part in _parts(logits)]
    )


def window_distance(base: Logits, own: Logits, token_ids: Sequence[int]) -> WindowDistance:
    """Compare two models on one window of T ids, from logits [T, vocabulary] of any float type.

    The last position does not count, because its next token is unknown. KL is never negative;
    values that rounding makes negative are set to zero.
    """
    kl, same_top1, base_losses, own_losses = [], [], [], []
    for part in _parts(base):
        one, other = log_softmax(base[part]), log_softmax(own[part])
        kl.append(np.maximum((np.exp(one) * (one - other)).sum(axis=-1), 0.0))
        same_top1.append(one.argmax(axis=-1) == other.argmax(axis=-1))
        base_losses.append(_losses(one, token_ids, part))
        own_losses.append(_losses(other, token_ids, part))
    return WindowDistance(
        kl=np.concatenate(kl),
        same_top1=np.concatenate(same_top1),
        base_losses=np.concatenate(base_losses),
        own_losses=np.concatenate(own_losses),
    )


def _parts(logits: Logits) -> Iterator[slice]:
    """Cut all positions but the last into runs of at most `CHUNK_ENTRIES` logits."""
    positions, vocab_size = len(logits) - 1, logits.shape[-1]
    step = max(1, CHUNK_ENTRIES // vocab_size)
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))


def _losses(log_probabilities: Floats, token_ids: Sequence[int], part: slice) -> Floats:
    """Return -log p of the next token at each position of `part`."""
    targets = np.asarray(token_ids[part.start + 1 : part.stop + 1])
    losses: Floats = -log_probabilities[np.arange(len(targets)), targets]
    return losses


def summarize(windows: Sequence[WindowDistance], text_at: TextAt) -> Distance:
    """Return the distance over at least two windows of equal length.

    The 95 % intervals are Student's t over the window means of KL, cut at zero, and of the
    logarithm of the perplexity ratio. `text_at(window, position)` returns the text that
    ends with the token which the position predicts.
    """
    kl = np.concatenate([window.kl for window in windows])
    base_losses = np.concatenate([window.base_losses for window in windows])
    own_losses = np.concatenate([window.own_losses for window in windows])
    mean, kl_half_width = _interval([window.kl for window in windows])
    log_ratio, ratio_half_width = _interval(
        [window.own_losses - window.base_losses for window in windows]
    )
    change = np.exp(-own_losses) - np.exp(-base_losses)
    return Distance(
        kl=mean,
        kl_low=max(0.0, mean - kl_half_width),
        kl_high=mean + kl_half_width,
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        kl_max_text=text_at(*divmod(int(kl.argmax()), len(windows[0].kl))),
        top1=float(np.concatenate([window.same_top1 for window in windows]).mean()),
        perplexity_ratio=float(np.exp(log_ratio)),
        perplexity_ratio_low=float(np.exp(log_ratio - ratio_half_width)),
        perplexity_ratio_high=float(np.exp(log_ratio + ratio_half_width)),
        probability_change=float(change.mean()),
        probability_change_rms=float(np.sqrt((change**2).mean())),
    )


def _interval(values: Sequence[Floats]) -> tuple[float, float]:
    """Return the mean of all values, and half the width of its interval from window means."""
    means = np.array([block.mean() for block in values])
    quantile = float(special.stdtrit(len(means) - 1, 0.5 + CONFIDENCE / 2))
    half_width = quantile * float(means.std(ddof=1)) / len(means) ** 0.5
    return float(np.concatenate(values).mean()), half_width


def perplexity(losses: Sequence[Floats]) -> float:
    """Return the perplexity: exp of the mean negative log-likelihood over all windows."""
    return float(np.exp(np.concatenate(losses).mean()))
