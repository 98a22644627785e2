"""The shape of a model as its tensors tell it: what every prediction of cost starts from.

Only names and shapes are used, so it works for any checkpoint whose decoder layers are numbered.
Which linears read the same input cannot be seen in shapes; those of one block with inputs of one
width are taken to share theirs, the block's output projection apart.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from pipeline.architectures.folds import LAYER_NAME
from pipeline.core.errors import InputError

OUTPUT_PROJECTION = re.compile(r"(o_proj|out_proj|down_proj|dense|dense_4h_to_h|fc2|w2|c_proj)")
EXPERT = re.compile(r"\bexperts\.\d+\.")


@dataclass(frozen=True)
class InputShape:
    """Linears that read one input of `width` channels, `rows` outputs in all.

    `num_copies` counts the experts of a fused stack; `is_expert` marks what only the tokens sent
    to it pass through.
    """

    width: int
    rows: int
    num_copies: int = 1
    is_expert: bool = False

    @property
    def num_weights(self) -> int:
        return self.width * self.rows * self.num_copies


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer; `num_weights` counts every tensor of it, norms and biases too."""

    inputs: tuple[InputShape, ...]
    num_weights: int

    @property
    def num_linear_weights(self) -> int:
        return sum(it.num_weights for it in self.inputs)


@dataclass(frozen=True)
class ModelShape:
    """A whole model. `vocab_size` × `hidden_size` is its largest matrix outside the layers."""

    layers: tuple[LayerShape, ...]
    num_weights: int
    hidden_size: int
    vocab_size: int

    @property
    def num_linear_weights(self) -> int:
        return sum(layer.num_linear_weights for layer in self.layers)

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest single matrix, the vocabulary's among them."""
        inside = (it.width * it.rows for layer in self.layers for it in layer.inputs)
        return max(self.vocab_size * self.hidden_size, *inside)


def model_shape(tensors: Mapping[str, tuple[int, ...]]) -> ModelShape:
    """The shape of the model with these tensors. Raises InputError when it has no layers."""
    by_layer: dict[str, dict[str, tuple[int, ...]]] = {}
    outside: list[tuple[int, ...]] = []
    for name, shape in tensors.items():
        if match := LAYER_NAME.match(name):
            by_layer.setdefault(match[1], {})[match[3]] = shape
        elif len(shape) == 2:
            outside.append(shape)
    if not by_layer or not outside:
        raise InputError(
            f"{len(tensors)} tensors, none in a layer named as in `model.layers.0`, or no "
            "vocabulary outside of the layers; expected a decoder-only language model"
        )
    vocab_size, hidden_size = max(outside, key=prod)
    return ModelShape(
        layers=tuple(_layer(parts) for parts in by_layer.values()),
        num_weights=sum(prod(shape) for shape in tensors.values()),
        hidden_size=hidden_size,
        vocab_size=vocab_size,
    )


def _layer(parts: Mapping[str, tuple[int, ...]]) -> LayerShape:
    rows: dict[tuple[str, int, int, bool], int] = {}
    for name, shape in parts.items():
        if len(shape) < 2 or min(shape[-2:]) == 1:
            continue
        block, _, leaf = name.removesuffix(".weight").rpartition(".")
        key = (
            f"{block}.{leaf}" if OUTPUT_PROJECTION.fullmatch(leaf) else block,
            shape[-1],
            prod(shape[:-2]),
            len(shape) > 2 or EXPERT.search(name) is not None,
        )
        rows[key] = rows.get(key, 0) + shape[-2]
    inputs = tuple(
        InputShape(width=width, rows=count, num_copies=copies, is_expert=is_expert)
        for (_, width, copies, is_expert), count in rows.items()
    )
    return LayerShape(inputs, num_weights=sum(prod(shape) for shape in parts.values()))
