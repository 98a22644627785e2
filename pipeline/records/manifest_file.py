"""Reading the base manifest, which every stage after fetch starts from."""

from pipeline.core.file_records import BaseManifest
from pipeline.core.files import read_record
from pipeline.core.workspace import Layout


def read_base_manifest(layout: Layout) -> BaseManifest:
    """Raises InputError when there is none or it is damaged."""
    return read_record(BaseManifest, layout.base_manifest_path, made_by="fetch")
