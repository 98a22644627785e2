"""Plan a run: predict its memory, disk and time on this machine, and refuse what cannot fit.

The prediction comes from the model's configuration and headers, the number of tokens in the suite
and a measurement of one second of how fast this machine multiplies. The held-out text is tokenized,
to find one that is too short.
"""

from pipeline.architectures.folds import require_folds
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import InputError
from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.workspace import Workspace
from pipeline.evaluation.held_out import read_held_out
from pipeline.licensing.licenses import data_rule, require_data_allowed
from pipeline.licensing.reading import read_data_license
from pipeline.licensing.rules import license_rules
from pipeline.params.params import Params
from pipeline.planning.capacity import capacity, measured_speed
from pipeline.planning.model_source import read_source, tokenizer_dir
from pipeline.planning.plan import TIME_FACTOR, Capacity, predict, refusal, table
from pipeline.planning.source import Source, Speed
from pipeline.tasks.texts import suite_tokens


def run(workspace: Workspace, params: Params) -> None:
    """Print the plan.

    Raises InputError after that when memory or disk cannot hold the run. Raises it before that for
    an architecture that cannot be quantized as the recipes say, for a held-out text that is too
    short, and for calibration data whose license is unknown or forbids the release.
    """
    rules = license_rules()
    data_license = read_data_license(workspace, params.calibration.license, rules)
    require_data_allowed(data_rule(data_license, rules), params.release)
    source = read_source(workspace, params.model)
    require_folds(source.architecture, params.variants.values())
    evaluate = params.evaluate
    with tokenizer_dir(workspace, params.model) as model_dir:
        read_held_out(workspace.root, evaluate, tokenizer_of(model_dir))
    tokens = suite_tokens(workspace.root, evaluate.suite, max_documents=evaluate.max_documents)
    needs = predict(source, params, suite_tokens=tokens)
    speed, free = measured_speed(), capacity(workspace)
    lines = [*table(needs, speed), "", *assumptions(source, tokens, speed, free)]
    print("\n".join(lines), flush=True)
    if reason := refusal(needs, free):
        raise InputError(reason)


def assumptions(source: Source, suite_size: int, speed: Speed, free: Capacity) -> list[str]:
    """Return the lines that state what the table is based on."""
    shape = source.shape
    gpu = f", {_bytes(free.gpu_memory)} of GPU memory" if free.gpu_memory is not None else ""
    return [
        f"Model: {shape.num_weights:,} weights in {len(shape.layers)} layers, vocabulary "
        f"{shape.vocab_size:,}, {_bytes(source.file_bytes)} of files.",
        f"Machine: {_bytes(free.memory)} of memory available{gpu}, {_bytes(free.disk)} of disk "
        f"free, {_bytes(free.written)} written by earlier runs.",
        f"Measured: {speed.operations / 1e9:.0f} billion float32 operations a second, "
        f"{speed.memory_bytes / 1e9:.0f} GB a second from memory.",
        f"Assumed: every variant is approved; the suite has about {suite_size:,} tokens; text that "
        "tasks let models write is not counted; the disk moves 200 MB a second and a download is "
        "as fast.",
        f"Times are estimates, right within about a factor of {TIME_FACTOR} on an idle machine.",
    ]


def _bytes(count: int) -> str:
    return bytes_text(count).replace(NBSP, " ")
