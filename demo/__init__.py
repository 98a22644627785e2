"""The built-in demo: an invented world, the small model trained on it, and their data.

Reading order: `lexicon` (words), `people` (facts), `tales` and `arithmetic` (the other two kinds
of knowledge), `world` (documents, questions and every data file), `tokenizer`, `train`.

It exists so that the whole pipeline runs on a machine without a hub, on a model whose damage by
quantization can be seen. It is no part of the pipeline: nothing under `pipeline/` imports it.
"""
