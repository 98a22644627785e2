"""Add programs and kernels of quantline to its serving environment.

- `plugin`: registers the kernels below with vLLM, on CPUs where vLLM has none
- `kernels`: linear layers with weights of 4 and 8 bits on any CPU
- `native`: compiles and calls `int4.cpp`, the product that most of them use
- `server`: runs vLLM's HTTP server, which starts faster on two cores
- `bench`: runs `vllm bench serve` as a service
- `energy`: reads the machine's own counters of energy
- `score`: scores token ids with a checkpoint in vLLM
- `llama_server`: runs llama.cpp's HTTP server on one GGUF file

It is a distribution of its own, because it is installed in another environment than the pipeline
and shares no code with it.
"""
