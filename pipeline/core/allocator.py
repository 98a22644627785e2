"""Memory of freed tensors is given back, to the system and to the GPU.

glibc keeps freed blocks of up to 32 MiB in its heap, where layer after layer of large matrices
leaves holes: resident memory then grows with the number of layers though nothing is kept. Blocks
above a fixed size are mapped one by one instead, and unmapped when they are freed: M_MMAP_THRESHOLD
of https://man7.org/linux/man-pages/man3/mallopt.3.html. Smaller ones, as the activations of a small
model are, stay in the heap while a layer runs, since the system clears every page that it hands out
again; the holes that they leave go back between layers. Other C libraries are left as they are.

On a GPU torch keeps what was freed for itself, where no other program can have it, until it is told
to give it back: https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
"""

import ctypes
import gc

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE_BLOCK_BYTES = 1 << 23
KEPT_FREE_BYTES = 1 << 26
C_LIBRARY = ctypes.CDLL(None)


def map_large_blocks() -> None:
    """From now on, for the whole process."""
    if hasattr(C_LIBRARY, "mallopt"):
        C_LIBRARY.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        C_LIBRARY.mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)


def release_free_memory() -> None:
    """What is free now: https://man7.org/linux/man-pages/man3/malloc_trim.3.html."""
    if hasattr(C_LIBRARY, "malloc_trim"):
        C_LIBRARY.malloc_trim(0)


def release_gpu_memory() -> None:
    """Free what torch holds of every GPU without a tensor in it.

    Call it when the last reference to a model or its activations is gone; tensors that only a cycle
    of references keeps go first. Does nothing without a GPU.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
