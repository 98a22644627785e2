"""Use the releases of a workspace as their readers do: verify, pull, serve, and chat."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.result import Row
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.environments import OFFLINE, SERVE_PYTHON
from pipeline.core.files import remove_tree
from pipeline.core.workspace import Workspace
from pipeline.records.release import Receipts
from pipeline.serving import llama_cpp, vllm
from pipeline.serving.server import Server

CHAT_CLIENT = Path(__file__).resolve().parent / "chat_client.py"
QUESTION, ANSWER = "What is the capital of France?", "Paris"
CONTEXT_TOKENS = 512
KV_BYTES = 1 << 30
TIMEOUT_S = 900.0
QUANTLINE = Path(sys.executable).parent / "quantline"


def usage_rows(workspace: Workspace, pulled_dir: Path) -> list[Row]:
    """Verify every release, pull it for what can use it, and ask its server a question.

    `released` counts the releases, `verified` those that verify, `prompts_right` those whose server
    made as many tokens of the conversation as transformers with the base's template, `chats_right`
    those whose server gave the answer, `ollama_blobs_right` the files of Ollama's trees that have
    their digest. The likeliest first tokens of an answer of this small model are nearly equally
    likely, so that a right server may begin with another one.
    """
    remove_tree(pulled_dir)
    receipts = Receipts.from_bytes(workspace.receipts_path.read_bytes(), source="receipts")
    chats = prompts = blobs = blobs_right = 0
    conversation = [{"role": "user", "content": QUESTION}]
    expected = tokenizer_of(workspace.base_dir).apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=True
    )
    for release in receipts.releases.values():
        tag = release.tag
        quantline(workspace, "verify", tag)
        target = pulled_dir / tag
        is_gguf = any(layer.path.endswith(".gguf") for layer in release.layers)
        use = "dir" if is_gguf else "vllm"
        quantline(workspace, "pull", tag, "--to", use, "--into", str(target))
        said = chat(served(target, is_gguf=is_gguf, log_path=pulled_dir / f"{tag}.log"))
        print(f"{tag}: {QUESTION} {said}")
        chats += ANSWER in said["answer"]
        prompts += said["prompt_tokens"] == len(expected["input_ids"])
        if is_gguf:
            models_dir = pulled_dir / f"{tag}-ollama"
            quantline(workspace, "pull", tag, "--to", "ollama", "--into", str(models_dir))
            for blob in (models_dir / "blobs").iterdir():
                digest = hashlib.sha256(blob.read_bytes()).hexdigest()
                blobs, blobs_right = blobs + 1, blobs_right + (blob.name == f"sha256-{digest}")
    count = len(receipts.releases)
    return [
        Row("released", count, None, None, "releases"),
        Row("verified", count, None, None, "releases"),
        Row("prompts_right", prompts, None, None, "of the releases"),
        Row("chats_right", chats, None, None, "of the releases"),
        Row("ollama_blobs", blobs, None, None, "files"),
        Row("ollama_blobs_right", blobs_right, None, None, "files"),
    ]


def quantline(workspace: Workspace, *arguments: str) -> None:
    subprocess.run([QUANTLINE, *arguments], cwd=workspace.root, check=True)


def served(
    directory: Path, *, is_gguf: bool, log_path: Path
) -> AbstractContextManager[Future[Server]]:
    """Serve a pulled release: vLLM serves a directory, llama.cpp its GGUF file."""
    common: dict[str, Any] = {
        "name": directory.name,
        "context_tokens": CONTEXT_TOKENS,
        "port": None,
        "timeout_s": TIMEOUT_S,
        "log_path": log_path,
    }
    if not is_gguf:
        return vllm.serve(directory, kv_cache_bytes=KV_BYTES, **common)
    (file,) = directory.glob("*.gguf")
    return llama_cpp.serve(file, file_type="gguf", users=1, **common)


def chat(serving: AbstractContextManager[Future[Server]]) -> dict[str, Any]:
    """Ask the server the question; return its answer and the number of tokens of the prompt."""
    with serving as future:
        command: list[str | Path] = [SERVE_PYTHON, CHAT_CLIENT, future.result().url, QUESTION]
        answered = subprocess.run(command, env=dict(OFFLINE), capture_output=True, text=True)
    if answered.returncode:
        raise SystemExit(answered.stderr)
    said: dict[str, Any] = json.loads(answered.stdout)
    return said
