"""What a license demands is in the package: from the demo's weights, fetched under that license."""

import json
import shutil
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from huggingface_hub import ModelCard

from pipeline.core.errors import InputError
from pipeline.core.files import file_sha256
from pipeline.core.workspace import Workspace
from pipeline.params.params import Audience, Params
from pipeline.params.reading import read_params
from pipeline.records.selection import Verdict
from pipeline.stages import fetch, package
from tests.support import ROOT
from tests.workspace import MadeRun, make_workspace, measured, write_statistics

VERDICTS = {"awq-w4-g128": Verdict.APPROVED, "gguf-q4-k-m": Verdict.APPROVED}
TEXTS = ROOT / "tests" / "licenses"
MISTRAL_TEXT = "Mistral AI Research License, as somebody read it\n"


def relicensed_demo(root: Path, card: str, text: str | None) -> Path:
    """A copy of the demo model, with the license `card` says and the text of another license."""
    model_dir = root / "model"
    shutil.copytree(ROOT / "demo" / "model", model_dir)
    (model_dir / "README.md").write_text(f"---\n{card}\n---\n")
    (model_dir / "LICENSE").unlink()
    if text is not None:
        (model_dir / "LICENSE.txt").write_text(text)
    (model_dir / "NOTICE.txt").write_text("Portions by others.\n")
    (model_dir / "USE_POLICY.md").write_text("No harm.\n")
    return model_dir


def params_of(
    *,
    name: str = "tiny",
    audience: Audience = Audience.PUBLIC,
    commercial: bool = True,
    decision: str | None = None,
) -> Params:
    params = read_params(ROOT / "params.yaml")
    changes = {"name": name, "audience": audience, "commercial": commercial}
    return params.model_copy(
        update={
            "model": params.model.model_copy(update={"source": "model", "license": decision}),
            "release": params.release.model_copy(update=changes),
        }
    )


def packaged(root: Path, params: Params) -> MadeRun:
    """Fetch the model of `root` and package variants of it."""
    workspace = Workspace(root)
    fetch.run(workspace, params)
    made = measured(workspace, params, VERDICTS)
    package.run(workspace, params)
    return made


CASES = {
    "llama3.1": (
        "license: llama3.1",
        "Llama-tiny",
        "Built with Llama",
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, "
        "Inc. All Rights Reserved.",
        "more than 700 million monthly active users",
    ),
    "gemma": (
        "license: gemma",
        "tiny",
        None,
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        "has to bind the recipients in the same way and tell them",
    ),
    "qwen": (
        "license: other\nlicense_name: qwen\nbase_model: Qwen/Qwen2.5-72B",
        "tiny",
        "Built with Qwen",
        "Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All "
        "Rights Reserved.",
        "more than 100 million monthly active users",
    ),
    "apache-2.0": ("license: apache-2.0", "tiny", None, "", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("license_id", CASES)
def test_what_the_license_demands_is_in_the_package(tmp_path: Path, license_id: str) -> None:
    stated, release_name, shown, notice_sentence, condition = CASES[license_id]
    text = (TEXTS / f"{license_id}.txt").read_text()
    relicensed_demo(tmp_path, stated, text)
    made = packaged(tmp_path, params_of(name=release_name))
    for name in VERDICTS:
        notice = made.read(f"packages/{name}/NOTICE")
        card = ModelCard(made.read(f"packages/{name}/README.md"))
        assert "is a modified copy of model" in notice
        assert "the weights were quantized with" in notice
        assert notice_sentence in notice
        assert condition in notice
        assert condition in card.text
        assert "Portions by others." in notice
        assert made.read(f"packages/{name}/USE_POLICY.md") == "No harm.\n"
        assert made.read(f"packages/{name}/LICENSE") == text
        assert not (made.workspace.package_dir(name) / "LICENSE.txt").exists()
        if shown:
            assert shown in notice
            assert f"**{shown}**" in card.text


def test_a_name_the_license_does_not_allow_stops_before_weights(tmp_path: Path) -> None:
    relicensed_demo(tmp_path, "license: llama3.1", (TEXTS / "llama3.1.txt").read_text())
    with pytest.raises(InputError, match="wants a name that begins with 'Llama'"):
        packaged(tmp_path, params_of())
    assert not list(tmp_path.glob("artifacts/**/*.safetensors"))


def test_what_stays_in_the_house_shows_nothing_and_keeps_its_name(tmp_path: Path) -> None:
    relicensed_demo(tmp_path, "license: llama3.1", (TEXTS / "llama3.1.txt").read_text())
    made = packaged(tmp_path, params_of(audience=Audience.INTERNAL))
    policy = "<https://llama.meta.com/llama3_1/use-policy>"
    assert policy in made.read("packages/awq-w4-g128/README.md")
    assert "Built with Llama" not in made.read("packages/awq-w4-g128/README.md")
    assert "Llama 3.1 is licensed under" in made.read("packages/awq-w4-g128/NOTICE")
    with pytest.raises(InputError, match="wants a name that begins with 'Llama'"):
        package.run(made.workspace, params_of(audience=Audience.AFFILIATES))


def decide(root: Path, text: Path, *, brings_text: bool) -> None:
    """Sign the decision `tiny` for the Mistral research license on the file `text`."""
    decision = {
        "license": "mrl",
        "text": text.name if brings_text else None,
        "text_sha256": file_sha256(text),
        "decided_by": "Jane Doe",
        "decided_on": "2026-11-21",
        "reason": "read on the owner's site",
    }
    (root / "license-decisions.yaml").write_text(json.dumps({"tiny": decision}))


def test_a_research_license_is_for_research(tmp_path: Path) -> None:
    stated = "license: other\nlicense_name: mrl"
    model_dir = relicensed_demo(tmp_path, stated, MISTRAL_TEXT)
    with pytest.raises(InputError, match="none that a rule was written from; a person has to"):
        packaged(tmp_path, params_of(commercial=False))
    decide(tmp_path, model_dir / "LICENSE.txt", brings_text=False)
    with pytest.raises(InputError, match="Mistral AI Research License allows research purposes"):
        packaged(tmp_path, params_of(decision="tiny"))
    made = packaged(tmp_path, params_of(commercial=False, decision="tiny"))
    notice = made.read("packages/gguf-q4-k-m/NOTICE")
    assert "Licensed by Mistral AI under the Mistral AI Research License" in notice
    assert "Jane Doe" not in notice


def test_a_missing_license_is_the_text_a_person_decided_on(tmp_path: Path) -> None:
    relicensed_demo(tmp_path, "tags: [tiny]", None)
    with pytest.raises(InputError, match="there is no LICENSE, LICENCE or COPYING file"):
        packaged(tmp_path, params_of())
    text = tmp_path / "owner.txt"
    text.write_text(MISTRAL_TEXT)
    decide(tmp_path, text, brings_text=True)
    decided = params_of(commercial=False, decision="tiny")
    made = packaged(tmp_path, decided)
    for variant in VERDICTS:
        assert made.read(f"packages/{variant}/LICENSE") == MISTRAL_TEXT
    text.write_text("Something else\n")
    with pytest.raises(InputError, match="not the license that was fetched"):
        package.run(made.workspace, decided)
    with pytest.raises(InputError, match=r"owner.txt is not the text that Jane Doe decided on"):
        fetch.run(made.workspace, decided)


def with_data_license(made: MadeRun, license: str, *, commercial: bool = True) -> Params:
    """Parameters and records of a run whose calibration text is under another license."""
    calibration = made.params.calibration.model_copy(update={"license": license})
    release = made.params.release.model_copy(update={"commercial": commercial})
    params = made.params.model_copy(update={"calibration": calibration, "release": release})
    write_statistics(made.workspace, params)
    return params


def test_calibration_data_are_credited(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, VERDICTS)
    package.run(made.workspace, with_data_license(made, "CC-BY-SA-3.0"))
    notice = made.read("packages/awq-w4-g128/NOTICE")
    assert "calibrated on calibration.jsonl, under CC-BY-SA-3.0" in notice
    assert "may be passed on only under the same license" in notice
    with pytest.raises(InputError, match="calibrate on other text"):
        package.run(made.workspace, with_data_license(made, "cc-by-nc-4.0"))
    package.run(made.workspace, with_data_license(made, "own"))
    assert "calibrated on" not in made.read("packages/awq-w4-g128/NOTICE")


def test_the_card_says_how_many_rows_were_skipped(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, VERDICTS)
    path = made.workspace.statistics_path
    statistics = json.loads(path.read_bytes())
    statistics["skipped"] = [{"reason": "content that is not text", "num_rows": 7}]
    path.write_text(json.dumps(statistics))
    package.run(made.workspace, made.params)
    card = made.read("packages/awq-w4-g128/README.md")
    assert "7 rows were skipped (7 content that is not text)" in card


def test_statistics_of_data_under_another_license_are_not_packaged(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, VERDICTS)
    calibrated = made.workspace.statistics_path.read_bytes()
    params = with_data_license(made, "cc-by-3.0")
    made.workspace.statistics_path.write_bytes(calibrated)
    with pytest.raises(
        InputError, match=r"of data under another license .MIT.; run `quantline cal"
    ):
        package.run(made.workspace, params)


@pytest.mark.slow
def test_data_under_an_unknown_license_take_a_signed_decision(tmp_path: Path) -> None:
    from cyclonedx.validation.json import JsonStrictValidator  # its import takes two seconds

    made = make_workspace(tmp_path, VERDICTS)
    text = tmp_path / "acme.txt"
    text.write_text("Use our data for research, and say that Acme made them.\n")
    terms = {
        "name": "Acme Data License",
        "grants": "research",
        "conditions": ["Acme made the data."],
    }
    decision = {
        "license": "acme-data",
        "terms": terms,
        "text": text.name,
        "text_sha256": file_sha256(text),
        "decided_by": "Jane Doe",
        "decided_on": "2026-11-21",
        "reason": "read on their site",
    }
    made.workspace.decisions_path.write_text(json.dumps({"acme": decision}))
    with pytest.raises(InputError, match="'acme-data': allows research purposes only"):
        package.run(made.workspace, with_data_license(made, "acme"))
    params = with_data_license(made, "acme", commercial=False)
    made.workspace.decisions_path.unlink()  # packages say what was decided when it was fetched
    package.run(made.workspace, params)
    notice = made.read("packages/gguf-q4-k-m/NOTICE")
    assert "under LicenseRef-acme-data; the release contains none of it. Acme made the" in notice
    bill = made.read("packages/gguf-q4-k-m.bom.json")
    assert "LicenseRef-acme-data" in bill
    assert not JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill)
    assert "Jane Doe" not in notice + bill
