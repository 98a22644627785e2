"""What a license demands is in the package, in every place that speaks of it."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.adapters.files import file_sha256
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import Verdict
from pipeline.domain.params import Audience
from pipeline.domain.release import PackageManifest
from pipeline.stages import package
from tests.support import ROOT
from tests.workspace import Workspace, make_workspace, write_base_manifest

VERDICTS = {"awq-w4-g128": Verdict.APPROVED, "gguf-q4-k-m": Verdict.APPROVED}
TEXTS = ROOT / "tests" / "licenses"


def text_of(license_id: str) -> str:
    return (TEXTS / f"{license_id}.txt").read_text()


def run(
    workspace: Workspace,
    *,
    name: str = "tiny",
    audience: Audience = Audience.PUBLIC,
    commercial: bool = True,
) -> None:
    changes = {"name": name, "audience": audience, "commercial": commercial}
    release = workspace.params.release.model_copy(update=changes)
    package.run(workspace.layout, workspace.params.model_copy(update={"release": release}))


def manifest(workspace: Workspace, name: str) -> PackageManifest:
    data = workspace.read(f"packages/{name}/manifest.json").encode()
    return PackageManifest.from_bytes(data, source="manifest")


CASES = {
    "llama3.1": (
        "Llama-tiny",
        "Built with Llama",
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, "
        "Inc. All Rights Reserved.",
        "more than 700 million monthly active users",
    ),
    "gemma": (
        "tiny",
        None,
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        "has to bind the recipients in the same way and tell them",
    ),
    "qwen": (
        "tiny",
        "Built with Qwen",
        "Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All "
        "Rights Reserved.",
        "more than 100 million monthly active users",
    ),
    "apache-2.0": ("tiny", None, "", ""),
}


@pytest.mark.parametrize("license_id", CASES)
def test_what_the_license_demands_is_in_the_package(tmp_path: Path, license_id: str) -> None:
    release_name, shown, notice_sentence, condition = CASES[license_id]
    workspace = make_workspace(
        tmp_path, VERDICTS, license_id=license_id, license_text=text_of(license_id)
    )
    for name, text in (("NOTICE.txt", "Portions by others.\n"), ("USE_POLICY.md", "No harm.\n")):
        (workspace.layout.base_dir / name).write_text(text)
    write_base_manifest(workspace.layout, source="hf:org/tiny@" + "ab" * 20)
    rebased(workspace)
    run(workspace, name=release_name)
    for name in VERDICTS:
        notice = workspace.read(f"packages/{name}/NOTICE")
        card = ModelCard(workspace.read(f"packages/{name}/README.md"))
        assert "is a modified copy of org/tiny" in notice
        assert "the weights were quantized with" in notice
        assert notice_sentence in notice
        assert condition in notice
        assert condition in card.text
        assert "Portions by others." in notice
        assert workspace.read(f"packages/{name}/USE_POLICY.md") == "No harm.\n"
        assert workspace.read(f"packages/{name}/LICENSE") == text_of(license_id)
        if shown:
            assert shown in notice
            assert f"**{shown}**" in card.text


def rebased(workspace: Workspace) -> None:
    """Make the records of the variants agree with a base that was changed by hand."""
    layout = workspace.layout
    base = json.loads(layout.base_manifest_path.read_bytes())["digest"]
    for path in (layout.artifacts_dir / "variants").glob("*/variant.json"):
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "base_digest": base}))


def test_a_name_the_license_does_not_allow_is_refused(tmp_path: Path) -> None:
    workspace = make_workspace(
        tmp_path, VERDICTS, license_id="llama3.1", license_text=text_of("llama3.1")
    )
    with pytest.raises(InputError, match="wants a name that begins with 'Llama'"):
        run(workspace)
    assert not workspace.layout.packages_dir.exists()


def test_what_stays_in_the_house_shows_nothing_and_keeps_its_name(tmp_path: Path) -> None:
    workspace = make_workspace(
        tmp_path, VERDICTS, license_id="llama3.1", license_text=text_of("llama3.1")
    )
    run(workspace, audience=Audience.INTERNAL)
    assert "Built with Llama" not in workspace.read("packages/awq-w4-g128/README.md")
    assert "Llama 3.1 is licensed under" in workspace.read("packages/awq-w4-g128/NOTICE")


def decided(root: Path, *, text: str | None, sha256: str) -> str:
    """Sign a decision for the Mistral research license; returns its name."""
    decision = {
        "license": "mrl",
        "text": text,
        "text_sha256": sha256,
        "decided_by": "Jane Doe",
        "decided_on": "2026-11-21",
        "reason": "read on the owner's site",
    }
    (root / "license-decisions.yaml").write_text(json.dumps({"tiny": decision}))
    return "tiny"


def test_a_research_license_is_for_research(tmp_path: Path) -> None:
    text = tmp_path / "mrl.txt"
    text.write_text("Mistral AI Research License, as somebody read it\n")
    workspace = make_workspace(
        tmp_path,
        VERDICTS,
        license_id="other\nlicense_name: mrl",
        license_text=text.read_text(),
        license_decision=decided(tmp_path, text=None, sha256=file_sha256(text)),
    )
    with pytest.raises(InputError, match="Mistral AI Research License allows research purposes"):
        run(workspace)
    run(workspace, commercial=False)
    notice = workspace.read("packages/gguf-q4-k-m/NOTICE")
    assert "Licensed by Mistral AI under the Mistral AI Research License" in notice
    assert "Jane Doe" not in notice


def test_a_missing_license_is_the_text_a_person_decided_on(tmp_path: Path) -> None:
    text = tmp_path / "owner.txt"
    text.write_text("Mistral AI Research License, sent by its owner\n")
    workspace = make_workspace(tmp_path, VERDICTS)
    (workspace.layout.base_dir / "LICENSE").unlink()
    with pytest.raises(InputError, match="there is no LICENSE, LICENCE or COPYING file"):
        write_base_manifest(workspace.layout, source="demo")
    name = decided(tmp_path, text=text.name, sha256=file_sha256(text))
    write_base_manifest(workspace.layout, source="demo", license_decision=name)
    rebased(workspace)
    run(workspace, commercial=False)
    for variant in VERDICTS:
        assert workspace.read(f"packages/{variant}/LICENSE") == text.read_text()
    text.write_text("Something else\n")
    with pytest.raises(InputError, match="not the license that was fetched"):
        run(workspace, commercial=False)


def test_calibration_data_are_credited(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, VERDICTS)
    statistics = json.loads(workspace.layout.statistics_path.read_bytes())
    statistics["calibration"]["license"] = "CC-BY-SA-4.0"
    workspace.layout.statistics_path.write_text(json.dumps(statistics))
    run(workspace)
    notice = workspace.read("packages/awq-w4-g128/NOTICE")
    assert "calibrated on calibration.jsonl, under CC-BY-SA-4.0" in notice
    assert "may be passed on only under the same license" in notice
    statistics["calibration"]["license"] = "cc-by-nc-4.0"
    workspace.layout.statistics_path.write_text(json.dumps(statistics))
    with pytest.raises(InputError, match="calibrate on other text"):
        run(workspace)
