"""A program of its own: llama.cpp's converter, driven with what quantline states explicitly.

Run as `python -m pipeline.gguf.convert REQUEST.json`, a `ConversionRequest`. The converter
and the gguf package that belongs to it are not on the package index together; both come from the
llama-cpp-python source distribution and are only ever imported here, in this process.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.core.record import Record

EXPERT = re.compile(r"\.experts\.\d+\.")


class ConversionRequest(Record):
    """`names` are weights of the checkpoint whose GGUF names are wanted in `names_path`.

    `metadata` are attributes of the converter's `gguf.Metadata`, by their names there.
    """

    converter_dir: Path
    model_dir: Path
    output_path: Path
    model_name: str
    pre_tokenizer: str | None
    names: tuple[str, ...]
    names_path: Path
    metadata: dict[str, str]


def main(request_path: str) -> None:
    request = ConversionRequest.from_bytes(Path(request_path).read_bytes(), source=request_path)
    sys.path[:0] = [str(request.converter_dir), str(request.converter_dir / "gguf-py")]
    import conversion  # type: ignore[import-not-found]
    import gguf

    parameters = conversion.ModelBase.load_hparams(request.model_dir, False)
    architecture = conversion.get_model_architecture(parameters, conversion.ModelType.TEXT)
    model: Any = conversion.get_model_class(architecture)(
        request.model_dir,
        gguf.LlamaFileType.MOSTLY_F16,
        request.output_path,
        model_name=request.model_name,
    )
    if request.pre_tokenizer is not None:
        model.get_vocab_base_pre = lambda tokenizer: request.pre_tokenizer
    read_metadata = gguf.Metadata.load

    def stated_metadata(*arguments: Any) -> Any:
        metadata = read_metadata(*arguments)
        for name, value in request.metadata.items():
            setattr(metadata, name, value)
        return metadata

    # The converter's own way, a file of overrides, leaves out general.license.
    gguf.Metadata.load = staticmethod(stated_metadata)
    model.write()
    # All experts of a layer are one tensor there, which the names of single ones do not say.
    names = {it: model.map_tensor_name(EXPERT.sub(".experts.", it)) for it in request.names}
    request.names_path.write_text(json.dumps(names))


if __name__ == "__main__":
    main(sys.argv[1])
