"""A tiny random model of every architecture that the pipeline folds, saved by transformers."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PixtralVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
    Starcoder2Config,
)

from pipeline.calibration.layers import calibrate_layers
from pipeline.calibration.sample import write_token_ids
from pipeline.checkpoint.model_config import model_class
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, write_record
from pipeline.core.texts import token_ids_sha256
from pipeline.core.workspace import Workspace
from pipeline.params.reading import read_params
from pipeline.records.base import BaseManifest
from pipeline.records.statistics import Decontamination, StatisticsRecord
from tests.support import ROOT
from tests.workspace import write_base_manifest

HIDDEN, FFN, EXPERT_FFN, VOCABULARY = 64, 128, 32, 320
CALIBRATION = read_params(ROOT / "params.yaml").calibration
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# Sliding windows shorter than the test's sequences, biases, tied embeddings, and one dense layer
# among those with experts, so that each way of a model to be special is there.
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, head_dim=32, sliding_window=8),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "phi3": Phi3Config(**SHAPE, partial_rotary_factor=0.5, sliding_window=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mixtral": MixtralConfig(
        **SHAPE | {"intermediate_size": EXPERT_FFN},
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SHAPE,
        head_dim=16,
        moe_intermediate_size=EXPERT_FFN,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        norm_topk_prob=True,
    ),
}

# Text models inside others; the projections of images and their towers are kept.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
COMPOSITES: dict[str, PreTrainedConfig] = {
    "gemma3-vision": Gemma3Config(
        # As in released models, where each sixth layer has full attention; llama.cpp assumes that.
        text_config=CONFIGS["gemma3"].to_dict() | {"layer_types": ["sliding_attention"] * 2},
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=7,
        boi_token_index=8,
        eoi_token_index=9,
    ),
    "mistral3": Mistral3Config(
        text_config=MistralConfig(**SHAPE, head_dim=32, sliding_window=None).to_dict(),
        vision_config=PixtralVisionConfig(**VISION).to_dict(),
        image_token_index=7,
        tie_word_embeddings=False,
    ),
}

# Not in the table of folds; GPT-2's layers are not in a list named `layers` either.
UNKNOWN = {
    "starcoder2": Starcoder2Config(**SHAPE),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=4),
}


def tiny_model(path: Path, name: str, *, dtype: torch.dtype = torch.float16) -> Path:
    """Make the directory `path`: `config.json` and weights, scaled like trained ones."""
    config = (CONFIGS | COMPOSITES | UNKNOWN)[name]
    torch.manual_seed(7)
    model = model_class(type(config))(config)
    generator = torch.Generator().manual_seed(8)
    for parameter_name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in parameter_name:
            zero_centred = name.startswith("gemma")
            parameter.data = 0.2 * values + (0.0 if zero_centred else 1.0)
        elif parameter_name.endswith("bias"):
            parameter.data = 0.1 * values
        elif "embed" in parameter_name:
            parameter.data = values * (HIDDEN**-0.5 if config.tie_word_embeddings else 1.0)
        else:
            parameter.data = values * parameter.shape[-1] ** -0.5
    model.to(dtype).save_pretrained(path)
    return path


NOTHING_COMPARED = Decontamination(
    ngram_words=13, compared=(), num_documents_drawn=24, num_contaminated_dropped=0
)


def token_windows(*, samples: int = 24, tokens: int = 32, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (samples, tokens), generator=generator)
    return [row.tolist() for row in ids]


def calibrated_model(
    root: Path, name: str, *, dtype: torch.dtype = torch.float16, samples: int = 24
) -> Workspace:
    """A workspace with a tiny model as its base, and its statistics.

    It is a copy of one that is made once in a process.
    """
    shutil.copytree(made_once(name, dtype, samples).root, root, dirs_exist_ok=True)
    return Workspace(root)


@cache
def store() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="calibrated-models-")


@cache
def made_once(name: str, dtype: torch.dtype, samples: int) -> Workspace:
    workspace = Workspace(Path(store().name, f"{name}-{dtype}-{samples}"))
    tiny_model(workspace.base_dir, name, dtype=dtype)
    write_base_manifest(workspace, source="tiny")
    windows = token_windows(samples=samples)
    workspace.statistics_dir.mkdir()
    layers = calibrate_layers(
        workspace.base_dir, windows, torch.device("cpu"), workspace.statistics_dir
    )
    write_token_ids(workspace.token_ids_path, windows)
    files = directory_records(workspace.statistics_dir)
    write_record(
        workspace.statistics_path,
        StatisticsRecord(
            base_digest=base_manifest(workspace).digest,
            calibration=CALIBRATION,
            text_sha256="ab" * 32,
            token_ids_sha256=token_ids_sha256(windows),
            num_tokens=sum(map(len, windows)),
            num_samples=len(windows),
            decontamination=NOTHING_COMPARED,
            skipped=(),
            template_date=None,
            inputs=tuple(entry for layer in layers for entry in layer.inputs),
            experts=tuple(expert for layer in layers for expert in layer.experts),
            files=files,
            digest=tree_digest(files),
        ),
    )
    return workspace


def base_manifest(workspace: Workspace) -> BaseManifest:
    return BaseManifest.from_bytes(workspace.base_manifest_path.read_bytes(), source="base")
