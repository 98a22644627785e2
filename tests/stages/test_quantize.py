"""calibrate and quantize on tiny random models: complete, readable by others, repeatable."""

import json
import shutil
import tracemalloc
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model, unpacked_weights
from pipeline.core.errors import InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, file_sha256
from pipeline.core.texts import token_ids_sha256
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.gguf.files import read_tensors
from pipeline.numerics.gram import output_error
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.records.variant import VariantRecord
from pipeline.stages import calibrate, fetch, quantize
from tests.architecture_models import tiny_model
from tests.evaluation_files import write_evaluation_files
from tests.models import tiny_llama
from tests.support import ROOT

# All of them together: they share what the stage made.
pytestmark = pytest.mark.slow

GROUP_SIZE = 32
NUM_SAMPLES, SAMPLE_TOKENS = 8, 32


def params_for(variants: dict[str, dict[str, object]]) -> Params:
    base = read_params(ROOT / PARAMS_FILE).model_dump(mode="json")
    base["model"] = {"source": "model", "license": None, "gguf_pre_tokenizer": "gpt-2"}
    base["calibration"] |= {
        "text": "text.jsonl",
        "num_calibration_samples": NUM_SAMPLES,
        "max_seq_length": SAMPLE_TOKENS,
    }
    base["variants"] = variants
    return Params.model_validate_json(json.dumps(base), strict=True)


def packed(format_name: str, **changes: object) -> dict[str, object]:
    recipe = {
        "format": format_name,
        "num_bits": 4,
        "group_size": GROUP_SIZE,
        "scale_search": format_name == "awq",
        "clip_search": True,
        "rounding": "gptq",
        "refine_sweeps": 0,
        "dampening_frac": 0.01,
        "quantized_inputs": False,
        "align_samples": 0,
        "on_indivisible": "error",
    }
    return recipe | changes


def gguf(file_type: str, **changes: object) -> dict[str, object]:
    recipe = {"format": "gguf", "type": file_type, "scale_search": False, "imatrix": True}
    recipe |= {"rounding": "llama.cpp", "quantized_inputs": False, "align_samples": 0}
    return recipe | changes


def calibrated(root: Path, params: Params, **model: int) -> Workspace:
    """A workspace with statistics of the model in `root`, or of a tiny one that is made there."""
    if not (root / "model").exists():
        tiny_llama(root / "model", **model)
    story = "the old baker counts seven loaves and sells them near the river"
    texts = [story[i % 5 :] + story[: i % 7] for i in range(60)]
    (root / "text.jsonl").write_text("".join(json.dumps({"text": it}) + "\n" for it in texts))
    write_evaluation_files(root)
    workspace = Workspace(root)
    fetch.run(workspace, params)
    calibrate.run(workspace, params)
    return workspace


def record_of(workspace: Workspace, name: str) -> VariantRecord:
    return VariantRecord.from_bytes(workspace.variant_path(name).read_bytes(), source=name)


@pytest.fixture(scope="module")
def all_params() -> Params:
    return params_for(
        {
            "awq": packed("awq"),
            "gptq": packed("gptq"),
            "gguf-q8-0": gguf("Q8_0"),
            "gguf-q4-k-m": gguf("Q4_K_M"),
            "gguf-rounded": gguf("Q4_K_M", rounding="gptq"),
        }
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, all_params: Params) -> Workspace:
    """A calibrated model with all variants made; hidden 256, so that K-quants apply."""
    made = calibrated(tmp_path_factory.mktemp("quantize"), all_params, hidden=256, intermediate=288)
    for name in all_params.variants:
        quantize.run(made, all_params, name)
    return made


def logits_of(model_dir: Path) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.arange(5, 37).view(1, -1)
        logits: torch.Tensor = unpacked_model(model_dir)(input_ids=ids).logits
        return logits


def test_the_token_ids_are_kept_beside_the_statistics(workspace: Workspace) -> None:
    record = Statistics(workspace).record
    windows = json.loads(workspace.token_ids_path.read_bytes())
    assert [len(window) for window in windows] == [SAMPLE_TOKENS] * NUM_SAMPLES
    assert token_ids_sha256(windows) == record.token_ids_sha256
    assert workspace.token_ids_path.name in {file.path for file in record.files}
    assert record.decontamination.num_contaminated_dropped == 0


def test_statistics_cover_every_linear_and_share_inputs(workspace: Workspace) -> None:
    statistics = Statistics(workspace)
    linears = {
        name.removesuffix(".weight")
        for name in Checkpoint(workspace.base_dir).names
        if name.endswith("_proj.weight")
    }
    assert set(statistics.linears) == linears
    by_key = {entry.key: entry.linears for entry in statistics.record.inputs}
    assert by_key["model.layers.0.self_attn.q_proj"] == tuple(
        f"model.layers.0.self_attn.{it}_proj" for it in "qkv"
    )
    assert statistics.record.num_tokens == NUM_SAMPLES * SAMPLE_TOKENS
    gram = statistics.gram("model.layers.1.mlp.down_proj")
    assert gram.shape == (288, 288)
    assert torch.linalg.eigvalsh(gram.double()).min() > -1e-5 * gram.diagonal().max()


@pytest.mark.parametrize("name", ["awq", "gptq", "gguf-q8-0", "gguf-q4-k-m"])
def test_every_tensor_is_accounted_for(workspace: Workspace, name: str) -> None:
    record = record_of(workspace, name)
    base = Checkpoint(workspace.base_dir)
    weights = {row.name: row for row in record.coverage}
    if name in ("awq", "gptq"):
        assert set(weights) == set(base.names)
    else:
        assert len(weights) == len(base.names)
    for row in record.coverage:
        measured = row.relative_error is not None
        assert measured or row.reason or row.name in ("token_embd.weight", "output.weight"), row
    assert record.files == directory_records(workspace.model_dir(name))
    assert record.digest == tree_digest(record.files)


@pytest.mark.parametrize(("name", "largest"), [("awq", 0.02), ("gptq", 0.03)])
def test_a_packed_checkpoint_stands_for_nearly_the_base(
    workspace: Workspace, name: str, largest: float
) -> None:
    base, variant = (logits_of(workspace.model_dir(it)).softmax(-1) for it in ("base", name))
    assert 0 < float((base * (base / variant).log()).sum(-1).mean()) < largest
    config = json.loads((workspace.model_dir(name) / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == name
    for sidecar in ("tokenizer.json", "LICENSE"):
        assert file_sha256(workspace.model_dir(name) / sidecar) == file_sha256(
            workspace.base_dir / sidecar
        )


def test_a_q8_0_file_holds_nearly_the_base(workspace: Workspace) -> None:
    (path,) = workspace.model_dir("gguf-q8-0").glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in read_tensors(path)}
    original = Checkpoint(workspace.base_dir).tensor("model.layers.1.mlp.down_proj.weight").float()
    stored = tensors["blk.1.ffn_down.weight"]
    assert stored.type == "Q8_0"
    assert stored.shape == tuple(original.shape)
    assert (stored.values() - original).abs().max() <= original.abs().max() / 127


def test_rows_that_fit_no_superblock_say_what_they_became(workspace: Workspace) -> None:
    rows = {row.name: row for row in record_of(workspace, "gguf-q4-k-m").coverage}
    fallen, regular = rows["blk.0.ffn_down.weight"], rows["blk.0.ffn_gate.weight"]
    assert fallen.shape[-1] == 288
    assert fallen.reason is not None
    assert fallen.reason.startswith("rows of 288 do not divide by 256: llama.cpp fell back to ")
    assert regular.scheme == "Q4_K"
    assert regular.reason is None


def test_llama_cpp_loads_the_file_with_the_same_vocabulary(workspace: Workspace) -> None:
    (path,) = workspace.model_dir("gguf-q4-k-m").glob("*.gguf")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        config = json.loads((workspace.base_dir / "config.json").read_text())
        assert model.n_vocab() == config["vocab_size"]
        assert model.metadata["general.license"] == "MIT"
        assert model.metadata["general.license.name"] == "MIT License"
    finally:
        model.close()


def mixture(root: Path, name: str) -> None:
    """`model/`: a tiny mixture of experts with the tokenizer and the license of a tiny Llama."""
    tiny_model(root / "model", name)
    llama = tiny_llama(root / "llama")
    for sidecar in ("tokenizer.json", "tokenizer_config.json", "LICENSE", "README.md"):
        shutil.copy(llama / sidecar, root / "model")


def test_all_experts_of_a_layer_are_one_tensor_of_a_gguf_file(tmp_path: Path) -> None:
    mixture(tmp_path, "mixtral")
    params = params_for({"it": gguf("Q8_0", scale_search=True, rounding="gptq")})
    made = calibrated(tmp_path, params)
    quantize.run(made, params, "it")
    rows = {row.name: row for row in record_of(made, "it").coverage}
    for name in ("gate", "up", "down"):
        row = rows[f"blk.1.ffn_{name}_exps.weight"]
        assert len(row.shape) == 3
        assert row.scheme == "Q8_0"
        assert row.relative_error is not None
        assert 0 < row.relative_error < 1e-4
        assert row.error_ratio is not None
        assert row.error_ratio < 0.9


def test_what_llama_cpp_has_no_tensor_for_is_one_line(tmp_path: Path) -> None:
    mixture(tmp_path, "qwen3-moe")  # one of its layers is dense
    params = params_for({"it": gguf("Q8_0")})
    made = calibrated(tmp_path, params)
    expected = r"^model\.layers\.1\.mlp\.\w+\.weight: llama\.cpp has no such tensor in this arch"
    with pytest.raises(InputError, match=expected):
        quantize.run(made, params, "it")


def test_a_gguf_variant_of_a_deeper_model_holds_no_more_of_it(tmp_path: Path) -> None:
    """Of values that numpy holds, which are those of GGUF files; others are read layer by layer."""
    params = params_for({"it": gguf("Q8_0", scale_search=True)})
    peaks = []
    for layers in (2, 2, 8):  # the first time also loads modules
        root = tmp_path / str(len(peaks))
        root.mkdir()
        made = calibrated(root, params, hidden=256, layers=layers)
        tracemalloc.start()
        quantize.run(made, params, "it")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    weights = Checkpoint(made.base_dir)
    layer = [name for name in weights.names if name.startswith("model.layers.0.")]
    assert peaks[2] - peaks[1] < sum(4 * weights.tensor(name).numel() for name in layer)


def test_the_imatrix_changes_the_file(workspace: Workspace) -> None:
    params = params_for({"plain": gguf("Q4_K_M", imatrix=False)})
    quantize.run(workspace, params, "plain")
    plain, weighted = record_of(workspace, "plain"), record_of(workspace, "gguf-q4-k-m")
    assert plain.digest != weighted.digest
    errors = [
        sum(row.relative_error or 0 for row in record.coverage) for record in (weighted, plain)
    ]
    assert errors[0] < errors[1]


def test_rounding_again_changes_the_linears_and_nothing_else(workspace: Workspace) -> None:
    theirs, ours = record_of(workspace, "gguf-q4-k-m"), record_of(workspace, "gguf-rounded")
    for old, new in zip(theirs.coverage, ours.coverage, strict=True):
        assert (old.name, old.scheme, old.bits_per_weight) == (
            new.name,
            new.scheme,
            new.bits_per_weight,
        )
        if old.relative_error:
            assert new.relative_error is not None
            assert new.relative_error < old.relative_error
            assert new.error_ratio == pytest.approx(new.relative_error / old.relative_error, 1e-3)
    paths = [workspace.model_dir(record.name) / "model-Q4_K_M.gguf" for record in (theirs, ours)]
    files = [{tensor.name: tensor for tensor in read_tensors(path)} for path in paths]
    start = min(int(tensor.stored.data_offset) for tensor in files[0].values())
    assert paths[0].read_bytes()[:start] == paths[1].read_bytes()[:start]
    errors = {row.name: row.relative_error for row in ours.coverage}
    changed = {
        name
        for name, tensor in files[0].items()
        if not np.array_equal(tensor.stored.data, files[1][name].stored.data)
    }
    assert changed == {name for name, error in errors.items() if error is not None}


def test_types_with_a_codebook_stay_as_llama_cpp_rounds_them(workspace: Workspace) -> None:
    params = params_for({"ours": gguf("IQ2_XS", rounding="gptq")})
    quantize.run(workspace, params, "ours")
    rows = [row for row in record_of(workspace, "ours").coverage if row.relative_error]
    kept = {row.scheme for row in rows if row.error_ratio is None}
    assert "IQ2_XS" in kept
    for row in rows:
        if row.error_ratio is None:
            assert row.reason == (
                f"rounded by llama.cpp: the numbers of {row.scheme} are in a codebook"
            )


@pytest.mark.parametrize("name", ["awq", "gptq", "gguf-q4-k-m", "gguf-rounded"])
def test_the_same_inputs_give_the_same_bytes(
    workspace: Workspace, all_params: Params, name: str
) -> None:
    before = record_of(workspace, name)
    quantize.run(workspace, all_params, name)
    assert record_of(workspace, name) == before


def test_calibration_gives_the_same_bytes_again(workspace: Workspace, all_params: Params) -> None:
    before = workspace.statistics_path.read_bytes()
    calibrate.run(workspace, all_params)
    assert workspace.statistics_path.read_bytes() == before


def test_an_unknown_variant_names_the_known_ones(workspace: Workspace, all_params: Params) -> None:
    with pytest.raises(InputError, match=r"^q9: not in params.yaml; variants: awq, gptq, gguf-q8"):
        quantize.run(workspace, all_params, "q9")


def test_a_group_size_that_does_not_divide_names_what_does(workspace: Workspace) -> None:
    params = params_for({"awq": packed("awq", group_size=128)})
    before = record_of(workspace, "awq")
    with pytest.raises(
        InputError,
        match=r"^group_size = 128: does not divide the 288 inputs of model\.layers\.0\.mlp\.down_"
        r"proj; use 32 \(what divides every linear of this model: 32, 16\) or another on_indivis",
    ):
        quantize.run(workspace, params, "awq")
    assert record_of(workspace, "awq") == before


def test_an_unstated_pre_tokenizer_says_what_to_state(workspace: Workspace) -> None:
    params = params_for({"gguf-q8-0": gguf("Q8_0")})
    unstated = params.model_copy(
        update={"model": params.model.model_copy(update={"gguf_pre_tokenizer": None})}
    )
    with pytest.raises(
        InputError, match=r"^model.gguf_pre_tokenizer = None: llama.cpp's converter"
    ):
        quantize.run(workspace, unstated, "gguf-q8-0")


def test_statistics_of_another_base_are_refused(workspace: Workspace, all_params: Params) -> None:
    record = Statistics(workspace).record
    stale = record.model_copy(update={"base_digest": "0" * 64})
    kept = workspace.statistics_path.read_bytes()
    workspace.statistics_path.write_bytes(stale.to_bytes())
    try:
        with pytest.raises(InputError, match="measured on another base"):
            quantize.run(workspace, all_params, "awq")
    finally:
        workspace.statistics_path.write_bytes(kept)


def test_too_little_calibration_text_says_how_much_would_do(tmp_path: Path) -> None:
    params = params_for({"awq": packed("awq")})
    calibration = params.calibration.model_copy(update={"num_calibration_samples": 10_000})
    with pytest.raises(
        InputError, match=r"^calibration.text = text.jsonl: .* needed for 10000 x 32"
    ):
        calibrated(tmp_path, params.model_copy(update={"calibration": calibration}))


def test_no_calibration_before_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base.manifest.json: missing; run `quantline fetch` fir"):
        calibrate.run(Workspace(tmp_path), params_for({"awq": packed("awq")}))


def scheme(name: str, **changes: object) -> dict[str, object]:
    recipe = packed("compressed-tensors", scheme=name, **changes)
    del recipe["num_bits"]
    return recipe


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three formats, each as it is and aligned, in 3 or 4 bits."""
    recipes = {
        "awq": packed("awq"),
        "gptq": packed("gptq", num_bits=3),
        "ct": scheme("W4A16_ASYM"),
    }
    samples = {"align_samples": 256}
    recipes |= {f"{name}-aligned": recipe | samples for name, recipe in recipes.items()}
    params = params_for(recipes)
    made = calibrated(tmp_path_factory.mktemp("aligned"), params)
    for name in params.variants:
        quantize.run(made, params, name)
    return made


def kl_on_calibration_tokens(workspace: Workspace, name: str) -> float:
    ids = torch.tensor(Statistics(workspace).token_ids())
    with torch.inference_mode():
        base, own = (
            unpacked_model(it)(input_ids=ids).logits.log_softmax(-1)
            for it in (workspace.base_dir, workspace.model_dir(name))
        )
    return float((base.exp() * (base - own)).sum(-1).mean())


@pytest.mark.parametrize("name", ["awq", "gptq", "ct"])
def test_alignment_changes_integers_alone(aligned: Workspace, name: str) -> None:
    plain = Checkpoint(aligned.model_dir(name))
    trained = Checkpoint(aligned.model_dir(f"{name}-aligned"))
    assert trained.names == plain.names
    changed = {it for it in plain.names if not torch.equal(plain.tensor(it), trained.tensor(it))}
    integers = "weight_packed" if name == "ct" else "qweight"
    assert changed == {f"{it}.{integers}" for it in Statistics(aligned).linears}
    assert all(trained.tensor(it).dtype == plain.tensor(it).dtype for it in plain.names)


@pytest.mark.parametrize("name", ["awq", "gptq", "ct"])
def test_the_errors_of_aligned_tensors_are_those_of_the_file(aligned: Workspace, name: str) -> None:
    """AWQ's scales apart: there the base's weights are not those that were rounded."""
    record = record_of(aligned, f"{name}-aligned")
    before = {it.name: it for it in record_of(aligned, name).coverage}
    checkpoint = Checkpoint(aligned.base_dir)
    weights = dict(unpacked_weights(aligned.model_dir(f"{name}-aligned")))
    statistics = Statistics(aligned)
    for row in record.coverage:
        linear = row.name.removesuffix(".weight")
        if linear not in statistics.linears:
            assert row == before[row.name]
            continue
        assert row.relative_error != before[row.name].relative_error
        if name != "awq":
            weight = checkpoint.tensor(row.name).float()
            gram = statistics.gram(linear)
            error, power = (
                float(output_error(it, gram)) for it in (weights[row.name] - weight, weight)
            )
            assert row.relative_error == pytest.approx(error / power, rel=1e-3)


@pytest.mark.parametrize("name", ["awq", "gptq", "ct"])
def test_alignment_brings_the_file_nearer_to_the_base(aligned: Workspace, name: str) -> None:
    before = kl_on_calibration_tokens(aligned, name)
    assert kl_on_calibration_tokens(aligned, f"{name}-aligned") < 0.8 * before


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("align_samples", 1, "no gradient; set align_samples to 0"),
        ("quantized_inputs", True, "rounded when served; set quantized_inputs to false"),
    ],
)
def test_rounded_activations_allow_neither(key: str, value: object, reason: str) -> None:
    recipe = scheme("W8A8", group_size=None, **{key: value})
    with pytest.raises(ValueError, match=reason):
        params_for({"int8": recipe})


def test_alignment_does_not_start_from_moved_weights() -> None:
    recipe = packed("awq", quantized_inputs=True, align_samples=8)
    with pytest.raises(ValueError, match="by itself; set quantized_inputs to false"):
        params_for({"awq": recipe})


def test_scales_make_up_for_channels_of_unlike_size(tmp_path: Path) -> None:
    """Columns grow as their norm shrinks: nothing changes but what rounding makes of it."""
    params = params_for({"plain": gguf("Q4_K_M"), "scaled": gguf("Q4_K_M", scale_search=True)})
    tiny_llama(tmp_path / "model", hidden=256, intermediate=512)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    spread = torch.randn(256, generator=torch.Generator().manual_seed(0)).exp()
    for layer in (0, 1):
        prefix = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", [f"self_attn.{it}_proj" for it in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            tensors[f"{prefix}.{norm}.weight"] /= spread
            for reader in readers:
                tensors[f"{prefix}.{reader}.weight"] *= spread
    save_file(tensors, path, metadata={"format": "pt"})
    workspace = calibrated(tmp_path, params)
    errors = {}
    for name in params.variants:
        quantize.run(workspace, params, name)
        rows = record_of(workspace, name).coverage
        errors[name] = sum(row.relative_error for row in rows if row.relative_error)
    assert errors["scaled"] < 0.5 * errors["plain"]
