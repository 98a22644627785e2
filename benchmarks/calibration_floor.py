"""Compare the wall time of calibrate with the least that its work can take.

`benchmarks.quantizers` calls it for the real model; so does `python -m benchmarks.calibration_floor
ROOT`, which prints the row for a workspace whose base is there. The floor is the forward pass of
transformers over the same tokens, in batches of the same size, and one product for the upper half
of each G. A product over all of G is timed, and half of it counted. All threads are used, and
imports are not counted.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.result import Row, show
from pipeline.calibration.hidden_states import token_batches
from pipeline.calibration.layers import BATCH_TOKENS
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.allocator import map_large_blocks
from pipeline.core.workspace import Workspace

PRODUCTS = 20


def floor_row(workspace: Workspace) -> Row:
    """Calibrate again, and compare; the workspace keeps its statistics."""
    command = [sys.executable, "-m", "benchmarks.measured", str(workspace.root), "calibrate"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    (cost,) = json.loads(output.splitlines()[-1])
    floor_s = forward_s(workspace) + products_s(workspace)
    return Row(
        "calibrate_over_floor",
        cost["wall_s"] / floor_s,
        None,
        None,
        f"{cost['wall_s']:.1f} s / {floor_s:.1f} s",
    )


def forward_s(workspace: Workspace) -> float:
    """Measure the forward pass over the calibration tokens, without the output head."""
    map_large_blocks()
    batches = token_batches(Statistics(workspace).token_ids(), num_tokens=BATCH_TOKENS)
    model = unpacked_model(workspace.base_dir).base_model
    with torch.inference_mode():
        model(input_ids=batches[0], use_cache=False)
        started = time.monotonic()
        for batch in batches:
            model(input_ids=batch, use_cache=False)
        return time.monotonic() - started


def products_s(workspace: Workspace) -> float:
    """Measure half of XᵀX for every input over all tokens, by some products of each width."""
    statistics = Statistics(workspace)
    num_tokens = sum(map(len, statistics.token_ids()))
    widths = Counter(entry.in_features for entry in statistics.record.inputs)
    seconds = 0.0
    for width, count in widths.items():
        rows, total = torch.randn(BATCH_TOKENS, width), torch.zeros(width, width)
        total.addmm_(rows.T, rows)
        started = time.monotonic()
        for _ in range(PRODUCTS):
            total.addmm_(rows.T, rows)
        one_s = (time.monotonic() - started) / PRODUCTS
        seconds += count * one_s * num_tokens / BATCH_TOKENS / 2
    return seconds


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    show([floor_row(Workspace(Path(sys.argv[1])))])
