"""The bandwidth limit that all uploads of a client share.

A schedule, not a bucket: whoever wants to send reserves the next free stretch of time, as long as its bytes take at the limit, and
is told how long to wait until it begins. So the order is first come first served, nobody polls, and nothing has to be corrected
later. Used by the threads that write bodies, slice by slice.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from aiobaseten.errors import ConfigurationError
from aiobaseten.options import KiB, is_finite_number

BURST_S = 0.05
"""How far behind its schedule sending may be and still catch up: timers and threads wake late."""
SLICE_S = 0.1
"""What a slice takes at the limit, as far as its bounds allow. Ten seconds then are at least a hundred slices: 1 % each."""
SMALLEST_SLICE_BYTES = 1 * KiB
LARGEST_SLICE_BYTES = 256 * KiB


class BandwidthLimit:
    """At most `bytes_per_s` over all who reserve here, from any thread.

    In any stretch of t seconds, what begins to be sent is at most ``bytes_per_s * (t + BURST_S)`` and one slice; time in which
    nobody sends is lost but for that burst. Nothing can be given back: bytes that were reserved and never sent, a slice of each
    connection that was cancelled, stay paid for. The time after them is promised to others already: to give theirs out twice would
    make a burst, and to move all forward would need them to wait in here.

    :param bytes_per_s: the limit, above 0
    :param monotonic: the clock, in seconds
    :raises ConfigurationError: when the limit is not a finite number above 0
    """

    def __init__(self, bytes_per_s: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        if not is_finite_number(bytes_per_s) or bytes_per_s <= 0:
            raise ConfigurationError(f"bytes_per_s must be a finite number above 0, not {bytes_per_s!r}")
        self._bytes_per_s = bytes_per_s
        self._monotonic = monotonic
        self._free_s = -math.inf
        self._lock = threading.Lock()

    @property
    def slice_bytes(self) -> int:
        """The most to reserve at once: a tenth of a second's worth, from 1 KiB to 256 KiB. More makes the flow jerky."""
        return int(min(LARGEST_SLICE_BYTES, max(SMALLEST_SLICE_BYTES, self._bytes_per_s * SLICE_S)))

    def reserve(self, size_bytes: int) -> float:
        """Take the next free time for so many bytes. Returns how many seconds to wait before they are sent, 0.0 for at once.

        :raises ValueError: when `size_bytes` is negative
        """
        if size_bytes < 0:
            raise ValueError(f"size_bytes must not be negative, and is {size_bytes}")
        with self._lock:
            now_s = self._monotonic()
            begins_s = max(now_s - BURST_S, self._free_s)
            self._free_s = begins_s + size_bytes / self._bytes_per_s
        return max(0.0, begins_s - now_s)
