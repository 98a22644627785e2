"""How large the parts of an upload are: as large as the registry takes, learned from its answers.

Registries state no limit, and differ: GHCR takes at most 4 MiB, Amazon's at least 5 MiB and at most
10 MiB, Azure's 20 MB, others as much as one sends. So the first part has 5 MiB, every part that is
taken makes the next one larger, and one that is refused makes all later ones smaller. What is sent
in vain is one part for each limit that is met, once for each registry.
"""

from typing import Final

PART_SIZES: Final = tuple(mib << 20 for mib in (1, 2, 4, 5, 10, 16, 32))
FIRST_PART_BYTES: Final = 5 << 20


class PartSizes:
    """What one registry takes at once: `bytes` in the next part. Threads may share it.

    `are_taken` turns False when the registry takes no parts at all.
    """

    def __init__(self) -> None:
        self.bytes = FIRST_PART_BYTES
        self.are_taken = True
        self._limit = PART_SIZES[-1]
        self._broken = 0

    def are_needed_for(self, size: int) -> bool:
        """Whether a blob of `size` bytes is sent in parts; small ones go in one request."""
        return self.are_taken and size > min(self.bytes, FIRST_PART_BYTES)

    def taken(self, count: int) -> None:
        """Let the next part be larger than the `count` bytes that were taken."""
        self._broken = 0
        larger = (size for size in PART_SIZES if count < size <= self._limit)
        self.bytes = max(self.bytes, next(larger, 0))

    def refused(self, count: int) -> bool:
        """Keep all parts below `count` bytes from now on; False when there is no smaller size."""
        smaller = [size for size in PART_SIZES if size < count]
        if not smaller:
            return False
        self._limit = min(self._limit, smaller[-1])
        self.bytes = min(self.bytes, self._limit)
        return True

    def broke_connection(self, count: int) -> None:
        """Send smaller parts after one of `count` bytes broke the connection.

        Some registries hang up on large parts. Up to the first size the line may be bad instead,
        so that a second break is waited for: Amazon's takes nothing smaller.
        """
        if count > FIRST_PART_BYTES or count == self._broken:
            self.refused(count)
        self._broken = count

    def go_on_with(self, count: int) -> None:
        """Let the next part have `count` bytes, which the registry is known to take, or fewer."""
        self.bytes = min(count, FIRST_PART_BYTES, self._limit)
