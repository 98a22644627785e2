"""Large tensors are given back to the system when they are freed.

glibc keeps freed blocks of up to 32 MiB in its heap, where layer after layer of large matrices
leaves holes: resident memory then grows with the number of layers though nothing is kept. Blocks
above a fixed size are mapped one by one instead, and unmapped when they are freed: M_MMAP_THRESHOLD
of https://man7.org/linux/man-pages/man3/mallopt.3.html. Other C libraries are left as they are.
"""

import ctypes

M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 1 << 22


def map_large_blocks() -> None:
    """From now on, for the whole process."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
