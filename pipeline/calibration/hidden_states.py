"""Keep on disk the hidden states that enter each layer of a model that runs layer by layer.

States are stored in float32, the dtype of the layers, so that the result equals that of the whole
model. They are read and written batch by batch, so that memory does not grow with the number of
tokens. Small files stay in the system's page cache. Files are written atomically.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.files import replacement

SUFFIX = ".states"
DTYPE = np.dtype("<f4")


def token_batches(windows: Sequence[Sequence[int]], *, num_tokens: int) -> list[Tensor]:
    """Group equally long windows of token ids into int64 matrices of about `num_tokens` tokens."""
    rows = max(1, num_tokens // len(windows[0]))
    return list(torch.split(torch.tensor([list(window) for window in windows]), rows))


class HiddenStates:
    """The states of all `batches` of token ids, one file in `directory` for each layer."""

    def __init__(self, directory: Path, batches: Sequence[Tensor], *, num_layers: int) -> None:
        self._directory = directory
        self._batches = batches
        self._num_layers = num_layers

    def exist(self, index: int) -> bool:
        """Tell whether the states that enter layer `index` are on disk."""
        return self._path(index).exists()

    def read(self, index: int) -> Iterator[Tensor]:
        """Yield, for each batch, the states that enter layer `index`: batch × tokens × hidden."""
        path = self._path(index)
        num_tokens = sum(batch.numel() for batch in self._batches)
        hidden_size = path.stat().st_size // (num_tokens * DTYPE.itemsize)
        with path.open("rb") as file:
            for batch in self._batches:
                values = np.fromfile(file, DTYPE, count=batch.numel() * hidden_size)
                yield torch.from_numpy(values).view(*batch.shape, hidden_size)

    def write(self, index: int, batches: Iterable[Tensor]) -> None:
        """Write the states that enter layer `index`.

        `batches` are computed but not written when `index` is after the last layer.
        """
        if index == self._num_layers:
            for _ in batches:
                pass
            return
        with replacement(self._path(index)) as file:
            for states in batches:
                file.write(states.cpu().numpy().astype(DTYPE, copy=False).tobytes())

    def drop(self, index: int) -> None:
        """Remove the states that enter layer `index`, if they are on disk."""
        self._path(index).unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._directory / f"{index:05d}{SUFFIX}"
