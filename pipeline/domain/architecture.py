"""Which operation comes before which linear, by architecture: where AWQ's scales can be folded.

Names are relative to a decoder layer. The table holds what was checked; an architecture that is
not in it still gets everything that needs no folding.
"""

import re
from dataclasses import dataclass

from pipeline.domain.errors import InputError

LAYER_NAME = re.compile(r"^(.*\blayers\.(\d+))\.(.+)$")


@dataclass(frozen=True)
class Fold:
    """`linears` read an input that is the output of `previous`, channel by channel.

    Dividing `previous` (a norm's weight, or a linear's output rows and bias) by s and multiplying
    the columns of `linears` by s changes nothing. `by_value_head` marks the attention output, whose
    heads may share value heads.
    """

    previous: str
    linears: tuple[str, ...]
    by_value_head: bool = False


GATED_FOLDS = (
    Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fold("self_attn.v_proj", ("self_attn.o_proj",), by_value_head=True),
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)

FOLDS: dict[str, tuple[Fold, ...]] = {
    "LlamaForCausalLM": GATED_FOLDS,
    "MistralForCausalLM": GATED_FOLDS,
    "Qwen2ForCausalLM": GATED_FOLDS,
    "Qwen3ForCausalLM": GATED_FOLDS,
}


def folds_of(architecture: str) -> tuple[Fold, ...]:
    """Raises InputError for an architecture whose order of operations is not in the table."""
    try:
        return FOLDS[architecture]
    except KeyError as error:
        raise InputError(
            f"{architecture}: scale_search knows {', '.join(FOLDS)}; set scale_search to false"
        ) from error


def split_layer_name(name: str) -> tuple[str, str] | None:
    """`model.layers.3.mlp.up_proj` to (`model.layers.3`, `mlp.up_proj`); None outside a layer."""
    match = LAYER_NAME.match(name)
    return (match[1], match[3]) if match else None


def layer_index(prefix: str) -> int:
    """The number at the end of `model.layers.3`."""
    return int(prefix.rsplit(".", 1)[1])
