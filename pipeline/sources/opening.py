"""Open the checkpoint that `model.source` names."""

from pathlib import Path

from pipeline.core.workspace import Workspace
from pipeline.params.hub_source import parse_hub_source
from pipeline.params.params import DEMO_SOURCE, HUB_PREFIX, ModelParams
from pipeline.sources.hub import open_hub
from pipeline.sources.local import LocalCheckpoint
from pipeline.sources.source import CheckpointSource


def open_source(workspace: Workspace, model: ModelParams) -> CheckpointSource:
    """Return the checkpoint of a hub, of the demo or of a directory.

    Raises InputError for a branch or tag of a hub, and for a directory that is not there.
    """
    if model.source.startswith(HUB_PREFIX):
        return open_hub(parse_hub_source(model.source))
    return LocalCheckpoint(local_dir(workspace, model), source=model.source)


def local_dir(workspace: Workspace, model: ModelParams) -> Path:
    """Return the directory of a checkpoint of this machine."""
    is_demo = model.source == DEMO_SOURCE
    return workspace.demo_model_dir if is_demo else workspace.root / model.source
