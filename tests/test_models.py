"""The random checkpoints that other tests build on are real checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.core.files import directory_records
from tests.models import tiny_llama


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_loads_every_tensor_and_the_tokenizer(tmp_path: Path, shards: int) -> None:
    path = tiny_llama(tmp_path / "model", shards=shards)
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "el pan ¿qué? 12"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    assert logits.std(dim=0).mean() > 0.1


def test_the_same_arguments_make_the_same_bytes(tmp_path: Path) -> None:
    first = tiny_llama(tmp_path / "first", shards=2)
    second = tiny_llama(tmp_path / "second", shards=2)
    assert directory_records(first) == directory_records(second)
