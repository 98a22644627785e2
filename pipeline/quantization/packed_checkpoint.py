"""Writing a packed checkpoint from a base, its statistics and a recipe.

Each decoder layer is read, quantized and written before the next is touched, and is independent of
the others unless the recipe asks for quantized inputs. Only alignment, where the recipe asks for
it, then looks at the model as a whole.
The layout of the files is the one vLLM and transformers read.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.architectures.folds import names_by_layer, split_layer_name
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.names import CONFIG_FILE, INDEX_FILE
from pipeline.checkpoint.reading import Checkpoint, save_tensors, shard_name, write_index
from pipeline.checkpoint.stored_scheme import CONFIG_KEY
from pipeline.core.allocator import give_back_free, map_large_blocks
from pipeline.core.files import (
    PARTIAL_SUFFIX,
    read_record,
    readable_disk_errors,
    remove_tree,
    write_record,
)
from pipeline.core.progress import track
from pipeline.numerics.layer import QuantizedLayer
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.params import PackedVariant
from pipeline.quantization.alignment import Errors, align_checkpoint, require_alignable
from pipeline.quantization.coverage import (
    implied_by_packing,
    kept_coverage,
    packed_coverage,
    require_covered,
)
from pipeline.quantization.grouping import Grouping, plan_groups
from pipeline.quantization.layer_quantizer import LayerQuantizer
from pipeline.quantization.quantization_config import quantization_config
from pipeline.records.base import BaseManifest
from pipeline.records.variant import LayerCoverage, TensorCoverage

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
    require_alignable(statistics.linears, num_samples=recipe.align_samples)
    checkpoint = Checkpoint(base_dir)
    grouping = _grouping(recipe, statistics, checkpoint)
    finished_dir = model_dir.with_name("finished")
    quantizer = LayerQuantizer(
        checkpoint, statistics, recipe, grouping, base.architecture, finished_dir
    )
    by_layer = names_by_layer(checkpoint.names)
    units = [
        (finished_dir / f"{number:05d}.json", model_dir / shard_name(number, len(by_layer)), *layer)
        for number, layer in enumerate(by_layer.items(), start=1)
    ]
    remaining = [unit for unit in units if not unit[0].exists()]
    for rows_path, shard_path, prefix, names in track(remaining, "quantize", total=len(remaining)):
        rows = _write_shard(
            shard_path, prefix, checkpoint.tensors(names), quantizer, recipe, grouping
        )
        write_record(rows_path, LayerCoverage(rows=tuple(rows)))
        give_back_free()
    coverage = [
        row
        for rows_path, *_ in units
        for row in read_record(LayerCoverage, rows_path, made_by="quantize").rows
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
    if recipe.align_samples:
        errors = align_checkpoint(
            checkpoint,
            model_dir,
            recipe,
            statistics.token_ids(),
            quantizer,
            learned_path=learned_path,
        )
        coverage = [_with_errors(row, errors) for row in coverage]
    # First, and at once: what was learned fits layers that are not aligned yet.
    remove_tree(finished_dir.rename(finished_dir.with_suffix(PARTIAL_SUFFIX)))
    learned_path.unlink(missing_ok=True)
    return tuple(sorted(coverage, key=lambda row: row.name))


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


def _with_errors(row: TensorCoverage, errors: Mapping[str, Errors]) -> TensorCoverage:
    """The row of an aligned linear tells of what it is now; others stay."""
    found = errors.get(row.name.removesuffix(".weight"))
    return row.model_copy(update=found._asdict()) if found else row


def _write_shard(
    path: Path,
    prefix: str,
    stored: Mapping[str, Tensor],
    quantizer: LayerQuantizer,
    recipe: PackedVariant,
    grouping: Grouping,
) -> list[TensorCoverage]:
    layer = quantizer.quantized(prefix, stored)
    tensors, rows = _packed_tensors(prefix, stored, layer, recipe, grouping)
    save_tensors(path, tensors)
    return rows


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
