"""Convert a checkpoint to GGUF by llama.cpp's converter, as a program in a process of its own.

Run as `python -m pipeline.gguf.convert REQUEST.json`, a `ConversionRequest`. The converter and the
gguf package that belongs to it come from the llama-cpp-python source distribution, because the
package index does not have them together. Only this process imports them. `pipeline.gguf.files`
starts it and reports its errors.
"""

import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.core.record import Record
from pipeline.core.transformers_library import load_transformers

GARBAGE_THRESHOLD = 50_000  # as in pipeline.cli: modules load faster
EXPERT = re.compile(r"\.experts\.\d+\.")


class ConversionRequest(Record):
    """The input of this program.

    `names` are weights of the checkpoint; their GGUF names are written to `names_path`. `metadata`
    are attributes of the converter's `gguf.Metadata`, by their names there. `unused` are tensors
    that the model does not read; those that llama.cpp has no place for are left out. `copies` equal
    another tensor and are left out. With `only_vocabulary` nothing is written: the converter is
    asked whether it can read configuration and tokenizer and takes the tensors `names`, and no
    weights need be there.
    """

    converter_dir: Path
    model_dir: Path
    output_path: Path
    model_name: str
    pre_tokenizer: str | None
    names: tuple[str, ...]
    names_path: Path
    metadata: dict[str, str]
    unused: tuple[str, ...]
    copies: tuple[str, ...]
    only_vocabulary: bool


def main(request_path: str) -> None:
    """Write the GGUF file and the names that the request asks for."""
    request = ConversionRequest.from_bytes(Path(request_path).read_bytes(), source=request_path)
    sys.path[:0] = [str(request.converter_dir), str(request.converter_dir / "gguf-py")]
    gc.set_threshold(GARBAGE_THRESHOLD)
    load_transformers()
    import conversion  # type: ignore[import-not-found]
    import gguf

    parameters = conversion.ModelBase.load_hparams(request.model_dir, False)
    architecture = conversion.get_model_architecture(parameters, conversion.ModelType.TEXT)
    model_class = conversion.get_model_class(architecture)
    filter_tensors, dropped = model_class.filter_tensors, set()

    def noted_filter(item: tuple[str, Any]) -> Any:
        kept = filter_tensors(item)
        if kept is None:
            dropped.add(item[0])
        return kept

    model_class.filter_tensors = staticmethod(noted_filter)
    model: Any = model_class(
        request.model_dir,
        gguf.LlamaFileType.MOSTLY_F16,
        request.output_path,
        model_name=request.model_name,
    )
    model = getattr(model, "impl", model)  # Mistral 3's class only chooses another, which converts
    if request.pre_tokenizer is not None:
        model.get_vocab_base_pre = lambda tokenizer: request.pre_tokenizer
    set_own_vocabulary = model.set_vocab

    def set_vocabulary() -> None:
        try:
            set_own_vocabulary()
        except (FileNotFoundError, ValueError):
            # Some architectures ask for tokenizer.model even where tokenizer.json says all of it.
            if (request.model_dir / "tokenizer.model").is_file() or not is_byte_level(
                request.model_dir
            ):
                raise
            model._set_vocab_gpt2()

    model.set_vocab = set_vocabulary
    # Where no weights are there, none was filtered, and Mistral 3's other class filters unnoted.
    dropped.update(
        name for name in request.names if model.filter_tensors((name, lambda: None)) is None
    )
    needed = dropped.difference(request.unused, request.copies)
    if needed:
        raise ValueError(f"it leaves out {min(needed)}, which the model reads")
    if request.only_vocabulary:
        model.set_vocab()
        return
    for name in (of_text_model(model, unused) for unused in request.unused):
        if name in model.model_tensors and not _has_place(model, name):
            del model.model_tensors[name]
    for copied in request.copies:
        model.model_tensors.pop(of_text_model(model, copied), None)
    read_metadata = gguf.Metadata.load

    def stated_metadata(*arguments: Any) -> Any:
        try:
            metadata = read_metadata(*arguments)
        except Exception:  # of a model card that is no valid YAML, or has other values than a card
            gguf.Metadata.load_model_card = staticmethod(lambda _: {})
            metadata = read_metadata(*arguments)
        for name, value in request.metadata.items():
            setattr(metadata, name, value)
        return metadata

    # The converter also takes a file of overrides, but ignores general.license in it.
    gguf.Metadata.load = staticmethod(stated_metadata)
    model.write()
    # In GGUF all experts of a layer are one tensor; its name is mapped without expert numbers.
    names = {
        name: model.map_tensor_name(EXPERT.sub(".experts.", of_text_model(model, name)))
        for name in request.names
    }
    request.names_path.write_text(json.dumps(names))


def of_text_model(model: Any, name: str) -> str:
    """Return the name of a weight without the part of a model that it is in."""
    renamed = model.filter_tensors((name, lambda: None))
    return name if renamed is None else str(renamed[0])


def is_byte_level(model_dir: Path) -> bool:
    """Tell whether tokenizer.json is byte-level BPE, as GPT-2's, which the file alone defines."""
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        return False
    tokenizer = json.loads(path.read_bytes())
    parts = [tokenizer.get("pre_tokenizer") or {}]
    parts += parts[0].get("pretokenizers", [])
    is_bpe = (tokenizer.get("model") or {}).get("type") == "BPE"
    return is_bpe and any(part.get("type") == "ByteLevel" for part in parts)


def _has_place(model: Any, name: str) -> bool:
    try:
        model.map_tensor_name(name)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
