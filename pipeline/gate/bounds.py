"""Compare the mean KL and the perplexity ratio of a variant with their limits.

The interval decides, not the measured value: its upper end must be within the limit to approve, its
lower end above the limit to reject.
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
    """Decide on KL and on the perplexity ratio, which were measured on `num_tokens` tokens.

    `power` is the probability with which the further tokens of an inconclusive verdict decide it.
    """
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
        # The width of an interval falls with the root of the number of tokens.
        half_width, gap = (high - low) / 2, abs(limit - value)
        quantile = float(ndtri(0.5 + CONFIDENCE / 2))
        factor = (half_width / gap * (quantile + float(ndtri(power))) / quantile) ** 2
        further = max(1, ceil((factor - 1) * num_tokens))
    return BoundVerdict(
        verdict=verdict, value=value, low=low, high=high, limit=limit, further_tokens=further
    )
