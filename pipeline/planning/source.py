"""What a prediction starts from: the shapes of a checkpoint and the speed of a machine."""

from dataclasses import dataclass

from pipeline.architectures.shapes import ModelShape


@dataclass(frozen=True)
class Source:
    """The base: bytes are those of all its files, experts those of a mixture each token passes."""

    architecture: str
    shape: ModelShape
    file_bytes: int
    experts_per_token: int | None


@dataclass(frozen=True)
class Speed:
    """Of this machine: float32 operations a second in products of matrices, bytes read a second."""

    operations: float
    memory_bytes: float
