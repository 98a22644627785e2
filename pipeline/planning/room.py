"""Refusing a stage at its start when this machine could not finish it, however idle it were."""

from pipeline.core.errors import InputError
from pipeline.core.files import require_free_space
from pipeline.core.workspace import Layout
from pipeline.planning.capacity import total_memory
from pipeline.planning.checkpoint_source import directory_source
from pipeline.planning.plan import memory_refusal
from pipeline.planning.stage_needs import Source, StageNeed


def require_room(layout: Layout, need: StageNeed) -> None:
    """Raise InputError when `need` exceeds all memory, FailureError when the disk is too full.

    What is free now does not count for memory: other programs may end while the stage runs.
    """
    if reason := memory_refusal((need,), total_memory()):
        raise InputError(reason)
    require_free_space(layout.artifacts_dir, need.disk_kept + need.disk_temporary)


def fetched_source(layout: Layout) -> Source:
    """The shapes of the base that fetch made."""
    return directory_source(layout.base_dir)
