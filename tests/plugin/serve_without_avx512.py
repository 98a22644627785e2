"""vLLM's server as a CPU without AVX-512 would run it; takes the server's own arguments.

vLLM chooses the library of its CPU operators by asking PyTorch for AVX-512. The answer is replaced
at the top of this module, because vLLM's other processes import it again when they start.
"""

import torch

torch.cpu._is_avx512_supported = lambda: False
torch.cpu._is_avx512_bf16_supported = lambda: False

if __name__ == "__main__":
    from quantline_vllm.server import main

    main()
