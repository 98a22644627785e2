"""The statistics directory: second moments by decoder layer, written once, read by all variants."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from pipeline.adapters.checkpoint import save_tensors
from pipeline.adapters.files import read_bytes
from pipeline.domain.architecture import split_layer_name
from pipeline.domain.layout import Layout
from pipeline.domain.quantized import LinearStatistics, StatisticsRecord
from pipeline.numerics.gram import pack_upper, unpack_upper

OUTSIDE_LAYERS_FILE = "outside-layers.safetensors"


def file_of(linear: str) -> str:
    """The file that holds a linear's statistics: one for each decoder layer."""
    split = split_layer_name(linear)
    return f"{split[0]}.safetensors" if split else OUTSIDE_LAYERS_FILE


def write_grams(directory: Path, file: str, grams: dict[str, Tensor]) -> None:
    """Write the G matrices of one layer, by key."""
    save_tensors(directory / file, {key: pack_upper(gram) for key, gram in grams.items()})


class Statistics:
    """Read access to G by the name of a linear."""

    def __init__(self, layout: Layout) -> None:
        data = read_bytes(layout.statistics_path, made_by="calibrate")
        self.record = StatisticsRecord.from_bytes(data, source=str(layout.statistics_path))
        self._directory = layout.statistics_dir
        self._of_linear: dict[str, LinearStatistics] = {
            linear: entry for entry in self.record.inputs for linear in entry.linears
        }

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear that has statistics, in the order of the model."""
        return tuple(self._of_linear)

    def in_features(self, linear: str) -> int:
        return self._of_linear[linear].in_features

    def grams(self, linears: list[str]) -> dict[str, Tensor]:
        """G of each linear, float32; linears that read the same input share one tensor."""
        by_key = {self._of_linear[name].key: self._of_linear[name] for name in linears}
        loaded = {key: self._load(entry) for key, entry in by_key.items()}
        return {name: loaded[self._of_linear[name].key] for name in linears}

    def diagonal(self, linear: str) -> Tensor:
        """diag G, the mean of x² by input channel: llama.cpp's importance matrix."""
        return self._load(self._of_linear[linear]).diagonal().contiguous()

    def _load(self, entry: LinearStatistics) -> Tensor:
        with safe_open(self._directory / entry.file, framework="pt") as file:
            return unpack_upper(file.get_tensor(entry.key), entry.in_features)
