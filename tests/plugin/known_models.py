"""Runs in the serving environment: prints the architectures that vLLM has, as JSON."""

import json

from vllm.model_executor.models.registry import ModelRegistry

if __name__ == "__main__":
    print(json.dumps(sorted(ModelRegistry.get_supported_archs())), flush=True)
