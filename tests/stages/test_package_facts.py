"""The license is the same in every place that states it, a real GGUF file and a registry too."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from huggingface_hub import ModelCard

from pipeline.core.record import sha256_hex
from pipeline.gguf import files as gguf
from pipeline.licensing.licenses import gguf_metadata
from pipeline.licensing.rule import words_sha256
from pipeline.licensing.rules import license_rules
from pipeline.records.release import PackageManifest
from pipeline.records.selection import Verdict
from pipeline.stages import package, publish
from tests.modelfile_reader import read_modelfile
from tests.support import ROOT, missing
from tests.workspace import MadeRun, make_workspace

pytestmark = pytest.mark.slow

NAME = "gguf-q8-0"
MAKER = "Somebody"


def converted(metadata: dict[str, str], base_dir: Path, path: Path) -> None:
    if not (gguf.CONVERTER_DIR / "conversion").is_dir():
        missing("llama.cpp's converter is not set up: run `make setup`")
    gguf.convert(
        base_dir,
        path,
        model_name="Llama-tiny",
        pre_tokenizer="gpt-2",
        weight_names=(),
        metadata=metadata,
    )
    for beside in ("request.json", "names.json", "convert.log"):
        (path.parent / beside).unlink()


def packaged(root: Path, license_id: str) -> MadeRun:
    rule = license_rules().by_id(license_id)
    assert rule is not None
    text = ROOT / "tests" / "licenses" / f"{license_id}.txt"
    made = make_workspace(
        root,
        {NAME: Verdict.APPROVED},
        license_id=license_id,
        license_text=text.read_text() if text.exists() else None,
        make_gguf=partial(converted, gguf_metadata(rule.applied(None), MAKER)),
    )
    changes = {"name": "Llama-tiny", "quantized_by": MAKER}
    release = made.params.release.model_copy(update=changes)
    params = made.params.model_copy(update={"release": release})
    package.run(made.workspace, params)
    publish.run(made.workspace, params)
    return MadeRun(made.workspace, params)


def gguf_field(path: Path) -> Callable[[str], object]:
    reader = GGUFReader(path)
    return lambda name: reader.fields[name].contents()


def blob(made: MadeRun, digest: str) -> Any:
    return json.loads(made.read(f"registry/blobs/{digest.replace(':', '/')}"))


@pytest.mark.parametrize("license_id", ["mit", "llama3.1"])
def test_every_place_states_the_same_license(tmp_path: Path, license_id: str) -> None:
    made = packaged(tmp_path, license_id)
    directory = made.workspace.package_dir(NAME)
    data = (directory / "manifest.json").read_bytes()
    stated = PackageManifest.from_bytes(data, source="manifest").license
    text = (directory / "LICENSE").read_text()
    assert stated.text_sha256 == sha256_hex(text.encode())

    card = ModelCard((directory / "README.md").read_text()).data.to_dict()
    assert card.get("license_name", card["license"]) == stated.id == license_id
    assert card.get("license_link") == stated.link

    field = gguf_field(directory / "model-Q8_0.gguf")
    assert field("general.license") == stated.expression
    assert field("general.license.name") == stated.name
    assert field("general.license.link") == "LICENSE"
    assert field("general.quantized_by") == MAKER

    modelfile = dict(read_modelfile((directory / "Modelfile").read_text()))
    assert words_sha256(str(modelfile["license"])) == words_sha256(text)

    receipts = json.loads(made.workspace.receipts_path.read_bytes())
    manifest = blob(made, receipts["releases"][NAME]["manifest_digest"])
    assert manifest["annotations"]["org.opencontainers.image.licenses"] == stated.expression
    config = blob(made, manifest["config"]["digest"])
    assert config["descriptor"]["licenses"] == [stated.expression]

    model = json.loads(made.read(f"packages/{NAME}.bom.json"))["metadata"]["component"]
    (bom_license,) = (it["license"] for it in model["licenses"])
    assert bom_license in ({"id": stated.expression}, {"name": stated.name, "url": stated.link})
    properties = {it["name"]: it["value"] for it in model["properties"]}
    assert properties["quantline:license.expression"] == stated.expression
    assert properties["quantline:license.text.sha256"] == stated.text_sha256

    statement = json.loads(made.read(f"packages/{NAME}.provenance.json"))
    build = statement["predicate"]["buildDefinition"]["internalParameters"]
    assert build["license"]["expression"] == stated.expression
    assert build["license"]["textSha256"] == stated.text_sha256

    if stated.display_text:
        assert stated.display_text in (directory / "NOTICE").read_text()
        assert f"**{stated.display_text}**" in (directory / "README.md").read_text()
        assert properties["quantline:license.display"] == stated.display_text
