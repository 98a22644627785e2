"""Writing a packed checkpoint from a base, its statistics and a recipe.

Each decoder layer is read, quantized and written before the next is touched, and is independent of
the others unless the recipe asks for quantized inputs. Only distillation, where the recipe asks for
it, then looks at the model as a whole.
The layout of the files is the one vLLM and transformers read.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.adapters.checkpoint import Checkpoint, save_tensors, shard_name, write_index
from pipeline.adapters.distilled_checkpoint import distill_checkpoint, require_distillable
from pipeline.adapters.files import (
    PARTIAL_SUFFIX,
    readable_disk_errors,
    remove_tree,
    write_record,
)
from pipeline.adapters.layer_inputs import LayerInputs, layer_inputs
from pipeline.adapters.memory import give_back_free, map_large_blocks
from pipeline.adapters.progress import track
from pipeline.adapters.statistics import Statistics
from pipeline.domain.architecture import folds_of, head_dim_of, names_by_layer, split_layer_name
from pipeline.domain.checkpoint import CONFIG_FILE, INDEX_FILE
from pipeline.domain.coverage import (
    implied_by_packing,
    kept_coverage,
    packed_coverage,
    require_covered,
)
from pipeline.domain.grouping import Grouping, plan_groups
from pipeline.domain.manifest import BaseManifest
from pipeline.domain.params import IntegerWeights, PackedVariant
from pipeline.domain.quantization_config import quantization_config
from pipeline.domain.quantized import LayerCoverage, TensorCoverage
from pipeline.domain.stored_scheme import CONFIG_KEY
from pipeline.domain.variants import CompressedTensorsParams, Scheme
from pipeline.numerics.fp8 import fp8_layer
from pipeline.numerics.layer import QuantizedLayer, quantize_layer
from pipeline.numerics.packing.stored import stored_tensors

NOTHING = QuantizedLayer(linears={}, changed={})
NOT_COPIED = (INDEX_FILE, CONFIG_FILE, "README.md")


def write_packed(
    base_dir: Path,
    base: BaseManifest,
    recipe: PackedVariant,
    statistics: Statistics,
    model_dir: Path,
) -> tuple[TensorCoverage, ...]:
    """Fill `model_dir`: one shard for each decoder layer, one for the rest, and the sidecar files.

    A layer is finished when its shard is there and, beside `model_dir`, its coverage; what an
    earlier run finished is not done again. Returns what became of every tensor. Raises InputError
    for linears that do not divide, where the recipe does not say what to do with them, and for an
    architecture whose folding is unknown; FailureError when less is quantized than the recipe
    implies.
    """
    map_large_blocks()
    require_distillable(statistics.linears, epochs=recipe.distill_epochs)
    checkpoint = Checkpoint(base_dir)
    grouping = _grouping(recipe, statistics, checkpoint)
    finished_dir = model_dir.with_name("finished")
    quantizer = _LayerQuantizer(
        checkpoint, statistics, recipe, grouping, base.architecture, finished_dir
    )
    by_layer = names_by_layer(checkpoint.names)
    units = [
        (finished_dir / f"{number:05d}.json", model_dir / shard_name(number, len(by_layer)), *layer)
        for number, layer in enumerate(by_layer.items(), start=1)
    ]
    remaining = [unit for unit in units if not unit[0].exists()]
    for rows_path, shard_path, prefix, names in track(remaining, "quantize", total=len(remaining)):
        tensors, rows = quantizer.shard(prefix, names)
        save_tensors(shard_path, tensors)
        write_record(rows_path, LayerCoverage(rows=tuple(rows)))
        del tensors
        give_back_free()
    coverage = [
        row
        for rows_path, *_ in units
        for row in LayerCoverage.from_bytes(rows_path.read_bytes(), source=str(rows_path)).rows
    ]
    implied = {it for it in checkpoint.names if implied_by_packing(it, checkpoint.shape(it))}
    require_covered(coverage, implied=implied, kept={f"{it}.weight" for it in grouping.kept})
    write_index(model_dir)
    quantized = {f"{name}.weight" for name in grouping.group_sizes}
    config = quantization_config(
        recipe, grouping, unquantized=_unquantized(checkpoint, quantized=quantized)
    )
    _write_sidecars(base_dir, base, checkpoint.config | {CONFIG_KEY: config}, model_dir)
    learned_path = model_dir.with_name("learned.safetensors")
    if recipe.distill_epochs:
        distill_checkpoint(
            base_dir,
            model_dir,
            statistics.token_ids(),
            epochs=recipe.distill_epochs,
            learned_path=learned_path,
        )
    # First, and at once: what was learned fits layers that are not distilled yet.
    remove_tree(finished_dir.rename(finished_dir.with_suffix(PARTIAL_SUFFIX)))
    learned_path.unlink(missing_ok=True)
    return tuple(sorted(coverage, key=lambda row: row.name))


class _LayerQuantizer:
    """Quantizes one decoder layer after the other."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        recipe: PackedVariant,
        grouping: Grouping,
        architecture: str,
        work_dir: Path,
    ) -> None:
        self._checkpoint = checkpoint
        self._statistics = statistics
        self._recipe = recipe
        self._grouping = grouping
        self._folds = folds_of(architecture) if recipe.scale_search else ()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._served = None
        if recipe.quantized_inputs:
            # Imported where it is needed: with what runs a model, it takes seconds.
            from pipeline.adapters.quantized_inputs import QuantizedInputs

            self._served = QuantizedInputs(
                checkpoint.directory,
                statistics.token_ids(),
                work_dir,
                device=self._device,
                dampening_frac=recipe.dampening_frac,
            )

    @torch.inference_mode()
    def shard(
        self, prefix: str, names: list[str]
    ) -> tuple[dict[str, Tensor], list[TensorCoverage]]:
        """The tensors that stand for those of the base in `names`, and what became of each."""
        stored = self._checkpoint.tensors(names)
        linears = [name for name in self._grouping.group_sizes if f"{name}.weight" in stored]
        layer = self._quantized(prefix, stored, linears) if linears else NOTHING
        if self._served:
            self._served.advance(prefix, layer)
        return _packed_tensors(prefix, stored, layer, self._recipe, self._grouping)

    def _quantized(
        self, prefix: str, stored: Mapping[str, Tensor], linears: list[str]
    ) -> QuantizedLayer:
        inputs = layer_inputs(
            prefix,
            stored,
            linears,
            self._statistics,
            self._folds,
            kept=self._grouping.kept,
            device=self._device,
        )
        if self._served:
            inputs = self._served.corrected(prefix, inputs)
        sizes = self._grouping.group_sizes
        return _quantized_layer(
            inputs,
            self._recipe,
            {name: sizes[f"{prefix}.{name}"] for name in inputs.grams},
            head_dim=head_dim_of(self._checkpoint.config),
        )


def _grouping(recipe: PackedVariant, statistics: Statistics, checkpoint: Checkpoint) -> Grouping:
    shapes = {}
    for name in statistics.linears:
        out_features, in_features = checkpoint.shape(f"{name}.weight")
        shapes[name] = (out_features, in_features)
    return plan_groups(recipe, shapes)


def _unquantized(checkpoint: Checkpoint, *, quantized: set[str]) -> list[str]:
    """The modules inside decoder layers whose matrices stay as they are, for the file to name."""
    return [
        name.removesuffix(".weight")
        for name in checkpoint.names
        if split_layer_name(name) and len(checkpoint.shape(name)) > 1 and name not in quantized
    ]


def _quantized_layer(
    inputs: LayerInputs,
    recipe: PackedVariant,
    group_sizes: Mapping[str, int],
    *,
    head_dim: int,
) -> QuantizedLayer:
    if isinstance(recipe, CompressedTensorsParams) and recipe.scheme is Scheme.FP8_DYNAMIC:
        return fp8_layer(inputs.tensors, inputs.grams)
    integers = IntegerWeights(
        num_bits=recipe.num_bits,
        group_size=max(group_sizes.values()),
        **recipe.model_dump(include=set(IntegerWeights.model_fields) - {"num_bits", "group_size"}),
    )
    return quantize_layer(
        inputs.tensors,
        inputs.grams,
        inputs.folds,
        integers,
        symmetric=recipe.symmetric,
        head_dim=head_dim,
        group_sizes=group_sizes,
        shared_grams=inputs.shared_grams,
    )


def _packed_tensors(
    prefix: str,
    stored: Mapping[str, Tensor],
    layer: QuantizedLayer,
    recipe: PackedVariant,
    grouping: Grouping,
) -> tuple[dict[str, Tensor], list[TensorCoverage]]:
    """The tensors of one shard, and what became of each tensor of the base."""
    tensors: dict[str, Tensor] = {}
    rows: list[TensorCoverage] = []
    for name, tensor in stored.items():
        relative = name.removeprefix(f"{prefix}.")
        module = relative.removesuffix(".weight")
        if relative.endswith(".weight") and module in layer.linears:
            linear = layer.linears[module]
            packed = stored_tensors(linear.integers, linear.grid, recipe)
            full_name = name.removesuffix(".weight")
            tensors |= {f"{full_name}.{suffix}": it for suffix, it in packed.items()}
            num_bytes = sum(it.nbytes for it in packed.values())
            rows.append(
                packed_coverage(
                    name,
                    shape=tuple(tensor.shape),
                    recipe=recipe,
                    group_size=linear.grid.group_size,
                    num_bytes=num_bytes,
                    relative_error=linear.relative_error,
                    error_ratio=linear.error_ratio,
                    reason=grouping.reasons.get(full_name),
                )
            )
        else:
            tensors[name] = layer.changed.get(relative, tensor)
            rows.append(
                kept_coverage(
                    name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    num_bytes=tensor.nbytes,
                    folded=relative in layer.changed,
                    reason=grouping.kept.get(name.removesuffix(".weight")),
                )
            )
    return tensors, rows


def _write_sidecars(
    base_dir: Path, base: BaseManifest, config: Mapping[str, object], model_dir: Path
) -> None:
    """Everything beside the weights: the base's own files, and config.json with the scheme."""
    with readable_disk_errors(model_dir):
        (model_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        for file in base.files:
            if not file.path.endswith(".safetensors") and file.path not in NOT_COPIED:
                target = model_dir / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base_dir / file.path, target)
