"""Hold mean KL and perplexity ratio of a variant against their limits.

An interval decides, not its middle: the upper end has to be within the bound to approve, and the
lower end above it to reject.
"""

from math import ceil, isclose

from scipy.special import ndtri

from pipeline.params.gate import GateClass
from pipeline.records.evaluation import CONFIDENCE, Distance
from pipeline.records.selection import BoundVerdict, Verdict

KL = "KL in nats per token"
PERPLEXITY = "perplexity ratio to the base"


def bound_verdicts(
    distance: Distance, limits: GateClass, *, num_tokens: int, power: float
) -> dict[str, BoundVerdict]:
    """Return both verdicts; the intervals were measured on `num_tokens` tokens."""
    measured = {
        KL: (distance.kl, distance.kl_low, distance.kl_high, limits.max_kl),
        PERPLEXITY: (
            distance.perplexity_ratio,
            distance.perplexity_ratio_low,
            distance.perplexity_ratio_high,
            limits.max_perplexity_ratio,
        ),
    }
    return {
        name: _bound(value, low, high, limit, num_tokens=num_tokens, power=power)
        for name, (value, low, high, limit) in measured.items()
    }


def _bound(
    value: float, low: float, high: float, limit: float, *, num_tokens: int, power: float
) -> BoundVerdict:
    if high <= limit:
        verdict = Verdict.APPROVED
    elif low > limit:
        verdict = Verdict.REJECTED
    else:
        verdict = Verdict.INCONCLUSIVE
    further = None
    if verdict is Verdict.INCONCLUSIVE and not isclose(value, limit):
        further = _further_tokens((high - low) / 2, abs(limit - value), num_tokens, power)
    return BoundVerdict(
        verdict=verdict, value=value, low=low, high=high, limit=limit, further_tokens=further
    )


def _further_tokens(half_width: float, gap: float, num_tokens: int, power: float) -> int:
    """Estimate further tokens: an interval's width falls with the root of their number."""
    quantile = float(ndtri(0.5 + CONFIDENCE / 2))
    factor = (half_width / gap * (quantile + float(ndtri(power))) / quantile) ** 2
    return max(1, ceil((factor - 1) * num_tokens))
