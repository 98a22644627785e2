"""Run one quantizer of another project, as a program in the environment that belongs to it.

Run as `.venv-BACKEND/bin/python envs/peers/run_backend.py REQUEST.json`; the request is a
`BackendRequest` of pipeline/params/other_quantizers.py, whose package is not installed here. Each
function below calls one library as its documentation does, on exactly the calibration samples of
the request, and the library writes its own kind of checkpoint. A comment marks anything else that a
library needs to run. On a CPU the libraries compute in float32: half precision is emulated there,
many times slower.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Samples = list[list[int]]


def autoawq(request: Request, samples: Samples) -> None:
    import torch
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    recipe = request["recipe"]
    has_gpu = torch.cuda.is_available()
    model = AutoAWQForCausalLM.from_pretrained(
        request["model_dir"],
        # In float16 on a CPU a single layer takes minutes.
        torch_dtype=torch.float16 if has_gpu else torch.float32,
        device_map="auto" if has_gpu else "cpu",
        trust_remote_code=False,
    )
    in_layers = (
        module
        for name, module in model.model.named_modules()
        if ".layers." in name and isinstance(module, torch.nn.Linear)
    )
    model.quantize(
        AutoTokenizer.from_pretrained(request["model_dir"]),
        # Its clip search takes 64 outputs at a time and ends in an AssertionError on other numbers.
        apply_clip=all(linear.out_features % 64 == 0 for linear in in_layers),
        quant_config={
            "w_bit": recipe["num_bits"],
            "q_group_size": recipe["group_size"],
            "zero_point": True,
            "version": "GEMM",
        },
        calib_data=samples,
        max_calib_samples=len(samples),
        max_calib_seq_len=max(len(sample) for sample in samples),
    )
    model.save_quantized(request["output_dir"])


def masked(samples: Samples) -> list[dict[str, Any]]:
    """Make each sample a batch of one, with an attention mask of ones."""
    import torch

    return [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
        for ids in samples
    ]


def auto_gptq(request: Request, samples: Samples) -> None:
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    recipe = request["recipe"]
    config = BaseQuantizeConfig(
        bits=recipe["num_bits"],
        group_size=recipe["group_size"],
        sym=recipe["symmetric"],
        desc_act=False,
    )
    model = AutoGPTQForCausalLM.from_pretrained(request["model_dir"], config)
    model.quantize(masked(samples))
    model.save_quantized(request["output_dir"], use_safetensors=True)


def gptqmodel(request: Request, samples: Samples) -> None:
    import torch

    # Without a GPU it starts a worker for every 4 cores and none on fewer, then waits for one.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    recipe = request["recipe"]
    config = QuantizeConfig(
        bits=recipe["num_bits"],
        group_size=recipe["group_size"],
        sym=recipe["symmetric"],
        desc_act=False,
    )
    on_cpu = {} if torch.cuda.is_available() else {"device": "cpu", "dtype": torch.float32}
    model = GPTQModel.load(request["model_dir"], config, **on_cpu)
    model.quantize(masked(samples), batch_size=1)
    model.save(request["output_dir"])


def llmcompressor(request: Request, samples: Samples) -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    recipe = request["recipe"]
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        # AWQModifier pins memory for copies to an accelerator, which raises where there is none.
        IntermediatesCache.pin_memory = lambda *arguments, **options: None
    weights = {
        "num_bits": recipe["num_bits"],
        "type": "int",
        "symmetric": recipe["symmetric"],
        "strategy": "group",
        "group_size": recipe["group_size"],
    }
    scheme = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if recipe["algorithm"] == "awq":
        modifiers = [AWQModifier(), QuantizationModifier(**scheme)]
    else:
        modifiers = [GPTQModifier(**scheme)]
    model = AutoModelForCausalLM.from_pretrained(
        request["model_dir"], dtype="auto" if has_gpu else torch.float32
    )
    samples_by_key = {"input_ids": samples, "attention_mask": [[1] * len(ids) for ids in samples]}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(samples_by_key),
        recipe=modifiers,
        num_calibration_samples=len(samples),
        max_seq_length=max(len(ids) for ids in samples),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(request["output_dir"], save_compressed=True)


def auto_round(request: Request, samples: Samples) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = request["recipe"]
    has_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        request["model_dir"], dtype="auto" if has_gpu else torch.float32
    )
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(request["model_dir"]),
        bits=recipe["num_bits"],
        group_size=recipe["group_size"],
        sym=recipe["symmetric"],
        iters=recipe["iterations"],
        dataset=[torch.tensor([ids]) for ids in samples],
        nsamples=len(samples),
        seqlen=max(len(ids) for ids in samples),
        seed=request["seed"],
        device_map=0 if has_gpu else "cpu",
    )
    exports_dir = Path(request["output_dir"]).with_name("exports")
    tuner.quantize_and_save(str(exports_dir), format=f"auto_{recipe['format']}")
    # It chooses a directory below the one it is given, by a rule of its own.
    (config_path,) = exports_dir.rglob("config.json")
    config_path.parent.rename(request["output_dir"])


BACKENDS = {
    "autoawq": autoawq,
    "auto-gptq": auto_gptq,
    "gptqmodel": gptqmodel,
    "llmcompressor": llmcompressor,
    "auto-round": auto_round,
}


def main(request_path: str) -> None:
    request = json.loads(Path(request_path).read_text())
    samples = json.loads(Path(request["token_ids_path"]).read_text())
    name = request["recipe"]["backend"]
    import torch

    torch.manual_seed(request["seed"])
    BACKENDS[name](request, samples)
    versions = {package: version(package) for package in (name, "torch", "transformers")}
    Path(request["result_path"]).write_text(json.dumps({"versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1])
