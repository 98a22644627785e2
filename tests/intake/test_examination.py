"""The examination of whole checkpoints, seen by other readers of the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import SpecialVocab
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline.checkpoint.safetensors_header import TensorInfo, read_header
from pipeline.checkpoint.tokenizer import HARD_TEXTS, tokenizer_of
from pipeline.core.errors import InputError
from pipeline.core.files import directory_records
from pipeline.intake.examination import examine_file_names, examine_other_files, examine_small_files
from pipeline.intake.weights import (
    account_for_tensors,
    examine_index,
    require_full_precision,
    require_storable,
)
from tests.models import tiny_llama

OLD = "OLD{% for m in messages %}{{ m['content'] }}{% endfor %}"
NEW = OLD.replace("OLD", "NEW")
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(model: Path, **changes: torch.Tensor) -> None:
    tensors = load_file(model / WEIGHTS) | {
        name.replace("__", "."): tensor for name, tensor in changes.items()
    }
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def shapes(model: Path) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in read_header(model / WEIGHTS).items()}


def test_a_plain_checkpoint_stays_as_it_is(model: Path) -> None:
    before = directory_records(model)
    intake = examine_small_files(model)
    assert (intake.findings, intake.originals, intake.added) == ((), (), ())
    accounting = account_for_tensors(model, shapes(model))
    assert (accounting.unused, accounting.findings) == ((), ())
    require_storable(model, [WEIGHTS])
    assert directory_records(model) == before


@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_the_file_decides_how_text_is_read(model: Path, class_name: str) -> None:
    edit(model / "tokenizer_config.json", tokenizer_class=class_name)
    before = directory_records(model)
    own = tokenizer_of(model)
    intake = examine_small_files(model)
    assert [finding.file for finding in intake.findings] == ["tokenizer_config.json"]
    assert class_name in intake.findings[0].found
    assert intake.files_of_source(directory_records(model)) == before
    library = AutoTokenizer.from_pretrained(model)
    file = Tokenizer.from_file(str(model / "tokenizer.json"))
    for text in HARD_TEXTS:
        ids = file.encode(text, add_special_tokens=False).ids
        assert library.encode(text, add_special_tokens=False) == ids
        assert own.encode(text, add_special_tokens=False) == ids


def test_a_token_without_a_row_in_the_embedding_is_refused(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 320, "content": "<pad>"})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        InputError,
        match=r"token '<pad>' has id 320, expected less than vocab_size = 320 of config\.json",
    ):
        examine_small_files(model)


@pytest.mark.parametrize("stated", [OLD, None])
def test_every_tool_finds_the_same_template(model: Path, stated: str | None) -> None:
    edit(model / "tokenizer_config.json", chat_template=stated)
    (model / "chat_template.jinja").write_text(NEW)
    intake = examine_small_files(model)
    assert [finding.file for finding in intake.findings] == ["tokenizer_config.json"]
    assert AutoTokenizer.from_pretrained(model).chat_template == NEW
    assert "chat_template" not in json.loads((model / "tokenizer_config.json").read_text())
    assert (model / "chat_template.jinja").read_text() == NEW


def test_a_template_where_nobody_looks_is_moved(model: Path) -> None:
    (model / "chat_template.json").write_text(json.dumps({"chat_template": NEW}))
    intake = examine_small_files(model)
    assert intake.added == ("chat_template.jinja",)
    assert AutoTokenizer.from_pretrained(model).chat_template == NEW
    assert SpecialVocab(model).chat_template in (NEW, None)


def test_special_tokens_that_a_server_would_wait_for_in_vain_are_left_out(model: Path) -> None:
    edit(model / "generation_config.json", eos_token_id=[1, 50256])
    intake = examine_small_files(model)
    assert [finding.file for finding in intake.findings] == ["generation_config.json"]
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == [1]


def test_code_for_a_tokenizer_is_not_needed_beside_its_file(model: Path) -> None:
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    intake = examine_small_files(model)
    assert [finding.found for finding in intake.findings] == [
        "auto_map names Python code of the repository"
    ]
    assert "auto_map" not in json.loads((model / "tokenizer_config.json").read_text())


def test_tensors_that_the_model_does_not_read_are_named(model: Path) -> None:
    edit_tensors(
        model,
        mtp__layers__0__self_attn__q_proj__weight=torch.ones(64, 64).half(),
        model__layers__7__mlp__up_proj__weight=torch.ones(128, 64).half(),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
    )
    accounting = account_for_tensors(model, shapes(model))
    assert accounting.unused == (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.7.mlp.up_proj.weight",
        "mtp.layers.0.self_attn.q_proj.weight",
    )
    assert [finding.found.partition(",")[0] for finding in accounting.findings] == [
        "1 buffers that a model computes by itself",
        "1 layers beyond num_hidden_layers = 2",
        "1 prediction heads",
    ]


def test_a_parameter_without_a_tensor_is_refused(model: Path) -> None:
    found = shapes(model)
    wrong = found | {"model.norm.weight": (63,)}
    with pytest.raises(InputError, match=r"model.norm.weight: shape \(63,\), expected \(64,\)"):
        account_for_tensors(model, wrong)
    del found["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight: no tensor of the f"):
        account_for_tensors(model, found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused_by_name(model: Path, value: float) -> None:
    spoiled = load_file(model / WEIGHTS)["model.layers.1.mlp.up_proj.weight"]
    spoiled[3, 5] = value
    edit_tensors(model, model__layers__1__mlp__up_proj__weight=spoiled)
    with pytest.raises(InputError, match=r"tensor 'model.layers.1.mlp.up_proj.weight' has values"):
        require_storable(model, [WEIGHTS])


def test_a_matrix_beyond_float16_is_refused_by_name_and_a_vector_is_not(model: Path) -> None:
    norm, up = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"
    found = load_file(model / WEIGHTS)
    edit_tensors(model, **{norm.replace(".", "__"): found[norm].float() * 1e6})
    require_storable(model, [WEIGHTS])
    spoiled = found[up].to(torch.bfloat16)
    spoiled[3, 5] = -7e4
    edit_tensors(model, **{up.replace(".", "__"): spoiled})
    expected = r"tensor 'model.layers.1.mlp.up_proj.weight' has values beyond 65504, the largest of"
    with pytest.raises(InputError, match=expected):
        require_storable(model, [WEIGHTS])


def test_one_form_of_the_weights_counts() -> None:
    index = "model.safetensors.index.json"
    assert list(examine_file_names(["config.json", WEIGHTS])) == []
    assert list(examine_file_names(["config.json", index, "a.safetensors"])) == []
    (beside,) = examine_file_names(["config.json", WEIGHTS, index])
    assert beside.done == "not taken: model.safetensors alone counts, as in transformers"
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    (beside,) = examine_file_names(["config.json", WEIGHTS, *adapter])
    assert beside.done == "not taken: the model counts without the adapter"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter without the weights"),
        (["config.json", "adapter_config.json"], "an adapter without the weights that it changes"),
        (["model-Q4_K_M.gguf"], "this is no checkpoint .* found model-Q4_K_M.gguf; use another"),
        ([], "found no file; use another checkpoint"),
    ],
)
def test_files_that_are_no_whole_checkpoint_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(examine_file_names(names))


def test_the_headers_of_the_shards_decide_where_a_tensor_is() -> None:
    info = TensorInfo("F16", (2,), 4)
    headers = {"a.safetensors": {"x": info}, "b.safetensors": {"y": info, "z": info}}
    right = {"a.safetensors": {"x"}, "b.safetensors": {"y", "z"}}
    assert examine_index(headers, right) == ()
    assert examine_index({WEIGHTS: {"x": info}}, None) == ()
    (without,) = examine_index(headers, None)
    assert without.done == "made from the headers of the shards"
    for wrong in ({"x"}, {"x", "y"}, {"x", "z"}):
        (finding,) = examine_index(headers, right | {"b.safetensors": wrong})
        assert finding.file == "model.safetensors.index.json"
        assert finding.done == "made from the headers of the shards"
    with pytest.raises(InputError, match=r"a.safetensors: tensor 'w' is missing, though listed in"):
        examine_index(headers, right | {"a.safetensors": {"x", "w"}})


def test_a_parameter_in_whole_numbers_is_refused() -> None:
    tensors = {"mask": TensorInfo("BOOL", (2,), 2), "x": TensorInfo("I8", (2,), 2)}
    require_full_precision(tensors, ("mask", "x"))
    with pytest.raises(InputError, match=r"'x': has dtype I8, expected floating point, so the mod"):
        require_full_precision(tensors, ("mask",))


@pytest.mark.slow
@pytest.mark.parametrize("class_name", ["GemmaTokenizer", "T5TokenizerFast", "AutoTokenizer", 5])
def test_a_class_that_cannot_take_the_file_is_not_used(model: Path, class_name: object) -> None:
    edit(model / "tokenizer_config.json", tokenizer_class=class_name)
    (finding,) = examine_small_files(model).findings
    assert f"tokenizer_class = {class_name!r}, with which transformers fails (" in finding.found
    file = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = file.encode("a b\n  c", add_special_tokens=False).ids
    assert AutoTokenizer.from_pretrained(model).encode("a b\n  c", add_special_tokens=False) == ids


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer_config.json", {"pad_token": "[PAD]"}),
        ("tokenizer_config.json", {"unk_token": {"content": "<unk>", "__type": "AddedToken"}}),
        ("special_tokens_map.json", {"pad_token": "[PAD]"}),
        ("tokenizer_config.json", {"model_max_length": "1024"}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1": {"content": "</s>", "lstrip": True, "special": True}}},
        ),
    ],
)
def test_settings_that_no_row_or_text_goes_with_are_removed(
    model: Path, file: str, values: dict[str, Any]
) -> None:
    (model / "special_tokens_map.json").write_text("{}")
    edit(model / file, **values)
    assert [finding.file for finding in examine_small_files(model).findings] == [
        "tokenizer_config.json" if "added_tokens_decoder" in values else file
    ]
    assert not values.keys() & json.loads((model / file).read_text()).keys()
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert len(tokenizer) == 320
    assert tokenizer.encode("</s> a") == tokenizer_of(model).encode("</s> a")


def test_both_files_of_special_tokens_name_the_same_end(model: Path) -> None:
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<s>"}))
    (finding,) = examine_small_files(model).findings
    assert finding.found == "eos_token = '</s>', and special_tokens_map.json has '<s>'"
    assert AutoTokenizer.from_pretrained(model).eos_token == "<s>"
    assert json.loads((model / "tokenizer_config.json").read_text())["eos_token"] == "<s>"


def test_the_end_of_a_text_is_known_by_its_id(model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    intake = examine_small_files(model)
    assert intake.added == ("tokenizer_config.json",)
    assert AutoTokenizer.from_pretrained(model).eos_token == "</s>"
    (model / "tokenizer_config.json").unlink()
    edit(model / "config.json", eos_token_id=None)
    (model / "generation_config.json").unlink()
    with pytest.raises(InputError, match="nothing says which token ends a text"):
        examine_small_files(model)


def test_added_tokens_of_other_files_need_rows_too(model: Path) -> None:
    (model / "added_tokens.json").write_text('{"<new>": 320}')
    with pytest.raises(InputError, match=r"added_tokens.json: token '<new>' has id 320, expected"):
        examine_small_files(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 7}, r"added token '<s>' has id 7, and the tokenizers library makes it 0"),
        ({"id": 319, "content": "<|end|>"}, r"added token '<|end|>' has id 319, and the tok"),
    ],
)
def test_ids_that_the_library_does_not_give_are_refused(
    model: Path, changes: dict[str, Any], message: str
) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | changes)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=message):
        examine_small_files(model)


def test_files_that_are_left_behind_are_named_by_kind() -> None:
    left = ["original/consolidated.00.pth", "original/consolidated.01.pth", "pytorch_model.bin"]
    left += ["modeling_x.py", "consolidated.safetensors", "original/params.json", ".gitattributes"]
    found = [str(finding) for finding in examine_other_files([WEIGHTS, *left], [WEIGHTS])]
    done = "not taken: the weights in safetensors count"
    assert found == [
        "original/consolidated.00.pth: 3 files with pickled weights, which can run code when they "
        f"are read: {done}",
        f"consolidated.safetensors: 1 file with other weights than those of the model: {done}",
        "modeling_x.py: 1 file with Python code: not taken: code of a repository is never run",
    ]
