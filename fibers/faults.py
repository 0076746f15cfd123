"""Faults: what goes wrong in a simulated run, and how often."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["CHANCES", "FAULTS", "Faults"]

# Faults of the driver by their names here, in the order of enum fb_fault (sim.h).
FAULTS = (
    "short_reads",
    "short_writes",
    "delays",
    "late_cancels",
    "lost_cancels",
    "no_buffers",
    "no_descriptors",
    "lost_connections",
    "refused",
    "half_open",
    "slow_peers",
)


@dataclasses.dataclass(frozen=True, repr=False)
class Faults:
    """What goes wrong, and how often: chances from 0 to 1, times in seconds.

    The defaults disturb only what a correct program need not notice: latency, short reads and writes, completions in
    another order or late, cancels that lose their race, slow peers. The rest ends in errors that a program has to
    handle, and is off by default; Faults.all() turns everything on.

    `latency` and `spread`: what is sent to another host arrives after latency to latency + spread, in order.
    `slow_peers`: a connection carries `slow_rate` bytes a second. `window`: bytes that a connection holds before a
    sender has to wait. `late`: how late a delayed completion or cancel is at most. `shuffled`: fibers and completions
    that are ready run in random order.
    `lost_connections`: at a send the connection is reset, and what was on its way is lost. `refused`: a connect is
    refused. `half_open`: the client is connected, the server never hears of it. `no_descriptors`: EMFILE for a new
    socket. `failed_lookups`: a name can't be resolved for now. Within a host there is no latency and no connection is
    lost.
    """

    latency: float = 0.001
    spread: float = 0.01
    slow_rate: int = 10_000
    window: int = 65536
    late: float = 0.01
    shuffled: bool = True
    short_reads: float = 0.2
    short_writes: float = 0.2
    delays: float = 0.1
    late_cancels: float = 0.2
    no_buffers: float = 0.05
    slow_peers: float = 0.05
    lost_connections: float = 0.0
    refused: float = 0.0
    half_open: float = 0.0
    no_descriptors: float = 0.0
    failed_lookups: float = 0.0

    def __post_init__(self) -> None:
        """Check the values: ValueError."""
        for name in CHANCES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance, from 0 to 1, got {getattr(self, name)!r}")
        for name in ("latency", "spread", "late"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} is a time in seconds, got {getattr(self, name)!r}")
        for name in ("slow_rate", "window"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")

    def __repr__(self) -> str:
        """Tell what differs from the defaults."""
        changed = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return f"Faults({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    @classmethod
    def none(cls, **changes: Any) -> Faults:
        """Make a network without faults but those named: a latency of 1 ms, everything in order."""
        chances: dict[str, Any] = dict.fromkeys(CHANCES, 0.0)
        return cls(**{"spread": 0.0, "shuffled": False, **chances, **changes})

    @classmethod
    def all(cls, chance: float = 0.02) -> Faults:
        """Make a network in which everything goes wrong; `chance` is that of what ends in errors."""
        errors = ("lost_connections", "refused", "half_open", "no_descriptors", "failed_lookups")
        chances: dict[str, Any] = dict.fromkeys(errors, chance)
        return cls(**chances)


# Lost cancels follow from delays and late cancels.
CHANCES = tuple(name for name in (*FAULTS, "failed_lookups") if name != "lost_cancels")
