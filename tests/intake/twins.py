"""Twins of real repositories: their files, configurations, names and shapes, with texts of our own.

Each function makes the directory of one repository: Llama 3.1 Instruct with Meta's own format in
`original/`, Phi-4-mini-instruct with Python files that `auto_map` names, Qwen3.5 with a vision
tower and a multi-token prediction head. With the real sizes the weights are sparse files: the
header is written, and the rest is a hole that takes no disk. With TINY sizes the values are there.
Layouts as on the hub in 2026: https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct,
https://huggingface.co/microsoft/Phi-4-mini-instruct, https://huggingface.co/Qwen/Qwen3.5-9B.
"""

from pathlib import Path
from typing import Any

from tests.intake.repository_files import (
    LICENSES,
    Shape,
    Sizes,
    added_tokens,
    common_sizes,
    outer_tensors,
    write_card,
    write_pickle,
    write_tokenizer,
    write_vocabulary,
    write_weights,
)
from tests.models import MIT_TEXT, write_json

LLAMA_8B = Sizes(4096, 14336, 32, 32, 8, 128, 128000, 128256, shards=4)
LLAMA_70B = Sizes(8192, 28672, 80, 64, 8, 128, 128000, 128256, shards=30)
LLAMA_TINY = Sizes(64, 128, 2, 4, 2, 16, 512, 768, shards=2, is_tiny=True)
PHI_MINI = Sizes(3072, 8192, 32, 24, 8, 128, 199998, 200064, shards=2)
PHI_TINY = Sizes(64, 128, 2, 4, 2, 16, 512, 578, shards=2, is_tiny=True)
QWEN_9B = Sizes(4096, 12288, 32, 16, 4, 256, 248044, 248320, shards=4)
QWEN_TINY = Sizes(64, 128, 4, 4, 2, 32, 512, 788, shards=2, is_tiny=True)

CHAT = (
    "{%% for message in messages %%}{{ '%s' + message['role'] + '%s' + message['content'] + '%s' }}"
    "{%% endfor %%}{%% if add_generation_prompt %%}{{ '%s' }}{%% endif %%}"
)


def llama_3_1(directory: Path, sizes: Sizes = LLAMA_8B) -> Path:
    """Make a Llama 3.1 Instruct: three end tokens, and `original/` with pickled weights."""
    directory.mkdir(parents=True)
    special = dict.fromkeys(f"<|reserved_special_token_{number}|>" for number in range(248))
    names = list(special)
    names[2:2] = ["<|finetune_right_pad_id|>"]
    names[4:4] = ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
    names[8:8] = ["<|python_tag|>"]
    names[:0] = ["<|begin_of_text|>", "<|end_of_text|>"]
    ids = {name: sizes.text_tokens + number for number, name in enumerate(names[:256])}
    write_tokenizer(directory, sizes, ids, bos="<|begin_of_text|>")
    ends = [ids[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    template = CHAT % (
        "<|start_header_id|>",
        "<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    write_json(
        directory / "tokenizer_config.json",
        {
            "added_tokens_decoder": added_tokens(ids),
            "bos_token": "<|begin_of_text|>",
            "chat_template": "{{- bos_token }}" + template,
            "clean_up_tokenization_spaces": True,
            "eos_token": "<|eot_id|>",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131072,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    write_json(
        directory / "special_tokens_map.json",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    )
    write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|begin_of_text|>"],
            "eos_token_id": ends,
            **common_sizes(sizes),
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.3",
            "use_cache": True,
        },
    )
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    write_json(
        directory / "generation_config.json",
        {"bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": ends, **sampling},
    )
    (directory / "LICENSE").write_bytes((LICENSES / "llama3.1.txt").read_bytes())
    (directory / "USE_POLICY.md").write_text("# Llama 3.1 Acceptable Use Policy\n\nA stand-in.\n")
    write_card(
        directory,
        "language:\n- en\n- de\nlibrary_name: transformers\n"
        "base_model: meta-llama/Meta-Llama-3.1-8B\nlicense: llama3.1\npipeline_tag: text-generation"
        '\nextra_gated_prompt: "### LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"',
    )
    hidden, key_value = sizes.hidden, sizes.kv_heads * sizes.head_dim
    tensors = outer_tensors(sizes, tied=False)
    for layer in range(sizes.layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, sizes.intermediate),
            "mlp.gate_proj": (sizes.intermediate, hidden),
            "mlp.up_proj": (sizes.intermediate, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, sizes.heads * sizes.head_dim),
            "self_attn.q_proj": (sizes.heads * sizes.head_dim, hidden),
            "self_attn.v_proj": (key_value, hidden),
        }.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
    write_weights(directory, tensors, sizes, pattern="model-{:05d}-of-{:05d}.safetensors")
    original = directory / "original"
    original.mkdir()
    write_json(
        original / "params.json",
        {"dim": sizes.hidden, "n_layers": sizes.layers, "vocab_size": sizes.vocab},
    )
    (original / "tokenizer.model").write_bytes(b"IQ== 0\n")
    for number in range(sizes.layers // 10 if sizes.layers > 32 else 1):
        write_pickle(original / f"consolidated.{number:02d}.pth", tensors)
    return directory


def phi_4_mini(directory: Path, sizes: Sizes = PHI_MINI) -> Path:
    """Make a Phi-4-mini-instruct: code of its own, gaps in its ids, a tied head."""
    directory.mkdir(parents=True)
    first = sizes.text_tokens
    ids = {"<|endoftext|>": first + 1, "<|endofprompt|>": first + 20}
    roles = ["assistant", "end", "user", "system", "tool", "/tool", "tool_call", "/tool_call"]
    ids |= {f"<|{name}|>": first + 21 + number for number, name in enumerate(roles)}
    ids |= {"<|tool_response|>": first + 29, "<|tag|>": first + 30}
    write_tokenizer(directory, sizes, ids)
    write_vocabulary(directory)
    write_json(directory / "added_tokens.json", {name: ids[name] for name in list(ids)[2:]})
    end = "<|endoftext|>"
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added_tokens(ids),
            "bos_token": end,
            "chat_template": CHAT % ("<|", "|>", "<|end|>", "<|assistant|>"),
            "clean_up_tokenization_spaces": False,
            "eos_token": end,
            "model_max_length": 131072,
            "pad_token": end,
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": end,
        },
    )
    write_json(
        directory / "special_tokens_map.json",
        dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), end),
    )
    rotated = sizes.head_dim * 3 // 4 // 2
    write_json(
        directory / "config.json",
        {
            "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
                "AutoTokenizer": "Xenova/gpt-4o",
            },
            "bos_token_id": ids[end],
            "embd_pdrop": 0.0,
            "eos_token_id": ids[end],
            "full_attn_mod": 1,
            **common_sizes(sizes, head_dim=False),
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "phi3",
            "original_max_position_embeddings": 4096,
            "pad_token_id": ids[end],
            "partial_rotary_factor": 0.75,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "long_factor": [1 + number for number in range(rotated)],
                "short_factor": [1.0] * rotated,
                "type": "longrope",
            },
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0",
            "use_cache": True,
        },
    )
    write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": ids[end],
            "eos_token_id": [ids["<|end|>"], ids[end]],
            "pad_token_id": ids[end],
        },
    )
    for name in ("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py"):
        (directory / name).write_text("raise SystemExit('code of a repository was run')\n")
    permission = MIT_TEXT.partition("Permission is")
    (directory / "LICENSE").write_text(
        "Microsoft.\nCopyright (c) Microsoft Corporation.\n\nMIT License\n\n"
        + "".join(permission[1:])
    )
    for name in ("NOTICE.md", "SECURITY.md", "SUPPORT.md", "CODE_OF_CONDUCT.md"):
        (directory / name).write_text(f"# {name}\n\nA stand-in.\n")
    write_card(
        directory,
        "language:\n- multilingual\nlibrary_name: transformers\nlicense: mit\nlicense_link: "
        "https://huggingface.co/microsoft/Phi-4-mini-instruct/resolve/main/LICENSE\n"
        "pipeline_tag: text-generation\ntags:\n- nlp\n- code",
    )
    hidden, rows = sizes.hidden, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
    tensors = outer_tensors(sizes, tied=True)
    for layer in range(sizes.layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, sizes.intermediate),
            "mlp.gate_up_proj": (2 * sizes.intermediate, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.o_proj": (hidden, sizes.heads * sizes.head_dim),
            "self_attn.qkv_proj": (rows, hidden),
        }.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
    write_weights(directory, tensors, sizes, pattern="model-{:05d}-of-{:05d}.safetensors")
    return directory


def qwen_3_5(directory: Path, sizes: Sizes = QWEN_9B) -> Path:
    """Make a Qwen3.5: text with two kinds of attention, a vision tower, a prediction head."""
    directory.mkdir(parents=True)
    names = ["endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start"]
    names += ["box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad"]
    names += ["image_pad", "video_pad", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad"]
    marks = [f"<|{name}|>" for name in names] + ["<tool_call>", "</tool_call>", "<tool_response>"]
    marks += ["</tool_response>", "<think>", "</think>"]
    ids = {name: sizes.text_tokens + number for number, name in enumerate(marks)}
    write_tokenizer(directory, sizes, ids, normalizer="NFC")
    write_vocabulary(directory)
    template = CHAT % ("<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n<think>\n")
    (directory / "chat_template.jinja").write_text(template)
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added_tokens(ids),
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 262144,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    is_full = [(layer + 1) % 4 == 0 for layer in range(sizes.layers)]
    vision: dict[str, object] = {
        "deepstack_visual_indexes": [],
        "depth": 2 if sizes.is_tiny else 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32 if sizes.is_tiny else 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 64 if sizes.is_tiny else 4304,
        "model_type": "qwen3_5",
        "num_heads": 4 if sizes.is_tiny else 16,
        "num_position_embeddings": 16 if sizes.is_tiny else 2304,
        "out_hidden_size": sizes.hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    key_heads, value_heads, linear_dim = (2, 4, 16) if sizes.is_tiny else (16, 32, 128)
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": ids["<|endoftext|>"],
        "full_attention_interval": 4,
        **common_sizes(sizes),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention" if full else "linear_attention" for full in is_full],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": linear_dim,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": linear_dim,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1] if sizes.is_tiny else [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    write_json(
        directory / "config.json",
        {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "image_token_id": ids["<|image_pad|>"],
            "model_type": "qwen3_5",
            "text_config": text,
            "tie_word_embeddings": False,
            "transformers_version": "4.57.0.dev0",
            "video_token_id": ids["<|video_pad|>"],
            "vision_config": vision,
            "vision_end_token_id": ids["<|vision_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
        },
    )
    for name, kind in {"preprocessor": "Image", "video_preprocessor": "Video"}.items():
        write_json(
            directory / f"{name}_config.json",
            {
                "patch_size": 16,
                "processor_class": "Qwen3VLProcessor",
                f"{kind.lower()}_processor_type": f"Qwen2VL{kind}ProcessorFast",
            },
        )
    (directory / "LICENSE").write_bytes((LICENSES / "apache-2.0.txt").read_bytes())
    write_card(
        directory,
        "library_name: transformers\nlicense: apache-2.0\nlicense_link: "
        "https://huggingface.co/Qwen/Qwen3.5-9B/blob/main/LICENSE\n"
        "pipeline_tag: image-text-to-text\nbase_model:\n- Qwen/Qwen3.5-9B-Base",
    )
    hidden, linear = sizes.hidden, value_heads * linear_dim
    mixed = 2 * key_heads * linear_dim + linear
    query, key_value = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shared: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, sizes.intermediate),
        "mlp.gate_proj.weight": (sizes.intermediate, hidden),
        "mlp.up_proj.weight": (sizes.intermediate, hidden),
        "post_attention_layernorm.weight": (hidden,),
    }
    full_attention: dict[str, Shape] = {
        "self_attn.k_norm.weight": (sizes.head_dim,),
        "self_attn.k_proj.weight": (key_value, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "self_attn.q_norm.weight": (sizes.head_dim,),
        "self_attn.q_proj.weight": (2 * query, hidden),
        "self_attn.v_proj.weight": (key_value, hidden),
    }
    linear_attention: dict[str, Shape] = {
        "linear_attn.A_log": (value_heads,),
        "linear_attn.conv1d.weight": (mixed, 1, 4),
        "linear_attn.dt_bias": (value_heads,),
        "linear_attn.in_proj_a.weight": (value_heads, hidden),
        "linear_attn.in_proj_b.weight": (value_heads, hidden),
        "linear_attn.in_proj_qkv.weight": (mixed, hidden),
        "linear_attn.in_proj_z.weight": (linear, hidden),
        "linear_attn.norm.weight": (linear_dim,),
        "linear_attn.out_proj.weight": (hidden, linear),
    }
    tensors = outer_tensors(sizes, tied=False, inside="model.language_model.")
    for layer, full in enumerate(is_full):
        for name, shape in (shared | (full_attention if full else linear_attention)).items():
            tensors[f"model.language_model.layers.{layer}.{name}"] = shape
    tensors |= {
        "mtp.fc.weight": (hidden, 2 * hidden),
        "mtp.norm.weight": (hidden,),
        "mtp.pre_fc_norm_embedding.weight": (hidden,),
        "mtp.pre_fc_norm_hidden.weight": (hidden,),
        **{f"mtp.layers.0.{name}": shape for name, shape in (shared | full_attention).items()},
    }
    tensors |= vision_tensors(vision)
    write_weights(
        directory, tensors, sizes, pattern="model.safetensors-{:05d}-of-{:05d}.safetensors"
    )
    return directory


def vision_tensors(config: dict[str, Any]) -> dict[str, Shape]:
    """Name the tensors of Qwen3.5's vision tower with this `vision_config`."""
    hidden, inner, out = (config[f"{key}_size"] for key in ("hidden", "intermediate", "out_hidden"))
    patch, merged = config["patch_size"], hidden * config["spatial_merge_size"] ** 2
    linears = {"attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden)}
    linears |= {"mlp.linear_fc1": (inner, hidden), "mlp.linear_fc2": (hidden, inner)}
    with_bias: dict[str, Shape] = {
        "merger.linear_fc1": (merged, merged),
        "merger.linear_fc2": (out, merged),
        "merger.norm": (hidden,),
        "patch_embed.proj": (hidden, config["in_channels"], 2, patch, patch),
    }
    for block in range(config["depth"]):
        blocks = linears | {"norm1": (hidden,), "norm2": (hidden,)}
        with_bias |= {f"blocks.{block}.{name}": shape for name, shape in blocks.items()}
    tensors: dict[str, Shape] = {
        "model.visual.pos_embed.weight": (config["num_position_embeddings"], hidden)
    }
    for name, shape in with_bias.items():
        tensors |= {f"model.visual.{name}.weight": shape, f"model.visual.{name}.bias": shape[:1]}
    return tensors
