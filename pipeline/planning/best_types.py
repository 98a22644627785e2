"""Print the best types of a GGUF file for a server with so much memory, before it is quantized.

The statistics must be there: the types are those that a variant with the same budget would get
without folded scales.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import InputError
from pipeline.core.formatting import bytes_text, significant
from pipeline.core.progress import note
from pipeline.core.workspace import Workspace
from pipeline.gguf import files as gguf
from pipeline.params.budgets import MemoryBudget, SizeText
from pipeline.params.gguf_variants import GgufParams, GgufRounding
from pipeline.params.params import Params
from pipeline.quantization.gguf_variant import linears_by_tensor
from pipeline.quantization.grouping import require_no_experts
from pipeline.records.base import read_base_manifest
from pipeline.records.variant import BitAllocation
from pipeline.report.bits import kind_rows


def print_best_types(workspace: Workspace, params: Params, fits: str) -> None:
    """Print the types, their size and predicted loss, and those of other sizes.

    `fits` is a size, such as `8 GB`. Contexts and users are those of `serve`. Raises InputError for
    another text, without statistics, and for a memory that the smallest types exceed.
    """
    try:
        size = TypeAdapter(SizeText).validate_python(fits)
    except ValidationError as error:
        raise InputError(f"--fits {fits}: expected a size, such as 4.2 GB or 900 MiB") from error
    serve = params.serve
    budget = MemoryBudget(fits=size, context_tokens=serve.context_tokens, users=serve.max_users)
    base, statistics = read_base_manifest(workspace), Statistics(workspace)
    recipe = GgufParams(
        format="gguf",
        budget=budget,
        scale_search=False,
        imatrix=True,
        rounding=GgufRounding.GPTQ,
        quantized_inputs=False,
        align_samples=0,
    )
    require_no_experts(recipe, statistics.linears)
    # Imported only where it is needed: it loads transformers, which takes seconds.
    from pipeline.quantization.gguf_budget import types_for_budget

    with TemporaryDirectory() as work:
        full_path = Path(work) / "full.gguf"
        note("plan: converting to GGUF")
        names = gguf.convert(
            workspace.base_dir,
            full_path,
            model_name=params.release.name,
            pre_tokenizer=params.model.gguf_pre_tokenizer,
            unused=base.unused_tensors,
            copies=base.copied_tensors,
            weight_names=tuple(f"{name}.weight" for name in statistics.linears),
        )
        shapes = {tensor.name: tensor.shape for tensor in gguf.read_tensors(full_path)}
        types, allocation = types_for_budget(
            budget,
            Checkpoint(workspace.base_dir),
            full_path,
            linears_by_tensor(names),
            statistics.gram,
            statistics,
        )
    print("\n".join(best_types_lines(budget, types, shapes, allocation)))


def best_types_lines(
    budget: MemoryBudget,
    types: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    allocation: BitAllocation,
) -> list[str]:
    """Write the choice as lines of text: the types by kind of matrix, and the curve."""
    chosen = allocation.chosen
    tensors = ((name, shapes[name], kind) for name, kind in types.items())
    kinds = {row.kind: "; ".join(row.types) for row in kind_rows(tensors)}
    width = max(map(len, kinds))
    return [
        f"{budget.fits}, {budget.users} users with {budget.context_tokens:,} tokens each: "
        f"{bytes_text(chosen.num_bytes)} of matrices, predicted KL "
        f"{significant(chosen.predicted_kl)} nats per token",
        *(f"  {kind:<{width}}  {text}" for kind, text in kinds.items()),
        "The best for other sizes:",
        *(
            f"  {bytes_text(point.num_bytes):>10}  {significant(point.predicted_kl)}"
            for point in allocation.curve
        ),
        f"As a variant: budget: {{fits: {budget.fits}, context_tokens: {budget.context_tokens}, "
        f"users: {budget.users}}}",
    ]
