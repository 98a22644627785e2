"""Reading the base manifest, which every stage after fetch starts from."""

from pipeline.adapters.files import read_record
from pipeline.domain.layout import Layout
from pipeline.domain.manifest import BaseManifest


def read_base_manifest(layout: Layout) -> BaseManifest:
    """Raises InputError when there is none or it is damaged."""
    return read_record(BaseManifest, layout.base_manifest_path, made_by="fetch")
