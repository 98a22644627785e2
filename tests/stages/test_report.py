"""report: complete, escaped, self-contained, and readable in a real browser at any width."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.core.errors import InputError, NothingApprovedError
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.params.prices import PriceList
from pipeline.params.reading import read_prices
from pipeline.records.selection import Verdict
from pipeline.records.variant import BitAllocation, PredictedLoss, VariantRecord
from pipeline.stages import package, publish, report
from tests.support import require_program
from tests.workspace import MadeRun, make_workspace, write_benchmarks

VERDICTS = {
    "awq-w4-g128": Verdict.APPROVED,
    "gptq-w4-g128": Verdict.INCONCLUSIVE,
    "gguf-q4-k-m": Verdict.APPROVED,
    "gguf-q2-k": Verdict.REJECTED,
}
MIXED = "gguf-q4-k-m"
SKIPPED = {"gguf-q4-k-m": "head size 16 is not one that the engine supports"}
BROWSER_TIMEOUT_S = 60
QUIET_BROWSER = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-default-apps",
]  # fmt: skip


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    made = make_workspace(tmp_path_factory.mktemp("report") / "workspace", VERDICTS)
    choose_types(made.workspace.variant_path(MIXED))
    package.run(made.workspace, made.params)
    publish.run(made.workspace, made.params)
    write_benchmarks(made, speeds={"base": 15.5, "awq-w4-g128": 24.0}, skipped=SKIPPED)
    return made


def choose_types(variant_path: Path) -> None:
    """Let the record of a variant say that a budget chose its types."""
    losses = [PredictedLoss(num_bytes=n << 20, predicted_kl=500 / n**3) for n in range(40, 120, 8)]
    allocation = BitAllocation(
        budget=73 << 20, chosen=losses[4], least_kl=0.0013, curve=tuple(losses)
    )
    record = VariantRecord.from_bytes(variant_path.read_bytes(), source=variant_path.name)
    types = {"ffn_up": ("Q4_K", "Q6_K"), "attn_v": ("Q6_K", "Q8_0"), "attn_q": ("Q4_K", "Q4_K")}
    matrices = [
        record.coverage[-1].model_copy(
            update={"name": f"blk.{layer}.{kind}.weight", "scheme": of_kind[layer % 3 == 0]}
        )
        for kind, of_kind in types.items()
        for layer in range(14)
    ]
    changed = {"allocation": allocation, "coverage": (*record.coverage[:2], *matrices)}
    variant_path.write_bytes(record.model_copy(update=changed).to_bytes())


@pytest.fixture
def made(made_once: MadeRun, tmp_path: Path) -> MadeRun:
    """A copy of the run, which a test may change."""
    shutil.copytree(made_once.workspace.root, tmp_path / "workspace")
    return replace(made_once, workspace=Workspace(tmp_path / "workspace"))


@pytest.fixture(scope="module")
def html(made_once: MadeRun) -> str:
    """The page of the run as it was made."""
    return page(made_once)


def prices(made: MadeRun) -> PriceList:
    return read_prices(made.workspace.root / made.params.economics.prices)


def page(made: MadeRun) -> str:
    report.run(made.workspace, made.params)
    return made.workspace.report_path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The visible text, the tags and all attributes of a page; tags have to be balanced."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.slow
def test_types_that_a_budget_chose_are_shown_with_their_layers(html: str) -> None:
    text = Page(html).text
    assert f"{MIXED}: bits where they count" in text
    assert "72.0 MiB of the 73.0 MiB" in text
    assert "Q6_K in layers 0, 3, 6, 9, 12" in text
    assert text.count("bits where they count") == 1


def test_every_verdict_has_its_reason_its_numbers_and_its_reference(
    made: MadeRun, html: str
) -> None:
    text = Page(html).text
    assert "2 of 4 variants approved" in text
    for name, verdict in VERDICTS.items():
        assert name in text
        assert verdict.value in text
    selection = json.loads(made.workspace.selection_path.read_bytes())["variants"]
    for verdict in selection.values():
        for reason in verdict["reasons"]:
            assert reason in text
    assert "published as oci:artifacts/registry:0.1.0-awq-w4-g128" in text
    assert "oras pull --oci-layout artifacts/registry:0.1.0-gguf-q4-k-m" in text
    assert "0.1.0-gguf-q2-k" not in text


def test_it_opens_with_what_to_take_what_it_costs_and_whether_it_may_ship(
    made: MadeRun, html: str
) -> None:
    text = Page(html).text
    opening = text[: text.index("How to get a release")]
    for profile in made.params.gate.profiles:
        assert profile in opening
    assert "0.0020 to 0.0080, margin 0.05" in opening
    assert "a month" in opening
    assert "Yes, the approved variants, when the obligations below are met." in opening
    assert "MIT License, which allows any purpose" in opening


@pytest.mark.slow
def test_it_opens_with_where_the_base_is_faster_and_cheaper(made: MadeRun) -> None:
    assert "the base on this machine" not in Page(page(made)).text
    write_benchmarks(made, speeds={"base": 40.0, "awq-w4-g128": 24.0}, skipped=SKIPPED)
    text = Page(page(made)).text
    opening = text[: text.index("How to get a release")]
    assert (
        "Compared with awq-w4-g128, the base on this machine is faster under these loads (output "
        "tokens per second, variant ÷ base): text, 1 user: 0.60; text, 8 users: 0.60" in opening
    )
    assert "It costs less to serve, 0.00818 instead of 0.0327 USD per million tokens." in opening


def test_a_choice_by_size_is_that_of_the_selection(made: MadeRun) -> None:
    path = made.workspace.selection_path
    record = json.loads(path.read_bytes())
    record["choices"]["edge"]["reason"] = "as select found"
    path.write_text(json.dumps(record))
    assert "as select found" in Page(page(made)).text


def test_the_base_stands_beside_the_variants(html: str) -> None:
    text = Page(html).text
    assert "org/tiny" in text
    assert "0.910 ± 0.014" in text
    assert "97.7 KiB" in text


def test_every_task_shows_its_drop_against_its_margin(html: str) -> None:
    text = Page(html).text
    assert "mean drop" in text
    assert "trades_en (acc, 400 documents)" in text
    assert "0.0040 0.0020 to 0.0080, margin 0.05" in " ".join(text.split())
    assert "Wrong approvals and wrong rejections happen at most 5.0 % of the time each" in text


def test_profiles_choose_with_the_benchmark(html: str) -> None:
    text = Page(html).text
    assert "in awq, gptq or compressed-tensors: 136 output tokens per second" in text
    assert "the only approved variant in gguf of at most 40.0 %" in text


def test_what_the_engine_alone_changes_is_shown_apart(html: str) -> None:
    text = Page(html).text
    assert "What the engine alone changes" in text
    assert "llama.cpp (llama-cpp-python 0.3.36)" in text
    assert "+0.0000 on trades_en" in text
    assert "Scored: base, awq-w4-g128, gptq-w4-g128, gguf-q4-k-m, gguf-q2-k in transformers" in text


def test_calibration_names_its_data_and_what_was_dropped(html: str) -> None:
    text = Page(html).text
    assert "65,536 tokens (128 samples of 512) of demo/data/calibration.jsonl, license MIT" in text
    assert "3 of 40 documents were dropped because they share 13 words in a row" in text
    assert "compared with calibration: trades_en (400 texts)" in text


@pytest.mark.slow
def test_skipped_rows_and_the_date_of_the_template_are_shown(made: MadeRun) -> None:
    assert "rows were skipped" not in Page(page(made)).text
    path = made.workspace.statistics_path
    statistics = json.loads(path.read_bytes())
    statistics["skipped"] = [
        {"reason": "no turns", "num_rows": 3},
        {"reason": "refused by the chat template", "num_rows": 4},
    ]
    statistics["template_date"] = "2026-01-01"
    path.write_text(json.dumps(statistics))
    text = Page(page(made)).text
    assert "7 rows were skipped (3 no turns, 4 refused by the chat template)" in text
    assert "The chat template was told 2026-01-01." in text


def test_what_was_served_is_shown_and_what_was_not_says_why(html: str) -> None:
    text = Page(html).text
    assert "vLLM 0.32.0, kernel int4pack, bfloat16" in text
    assert "equal to transformers for 19 of 20 prompts" in text
    assert "41.7 / 62.5 / 83.3" in text
    assert f"not measured: {SKIPPED['gguf-q4-k-m']}" in text
    assert "2 cores of Imaginary 9000" in text
    assert html.count("<svg") == 5
    assert "awq-w4-g128: 136 at 32</title>" in html


def test_loads_have_their_ratio_to_the_base_and_where_it_turns(html: str) -> None:
    text = Page(html).text
    assert "1.55 1.55 to 1.55" in text
    assert "awq-w4-g128, textnot slower up to 32 users" in " ".join(text.split("\n"))
    assert "bfloat16 was the fastest here with 16 tokens per second" in text
    assert "A partial result" not in text


def test_a_partial_result_is_marked(made: MadeRun) -> None:
    path = made.workspace.benchmarks_path
    record = json.loads(path.read_bytes())
    record["complete"] = False
    record["models"]["awq-w4-g128"]["problem"] = "vLLM with awq-w4-g128: was ended by SIGKILL"
    path.write_text(json.dumps(record))
    text = Page(page(made)).text
    assert "A partial result: a server failed" in text
    assert "PARTIAL: vLLM with awq-w4-g128: was ended by SIGKILL" in text


def test_costs_stand_beside_those_of_apis_with_their_dates(made: MadeRun, html: str) -> None:
    text = Page(html).text
    economics = made.params.economics
    for price in prices(made).apis.values():
        assert price.label in text
        assert str(price.date) in text
    assert prices(made).hardware[economics.hardware].label in text
    assert "10,000 requests a day of 128 tokens in and 32 out" in text
    for line in ("operations200.00", "monitoring20.00", "storage5.00"):
        assert line in text.replace("\n", "")


def test_hardware_that_has_no_price_is_named(made: MadeRun) -> None:
    params = made.params.model_dump(mode="json")
    params["economics"]["hardware"] = "mainframe"
    with pytest.raises(InputError, match=r"economics\.hardware = mainframe: not in prices\.yaml"):
        report.run(made.workspace, Params.model_validate(params))


def test_when_nothing_could_be_served_the_reasons_stay(made: MadeRun) -> None:
    write_benchmarks(made, speeds={}, skipped=SKIPPED)
    text = Page(page(made)).text
    assert "Nothing was measured." in text
    assert SKIPPED["gguf-q4-k-m"] in text


def test_provenance_has_whole_digests(made: MadeRun, html: str) -> None:
    text = Page(html).text
    for name in VERDICTS:
        data = made.workspace.variant_path(name).read_bytes()
        assert VariantRecord.from_bytes(data, source=name).digest in text
    assert json.loads(made.workspace.base_manifest_path.read_bytes())["digest"] in text


@pytest.mark.slow
def test_the_same_records_give_the_same_page(made: MadeRun) -> None:
    assert page(made) == page(made)


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    parsed = Page(html)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    assert not {name for name, _ in parsed.attributes} & {"src", "href", "xlink:href", "action"}
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", html)


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=y>\"'"
    made = make_workspace(tmp_path, VERDICTS, source="dir/" + hostile)
    path = made.workspace.variant_path("gguf-q2-k")
    record = json.loads(path.read_bytes())
    record["coverage"][0] |= {"reason": hostile, "scheme": hostile}
    path.write_text(json.dumps(record))
    for path in made.workspace.artifacts_dir.glob("evaluations/*/evaluation.json"):
        evaluation = json.loads(path.read_bytes())
        evaluation["tasks"] = {hostile + task: it for task, it in evaluation["tasks"].items()}
        path.write_text(json.dumps(evaluation))

    parsed = Page(page(made))
    assert not parsed.tags & {"script", "img"}
    assert not [name for name, _ in parsed.attributes if name == "onerror"]
    assert hostile in parsed.text


def test_an_unpublished_run_says_so(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, VERDICTS)
    made.workspace.benchmarks_path.unlink()
    text = Page(page(made)).text
    assert "Nothing is published." in text
    assert "There is no benchmark of this run." in text


def test_when_nothing_passed_there_is_a_page_and_an_error(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, {"gguf-q2-k": Verdict.REJECTED})
    package.run(made.workspace, made.params)
    publish.run(made.workspace, made.params)
    with pytest.raises(
        NothingApprovedError, match=r"none of 1 variants passed .*index\.html"
    ) as caught:
        report.run(made.workspace, made.params)
    text = Page(made.workspace.report_path.read_text(encoding="utf-8")).text
    assert "Nothing approved" in text
    assert text.index("Why nothing passed") < text.index("above 0.05") < text.index("License")
    assert "No: no variant passed the gate." in text
    assert text.index("above 0.05") < text.index("Give them more bits") < text.index("License")
    assert "Nothing is published." in text
    assert "above 0.05" in text
    assert caught.value.exit_code == 3


def test_without_a_selection_the_error_names_the_stage(made: MadeRun) -> None:
    made.workspace.selection_path.unlink()
    with pytest.raises(InputError, match="run `quantline select` first"):
        report.run(made.workspace, made.params)


def browser(profile: Path, *arguments: str) -> str:
    program = require_program("chromium")
    return subprocess.run(
        [program, *QUIET_BROWSER, f"--user-data-dir={profile}", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=BROWSER_TIMEOUT_S,
    ).stdout


# A frame has the width it is told; a browser window has a least width of its own.
MEASURE = """<!DOCTYPE html>
<iframe style="border: 0; height: 900px; width: WIDTHpx"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.srcdoc = atob_utf8("PAGE");
function atob_utf8(text) {
  return new TextDecoder().decode(Uint8Array.from(atob(text), it => it.charCodeAt(0)));
}
frame.onload = () => {
  const page = frame.contentDocument, width = page.documentElement.clientWidth;
  const texts = [...page.querySelectorAll("body *")];
  document.title = "measured " + JSON.stringify({
    window: width,
    page: page.documentElement.scrollWidth,
    wide: texts.filter(it => it.getBoundingClientRect().right > width + 1)
      .map(it => it.tagName + " " + it.textContent.slice(0, 40)),
    hidden: texts.filter(it => ["TH", "TD"].includes(it.tagName) && it.textContent.trim()
      && !it.closest("thead") && it.getBoundingClientRect().height < 8).length
  });
};
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 800, 900, 1280])
def test_nothing_runs_over_the_edge(made: MadeRun, tmp_path: Path, width: int) -> None:
    encoded = base64.b64encode(page(made).encode()).decode()
    measuring = tmp_path / "measuring.html"
    measuring.write_text(MEASURE.replace("WIDTH", str(width)).replace("PAGE", encoded))
    dom = browser(tmp_path / "profile", "--window-size=1400,1000", "--dump-dom", measuring.as_uri())
    found = re.search(r"<title>measured (.*?)</title>", dom, re.DOTALL)
    assert found, dom[:500]
    sizes = json.loads(unescape(found[1]))
    assert width - 15 <= sizes["window"] <= width, "the frame took another width"
    assert sizes["page"] <= sizes["window"]
    assert sizes["wide"] == []
    assert sizes["hidden"] == 0


@pytest.mark.slow
def test_it_prints(made: MadeRun, tmp_path: Path) -> None:
    page(made)
    pdf = tmp_path / "report.pdf"
    browser(tmp_path / "profile", f"--print-to-pdf={pdf}", made.workspace.report_path.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert 1 <= pdf.read_bytes().count(b"/Type /Page\n") <= 8
