"""Settings of the memory allocators: freed tensors go back to the system and to the GPU.

glibc keeps freed blocks of up to 32 MiB in its heap. Large matrices of many layers fragment this
heap, and resident memory grows with the number of layers although nothing is kept. Here blocks
above a fixed size are mapped one by one instead and unmapped when they are freed: M_MMAP_THRESHOLD
of https://man7.org/linux/man-pages/man3/mallopt.3.html. Smaller blocks, such as the activations of
a small model, stay in the heap while a layer runs, because the system clears every page that it
hands out again. The caller trims the heap between layers. C libraries other than glibc keep their
defaults.

On a GPU torch caches freed memory, where no other program can use it, until it is told to empty
the cache: https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
"""

import ctypes
import gc

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE_BLOCK_BYTES = 1 << 23
KEPT_FREE_BYTES = 1 << 26
C_LIBRARY = ctypes.CDLL(None)


def map_large_blocks() -> None:
    """Map large blocks one by one, from now on and for the whole process."""
    if hasattr(C_LIBRARY, "mallopt"):
        C_LIBRARY.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        C_LIBRARY.mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)


def release_free_memory() -> None:
    """Trim the heap: https://man7.org/linux/man-pages/man3/malloc_trim.3.html."""
    if hasattr(C_LIBRARY, "malloc_trim"):
        C_LIBRARY.malloc_trim(0)


def release_gpu_memory() -> None:
    """Empty torch's cache of freed memory on every GPU; do nothing without one.

    Call it after the last reference to a model or its activations is gone. Tensors that only a
    cycle of references keeps alive are collected first.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
