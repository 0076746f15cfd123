"""Channels and select under random programs: whatever is cancelled, late or closed, no item is lost or doubled.

A program is a list of actors, each a list of steps, on two channels; one more fiber cancels actors and closes channels.
An item is the number of the step that puts it. A step either happened, and then its item was moved, or it did not.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fibers

CHANNELS = 2
EXAMPLES = max(200, int(10_000 * float(os.environ.get("FIBERS_SOAK", "0"))))

Case = tuple[int, bool]  # which channel; whether it puts
Step = tuple[list[Case], int | None, int]  # one of these within so many seconds, after a pause
Event = tuple[int, str, int]  # after a pause: what happens, and to which


cases = st.tuples(st.integers(0, CHANNELS - 1), st.booleans())
steps = st.tuples(st.lists(cases, min_size=1, max_size=3), st.none() | st.integers(0, 2), st.integers(0, 1))
programs = st.lists(st.lists(steps, min_size=1, max_size=4), min_size=2, max_size=6)
events = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["cancel", "close"]), st.integers(0, 5)), max_size=5)


class Program:
    """The channels, and what was moved as those saw it who moved it."""

    def __init__(self, capacities: list[int]) -> None:
        self.channels: list[fibers.Channel[int]] = [fibers.Channel(capacity) for capacity in capacities]
        self.put: list[list[int]] = [[] for _ in capacities]
        self.got: list[list[int]] = [[] for _ in capacities]
        self.items = 0

    def perform(self, step: Step) -> None:
        """Do one step: a plain call if it has one case, else a select."""
        wanted, timeout, pause = step
        if pause:
            fibers.sleep(pause)
        self.items += 1
        item = self.items
        number, value = 0, None
        which, puts = wanted[0]
        try:
            if len(wanted) > 1:
                number, value = fibers.select(*(self.case(case, item) for case in wanted), timeout=timeout)
            elif puts:
                self.channels[which].put(item, timeout)
            else:
                value = self.channels[which].get(timeout)
        except (TimeoutError, fibers.ChannelClosed):
            return
        which, puts = wanted[number]
        if puts:
            self.put[which].append(item)
        else:
            assert value is not None
            self.got[which].append(value)

    def case(self, case: Case, item: int) -> Any:
        """Make a case for select."""
        which, puts = case
        return (self.channels[which], "put", item) if puts else (self.channels[which], "get")

    def act(self, steps: list[Step]) -> None:
        """Be an actor."""
        for step in steps:
            self.perform(step)

    def check_nobody_waits_in_vain(self) -> None:
        """With everybody parked, no getter waits beside an item, nor beside another fiber that wants to put."""
        for channel in self.channels:
            getters = {waiter.fiber for waiter in channel._getters}
            putters = {waiter.fiber for waiter in channel._putters}
            assert not (getters and len(channel))
            assert not putters or len(channel) == channel._capacity
            assert not getters or not putters or getters == putters
            assert len(getters) <= 1 or not putters

    def check_nothing_is_lost(self) -> None:
        """Every item that was put was got once or is still there; nobody is left in a queue."""
        for channel, put, got in zip(self.channels, self.put, self.got, strict=True):
            assert not channel._getters
            assert not channel._putters
            channel.close()
            assert sorted(put) == sorted([*got, *channel])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    programs,
    events,
    st.lists(st.integers(0, 2), min_size=CHANNELS, max_size=CHANNELS),
    st.none() | st.integers(0, 2**32),
)
def test_i2_no_item_is_lost_or_doubled(
    scripts: list[list[Step]], events: list[Event], capacities: list[int], seed: int | None
) -> None:
    """Rules I1, I2 and I4, for Channel and select."""

    def main() -> None:
        program = Program(capacities)
        actors = [fibers.spawn(program.act, script) for script in scripts]

        def meddle() -> None:
            for pause, what, which in events:
                fibers.sleep(pause)
                if what == "cancel":
                    actors[which % len(actors)].cancel()
                else:
                    program.channels[which % CHANNELS].close()

        fibers.spawn(meddle).join()
        fibers.sleep(100)
        program.check_nobody_waits_in_vain()
        for actor in actors:
            actor.cancel()
            actor.join()
        program.check_nothing_is_lost()

    fibers.run(main, clock="auto", shuffle_seed=seed)
