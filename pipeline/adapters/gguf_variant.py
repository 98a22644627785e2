"""Making a GGUF variant: scales and importance from the statistics, llama.cpp, and proof.

The errors reported are measured on the file that was written, against the F16 file it came from.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.adapters import gguf
from pipeline.adapters.checkpoint import Checkpoint
from pipeline.adapters.files import require_free_space
from pipeline.adapters.folded_checkpoint import FoldedCheckpoint, write_folded
from pipeline.adapters.progress import note
from pipeline.adapters.statistics import Statistics
from pipeline.domain.coverage import gguf_coverage, require_covered
from pipeline.domain.params import GgufParams, GgufType, IntegerWeights, Rounding
from pipeline.domain.quantized import TensorCoverage
from pipeline.numerics.gram import output_error


def write_gguf(
    base_dir: Path,
    architecture: str,
    recipe: GgufParams,
    statistics: Statistics,
    model_dir: Path,
    *,
    model_name: str,
    metadata: Mapping[str, str],
    pre_tokenizer: str | None,
) -> tuple[TensorCoverage, ...]:
    """Write `model-TYPE.gguf` into `model_dir`; diag G is the importance matrix.

    `model_name` becomes the file's `general.name`, `metadata` what else it says there. Returns what
    became of every tensor. Raises InputError for an architecture whose folding is unknown, where
    the recipe asks for scales, FailureError when llama.cpp leaves a linear unquantized.
    """
    num_copies = 4 if recipe.scale_search else 3
    require_free_space(model_dir, num_copies * Checkpoint(base_dir).weight_bytes)
    with TemporaryDirectory(dir=model_dir.parent) as work:
        source = FoldedCheckpoint(base_dir, {})
        if recipe.scale_search:
            rounding = _rounding_of(recipe.type)
            source = write_folded(
                base_dir, architecture, statistics, rounding, Path(work) / "folded"
            )
        full_path = Path(work) / "full.gguf"
        note("quantize: converting to GGUF")
        names = gguf.convert(
            source.directory,
            full_path,
            model_name=model_name,
            metadata=metadata,
            pre_tokenizer=pre_tokenizer,
            weight_names=tuple(f"{name}.weight" for name in statistics.linears),
        )
        linear_of = {gguf_name: name.removesuffix(".weight") for name, gguf_name in names.items()}
        importance = (
            {
                gguf_name: source.diagonal(statistics, linear).numpy()
                for gguf_name, linear in linear_of.items()
            }
            if recipe.imatrix
            else {}
        )
        output_path = model_dir / f"model-{recipe.type}.gguf"
        note(f"quantize: {recipe.type} by llama.cpp")
        gguf.quantize(full_path, output_path, recipe.type, importance)
        coverage = _gguf_rows(full_path, output_path, linear_of, source, statistics, recipe)
        require_covered(coverage, implied=linear_of, kept=())
        return tuple(coverage)


def _rounding_of(kind: GgufType) -> IntegerWeights:
    """A plain rounding that errs as llama.cpp's does, for the search of scales to look at."""
    return IntegerWeights(
        num_bits=kind.num_bits,
        group_size=kind.scale_group,
        scale_search=True,
        clip_search=False,
        rounding=Rounding.NEAREST,
        refine_sweeps=0,
        dampening_frac=0.0,
    )


def _gguf_rows(
    full_path: Path,
    output_path: Path,
    linear_of: dict[str, str],
    source: FoldedCheckpoint,
    statistics: Statistics,
    recipe: GgufParams,
) -> list[TensorCoverage]:
    """What became of each tensor, measured on the file that was written, one at a time."""
    full = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    rows = []
    for tensor in gguf.read_tensors(output_path):
        linear = linear_of.get(tensor.name)
        error = None
        if linear is not None:
            gram = source.gram(statistics, linear)
            original = full[tensor.name].values()
            change = tensor.values() - original
            error = float(output_error(change, gram) / output_error(original, gram))
        rows.append(
            gguf_coverage(
                tensor.name,
                shape=tensor.shape,
                stored_type=tensor.type,
                tensor_bits=tensor.bits_per_weight,
                relative_error=error,
                recipe=recipe,
            )
        )
    return rows
