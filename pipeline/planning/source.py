"""The inputs of a prediction: the shapes of a checkpoint and the speed of a machine."""

from dataclasses import dataclass

from pipeline.architectures.shapes import ModelShape


@dataclass(frozen=True)
class Source:
    """The base checkpoint.

    `file_bytes` is the size of all its files. `experts_per_token` is the number of experts that
    process a token; None for a model without experts.
    """

    architecture: str
    shape: ModelShape
    file_bytes: int
    experts_per_token: int | None


@dataclass(frozen=True)
class Speed:
    """The speed of this machine.

    `operations` is float32 operations per second in matrix products, `memory_bytes` is bytes per
    second read from memory.
    """

    operations: float
    memory_bytes: float
