"""How long things took, in fixed buckets that add up: hours make days, hosts make a whole.

Bucket 0 holds up to 1 ms; each further one is 2^(1/3) = 1.26 times as wide as the one before; the last holds
everything above. So a percentile is off by 13 % at most, and less where it lies between counted neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SMALLEST_SECONDS = 0.001
PER_DOUBLING = 3
#: The last one begins at 52 s; a run takes 60 s at most.
BUCKETS = 48


def bucket(seconds: float) -> int:
    """The bucket in which a duration counts."""
    if seconds <= SMALLEST_SECONDS:
        return 0
    # A little over the edge is on it: the database keeps durations with seven digits.
    return min(max(math.ceil(PER_DOUBLING * math.log2(seconds / SMALLEST_SECONDS) - 1e-6), 0), BUCKETS - 1)


def upper(index: int) -> float:
    """The longest duration, in seconds, that a bucket holds (of the last one: as if it were like the others)."""
    return SMALLEST_SECONDS * 2 ** (index / PER_DOUBLING)


def percentile(histogram: Sequence[int], share: float) -> float | None:
    """The duration in seconds that this share (0 to 1) of all does not exceed; None of an empty histogram."""
    total = sum(histogram)
    if not total:
        return None
    wanted, below = max(share * total, 1e-9), 0
    for index, count in enumerate(histogram):
        if below + count >= wanted and count:
            low = upper(index - 1) if index else 0.0
            return low + (upper(index) - low) * (wanted - below) / count
        below += count
    return upper(len(histogram) - 1)
