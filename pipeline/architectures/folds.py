"""List by architecture which operation precedes which linear: where AWQ's scales can be folded.

Names are relative to a decoder layer; `*` stands for the number of an expert. The tests fold every
architecture of the table and compare the outputs. Other architectures can use every recipe that
does not search scales. The arithmetic of folding is in `pipeline.numerics.fold`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pipeline.core.errors import InputError

LAYER_NAME = re.compile(r"^(.*\blayers\.(\d+))\.(.+)$")
ANY_EXPERT = "*"


class Rows(StrEnum):
    """The rows of the previous operation that make the input: some projections are fused."""

    ALL = "all"
    VALUES = "values"  # the last part of a fused query, key and value projection
    SECOND_HALF = "second half"  # the up part of a fused gate and up projection


@dataclass(frozen=True)
class Fold:
    """An operation `previous` whose output is, channel by channel, the input of `linears`.

    Dividing `previous` (a norm's weight, or a linear's output rows and bias) by s and multiplying
    the columns of `linears` by s does not change the output. `by_value_head` marks the attention
    output, whose heads may share value heads. `norm_offset` is the number that the norm adds to its
    weight before it multiplies. `unquantized` linears, the routers, read the same input and are
    multiplied too, but their error is not counted. `shared_input` names the statistics of all
    tokens, where each linear has only those of the tokens that the router sent to it.
    """

    previous: str
    linears: tuple[str, ...]
    by_value_head: bool = False
    rows: Rows = Rows.ALL
    norm_offset: float = 0.0
    unquantized: tuple[str, ...] = ()
    shared_input: str | None = None


ATTENTION_FOLDS = (
    Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fold("self_attn.v_proj", ("self_attn.o_proj",), by_value_head=True),
)

GATED_FOLDS = (
    *ATTENTION_FOLDS,
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)

FUSED_FOLDS = (
    Fold("input_layernorm", ("self_attn.qkv_proj",)),
    Fold("self_attn.qkv_proj", ("self_attn.o_proj",), by_value_head=True, rows=Rows.VALUES),
    Fold("post_attention_layernorm", ("mlp.gate_up_proj",)),
    Fold("mlp.gate_up_proj", ("mlp.down_proj",), rows=Rows.SECOND_HALF),
)

# Gemma's norms multiply by 1 + weight, and separate norms follow attention and feed-forward.
GEMMA_FOLDS = (
    replace(ATTENTION_FOLDS[0], norm_offset=1.0),
    ATTENTION_FOLDS[1],
    Fold("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj"), norm_offset=1.0),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)


def expert_folds(block: str, *, gate: str, up: str, down: str) -> tuple[Fold, ...]:
    """List the folds of a mixture of experts named `block`, with its router in `block.gate`."""
    expert = f"{block}.experts.{ANY_EXPERT}"
    return (
        Fold(
            "post_attention_layernorm",
            (f"{expert}.{gate}", f"{expert}.{up}"),
            unquantized=(f"{block}.gate",),
            shared_input=f"{block}.experts",
        ),
        Fold(f"{expert}.{up}", (f"{expert}.{down}",)),
    )


FOLDS: dict[str, tuple[Fold, ...]] = {
    "LlamaForCausalLM": GATED_FOLDS,
    "MistralForCausalLM": GATED_FOLDS,
    "Qwen2ForCausalLM": GATED_FOLDS,
    "Qwen3ForCausalLM": GATED_FOLDS,
    "Phi3ForCausalLM": FUSED_FOLDS,
    "Gemma2ForCausalLM": GEMMA_FOLDS,
    "Gemma3ForCausalLM": GEMMA_FOLDS,
    "MixtralForCausalLM": (
        *ATTENTION_FOLDS,
        *expert_folds("block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    # Some of its layers may be dense: each layer gets the folds whose tensors it has.
    "Qwen3MoeForCausalLM": (
        *GATED_FOLDS,
        *expert_folds("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    ),
}


def folds_of(architecture: str) -> tuple[Fold, ...]:
    """Return the folds of an architecture. Raises InputError when the table does not have it."""
    try:
        return FOLDS[architecture]
    except KeyError as error:
        raise InputError(
            f"{architecture}: scale_search knows {', '.join(FOLDS)}; set scale_search to false"
        ) from error


def require_folds(architecture: str, recipes: Iterable[object]) -> None:
    """Raise InputError, as `folds_of` does, when one of the recipes searches scales."""
    if any(getattr(recipe, "scale_search", False) for recipe in recipes):
        folds_of(architecture)


def layer_folds(folds: Sequence[Fold], modules: Collection[str]) -> tuple[Fold, ...]:
    """List the folds of a decoder layer that has `modules`, with the experts' numbers filled in.

    A fold applies when the layer has the previous operation and everything that reads its output.
    """
    numbers = {number for name in modules if (number := expert_number(name)) is not None}
    experts = [str(number) for number in sorted(numbers)]
    numbered = (own for fold in folds for own in _with_experts(fold, experts))
    return tuple(
        fold
        for fold in numbered
        if fold.linears and {fold.previous, *fold.linears, *fold.unquantized} <= set(modules)
    )


def _with_experts(fold: Fold, experts: Sequence[str]) -> list[Fold]:
    """Make one fold for each expert where the previous operation is an expert's, else one fold."""
    if ANY_EXPERT not in fold.previous:
        return [replace(fold, linears=_numbered(fold.linears, experts))]
    return [
        replace(
            fold,
            previous=fold.previous.replace(ANY_EXPERT, expert),
            linears=_numbered(fold.linears, [expert]),
        )
        for expert in experts
    ]


def _numbered(names: Sequence[str], experts: Sequence[str]) -> tuple[str, ...]:
    """Replace `*` by the number of each expert."""
    numbered: list[str] = []
    for name in names:
        if ANY_EXPERT in name:
            numbered += [name.replace(ANY_EXPERT, expert) for expert in experts]
        else:
            numbered.append(name)
    return tuple(numbered)


def expert_number(name: str) -> int | None:
    """Parse the 3 of `block_sparse_moe.experts.3.w1`; None outside an expert."""
    match = re.search(r"\bexperts\.(\d+)\.", name)
    return int(match[1]) if match else None


def split_layer_name(name: str) -> tuple[str, str] | None:
    """Split `model.layers.3.mlp.up_proj` into layer and local name; None outside a layer."""
    match = LAYER_NAME.match(name)
    return (match[1], match[3]) if match else None


def layer_index(prefix: str) -> int:
    """Parse the number at the end of `model.layers.3`."""
    return int(prefix.rsplit(".", 1)[1])


def names_by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """Group tensor names by decoder layer, in order; names outside layers are last, under ""."""
    by_layer: dict[str, list[str]] = {}
    for name in names:
        split = split_layer_name(name)
        by_layer.setdefault(split[0] if split else "", []).append(name)
    return dict(
        sorted(
            by_layer.items(),
            key=lambda layer: (layer[0] == "", layer_index(layer[0]) if layer[0] else 0),
        )
    )


def head_dim_of(config: Mapping[str, object]) -> int:
    """Return the width of an attention head, in channels, by `config.json`."""
    explicit = config.get("head_dim")
    if isinstance(explicit, int):
        return explicit
    return int(str(config["hidden_size"])) // int(str(config["num_attention_heads"]))
