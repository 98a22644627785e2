"""Large tensors are given back to the system when they are freed.

glibc keeps freed blocks of up to 32 MiB in its heap, where layer after layer of large matrices
leaves holes: resident memory then grows with the number of layers though nothing is kept. Blocks
above a fixed size are mapped one by one instead, and unmapped when they are freed: M_MMAP_THRESHOLD
of https://man7.org/linux/man-pages/man3/mallopt.3.html. Smaller ones, which the activations of a
small model are, are used again: what is free at the heap's end stays, up to M_TRIM_THRESHOLD, as
every page that comes back from the system is cleared first. Other C libraries are left as they are.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE_BLOCK_BYTES = 1 << 23
KEPT_FREE_BYTES = 1 << 26


def map_large_blocks() -> None:
    """From now on, for the whole process."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
