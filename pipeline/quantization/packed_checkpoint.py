"""Write a packed checkpoint from a base, its statistics and a recipe.

Each decoder layer is read, quantized and written before the next one is read. Layers are
independent of each other unless the recipe asks for quantized inputs. Only alignment, where the
recipe asks for it, then needs the model as a whole. vLLM and transformers read the layout of the
files. The algorithms are in `pipeline.numerics`.
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
from pipeline.core.allocator import map_large_blocks, release_free_memory
from pipeline.core.files import (
    PARTIAL_SUFFIX,
    read_record,
    readable_disk_errors,
    remove_tree,
    write_record,
)
from pipeline.core.progress import track
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.layer import QuantizedLayer
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.params import PackedVariant
from pipeline.params.variants import CompressedTensorsParams
from pipeline.quantization.alignment import align_checkpoint, steps_of
from pipeline.quantization.coverage import (
    implied_by_packing,
    kept_coverage,
    packed_coverage,
    require_covered,
)
from pipeline.quantization.grouping import Grouping, plan_groups
from pipeline.quantization.layer_quantizer import LayerQuantizer
from pipeline.quantization.quantization_config import quantization_config
from pipeline.records.base import BaseManifest, TextPart
from pipeline.records.variant import BitAllocation, LayerCoverage, TensorCoverage

NOT_COPIED = (INDEX_FILE, CONFIG_FILE, "README.md")


def write_packed(
    base_dir: Path,
    base: BaseManifest,
    recipe: PackedVariant,
    statistics: Statistics,
    model_dir: Path,
) -> tuple[tuple[TensorCoverage, ...], BitAllocation | None]:
    """Fill `model_dir`: one shard for each decoder layer, one for the rest, and the sidecar files.

    A layer is finished when its shard exists and its coverage exists beside `model_dir`. Layers
    that an earlier run finished are not made again. Returns one row for each tensor, sorted by
    name, and the choice of their bits by a budget, if any. Raises InputError for linears that do
    not divide, where `on_indivisible` does not allow another way, for a budget that is too small,
    and for an architecture whose folding is unknown; FailureError when less is quantized than the
    recipe implies.
    """
    map_large_blocks()
    checkpoint = Checkpoint(base_dir)
    stored = [name for name in checkpoint.names if name not in base.copied_tensors]
    finished_dir = model_dir.with_name("finished")
    allocation = None
    if isinstance(recipe, CompressedTensorsParams) and recipe.budget:
        # Imported only where it is needed: it loads transformers, which takes seconds.
        from pipeline.quantization.packed_budget import grouping_for_budget

        of_stored = {name: checkpoint.shape(name) for name in stored}
        grouping, allocation = grouping_for_budget(
            recipe, checkpoint, of_stored, statistics, finished_dir
        )
    else:
        shapes = {name: checkpoint.shape(f"{name}.weight") for name in statistics.linears}
        grouping = plan_groups(recipe, shapes)
    quantizer = LayerQuantizer(
        checkpoint, statistics, recipe, grouping, base.text_architecture, finished_dir
    )
    by_layer = names_by_layer(stored)
    units = [
        (finished_dir / f"{number:05d}.json", model_dir / shard_name(number, len(by_layer)), *layer)
        for number, layer in enumerate(by_layer.items(), start=1)
    ]
    remaining = [unit for unit in units if not unit[0].exists()]
    for rows_path, shard_path, prefix, names in track(remaining, "quantize", total=len(remaining)):
        layer = DecoderLayer.of(prefix, checkpoint.tensors(names))
        tensors, rows = _stored_layer(layer, quantizer.quantized(layer), grouping, base.text_part)
        save_tensors(shard_path, tensors)
        write_record(rows_path, LayerCoverage(rows=tuple(rows)))
        del layer, tensors
        release_free_memory()
    coverage = [
        row
        for rows_path, *_ in units
        for row in read_record(LayerCoverage, rows_path, made_by="quantize").rows
    ]
    implied = {
        name
        for name in set(stored) - set(base.unused_tensors)
        if implied_by_packing(name, checkpoint.shape(name))
    }
    kept = {f"{linear}.weight" for linear in grouping.kept}
    require_covered(coverage, implied=implied, kept=kept)
    write_index(model_dir)
    # config.json names the modules whose matrices are not quantized: in decoder layers, and those
    # that the model does not read but an engine may, such as prediction heads. Parts beside the
    # text model are named as a whole.
    part, unused = base.text_part, set(base.unused_tensors)
    unquantized = [
        name.removesuffix(".weight")
        for name in stored
        if (split_layer_name(name) or name in unused)
        and not (part and part.is_of_other_part(name))
        and len(checkpoint.shape(name)) > 1
        and name.removesuffix(".weight") not in grouping.recipes
    ]
    config = quantization_config(recipe, grouping, unquantized=unquantized, text_part=part)
    _write_sidecars(base_dir, base, checkpoint.config | {CONFIG_KEY: config}, model_dir)
    learned_path = model_dir.with_name("learned.safetensors")
    if recipe.align_samples:
        errors = align_checkpoint(
            checkpoint,
            model_dir,
            grouping,
            steps_of(statistics.token_ids(), recipe.align_samples),
            quantizer,
            learned_path=learned_path,
        )
        coverage = [
            row.model_copy(update=errors.get(row.name.removesuffix(".weight"), {}))
            for row in coverage
        ]
    # The record of finished layers goes first, in one rename. After a kill in between, every layer
    # is quantized again, and the learned tensors fit such layers: those not aligned yet.
    remove_tree(finished_dir.rename(finished_dir.with_suffix(PARTIAL_SUFFIX)))
    learned_path.unlink(missing_ok=True)
    return tuple(sorted(coverage, key=lambda row: row.name)), allocation


def _stored_layer(
    layer: DecoderLayer,
    quantized: QuantizedLayer,
    grouping: Grouping,
    part: TextPart | None,
) -> tuple[dict[str, Tensor], list[TensorCoverage]]:
    """Return the tensors of a shard by name, and one row of coverage for each tensor of `layer`."""
    tensors: dict[str, Tensor] = {}
    rows: list[TensorCoverage] = []
    for local_name, tensor in layer.tensors.items():
        name = layer.full_name(local_name)
        linear = name.removesuffix(".weight")
        made = quantized.linears.get(local_name.removesuffix(".weight"))
        if made is not None and local_name.endswith(".weight"):
            recipe = grouping.recipes[linear]
            packed = stored_tensors(made.integers, made.grid, recipe)
            tensors |= {f"{linear}.{suffix}": part for suffix, part in packed.items()}
            rows.append(
                packed_coverage(
                    name,
                    shape=tuple(tensor.shape),
                    recipe=recipe,
                    num_bytes=sum(part.nbytes for part in packed.values()),
                    relative_error=made.relative_error,
                    error_ratio=made.error_ratio,
                )
            )
        else:
            tensors[name] = quantized.changed.get(local_name, tensor)
            reason = grouping.kept.get(linear)
            if part and part.is_of_other_part(name):
                reason = "kept: of a part beside the text model"
            rows.append(
                kept_coverage(
                    name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    num_bytes=tensor.nbytes,
                    folded=local_name in quantized.changed,
                    reason=reason,
                )
            )
    return tensors, rows


def _write_sidecars(
    base_dir: Path, base: BaseManifest, config: Mapping[str, object], model_dir: Path
) -> None:
    """Write the files beside the weights: those of the base, and config.json with the scheme."""
    with readable_disk_errors(model_dir):
        (model_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        for file in base.files:
            if not file.path.endswith(".safetensors") and file.path not in NOT_COPIED:
                target = model_dir / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base_dir / file.path, target)
