"""Which operation comes before which linear, by architecture: where AWQ's scales can be folded.

Names are relative to a decoder layer; `*` stands for the number of an expert. The table holds what
was checked: the tests fold every architecture in it and compare the outputs. An architecture that
is not in it still gets everything that needs no folding.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pipeline.core.errors import InputError

LAYER_NAME = re.compile(r"^(.*\blayers\.(\d+))\.(.+)$")
ANY_EXPERT = "*"


class Rows(StrEnum):
    """Which rows of the operation before make the input: some projections are fused."""

    ALL = "all"
    VALUES = "values"  # the last part of a fused query, key and value projection
    SECOND_HALF = "second half"  # the up part of a fused gate and up projection


@dataclass(frozen=True)
class Fold:
    """`linears` read an input that is the output of `previous`, channel by channel.

    Dividing `previous` (a norm's weight, or a linear's output rows and bias) by s and multiplying
    the columns of `linears` by s changes nothing. `by_value_head` marks the attention output, whose
    heads may share value heads. `norm_offset` is what the norm adds to its weight before it
    multiplies. `unquantized` read the same input and are multiplied too, but no error of theirs
    counts: routers. `shared_input` names the statistics of the whole input where each linear has
    only those of the tokens that were sent to it.
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

# Gemma's norms multiply by 1 + weight, and norms of their own follow attention and feed-forward.
GEMMA_FOLDS = (
    replace(ATTENTION_FOLDS[0], norm_offset=1.0),
    ATTENTION_FOLDS[1],
    Fold("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj"), norm_offset=1.0),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)


def expert_folds(block: str, *, gate: str, up: str, down: str) -> tuple[Fold, ...]:
    """A mixture of experts named `block`, with its router in `block.gate`."""
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
    """Raises InputError for an architecture whose order of operations is not in the table."""
    try:
        return FOLDS[architecture]
    except KeyError as error:
        raise InputError(
            f"{architecture}: scale_search knows {', '.join(FOLDS)}; set scale_search to false"
        ) from error


def require_folds(architecture: str, recipes: Iterable[object]) -> None:
    """Raises InputError as `folds_of` where one of the recipes searches scales."""
    if any(getattr(recipe, "scale_search", False) for recipe in recipes):
        folds_of(architecture)


def layer_folds(folds: Sequence[Fold], modules: Collection[str]) -> tuple[Fold, ...]:
    """The folds of one decoder layer that has `modules`, with the experts' numbers filled in.

    A fold applies when the layer has the operation before and everything that reads its output.
    """
    numbers = {number for name in modules if (number := expert_number(name)) is not None}
    experts = [str(number) for number in sorted(numbers)]
    filled = (it for fold in folds for it in _with_experts(fold, experts))
    return tuple(it for it in filled if it.linears and _names(it) <= set(modules))


def _with_experts(fold: Fold, experts: Sequence[str]) -> list[Fold]:
    """One fold for each expert where an expert's own operation comes before, else one in all."""
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
    numbered: list[str] = []
    for name in names:
        if ANY_EXPERT in name:
            numbered += [name.replace(ANY_EXPERT, expert) for expert in experts]
        else:
            numbered.append(name)
    return tuple(numbered)


def _names(fold: Fold) -> set[str]:
    return {fold.previous, *fold.linears, *fold.unquantized}


def expert_number(name: str) -> int | None:
    """The 3 of `block_sparse_moe.experts.3.w1`; None outside an expert."""
    match = re.search(r"\bexperts\.(\d+)\.", name)
    return int(match[1]) if match else None


def split_layer_name(name: str) -> tuple[str, str] | None:
    """`model.layers.3.mlp.up_proj` to (`model.layers.3`, `mlp.up_proj`); None outside a layer."""
    match = LAYER_NAME.match(name)
    return (match[1], match[3]) if match else None


def layer_index(prefix: str) -> int:
    """The number at the end of `model.layers.3`."""
    return int(prefix.rsplit(".", 1)[1])


def names_by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensor names by decoder layer, in order; what is outside the layers comes last, under ""."""
    by_layer: dict[str, list[str]] = {}
    for name in names:
        split = split_layer_name(name)
        by_layer.setdefault(split[0] if split else "", []).append(name)
    return dict(
        sorted(by_layer.items(), key=lambda it: (it[0] == "", layer_index(it[0]) if it[0] else 0))
    )


def head_dim_of(config: Mapping[str, object]) -> int:
    """The width of an attention head by `config.json`."""
    explicit = config.get("head_dim")
    if isinstance(explicit, int):
        return explicit
    return int(str(config["hidden_size"])) // int(str(config["num_attention_heads"]))
