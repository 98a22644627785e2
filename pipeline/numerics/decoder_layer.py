"""One decoder layer in memory: its tensors, and the linears that read the same input.

Files name tensors and linears by their path in the model (`model.layers.3.mlp.up_proj`). A layer
names them by their path in the layer (`mlp.up_proj`), so that algorithms do not depend on the
number of the layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WEIGHT = ".weight"


@dataclass(frozen=True)
class SharedInput:
    """An input, the linears that read it by local name, and its second moment G, float32.

    `key` is its local name in the statistics: that of its first linear, or of a mixture of experts.
    """

    key: str
    linears: tuple[str, ...]
    gram: Tensor


@dataclass(frozen=True)
class DecoderLayer:
    """The tensors of a layer and its measured inputs, all by local name.

    `prefix` is the layer's own name in the model, empty for the tensors outside all layers.
    """

    prefix: str
    tensors: dict[str, Tensor]
    inputs: tuple[SharedInput, ...] = ()

    @classmethod
    def of(cls, prefix: str, stored: Mapping[str, Tensor]) -> "DecoderLayer":
        """Make the layer `prefix`, without inputs, from tensors by their name in the model."""
        start = f"{prefix}."
        return cls(prefix, {name.removeprefix(start): value for name, value in stored.items()})

    @property
    def modules(self) -> set[str]:
        """The local names of all modules that have a tensor, and of tensors that are no weight."""
        return {name.removesuffix(WEIGHT) for name in self.tensors}

    def full_name(self, local: str) -> str:
        """Return the name of a tensor or a linear in the model."""
        return f"{self.prefix}.{local}" if self.prefix else local

    def weight(self, linear: str) -> Tensor:
        """Return the weight of a linear or a norm by its local name."""
        return self.tensors[f"{linear}{WEIGHT}"]

    def to(self, device: torch.device) -> "DecoderLayer":
        """Move the tensors to `device`; the inputs stay where they are."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)
