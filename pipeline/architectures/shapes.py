"""Derive the shape of a model from its tensors, for predictions of memory, disk and time.

Only names and shapes are used, so this works for any checkpoint whose decoder layers are numbered.
Shapes do not show which linears read the same input. Linears of one block whose inputs have one
width are assumed to share it, except the block's output projection.
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
    """Linears that read one input of `width` channels and have `rows` outputs in all.

    `num_copies` counts the experts of a fused stack. `is_expert` marks linears that get only the
    tokens that a router sends to them.
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
    """The shape of a decoder layer; `num_weights` counts all its tensors, norms and biases too."""

    inputs: tuple[InputShape, ...]
    num_weights: int

    @property
    def num_linear_weights(self) -> int:
        return sum(shape.num_weights for shape in self.inputs)


@dataclass(frozen=True)
class ModelShape:
    """The shape of a text model; `vocab_size` × `hidden_size` is the largest matrix outside layers.

    `num_kept_weights` are beside it in the files: other parts, which packed variants keep.
    """

    layers: tuple[LayerShape, ...]
    num_weights: int
    hidden_size: int
    vocab_size: int
    num_kept_weights: int = 0

    @property
    def num_linear_weights(self) -> int:
        return sum(layer.num_linear_weights for layer in self.layers)

    @property
    def largest_matrix(self) -> int:
        """The number of weights of the largest matrix, inside or outside the layers."""
        inside = (shape.width * shape.rows for layer in self.layers for shape in layer.inputs)
        return max(self.vocab_size * self.hidden_size, *inside)


def model_shape(tensors: Mapping[str, tuple[int, ...]]) -> ModelShape:
    """Derive the shape of the model with these tensors, given by name with their shapes.

    Raises InputError when no tensor is in a numbered layer, and when no matrix is outside of them.
    """
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
    """Derive the shape of a layer from the shapes of its tensors by local name."""
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
