"""Every way params.yaml can be wrong is one line that names the place, the value, the expectation.

The file is the one of the repository with one change: so the tests also hold that it is right.
"""

import json
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML

from pipeline.core.errors import InputError
from pipeline.core.workspace import PARAMS_FILE
from pipeline.core.yaml_files import read_yaml
from pipeline.params.params import Params
from pipeline.params.reading import PRESETS, read_params, read_prices
from tests.support import ROOT

if TYPE_CHECKING:
    from dvc.repo import Repo

TEXT = (ROOT / PARAMS_FILE).read_text(encoding="utf-8")
SECTIONS = [name for name in re.findall(r"(?m)^(\w+):", TEXT) if name != PRESETS]
VARIANT_NAMES = list(read_params(ROOT / PARAMS_FILE).variants)


def read(tmp_path: Path, text: str | bytes) -> object:
    path = tmp_path / PARAMS_FILE
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_params(path)


def error_of(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def line_and_problem(message: str) -> tuple[str, str]:
    """Split `FILE, line N: PROBLEM` of a message about TEXT with changed values."""
    file, problem = message.split(": ", maxsplit=1)
    name, number = file.split(", line ")
    assert name == PARAMS_FILE
    return number, problem


def with_value(key: str, value: str) -> str:
    """The file with the first `key: ...` line given another value."""
    changed, count = re.subn(rf"(?m)^(\s*{key}:).*$", rf"\1 {value}", TEXT, count=1)
    assert count == 1
    return changed


def without_section(name: str, text: str = TEXT) -> str:
    return re.sub(rf"(?m)^{name}:.*\n(?: .*\n|\n)*", "", text)


def with_variants(text: str) -> str:
    return without_section("variants") + f"\nvariants: {text}\n"


def test_the_file_of_the_repository_is_right(tmp_path: Path) -> None:
    assert read(tmp_path, TEXT) == read_params(ROOT / PARAMS_FILE)


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + TEXT) == read_params(ROOT / PARAMS_FILE)


VARIANT, GGUF = "variants.awq-w4-g128", "variants.gguf-q8-0"
KEYS = (
    "format: gguf, scale_search: false, imatrix: true, rounding: gptq, quantized_inputs: false, "
    "align_samples: 0"
)
PACKED_KEYS = (
    "format: compressed-tensors, scale_search: true, clip_search: true, rounding: gptq, "
    "refine_sweeps: 4, dampening_frac: 0.01, quantized_inputs: false, align_samples: 0, "
    "on_indivisible: error"
)
WRONG_VALUES = [
    ("source", "null", "model.source = None: Input should be a valid string"),
    ("source", "''", "model.source = '': String should have at least 1 character"),
    ("num_calibration_samples", "'128'", "'128': Input should be a valid integer"),
    ("num_calibration_samples", "0", "num_calibration_samples = 0: Input should be greater than 0"),
    ("num_calibration_samples", "1.5", "= 1.5: Input should be a valid integer"),
    ("num_calibration_samples", "true", "= True: Input should be a valid integer"),
    ("max_skipped", "1.5", "calibration.max_skipped = 1.5: Input should be less than 1"),
    ("seed", "-1", "calibration.seed = -1: Input should be greater than or equal to 0"),
    ("format", "exl2", f"{GGUF}.format = 'exl2': expected 'awq', 'gptq', 'compressed-tensors'"),
    ("format", "1", f"{GGUF}.format = '1': expected 'awq', 'gptq', 'compressed-tensors', 'gguf"),
    ("num_bits", "3", f"{VARIANT}.num_bits = 3: Input should be 4"),
    ("group_size", "100", f"{VARIANT}.group_size = 100: Input should be 16, 32, 64, 128 or 256"),
    ("scale_search", "1", f"{VARIANT}.scale_search = 1: Input should be a valid boolean"),
    ("rounding", "up", f"{VARIANT}.rounding = 'up': Input should be 'nearest' or 'gptq'"),
    ("dampening_frac", "1", f"{VARIANT}.dampening_frac = 1: Input should be less than 1"),
    (
        "on_indivisible",
        "skip",
        f"{VARIANT}.on_indivisible = 'skip': Input should be 'error', 'smaller_group' or 'keep'",
    ),
    ("scheme", "W2A16", "variants.ct-w4a16-g128.scheme = 'W2A16': Input should be 'W4A16', 'W4A1"),
    (
        "scheme",
        "W8A8",
        "variants.ct-w4a16-g128.group_size = 128: W8A8 rounds the activations, so each output "
        "channel has one scale; expected null",
    ),
    (
        "scheme",
        "FP8_DYNAMIC",
        "variants.ct-w4a16-g128.scheme = 'FP8_DYNAMIC': floating-point numbers are rounded to "
        "nearest; set scale_search and clip_search to false, refine_sweeps to 0 and",
    ),
    ("align_samples", "-1", f"{VARIANT}.align_samples = -1: Input should be greater than or"),
    ("type", "Q9", "variants.gguf-q8-0.type = 'Q9': Input should be 'Q8_0', 'Q6_K', "),
    ("window_tokens", "4", "evaluate.window_tokens = 4: Input should be greater than or equal"),
    ("error_rate", "5", "gate.error_rate = 5: Input should be less than 0.5"),
    ("sequential", "{looks: 1, spending: pocock}", "gate.sequential.looks = 1: Input should be"),
    ("margin_factor", "0", "gate.classes.8-bit.margin_factor = 0: Input should be greater than 0"),
    ("max_kl", ".nan", "gate.classes.8-bit.max_kl = nan: Input should be a finite number"),
    ("max_kl", ".inf", "gate.classes.8-bit.max_kl = inf: Input should be a finite number"),
    ("min_bits", "0.0", "expected classes by falling min_bits, the last one 0"),
    (
        "gpu-throughput",
        "{formats: [awq], best: speed, max_size_ratio: null}",
        "gate.profiles.gpu-throughput.best = 'speed': Input should be 'quality', ",
    ),
    ("port", "70000", "serve.port = 70000: Input should be less than or equal to 65535"),
    (
        "concurrency",
        "[8, 1]",
        "serve.scenarios.text.concurrency = [8, 1]: expected numbers of users in rising order",
    ),
    ("concurrency", "[]", "concurrency = []: expected numbers of users in rising order"),
    ("base_dtypes", "[int8]", "serve.base_dtypes.0 = 'int8': Input should be 'bfloat16', 'float"),
    ("utilisation", "0", "economics.utilisation = 0: Input should be greater than 0"),
    ("name", "../x", "release.name = '../x': expected at most 96 letters, digits, dots, dashes"),
    ("name", "a" * 97, "expected at most 96 letters"),
    ("version", "v1", "release.version = 'v1': expected a semantic version such as 1.2.0"),
    ("version", "1.0", "release.version = 1.0: Input should be a valid string"),
    ("url", "ftp://host", "registry.url = 'ftp://host': expected https://HOST or http://HOST"),
    ("url", "https://host/path", "expected https://HOST or http://HOST without a user"),
    ("repository", "A/b", "registry.repository = 'A/b': expected a repository in lower case"),
    ("repository", "a/../b", "registry.repository = 'a/../b': expected a repository in lower"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG_VALUES)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: str, expected: str) -> None:
    text = with_value(key, value)
    message = error_of(tmp_path, text)
    assert expected in message
    number, problem = line_and_problem(message)
    named = re.sub(r"\.\d+$", "", re.split(" = |: ", problem)[0]).rpartition(".")[2]
    assert f"{named}:" in text.splitlines()[int(number) - 1]


def test_a_password_in_a_url_is_not_repeated(tmp_path: Path) -> None:
    message = error_of(tmp_path, with_value("url", "https://user:secret@host"))
    assert "registry.url = 'https://…@host'" in message
    assert "secret" not in message


@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_section_is_named(tmp_path: Path, name: str) -> None:
    assert error_of(tmp_path, without_section(name)) == f"params.yaml: {name}: missing"


@pytest.mark.parametrize("name", SECTIONS)
def test_an_empty_section_is_named(tmp_path: Path, name: str) -> None:
    message = error_of(tmp_path, without_section(name) + f"\n{name}:\n")
    number, problem = line_and_problem(message)
    assert problem == f"{name} = None: Input should be an object"
    assert int(number) == without_section(name).count("\n") + 2


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "variants"])
def test_an_unknown_key_is_named(tmp_path: Path, name: str) -> None:
    changed = TEXT.replace(f"\n{name}:\n", f"\n{name}:\n  typo: 1\n")
    number, problem = line_and_problem(error_of(tmp_path, changed))
    assert problem == f"{name}.typo: unknown key"
    assert changed.splitlines()[int(number) - 1] == "  typo: 1"


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    number = TEXT.count("\n") + 2
    message = error_of(tmp_path, f"{TEXT}\ntypo: 1\n")
    assert message == f"params.yaml, line {number}: typo: unknown key"


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ("{}", "params.yaml: variants: expected at least one"),
        ("[]", "params.yaml: variants = []: Input should be an object"),
        ("{a: null}", "params.yaml: variants.a = None: Input should be an object"),
        ("{a: {type: Q8_0}}", "params.yaml: variants.a.format: missing"),
        (
            "{a: {format: gguf, type: Q8_0, scale_search: false}}",
            "params.yaml: variants.a.imatrix: missing",
        ),
        (
            f"{{a: {{{KEYS}, type: Q8_0, num_bits: 4}}}}",
            "params.yaml: variants.a.num_bits: unknown key",
        ),
        (
            f"{{a: {{{KEYS}, type: IQ2_XS}}}}".replace("true", "false"),
            "params.yaml: variants.a.imatrix = False: IQ2_XS is unusable without an importance "
            "matrix; expected true",
        ),
        (
            f"{{a: {{{KEYS}, type: Q8_0}}}}".replace("gptq", "llama.cpp").replace(
                "inputs: false", "inputs: true"
            ),
            "params.yaml: variants.a.quantized_inputs = True: llama.cpp knows no inputs; set "
            "rounding to gptq, or quantized_inputs to false",
        ),
        (
            f"{{a: {{{KEYS}, type: Q8_0}}}}".replace("gptq", "llama.cpp").replace(
                "samples: 0", "samples: 9"
            ),
            "params.yaml: variants.a.align_samples = 9: llama.cpp knows no inputs; set "
            "rounding to gptq, or align_samples to 0",
        ),
        (
            f"{{a: {{{KEYS}, type: IQ4_XS}}}}".replace("samples: 0", "samples: 9"),
            "params.yaml: variants.a.align_samples = 9: IQ4_XS has no consecutive levels to align; "
            "set align_samples to 0",
        ),
        (
            f"{{a: {{{KEYS}, type: Q8_0}}}}".replace("inputs: false", "inputs: true").replace(
                "samples: 0", "samples: 9"
            ),
            "params.yaml: variants.a.align_samples = 9: alignment starts from the base's weights "
            "and makes up for the layers before by itself; set quantized_inputs to false",
        ),
        (
            f"{{a: {{{KEYS}}}}}",
            "params.yaml: variants.a.type: missing",
        ),
        (
            f"{{a: {{{KEYS}, type: Q8_0, budget: {{size: 4 GB}}}}}}",
            "params.yaml: variants.a.type = 'Q8_0': a budget decides the type of each tensor; "
            "leave out one of the two",
        ),
        (
            f"{{a: {{{KEYS}, budget: {{size: 4.2 Gb}}}}}}",
            "params.yaml: variants.a.budget.size = '4.2 Gb': expected a size, such as 4.2 GB or "
            "900 MiB",
        ),
        (
            f"{{a: {{{KEYS}, budget: {{bits_per_weight: 40}}}}}}",
            "params.yaml: variants.a.budget.bits_per_weight = 40: Input should be less than or "
            "equal to 16",
        ),
        (
            f"{{a: {{{KEYS}, budget: {{fits: 8 GB, users: 1}}}}}}",
            "params.yaml: variants.a.budget.context_tokens: missing",
        ),
        (
            f"{{a: {{{KEYS}, budget: {{bits: 4}}}}}}",
            "params.yaml: variants.a.budget = {'bits': 4}: expected size, bits_per_weight, or fits "
            "with context_tokens and users",
        ),
        (
            f"{{a: {{{PACKED_KEYS}, group_size: null}}}}",
            "params.yaml: variants.a.scheme: missing",
        ),
        (
            f"{{a: {{{PACKED_KEYS}, scheme: W4A16, group_size: 64, budget: {{size: 4 GB}}}}}}",
            "params.yaml: variants.a.scheme = 'W4A16': a budget decides the scheme of each linear; "
            "leave out one of the two",
        ),
        (
            f"{{a: {{{PACKED_KEYS}, group_size: 64, budget: {{size: 4 GB}}}}}}",
            "params.yaml: variants.a.group_size = 64: a budget decides the groups of each linear "
            "too; expected null",
        ),
        (
            f"{{A_b: {{{KEYS}, type: Q8_0}}}}",
            "params.yaml: variants.A_b: expected a name in kebab-case, such as awq-w4-g128",
        ),
        (
            f"{{../x: {{{KEYS}, type: Q8_0}}}}",
            "params.yaml: variants.../x: expected a name in kebab-case, such as awq-w4-g128",
        ),
        (
            f"{{base: {{{KEYS}, type: Q8_0}}}}",
            "params.yaml: variants.base: this name means the unquantized checkpoint",
        ),
    ],
)
def test_wrong_variants_are_named(tmp_path: Path, variants: str, expected: str) -> None:
    message = error_of(tmp_path, with_variants(variants))
    assert re.sub(r"^params.yaml, line \d+", "params.yaml", message) == expected


def written_out(text: str) -> str:
    """The same file without presets: every variant has its own values."""
    values = YAML(typ="safe").load(text)
    del values[PRESETS]
    return json.dumps(values)


def test_presets_are_a_notation(tmp_path: Path) -> None:
    assert read(tmp_path, written_out(TEXT)) == read(tmp_path, TEXT)


def test_a_variant_takes_at_most_five_lines() -> None:
    entries = re.findall(r"(?m)^  \S+:\n(?:    .*\n)+", TEXT[TEXT.index("\nvariants:") :])
    for name, entry in zip(VARIANT_NAMES, entries, strict=False):
        assert entry.startswith(f"  {name}:")
        assert entry.count("\n") <= 5


@pytest.mark.parametrize(
    ("presets", "variant", "line", "expected"),
    [
        ("  p: &p {TYPE: Q9}", "<<: *p", 2, "variants.a.type = 'Q9': Input should be"),
        ("  p: &p {TYPE: Q9}\n  q: &q {<<: *p}", "<<: *q", 2, "variants.a.type = 'Q9': Input"),
        ("  p: &p {TYPE: Q9}", "<<: [*p]", 2, "variants.a.type = 'Q9': Input should be"),
        ("  p: &p {TYPE: Q8_0}", "<<: *p, type: Q9", 5, "variants.a.type = 'Q9': Input should"),
        ("  p: &p {TYPE: Q8_0, typo: 1}", "<<: *p", 2, "variants.a.typo: unknown key"),
        ("  p: &p {typo: 1}", "<<: *p, TYPE: Q8_0", 2, "variants.a.typo: unknown key"),
        ("  p: &p {format: gguf}", "<<: *p", 5, "variants.a.type: missing"),
        ("  p: &p {format: exl2}", "<<: *p", 2, "variants.a.format = 'exl2': expected 'awq', "),
    ],
)
def test_a_wrong_shared_value_is_named_where_it_was_written(
    tmp_path: Path, presets: str, variant: str, line: int, expected: str
) -> None:
    whole = f"{KEYS}, type"
    text = f"{PRESETS}:\n{presets}\n\nvariants:\n  a: {{{variant}}}\n".replace("TYPE", whole)
    rest = without_section(PRESETS, without_section("variants"))
    number, problem = line_and_problem(error_of(tmp_path, f"{text}{rest}"))
    assert problem.startswith(expected)
    assert int(number) == line + presets.count("\n") * (line > 2)


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("<<: *none", "not valid YAML: found undefined alias"),
        ("<<: 3", "not valid YAML: expected a mapping or list of mappings for merging"),
        ("<<: [3]", "not valid YAML: expected a mapping for merging"),
    ],
)
def test_a_preset_that_is_none_is_named_with_its_line(
    tmp_path: Path, merge: str, expected: str
) -> None:
    text = TEXT.replace("<<: *packed", merge, 1)
    line = text[: text.index(merge)].count("\n") + 1
    assert f"params.yaml, line {line}: {expected}" in error_of(tmp_path, text)


@pytest.fixture(scope="module")
def dvc_repo(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Repo]":
    """A repository of DVC that has run one stage for each variant of the repository's file."""
    from dvc.repo import Repo  # not above: its import takes a second, in every worker

    root = tmp_path_factory.mktemp("dvc")
    (root / PARAMS_FILE).write_text(TEXT)
    stage = {"cmd": "echo ${key}", "params": ["variants.${key}"]}
    graph = {"stages": {"quantize": {"foreach": "${variants}", "do": stage}}}
    (root / "dvc.yaml").write_text(json.dumps(graph))
    Repo.init(str(root), no_scm=True).close()
    with Repo(str(root)) as repo:
        with chdir(root):
            repo.reproduce()
        yield repo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("dampening_frac: 0.01", "dampening_frac: 0.02"),
        ("imatrix: true", "imatrix: true  # of the calibration text"),
        ("    scale_search: false\n", "    scale_search: true\n"),
        ("type: Q8_0", "type: Q6_K"),
        ("  gguf-q2-k:\n", "  gguf-q6-k:\n    <<: *gguf\n    type: Q6_K\n  gguf-q2-k:\n"),
    ],
)
def test_dvc_redoes_the_variants_whose_values_changed(dvc_repo: "Repo", old: str, new: str) -> None:
    path = Path(dvc_repo.root_dir) / PARAMS_FILE
    path.write_text(TEXT)
    before = read_params(path).variants
    path.write_text(TEXT.replace(old, new, 1))
    after = read_params(path).variants
    changed = {name for name, recipe in after.items() if before.get(name) != recipe}
    with type(dvc_repo)(dvc_repo.root_dir) as repo:
        assert {name.partition("@")[2] for name in repo.status()} == changed


@pytest.mark.slow
def test_dvc_takes_a_file_that_writes_everything_out_for_the_same(dvc_repo: "Repo") -> None:
    path = Path(dvc_repo.root_dir) / PARAMS_FILE
    path.write_text(written_out(TEXT))
    with type(dvc_repo)(dvc_repo.root_dir) as repo:
        assert repo.status() == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "params.yaml: the file = None: Input should be an object"),
        ("- 1", "params.yaml: the file = [1]: Input should be an object"),
        ("a: [1\nb: 2", "params.yaml, line 2: not valid YAML: expected ',' or ']'"),
        ("a:\n\t- 1", "params.yaml, line 2: not valid YAML: found character '\\t' that"),
        ("a: 1\na: 2", 'params.yaml, line 2: not valid YAML: found duplicate key "a"'),
        ("a: 1\n---\nb: 2", "not valid YAML: but found another document"),
        ("a: \x00", "params.yaml: not valid YAML: unacceptable character #x0000"),
        (b"\xff\xfe\x00", "params.yaml: not UTF-8 text"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML: could not determine a constr"),
        ("[" * 1000, "params.yaml: nested too deeply"),
        ("? [a, b]\n: c", "params.yaml: expected plain keys and values"),
        ("&a [*a]", "params.yaml: expected plain keys and values"),
    ],
)
def test_a_file_that_is_no_parameters_is_one_line(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    assert expected in error_of(tmp_path, text)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params.yaml: missing; run quantline where it is"):
        read_params(tmp_path / PARAMS_FILE)


def test_a_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_params(tmp_path)


@pytest.mark.parametrize(("text", "value"), [("no", "no"), ("0o17", 15), ("~", None)])
def test_values_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"a: {text}\n")
    assert read_yaml(path) == {"a": value}


DATASET = "{source: 'hf:datasets/org/name@main', files: [a.parquet]}"


@pytest.mark.parametrize(
    ("text", "dataset"), [("artifacts/calibration/data", "null"), ("own.jsonl", DATASET)]
)
def test_a_data_set_and_where_it_is_come_together(tmp_path: Path, text: str, dataset: str) -> None:
    changed = TEXT.replace("text: demo/data/calibration.jsonl", f"text: {text}")
    message = error_of(tmp_path, changed.replace("dataset: null", f"dataset: {dataset}"))
    assert message.startswith(f"params.yaml: calibration.text = {text}: artifacts/calibration/data")
    assert "set both" in message


def test_a_data_set_is_read_with_its_files(tmp_path: Path) -> None:
    changed = TEXT.replace("demo/data/calibration.jsonl", "artifacts/calibration/data")
    params = read(tmp_path, changed.replace("dataset: null", f"dataset: {DATASET}"))
    assert isinstance(params, Params)
    assert params.calibration.dataset is not None
    assert params.calibration.dataset.files == ("a.parquet",)
    message = error_of(
        tmp_path, changed.replace("dataset: null", "dataset: {source: x, files: []}")
    )
    assert line_and_problem(message)[1].startswith("calibration.dataset.files = []: ")


ENDPOINT = "{url: 'http://host:1', model: m, serves: base, command: null, api_key_variable: null}"


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        (f"{{base: {ENDPOINT}}}", "serve.endpoints.base: the name of a variant; choose another"),
        (
            f"{{mine: {ENDPOINT.replace('serves: base', 'serves: awq')}}}",
            "serve.endpoints.mine.serves = awq: expected base or the name of a variant",
        ),
        (
            f"{{mine: {ENDPOINT.replace('host:1', 'host:1/v1')}}}",
            "serve.endpoints.mine.url = 'http://host:1/v1': expected http://HOST:PORT, without /v1",
        ),
        (
            f"{{mine: {ENDPOINT.replace('host', 'me:secret@host')}}}",
            "serve.endpoints.mine.url = 'http://…@host:1': expected http://HOST:PORT",
        ),
    ],
)
def test_a_wrong_endpoint_is_named(tmp_path: Path, endpoints: str, expected: str) -> None:
    assert expected in error_of(tmp_path, with_value("endpoints", endpoints))


def test_a_price_without_a_source_is_named(tmp_path: Path) -> None:
    text = (ROOT / "prices.yaml").read_text()
    assert read_prices(ROOT / "prices.yaml").usd_per_month("hetzner-cx33") == pytest.approx(
        7.2253, abs=1e-4
    )
    path = tmp_path / "prices.yaml"
    path.write_text(text.replace("source: https://www.runpod.io/pricing", "source: somewhere"))
    line = path.read_text().splitlines().index("    source: somewhere") + 1
    expected = (
        f"prices.yaml, line {line}: hardware.runpod-h100-sxm.source = 'somewhere': expected the "
        "address"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        read_prices(path)
