"""quantline: from one FP16 checkpoint to quantized releases that people can trust.

Packages by floor. Imports go down; pyproject.toml has the rules.

cli.py commands.py cli_app.py   the command line: one command for each stage and verb
stages/         one module for each stage of the graph in dvc.yaml, each with one public `run`
verbs/          one module for each command beside the graph: plan, and what is done with releases

quantization/   from weights and statistics to the files of a variant
evaluation/     scoring the base and variants on tasks and held-out text
serving/        servers under load, and what they measure
release/        the package of a variant: card, notice, bill of materials, provenance, signature
planning/       predictions of memory, disk and time, and refusals of what cannot fit

calibration/    from text to the second moments of every linear input
engines/        transformers, vLLM and llama.cpp as scorers of token ids
intake/         the examination of a checkpoint: what is odd is mended or refused
sources/        checkpoints and data sets of a hub or a directory
licensing/      which license applies, and what it demands
ollama/         Modelfiles and chat templates
report/         the page that a run ends with

checkpoint/     reading, checking and unpacking checkpoints in safetensors
gate/           verdicts on variants: exact tests, bounds, sequential looks, profiles
economics/      what serving costs
registry/       releases in a registry: contents, evidence, aliases, pulls

numerics/       torch only, no files: second moments, grids, GPTQ, AWQ, alignment, bit layouts
gguf/           writing and reading GGUF files by llama.cpp
tasks/          loading tasks of lm-eval, and their texts
oci/            the registry protocol, image layouts and archives
records/        what stages leave for each other, one module for each file

params/         what people write: params.yaml, suites and prices
architectures/  how decoder layers are named and what may be folded in them

core/           errors, files, data files, records, processes, progress, paths of the workspace

gate, economics, report, records, params and architectures are pure: they load no tensors, no
network and no other library's models or tasks.
"""
