"""Tensor shapes of published models, by the names in their checkpoints."""

Shapes = dict[str, tuple[int, ...]]


def llama_shapes(
    *, hidden: int, ffn: int, layers: int, kv: int, vocab: int, tied: bool = False
) -> Shapes:
    """A Llama: attention with `kv` outputs of keys and values, a gated feed-forward of `ffn`."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
        for name in ("gate", "up"):
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = (ffn, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, ffn)
    return shapes


def llama_3_8b(*, layers: int = 32) -> Shapes:
    """https://huggingface.co/meta-llama/Meta-Llama-3-8B: 8.03 billion weights."""
    return llama_shapes(hidden=4096, ffn=14336, layers=layers, kv=1024, vocab=128256)


def mixtral_8x7b() -> Shapes:
    """https://huggingface.co/mistralai/Mixtral-8x7B-v0.1: 46.7 billion weights."""
    shapes = {
        name: shape
        for name, shape in llama_shapes(
            hidden=4096, ffn=14336, layers=32, kv=1024, vocab=32000
        ).items()
        if ".mlp." not in name
    }
    for layer in range(32):
        block = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{block}.gate.weight"] = (8, 4096)
        for expert in range(8):
            shapes[f"{block}.experts.{expert}.w1.weight"] = (14336, 4096)
            shapes[f"{block}.experts.{expert}.w2.weight"] = (4096, 14336)
            shapes[f"{block}.experts.{expert}.w3.weight"] = (14336, 4096)
    return shapes
