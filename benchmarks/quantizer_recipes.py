"""The recipes that `benchmarks.quantizers` compares, of quantline and of other quantizers."""

from typing import Any

from benchmarks.babyllama import PACKED

Recipe = dict[str, Any]

# quantline's own recipes. Each takes the group size of the model.
AWQ: Recipe = PACKED | {
    "format": "awq",
    "num_bits": 4,
    "scale_search": True,
    "refine_sweeps": 8,
}
GPTQ: Recipe = PACKED | {"format": "gptq", "num_bits": 4}
W4A16: Recipe = PACKED | {"format": "compressed-tensors", "scheme": "W4A16"}
# The `fast` preset: for where a CPU second counts more than the last percent of KL.
FAST: Recipe = {"refine_sweeps": 0}
# Each layer corrects the errors of the layers before it.
CORRECTED: Recipe = {"quantized_inputs": True}
# The best KL, which needs whole models in memory. All 96 samples are used.
ALIGNED: Recipe = {"align_samples": 128}
OURS: dict[str, Recipe] = {
    "ours-awq": AWQ,
    "ours-gptq-sym": GPTQ,
    "ours-asym": W4A16 | {"scheme": "W4A16_ASYM"},
    "ours-3bit": GPTQ | {"num_bits": 3},
    "ours-w4a16": W4A16,
    "ours-awq-corrected": AWQ | CORRECTED,
    "ours-gptq-sym-corrected": GPTQ | CORRECTED,
    "ours-3bit-corrected": GPTQ | CORRECTED | {"num_bits": 3},
    "ours-awq-aligned": AWQ | ALIGNED,
    "ours-gptq-sym-aligned": GPTQ | ALIGNED,
    "ours-fast-awq": AWQ | FAST,
    "ours-fast-gptq-sym": GPTQ | FAST,
    "ours-fast-w4a16": W4A16 | FAST,
}
LLMCOMPRESSOR: Recipe = {"backend": "llmcompressor", "format": "compressed-tensors"}
GPTQMODEL: Recipe = {"backend": "gptqmodel", "format": "gptq", "symmetric": True}
AUTO_ROUND: Recipe = {"backend": "auto-round", "num_bits": 4, "iterations": 200}
PEERS: dict[str, Recipe] = {
    "llmcompressor-gptq-sym": LLMCOMPRESSOR
    | {"algorithm": "gptq", "num_bits": 4, "symmetric": True},
    "llmcompressor-gptq-asym": LLMCOMPRESSOR
    | {"algorithm": "gptq", "num_bits": 4, "symmetric": False},
    "llmcompressor-gptq-3bit": LLMCOMPRESSOR
    | {"algorithm": "gptq", "num_bits": 3, "symmetric": True},
    "llmcompressor-awq": LLMCOMPRESSOR | {"algorithm": "awq", "num_bits": 4, "symmetric": False},
    "gptqmodel-gptq-sym": GPTQMODEL | {"num_bits": 4},
    "gptqmodel-gptq-3bit": GPTQMODEL | {"num_bits": 3},
    "auto-round-awq": AUTO_ROUND | {"format": "awq", "symmetric": False},
    "auto-round-sym": AUTO_ROUND | {"format": "gptq", "symmetric": True},
    "autoawq-awq": {"backend": "autoawq", "format": "awq", "num_bits": 4, "symmetric": False},
}
# Ratios of CPU time: of `calibrate`, those of the first recipes that a model has, and the imatrix,
# to the second.
LLMCOMPRESSOR_BOTH = ("llmcompressor-gptq-sym", "llmcompressor-awq")
ALL_FORMATS = ("ours-awq", "ours-gptq-sym", "ours-w4a16", "gguf-q4-k-m-ours")
CPU_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cpu_ratio": (ALL_FORMATS, LLMCOMPRESSOR_BOTH),
    "cpu_ratio_fast": (
        ("ours-fast-awq", "ours-fast-gptq-sym", "ours-fast-w4a16"),
        LLMCOMPRESSOR_BOTH,
    ),
    "cpu_ratio_aligned": (
        ("ours-awq-aligned", "ours-gptq-sym", "ours-w4a16"),
        LLMCOMPRESSOR_BOTH,
    ),
    "cpu_ratio_gptq": (("ours-gptq-sym",), ("llmcompressor-gptq-sym",)),
    "cpu_ratio_autoround_aligned": (("ours-awq-aligned",), ("auto-round-awq",)),
}

# llama.cpp's K-quants need rows that are multiples of 256; some matrices of SmolLM2 have them.
GGUF_TYPES = {"demo": ("Q4_K_M", "Q2_K"), "smollm2": ("Q4_K_M", "Q3_K_M", "Q2_K")}
GGUF: dict[str, Recipe] = {
    f"gguf-{kind.lower().replace('_', '-')}{suffix}": {
        "format": "gguf",
        "type": kind,
        "scale_search": scale_search,
        "imatrix": imatrix,
        "rounding": rounding,
        "quantized_inputs": suffix == "-ours-corrected",
        "align_samples": 128 if suffix == "-ours-aligned" else 0,
    }
    for kind in GGUF_TYPES["smollm2"]
    for suffix, scale_search, imatrix, rounding in (
        ("", False, True, "llama.cpp"),
        ("-plain", False, False, "llama.cpp"),
        ("-scaled", True, True, "llama.cpp"),
        ("-ours", True, True, "gptq"),
        ("-ours-corrected", True, True, "gptq"),
        ("-ours-aligned", True, True, "gptq"),
    )
}

# The sizes of llama.cpp's Q4_K_M file and of the W4A16 file. The weights of smollm2 were rounded to
# Q4_1 before it was made, so that a budget that finds this type loses little: the figure flatters.
BUDGETS: dict[str, dict[str, Recipe]] = {
    "smollm2": {
        "gguf-budget": {
            key: value for key, value in GGUF["gguf-q4-k-m-ours"].items() if key != "type"
        }
        | {"budget": {"size": "105.4 MB"}},
        "ct-budget": {key: value for key, value in W4A16.items() if key != "scheme"}
        | {"budget": {"size": "113.2 MB"}, "group_size": None},
    },
}

# KL of the first over the least KL of the others.
KL_RATIOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "kl_awq_llmcompressor": ("ours-awq", ("llmcompressor-awq",)),
    "kl_awq_autoround": ("ours-awq", ("auto-round-awq",)),
    "kl_awq_autoround_corrected": ("ours-awq-corrected", ("auto-round-awq",)),
    "kl_awq_autoround_aligned": ("ours-awq-aligned", ("auto-round-awq",)),
    "kl_gptq_sym_autoround_aligned": ("ours-gptq-sym-aligned", ("auto-round-sym",)),
    "kl_gptq_sym": ("ours-gptq-sym", ("llmcompressor-gptq-sym", "gptqmodel-gptq-sym")),
    "kl_gptq_sym_corrected": (
        "ours-gptq-sym-corrected",
        ("llmcompressor-gptq-sym", "gptqmodel-gptq-sym"),
    ),
    "kl_asym": ("ours-asym", ("llmcompressor-gptq-asym",)),
    "kl_3bit": ("ours-3bit", ("llmcompressor-gptq-3bit", "gptqmodel-gptq-3bit")),
    "kl_3bit_corrected": (
        "ours-3bit-corrected",
        ("llmcompressor-gptq-3bit", "gptqmodel-gptq-3bit"),
    ),
    "kl_q4_k_m_imatrix": ("gguf-q4-k-m", ("gguf-q4-k-m-plain",)),
    "kl_q2_k_imatrix": ("gguf-q2-k", ("gguf-q2-k-plain",)),
    "kl_q4_k_m_scaled": ("gguf-q4-k-m-scaled", ("gguf-q4-k-m",)),
    "kl_q2_k_scaled": ("gguf-q2-k-scaled", ("gguf-q2-k",)),
    "kl_budget_q4_k_m": ("gguf-budget", ("gguf-q4-k-m",)),
    "kl_budget_ct": ("ct-budget", ("ours-w4a16",)),
} | {
    f"kl_gguf_{kind.lower()}{way.replace('-', '_')}": (
        f"gguf-{kind.lower().replace('_', '-')}-ours{way}",
        (f"gguf-{kind.lower().replace('_', '-')}",),
    )
    for kind in GGUF_TYPES["smollm2"]
    for way in ("", "-corrected", "-aligned")
}
# Those that are compared on text of another kind too, with the real model.
OTHER_TEXT_RATIOS = ("kl_gptq_sym", "kl_gguf_q4_k_m")
OTHER_TEXT_RECIPES = {
    name for key in OTHER_TEXT_RATIOS for name in (KL_RATIOS[key][0], *KL_RATIOS[key][1])
}
# The models whose keys have no suffix, by the start of the key; the first that fits counts.
MAIN_MODELS = {
    "kl_gguf": "smollm2",
    "kl_budget": "smollm2",
    "cpu_ratio_gptq": "smollm2",
    "kl_q": "demo",
    "": "babyllama",
}
