"""Set up the environment of another quantizer: `python envs/peer.py gptqmodel`.

quantline runs it when a variant first names that backend, with any Python 3.11 or newer and nothing
else installed. It makes the environment of one list in `envs/peers/`. It is a file of its own, so
that a change here does not renew the two environments of `envs/setup.py`.
"""

import sys
from pathlib import Path

from environment import ENVS_DIR, ROOT, Environment
from setup import nvidia_gpu_answers, set_up_all, stop, torch_list

PEERS_DIR = ENVS_DIR / "peers"
NEEDS_GPU = ("auto-gptq",)


def environment_of(name: str, *, has_gpu: bool) -> Environment:
    """Return `.venv-NAME`, made from `envs/peers/NAME.txt`."""
    pins_path = PEERS_DIR / f"{name}.txt"
    return Environment(
        ROOT / f".venv-{name}", torch_list(has_gpu=has_gpu), pins_path, (Path(__file__),)
    )


def main(arguments: list[str]) -> None:
    known = sorted(path.stem for path in PEERS_DIR.glob("*.txt"))
    if len(arguments) != 1 or arguments[0] not in known:
        stop(f"{' '.join(arguments) or 'nothing named'}: expected one of {', '.join(known)}")
    (name,) = arguments
    has_gpu = nvidia_gpu_answers()
    if name in NEEDS_GPU and not has_gpu:
        stop(f"{name}: needs an NVIDIA GPU, and `nvidia-smi` finds none")
    set_up_all({environment_of(name, has_gpu=has_gpu): None})


if __name__ == "__main__":
    main(sys.argv[1:])
