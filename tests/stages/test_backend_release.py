"""Another quantizer's files go through gate and packaging as ours do, and say who made them.

It takes the first library whose environment is set up, which no test needs: it skips elsewhere.
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.core.workspace import BASE, Workspace
from pipeline.params.params import Params
from pipeline.quantization.other_quantizers import environment_dir
from pipeline.records.release import PackageManifest
from pipeline.records.selection import Selection, Verdict
from pipeline.records.variant import VariantRecord
from pipeline.stages import calibrate, evaluate, fetch, package, quantize, select
from tests.quantization.test_other_quantizers import LIBRARIES
from tests.stages.test_evaluate import write_inputs
from tests.support import ROOT
from tests.workspace import MadeRun, write_benchmarks

NAME = "theirs"


@dataclass(frozen=True)
class Release:
    """The package of a variant that the pinned release `quantizer` made."""

    workspace: Workspace
    record: VariantRecord
    quantizer: str

    def read(self, path: str) -> str:
        return (self.workspace.packages_dir / path).read_text()


def first_library() -> dict[str, Any]:
    for recipe in LIBRARIES.values():
        if environment_dir(recipe["backend"]).exists():
            return recipe
    pytest.skip("no other quantizer is set up: python envs/peer.py gptqmodel")


def lenient(params: Params, **variants: dict[str, Any]) -> Params:
    """A gate that lets a model of random weights pass, scored by transformers alone."""
    values = params.model_dump(mode="json")
    values["variants"] = variants
    values["evaluate"]["controls"] = []
    values["gate"]["margin"] = 0.9
    for bounds in values["gate"]["classes"].values():
        bounds |= {"max_mean_drop": 0.9, "max_kl": 9.0, "max_perplexity_ratio": 9.0}
    return Params.model_validate_json(json.dumps(values), strict=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    recipe = first_library()
    backend = recipe["backend"]
    root = tmp_path_factory.mktemp("release")
    workspace, params = Workspace(root), lenient(write_inputs(root), **{NAME: recipe})
    fetch.run(workspace, params)
    calibrate.run(workspace, params)
    quantize.run(workspace, params, NAME)
    evaluate.run(workspace, params, BASE, NAME)
    select.run(workspace, params)
    record = VariantRecord.from_bytes(workspace.variant_path(NAME).read_bytes(), source=NAME)
    write_benchmarks(
        MadeRun(workspace, params),
        speeds={},
        skipped={NAME: "not asked for"},
        digests={NAME: record.digest},
    )
    package.run(workspace, params)
    pins = (ROOT / "envs" / "peers" / f"{backend}.txt").read_text().splitlines()
    (pin,) = (line for line in pins if line.startswith(f"{backend}=="))
    return Release(workspace, record, pin.replace("==", " "))


@pytest.mark.slow
def test_the_gate_judges_it_on_the_same_documents_and_tokens(release: Release) -> None:
    data = release.workspace.selection_path.read_bytes()
    verdict = Selection.from_bytes(data, source="selection").variants[NAME]
    assert verdict.verdict is Verdict.APPROVED
    assert verdict.distance is not None
    assert 0 < verdict.distance.kl < 1
    assert 4 < verdict.bits_per_weight < 16


@pytest.mark.slow
def test_its_package_holds_its_weights_and_the_base_tokenizer(release: Release) -> None:
    workspace = release.workspace
    manifest = PackageManifest.from_bytes(
        (workspace.package_dir(NAME) / "manifest.json").read_bytes(), source="manifest"
    )
    weights = [file.path for file in manifest.files if file.path.endswith(".safetensors")]
    assert weights
    for name in (*weights, "config.json"):
        made, packaged = (
            it / name for it in (workspace.model_dir(NAME), workspace.package_dir(NAME))
        )
        assert packaged.read_bytes() == made.read_bytes()
    tokenizer = (workspace.package_dir(NAME) / "tokenizer.json").read_bytes()
    assert tokenizer == (workspace.base_dir / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_every_paper_names_the_library_that_made_it(release: Release) -> None:
    assert f"the weights were quantized with {release.quantizer} to" in release.read(
        f"{NAME}/NOTICE"
    )
    assert f"with {release.quantizer}." in release.read(f"{NAME}/README.md")
    backend, version = release.quantizer.split()
    tools = release.record.tools
    assert tools[backend] == version
    bom = json.loads(release.read(f"{NAME}.bom.json"))
    components = bom["metadata"]["tools"]["components"]
    assert set(tools.items()) <= {(it["name"], it["version"]) for it in components}
    build = json.loads(release.read(f"{NAME}.provenance.json"))["predicate"]["buildDefinition"]
    assert build["internalParameters"]["tools"] == tools
    assert build["externalParameters"]["variant"][NAME]["backend"] == backend
