"""Convert checkpoints to GGUF files by llama.cpp's converter, quantize and read them.

llama.cpp's library quantizes. The format is described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Errors of variants are measured in
`pipeline.quantization.gguf_variant`.
"""

import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, LlamaFileType, ReaderTensor
from gguf.quants import dequantize
from llama_cpp._logger import llama_log_callback
from torch import Tensor

from pipeline.core.errors import FailureError, InputError, printable
from pipeline.core.process import run_program
from pipeline.gguf.bit_layouts import Bytes
from pipeline.gguf.convert import ConversionRequest
from pipeline.params.params import GgufType

CONVERTER_DIR = Path(sys.prefix) / "share" / "llama.cpp"
UNKNOWN_PRE_TOKENIZER = "BPE pre-tokenizer was not recognized"
# The last line of the converter's traceback: the exception and its message.
EXCEPTION = re.compile(r"^(\w+(?:Error|Exception))(?:: (.*))?$", re.MULTILINE)
# Exceptions of the machine; any other is about the model.
OF_THE_MACHINE = ("OSError", "PermissionError", "MemoryError", "ModuleNotFoundError")
UNKNOWN_TENSOR = re.compile(r"Can not map tensor '([\w.]+)'")

# The names that every file has for the embeddings and the output head.
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a memory-mapped file: its shape as in the checkpoint, and its GGML type."""

    name: str
    shape: tuple[int, ...]
    type: str
    bits_per_weight: float
    stored: ReaderTensor

    @property
    def num_bytes(self) -> int:
        return int(self.stored.n_bytes)

    def values(self) -> Tensor:
        """Read and dequantize the tensor, float32. Nothing is cached between calls."""
        return self.decoded(self.stored.data).view(self.shape)

    def decoded(self, rows: Bytes) -> Tensor:
        """Dequantize some of the tensor's stored rows, float32."""
        return torch.from_numpy(np.array(dequantize(rows, self.stored.tensor_type), np.float32))

    def rows(self) -> Bytes:
        """View the stored bytes as rows × bytes of a row; they are those of the file."""
        stored: Bytes = self.stored.data
        return stored.reshape(prod(self.shape[:-1]), -1)


def tool_versions() -> dict[str, str]:
    """Return the versions of the programs that write GGUF files."""
    return {"llama-cpp-python": version("llama-cpp-python")}


def convert(
    model_dir: Path,
    output_path: Path,
    *,
    model_name: str,
    pre_tokenizer: str | None,
    weight_names: tuple[str, ...],
    metadata: Mapping[str, str] | None = None,
    unused: tuple[str, ...] = (),
    copies: tuple[str, ...] = (),
) -> dict[str, str]:
    """Write the F16 GGUF of a checkpoint; return the GGUF name of every name in `weight_names`.

    `metadata` are `general.…` values of the file that replace those of the model card. `unused` are
    tensors that the model does not read; the file lacks those that llama.cpp has no place for, and
    all `copies` of other tensors.
    Raises InputError when the converter is not set up, does not know a tensor or does not recognise
    the tokenizer; FailureError with the converter's last lines when it fails otherwise.
    """
    work_dir = output_path.parent
    request = ConversionRequest(
        converter_dir=CONVERTER_DIR,
        model_dir=model_dir,
        output_path=output_path,
        model_name=model_name,
        pre_tokenizer=pre_tokenizer,
        names=weight_names,
        names_path=work_dir / "names.json",
        metadata=dict(metadata or {}),
        unused=unused,
        copies=copies,
        only_vocabulary=False,
    )
    _run_converter(request, work_dir)
    names: dict[str, str] = json.loads(request.names_path.read_bytes())
    return names


def require_convertible(
    model_dir: Path, *, pre_tokenizer: str | None, tensor_names: tuple[str, ...] = ()
) -> None:
    """Raise InputError where llama.cpp's converter does not take configuration and tokenizer.

    It is also raised where the converter leaves out one of `tensor_names`, which the model reads.
    `model_dir` has the small files of a checkpoint; its weights need not be there.
    """
    with TemporaryDirectory() as work:
        work_dir = Path(work)
        request = ConversionRequest(
            converter_dir=CONVERTER_DIR,
            model_dir=model_dir,
            output_path=work_dir / "vocabulary.gguf",
            model_name="",
            pre_tokenizer=pre_tokenizer,
            names=tensor_names,
            names_path=work_dir / "names.json",
            metadata={},
            unused=(),
            copies=(),
            only_vocabulary=True,
        )
        _run_converter(request, work_dir)


def _run_converter(request: ConversionRequest, work_dir: Path) -> None:
    """Run the converter; its request and its log are in `work_dir`.

    Raises InputError when it does not take the model, FailureError when it fails otherwise.
    """
    if not (CONVERTER_DIR / "conversion").is_dir():
        raise InputError(f"{CONVERTER_DIR}: llama.cpp's converter is not there; run `make setup`")
    request_path = work_dir / "request.json"
    request_path.write_bytes(request.to_bytes())
    log_path = work_dir / "convert.log"
    try:
        run_program(
            [sys.executable, "-m", "pipeline.gguf.convert", request_path],
            log_path=log_path,
            environment={"HF_HUB_OFFLINE": "1"},
        )
    except FailureError as error:
        log = log_path.read_text(errors="replace")
        if unknown := UNKNOWN_TENSOR.search(log):
            raise InputError(
                f"{unknown[1]}: llama.cpp has no such tensor in this architecture; use another "
                "format than gguf for this model"
            ) from error
        if UNKNOWN_PRE_TOKENIZER in log:
            raise InputError(
                f"model.gguf_pre_tokenizer = {request.pre_tokenizer}: llama.cpp's converter does "
                "not recognise this tokenizer by itself; state llama.cpp's name of its "
                "pre-tokenizer, such as gpt-2 for plain byte-level BPE"
            ) from error
        kind, reason = (EXCEPTION.findall(log) or [("", "")])[-1]
        if kind and kind not in OF_THE_MACHINE:
            reason = printable(reason.replace(f"{request.model_dir}/", ""))
            raise InputError(
                f"llama.cpp's converter does not take this model ({kind}: {reason}); add what it "
                "misses, or leave out variants of format gguf and set evaluate.controls to []"
            ) from error
        raise


def quantize(
    source_path: Path,
    output_path: Path,
    file_type: GgufType,
    importance: Mapping[str, Vector],
    types: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Quantize a GGUF file with llama.cpp, on all cores that this process may use.

    `types` has the GGML types of tensors that do not get those of `file_type`.

    Every row of a tensor is quantized independently, so the number of threads changes no byte.
    `importance` has, by GGUF tensor name, the mean of x² for each input channel (llama.cpp's
    imatrix), float32; it may be empty. Raises FailureError with llama.cpp's last lines.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = len(os.sched_getaffinity(0))
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    entries = _importance_entries(importance)
    if importance:
        parameters.imatrix = ctypes.cast(
            entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data)
        )
    overrides = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for override, (name, kind) in zip(overrides, types.items(), strict=False):
        override.pattern = f"^{re.escape(name)}$".encode()
        override.type = GGMLQuantizationType[kind]
    parameters.tt_overrides = overrides
    with captured_log() as lines:
        code = llama_cpp.llama_model_quantize(
            str(source_path).encode(), str(output_path).encode(), ctypes.byref(parameters)
        )
    if code != 0:
        free_mib = shutil.disk_usage(output_path.parent).free / 2**20
        last_words = " ".join(" | ".join(lines[-3:]).split())
        raise FailureError(
            f"llama.cpp could not write {file_type}: {last_words} "
            f"({free_mib:.0f} MiB of disk are free)"
        )


def state_file_type(path: Path, kind: str) -> None:
    """Let `general.file_type` say that most weights of a file have the GGML type `kind`."""
    members = LlamaFileType.__members__
    number = members.get(f"MOSTLY_{kind}") or members[f"MOSTLY_{kind}_M"]
    field = GGUFReader(path, "r+").get_field("general.file_type")
    assert field is not None
    field.parts[field.data[0]][0] = number


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect the lines that llama.cpp logs inside the block, instead of printing them."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, user_data: object) -> None:
        lines.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def _importance_entries(importance: Mapping[str, Vector]) -> ctypes.Array[ctypes.Structure]:
    """Make llama.cpp's array of names and vectors, which ends with an empty entry."""
    entries: ctypes.Array[ctypes.Structure] = (
        llama_cpp.llama_model_imatrix_data * (len(importance) + 1)
    )()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def read_tensors(path: Path, *, writable: bool = False) -> Iterator[GgufTensor]:
    """Yield every tensor of a GGUF file, in the order of the file.

    With `writable`, what is written into `rows()` goes into the file.
    """
    for tensor in GGUFReader(path, "r+" if writable else "r").tensors:
        block_weights, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        yield GgufTensor(
            name=tensor.name,
            shape=tuple(int(size) for size in reversed(tensor.shape)),
            type=tensor.tensor_type.name,
            bits_per_weight=8 * block_bytes / block_weights,
            stored=tensor,
        )
