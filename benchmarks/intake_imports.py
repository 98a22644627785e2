"""What `plan` and `fetch` import, and compute once in a process: forks need not do so again."""

import gc
from importlib import import_module

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from pipeline.licensing.rules import license_rules

for name in (
    "pipeline.commands",
    "pipeline.stages.calibrate",
    "pipeline.stages.fetch",
    "pipeline.verbs.plan",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
):
    import_module(name)
license_rules()
get_checkpoint_conversion_mapping("llama")
gc.collect()
gc.freeze()  # else every fork would copy the memory of all objects when it looks for garbage
