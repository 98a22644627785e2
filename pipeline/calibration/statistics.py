"""Write and read the statistics directory: second moments by decoder layer.

Calibration writes it once, and all variants read it. The file of a layer is written atomically and
describes its own content, so that finished layers are not measured again after a kill.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.architectures.folds import Fold
from pipeline.checkpoint.reading import read_tensors, save_tensors
from pipeline.core.errors import InputError, printable
from pipeline.core.files import read_bytes, read_record
from pipeline.core.record import first_problem
from pipeline.core.texts import token_ids_sha256
from pipeline.core.workspace import Workspace
from pipeline.numerics.decoder_layer import SharedInput
from pipeline.numerics.gram import packed_diagonal, unpack_upper
from pipeline.records.statistics import LayerStatistics, LinearStatistics, StatisticsRecord

# The key of the input of the output head, which no linear of a layer reads.
HEAD = "head"
RECORD_KEY = "statistics"
DELETE_AND_MEASURE = "the file is damaged: delete it and run `quantline calibrate` again"
CPU = torch.device("cpu")


def write_layer(path: Path, record: LayerStatistics, packed: Mapping[str, Tensor]) -> None:
    """Write one layer atomically: packed upper triangles of G by key, and their record."""
    save_tensors(path, packed, note=(RECORD_KEY, record.to_bytes().decode()))


def read_layer(path: Path) -> LayerStatistics:
    """Read the record of a layer's file. Raises InputError when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            text: str = (file.metadata() or {}).get(RECORD_KEY, "")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read: {printable(str(error))}; {DELETE_AND_MEASURE}"
        ) from error
    return LayerStatistics.from_bytes(text.encode(), source=str(path), made_by="calibrate")


class Statistics:
    """Read access to G, by layer and by linear."""

    def __init__(self, workspace: Workspace) -> None:
        self.record = read_record(StatisticsRecord, workspace.statistics_path, made_by="calibrate")
        self._directory = workspace.statistics_dir
        self._token_ids_path = workspace.token_ids_path
        self._of_linear: dict[str, LinearStatistics] = {
            linear: entry for entry in self.record.inputs for linear in entry.linears
        }
        heads = [entry for entry in self.record.inputs if entry.key == HEAD]
        if not heads:
            raise InputError(
                f"{workspace.statistics_path}: has no statistics of the output head, so it is of "
                "an older version; run `quantline calibrate` again"
            )
        self._head = heads[0]

    def token_ids(self) -> list[list[int]]:
        """Read the windows of token ids that were measured, which are equally long.

        Raises InputError when the file is missing, damaged or not the one that was written.
        """
        path = self._token_ids_path
        data = read_bytes(path, made_by="calibrate")
        try:
            windows = TypeAdapter(list[list[int]]).validate_json(data, strict=True)
        except ValidationError as error:
            raise InputError(f"{path}: {first_problem(error)}; {DELETE_AND_MEASURE}") from error
        try:
            found = token_ids_sha256(windows)
        except OverflowError:  # an id that no vocabulary has
            found = ""
        if found != self.record.token_ids_sha256:
            raise InputError(f"{path}: not the token ids that were read; {DELETE_AND_MEASURE}")
        return windows

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear that has statistics, in the order of the model."""
        return tuple(self._of_linear)

    def in_features(self, linear: str) -> int:
        """Return the number of input channels of a linear."""
        return self._of_linear[linear].in_features

    def inputs(
        self,
        prefix: str,
        linears: Collection[str],
        *,
        folds: Sequence[Fold] = (),
        device: torch.device = CPU,
    ) -> tuple[SharedInput, ...]:
        """Load the inputs of layer `prefix` that some of `linears` read, or that `folds` name.

        All names are local to the layer. Raises InputError when a file is missing or damaged.
        """
        start = f"{prefix}."
        shared = [fold.shared_input for fold in folds]
        found: list[SharedInput] = []
        for entry in self.record.inputs:
            if not entry.key.startswith(start):
                continue
            key = entry.key.removeprefix(start)
            inside = (name.removeprefix(start) for name in entry.linears)
            readers = tuple(name for name in inside if name in linears)
            if readers or key in shared:
                found.append(SharedInput(key, readers, self._load(entry).to(device)))
        return tuple(found)

    def gram(self, linear: str) -> Tensor:
        """Load G of the input of a linear or of HEAD, float32, in_features × in_features."""
        return self._load(self._entry(linear))

    def diagonal(self, linear: str) -> Tensor:
        """Load the diagonal of that G, the mean of x²: llama.cpp's importance matrix."""
        entry = self._entry(linear)
        return packed_diagonal(self._packed(entry), entry.in_features)

    def _entry(self, linear: str) -> LinearStatistics:
        return self._head if linear == HEAD else self._of_linear[linear]

    def _load(self, entry: LinearStatistics) -> Tensor:
        return unpack_upper(self._packed(entry), entry.in_features)

    def _packed(self, entry: LinearStatistics) -> Tensor:
        """Read the stored triangle. Raises InputError when its file is missing or damaged."""
        path = self._directory / entry.file
        packed = read_tensors(path, [entry.key], remedy=DELETE_AND_MEASURE)[entry.key]
        length = entry.in_features * (entry.in_features + 1) // 2
        if packed.dtype is not torch.float32 or packed.shape != (length,):
            raise InputError(f"{path}: {entry.key} is not what was written; {DELETE_AND_MEASURE}")
        return packed
