"""Read the held-out text and cut it into windows of the base's tokens.

No model is needed for it, so that a text that is too short is found before anything heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.documents import read_texts
from pipeline.core.errors import InputError
from pipeline.core.files import file_sha256
from pipeline.core.texts import token_ids_sha256, token_windows
from pipeline.params.params import EvaluateParams

MIN_WINDOWS = 2


@dataclass(frozen=True)
class HeldOut:
    """Hold the held-out text, and its windows of the base's token ids."""

    texts: list[str]
    windows: list[list[int]]
    text_sha256: str
    token_ids_sha256: str

    @property
    def num_tokens(self) -> int:
        return sum(len(window) - 1 for window in self.windows)


def read_held_out(root: Path, evaluate: EvaluateParams, tokenizer: Any) -> HeldOut:
    """Read and cut the held-out text. Raises InputError when it is unusable or too short."""
    if evaluate.num_windows < MIN_WINDOWS:
        raise InputError(
            f"evaluate.num_windows = {evaluate.num_windows}: expected at least {MIN_WINDOWS}, for "
            "a confidence interval"
        )
    path = root / evaluate.text
    texts = read_texts(path)
    windows = token_windows(
        texts,
        tokenizer.encode,
        window_tokens=evaluate.window_tokens,
        num_windows=evaluate.num_windows,
        source=f"evaluate.text = {evaluate.text}",
    )
    return HeldOut(texts, windows, file_sha256(path), token_ids_sha256(windows))
