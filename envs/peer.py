"""Set up the environment of another quantizer: `python envs/peer.py gptqmodel`.

Called by quantline when a variant first names that backend, with any Python 3.11 or newer and
nothing else installed. It does for one list of `envs/peers/` what `envs/setup.py` does for the two
environments that everybody needs, and stands apart from it so that a change here makes nobody
rebuild those.
"""

import sys
from pathlib import Path

from setup import ENVS_DIR, ROOT, Environment, nvidia_gpu_answers, set_up, stop

PEERS_DIR = ENVS_DIR / "peers"
NEEDS_GPU = ("auto-gptq",)
USUAL_MINUTES = 5


def environment_of(name: str) -> Environment:
    """`.venv-NAME`, made from `envs/peers/NAME.txt`."""
    return Environment(
        ROOT / f".venv-{name}", PEERS_DIR / f"{name}.txt", USUAL_MINUTES, (Path(__file__),)
    )


def main(arguments: list[str]) -> None:
    known = sorted(path.stem for path in PEERS_DIR.glob("*.txt"))
    if len(arguments) != 1 or arguments[0] not in known:
        stop(f"{' '.join(arguments) or 'nothing named'}: expected one of {', '.join(known)}")
    (name,) = arguments
    has_gpu = nvidia_gpu_answers()
    if name in NEEDS_GPU and not has_gpu:
        stop(f"{name}: needs an NVIDIA GPU, and `nvidia-smi` finds none")
    set_up(environment_of(name), has_gpu=has_gpu, finish=lambda environment: None)


if __name__ == "__main__":
    main(sys.argv[1:])
