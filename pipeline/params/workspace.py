"""Everything cheap that can be checked before a stage starts: the parameters and what they name."""

from pipeline.core.errors import InputError
from pipeline.core.workspace import Layout
from pipeline.params.backend_check import require_judge, require_runnable
from pipeline.params.params import Params
from pipeline.params.reading import read_params


def read_workspace(layout: Layout) -> Params:
    """The parameters of a workspace.

    Raises InputError for a file they name that is not there, or an engine that cannot run here.
    """
    params = read_params(layout.params_path)
    require_runnable(params.variants)
    require_judge(params.evaluate.packed_judge)
    _require(layout, "evaluate.text", params.evaluate.text)
    if params.calibration.dataset is None:  # else fetch brings it
        _require(layout, "calibration.text", params.calibration.text)
    return params


def _require(layout: Layout, key: str, value: str) -> None:
    if not (layout.root / value).exists():
        raise InputError(
            f"{key} = {value}: no such file; correct the path (it is relative to params.yaml) or "
            "put the text there"
        )
