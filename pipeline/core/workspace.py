"""The paths that the pipeline reads and writes, each defined once.

Paths are relative to a workspace: the directory that holds `params.yaml`. Stages take every path
from here.
"""

from dataclasses import dataclass
from pathlib import Path

PARAMS_FILE = "params.yaml"
DECISIONS_FILE = "license-decisions.yaml"
BASE = "base"
DATASET_DIR = "artifacts/calibration/data"
"""The directory of a calibration data set of a hub, relative to the workspace."""
SCORES_CACHE_BYTES = 1 << 29
"""Most bytes that results of scoring take in `scores_cache_dir`."""
KEPT_LOGITS_BYTES = 1 << 28
"""Largest logits there of one model that others are compared with, on all windows."""


@dataclass(frozen=True)
class Workspace:
    """The workspace; each property is a file (`_path`) or a directory (`_dir`) in it."""

    root: Path

    @property
    def params_path(self) -> Path:
        return self.root / PARAMS_FILE

    @property
    def decisions_path(self) -> Path:
        """The decisions of people about licenses."""
        return self.root / DECISIONS_FILE

    @property
    def artifacts_dir(self) -> Path:
        return self.root / "artifacts"

    @property
    def inputs_dir(self) -> Path:
        """Digests of what `params.yaml` names outside the graph, in a small file for each stage."""
        return self.artifacts_dir / "inputs"

    @property
    def demo_model_dir(self) -> Path:
        """The demo checkpoint of the repository."""
        return self.root / "demo" / "model"

    @property
    def base_dir(self) -> Path:
        return self.artifacts_dir / "base"

    @property
    def base_manifest_path(self) -> Path:
        return self.artifacts_dir / "base.manifest.json"

    @property
    def intake_path(self) -> Path:
        """What was odd about the base, and what was done about it."""
        return self.artifacts_dir / "intake.json"

    @property
    def calibration_dir(self) -> Path:
        """A fetched calibration data set: its manifest, and its files in DATASET_DIR."""
        return self.artifacts_dir / "calibration"

    @property
    def dataset_manifest_path(self) -> Path:
        return self.calibration_dir / "manifest.json"

    @property
    def dataset_dir(self) -> Path:
        return self.root / DATASET_DIR

    @property
    def statistics_dir(self) -> Path:
        return self.artifacts_dir / "statistics"

    @property
    def statistics_path(self) -> Path:
        return self.statistics_dir / "statistics.json"

    @property
    def token_ids_path(self) -> Path:
        """The token ids of calibration: a JSON list of samples, each a list of ids."""
        return self.statistics_dir / "token_ids.json"

    def variant_dir(self, name: str) -> Path:
        """Return the directory of the variant's record and, in `model/`, its released files."""
        return self.artifacts_dir / "variants" / name

    def variant_path(self, name: str) -> Path:
        return self.variant_dir(name) / "variant.json"

    def model_dir(self, name: str) -> Path:
        """Return the directory of the model files of a variant, or of the base for `base`."""
        return self.base_dir if name == BASE else self.variant_dir(name) / "model"

    def evaluation_dir(self, name: str) -> Path:
        return self.artifacts_dir / "evaluations" / name

    def evaluation_path(self, name: str) -> Path:
        return self.evaluation_dir(name) / "evaluation.json"

    def documents_path(self, name: str) -> Path:
        """Return the file with one JSON row for each evaluated document."""
        return self.evaluation_dir(name) / "documents.jsonl"

    def control_documents_path(self, backend: str) -> Path:
        """Return the file with the rows of the base, scored by the engine `backend`."""
        return self.evaluation_dir(BASE) / f"documents.{backend}.jsonl"

    @property
    def scores_cache_dir(self) -> Path:
        """The cache of scores by digest; it may be deleted at any time."""
        return self.artifacts_dir / "cache"

    @property
    def selection_path(self) -> Path:
        return self.artifacts_dir / "selection.json"

    @property
    def approved_path(self) -> Path:
        """The approved variants by name and digest, for serving."""
        return self.artifacts_dir / "approved.json"

    @property
    def benchmarks_path(self) -> Path:
        return self.artifacts_dir / "benchmarks.json"

    @property
    def packages_dir(self) -> Path:
        return self.artifacts_dir / "packages"

    def package_dir(self, name: str) -> Path:
        return self.packages_dir / name

    @property
    def packages_path(self) -> Path:
        """The index of the packages."""
        return self.packages_dir / "packages.json"

    @property
    def registry_dir(self) -> Path:
        """The OCI image layout that stands in for a registry server when none is configured."""
        return self.artifacts_dir / "registry"

    @property
    def receipts_path(self) -> Path:
        return self.artifacts_dir / "receipts.json"

    @property
    def report_path(self) -> Path:
        return self.artifacts_dir / "report" / "index.html"
