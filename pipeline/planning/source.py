"""The inputs of a prediction: the shapes of a checkpoint and the speed of a machine."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.architectures.shapes import ModelShape
from pipeline.records.base import TextPart


@dataclass(frozen=True)
class Source:
    """The base checkpoint; `architecture` is that of its text model, `text_part` of several or all.

    `file_bytes` is the size of all its files. `experts_per_token` is the number of experts that
    process a token; None for a model without experts. `tensors` has the shapes, by name, of those
    tensors that the text model reads.
    """

    architecture: str
    shape: ModelShape
    file_bytes: int
    experts_per_token: int | None
    tensors: Mapping[str, tuple[int, ...]]
    text_part: TextPart | None = None


@dataclass(frozen=True)
class Speed:
    """The speed of this machine.

    `operations` is float32 operations per second in matrix products, `memory_bytes` is bytes per
    second read from memory.
    """

    operations: float
    memory_bytes: float
