"""Which calls go wrong, and how: chosen one by one, or at random from a seed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

import attrs

from aiobaseten.errors import ConfigurationError
from aiobaseten.local.calls import CALLS, Call
from aiobaseten.local.faults import COMMON, AnyFault, Common, DialFault, Fault
from aiobaseten.options import is_finite_number


@attrs.frozen(kw_only=True)
class Struck:
    """A fault that has happened.

    :param part_number: of an UploadPart
    """

    call: Call
    fault: AnyFault
    part_number: int | None = None


@attrs.define(kw_only=True)
class _Rule:
    call: Call
    fault: AnyFault
    skip: int
    left: int | None
    part_number: int | None

    def applies(self, call: Call, part_number: int | None) -> bool:
        """Whether it is its turn. Counts the calls that it lets pass."""
        if call != self.call or self.part_number not in (None, part_number) or self.left == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True


@attrs.define(kw_only=True)
class _Chance:
    """Faults at random."""

    rate: float
    kinds: Sequence[Common]
    random: random.Random

    def draw(self, call: Call, before_connecting: bool) -> AnyFault | None:
        """A fault of those that happen here. What has passed the first place meets the second at what is left of the rate."""
        possible = [kind.fault for kind in self.kinds if call in kind.calls]
        here = [fault for fault in possible if isinstance(fault, DialFault) == before_connecting]
        if not here:
            return None
        share = len(here) / len(possible)
        rate = self.rate * share if before_connecting else self.rate * share / (1 - self.rate * (1 - share))
        return self.random.choice(here) if self.random.random() < rate else None


class FaultPlan:
    """The faults to come and those that were. Calls are told to it by the proxies and, before they connect, by the clients."""

    def __init__(self) -> None:
        self.calls: Counter[Call] = Counter()
        self.struck: list[Struck] = []
        self._rules: list[_Rule] = []
        self._chance: _Chance | None = None
        self._lock = threading.Lock()

    def inject(self, call: Call, fault: AnyFault, *, times: int | None = 1, skip: int = 0, part_number: int | None = None) -> None:
        """See `FaultyStack.inject`."""
        if call not in CALLS:
            raise ConfigurationError(f"call must be one of {', '.join(CALLS)}, not {call!r}")
        is_value = not isinstance(cast("object", fault), type)
        if not is_value or not (isinstance(fault, DialFault) or hasattr(fault, "strike")):
            raise ConfigurationError(f"fault must be one of aiobaseten.local.faults, such as faults.slow_down(), not {fault!r}")
        if times is not None and not _is_count(times, at_least=1):
            raise ConfigurationError(f"times must be a whole number of at least 1, or None for ever, not {times!r}")
        if not _is_count(skip, at_least=0):
            raise ConfigurationError(f"skip must be a whole number of at least 0, not {skip!r}")
        if part_number is not None and call != "UploadPart":
            raise ConfigurationError(f"part_number goes with the call UploadPart, not {call}")
        if part_number is not None and not _is_count(part_number, at_least=1):
            raise ConfigurationError(f"part_number must be a whole number of at least 1, not {part_number!r}")
        with self._lock:
            self._rules.append(_Rule(call=call, fault=fault, skip=skip, left=times, part_number=part_number))

    def inject_randomly(self, rate: float, *, seed: int, kinds: Iterable[str] = COMMON) -> None:
        """See `FaultyStack.inject_randomly`."""
        if not is_finite_number(rate) or not 0 <= rate <= 1:
            raise ConfigurationError(f"rate must be a number from 0 to 1, not {rate!r}")
        if isinstance(kinds, str):
            raise ConfigurationError(f"kinds must be several names of faults.COMMON, not the text {kinds!r}")
        kinds = tuple(kinds)
        if unknown := sorted(set(kinds) - COMMON.keys()):
            raise ConfigurationError(f"kinds must be of faults.COMMON, which has no {', '.join(unknown)}")
        draws = random.Random(seed)  # noqa: S311  # nosec B311  # the same faults for the same seed
        with self._lock:
            self._chance = _Chance(rate=rate, kinds=[COMMON[kind] for kind in kinds], random=draws)

    def clear(self) -> None:
        """Nothing goes wrong from now on."""
        with self._lock:
            self._rules.clear()
            self._chance = None

    @property
    def pending(self) -> tuple[AnyFault, ...]:
        """See `FaultyStack.pending`."""
        with self._lock:
            return tuple(rule.fault for rule in self._rules if rule.left is not None and rule.left > 0)

    def before_connecting(self, call: Call, part_number: int | None) -> DialFault | None:
        """What keeps a call from being sent."""
        fault = self._next(call, part_number, before_connecting=True)
        assert fault is None or isinstance(fault, DialFault)
        return fault

    def on_arrival(self, call: Call, part_number: int | None) -> Fault | None:
        """What happens to a call that has come."""
        fault = self._next(call, part_number, before_connecting=False)
        assert not isinstance(fault, DialFault)
        return fault

    def _next(self, call: Call, part_number: int | None, *, before_connecting: bool) -> AnyFault | None:
        with self._lock:
            fault = self._planned(call, part_number, before_connecting)
            if fault is None and self._chance is not None:
                fault = self._chance.draw(call, before_connecting)
            if fault is not None or not before_connecting:
                self.calls[call] += 1
            if fault is not None:
                self.struck.append(Struck(call=call, fault=fault, part_number=part_number))
            return fault

    def _planned(self, call: Call, part_number: int | None, before_connecting: bool) -> AnyFault | None:
        for rule in self._rules:
            if isinstance(rule.fault, DialFault) == before_connecting and rule.applies(call, part_number):
                return rule.fault
        return None


def _is_count(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least
