"""quantline: from one FP16 checkpoint to quantized releases that people can trust.

In reading order:

domain/    types and pure rules: parameters, records of every file, licenses, gate, layout
numerics/  torch only, no files: second moments, grids, GPTQ, AWQ, bit layouts
adapters/  one module for each outside tool or format: hub, checkpoint, GGUF, lm-eval, vLLM, OCI
stages/    one module for each stage of the graph in dvc.yaml, each with one public `run`
verbs/     commands for operators beside the graph: plan, and what is done with releases
cli.py     one subcommand for each stage and verb

Imports run one way: cli, stages and verbs, adapters and numerics, domain.
"""
