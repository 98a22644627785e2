"""Statistics that are damaged are one line which says what to do, never other numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.calibration.statistics import Statistics, read_layer
from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from tests.architecture_models import calibrated_model


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return calibrated_model(tmp_path_factory.mktemp("statistics"), "llama", samples=2)


@pytest.fixture
def workspace(calibrated: Workspace, tmp_path: Path) -> Workspace:
    copy = Workspace(tmp_path)
    shutil.copytree(calibrated.statistics_dir, copy.statistics_dir)
    return copy


def is_one_line_about(path: Path, read: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("delete it and run `quantline calibrate` again")
    assert "\n" not in message


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "no safetensors": lambda path: path.write_bytes(b"x" * 1000),
    "without the matrices": lambda path: save_file({"x": torch.zeros(1)}, path),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_matrix_is_one_line(workspace: Workspace, case: str) -> None:
    statistics = Statistics(workspace)
    linear = statistics.linears[0]
    path = workspace.statistics_dir / statistics.record.inputs[0].file
    DAMAGE[case](path)
    is_one_line_about(path, lambda: statistics.gram(linear))
    is_one_line_about(path, lambda: statistics.diagonal(linear))


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(3, dtype=torch.int8)])
def test_a_matrix_of_another_size_or_type_is_one_line(
    workspace: Workspace, tensor: torch.Tensor
) -> None:
    statistics = Statistics(workspace)
    entry = statistics.record.inputs[0]
    path = workspace.statistics_dir / entry.file
    save_file({entry.key: tensor}, path)
    is_one_line_about(path, lambda: statistics.gram(entry.linears[0]))


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_layer_of_an_unfinished_run_is_one_line(workspace: Workspace, case: str) -> None:
    path = workspace.statistics_dir / Statistics(workspace).record.inputs[0].file
    DAMAGE[case](path)
    is_one_line_about(path, lambda: read_layer(path))


@pytest.mark.parametrize(
    "text", ["", "[[1, 2", "{}", "[[1.5]]", '[["1"]]', "[[1, 2, 3]]", f"[[{1 << 40}]]", "\udcff"]
)
def test_damaged_token_ids_are_one_line(workspace: Workspace, text: str) -> None:
    workspace.token_ids_path.write_bytes(text.encode(errors="surrogateescape"))
    is_one_line_about(workspace.token_ids_path, Statistics(workspace).token_ids)


def test_whole_statistics_are_read(calibrated: Workspace) -> None:
    statistics = Statistics(calibrated)
    assert statistics.token_ids() == json.loads(calibrated.token_ids_path.read_bytes())
    gram = statistics.gram(statistics.linears[0])
    assert torch.equal(gram, gram.T)
