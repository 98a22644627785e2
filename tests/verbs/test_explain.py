"""`quantline explain` as an operator sees it."""

import json
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.core.workspace import BASE, Workspace
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.stages import select
from pipeline.tasks.index import TASKS_DIR
from pipeline.verbs import explain
from tests.evaluation_files import TASK
from tests.models import tiny_llama
from tests.support import ROOT
from tests.workspace import (
    base_digest,
    write_base_manifest,
    write_evaluation,
    write_suite,
    write_variant,
)

NAME = "gguf-q2-k"


@pytest.fixture
def workspace(tmp_path: Path) -> tuple[Workspace, Params]:
    """One variant that lost a tenth of its answers, with its verdict; the questions are gone."""
    workspace, params = Workspace(tmp_path), read_params(ROOT / "params.yaml")
    params = params.model_copy(update={"variants": {NAME: params.variants[NAME]}})
    workspace.artifacts_dir.mkdir()
    tiny_llama(workspace.base_dir)
    write_base_manifest(workspace, source="model")
    write_suite(workspace)
    (tmp_path / TASKS_DIR).mkdir()
    for task in ("trades_en", "tales_es"):
        (tmp_path / TASKS_DIR / f"{task}.yaml").write_text(json.dumps(TASK | {"task": task}))
    write_evaluation(workspace, BASE, base_digest(workspace), harm=0.0)
    write_evaluation(workspace, NAME, write_variant(workspace, params, NAME).digest, harm=0.1)
    select.run(workspace, params)
    return workspace, params


def test_it_says_everything_in_plain_aligned_text(
    workspace: tuple[Workspace, Params], capsys: pytest.CaptureFixture[str]
) -> None:
    explain.run(*workspace, NAME)
    out = capsys.readouterr().out
    assert out.startswith(
        f"{NAME}: rejected\ngguf, 4.50 bits per quantized weight: the 4-bit class"
    )
    for text in (
        "KL in nats per token 0.1, at least 0.09, above 0.05",
        "trades_en (acc, 400 documents)",
        "Documents whose answers changed most (10 shown)",
        "lead of the right answer -2.00 nats",
        "base:    answer 0 (-1)",
        "variant: answer 1 (-1)",
        "model.layers.0.mlp.up_proj.weight",
    ):
        assert text in out
    assert "\N{NO-BREAK SPACE}" not in out
    rows = [line for line in out.splitlines() if "400 documents" in line]
    assert len({line.index("rejected") for line in rows}) == 1


@pytest.mark.parametrize("name", ["base", "gguf-q3-k"])
def test_a_name_without_a_verdict_is_refused(
    workspace: tuple[Workspace, Params], name: str
) -> None:
    with pytest.raises(InputError, match=f"{name}: no verdict in .*; variants there: {NAME}"):
        explain.run(*workspace, name)


def test_a_verdict_on_other_files_is_refused(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    write_evaluation(workspace, NAME, "ab" * 32, harm=0.1)
    with pytest.raises(InputError, match=f"than the present {NAME}; run `quantline select` again"):
        explain.run(workspace, params, NAME)


def test_before_select_the_error_names_it(workspace: tuple[Workspace, Params]) -> None:
    workspace, params = workspace
    workspace.selection_path.unlink()
    with pytest.raises(InputError, match="run `quantline select` first"):
        explain.run(workspace, params, NAME)
