"""Random trees of fibers, step by step beside a model of semantics.md (tree_model.py).

One run of hypothesis' state machine lives inside one fibers.run(), in its main fiber, under the virtual clock and a
random ready order. Every rule gives one command, lets the run come to rest, and compares everything that shows.
`make test` tries a few hundred trees; `make soak` 10,000.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from tree_model import (
    CANCELLED,
    KINDS,
    MOVE_ON,
    SCOPE,
    SHIELD,
    SUPERVISOR,
    TIMEOUT,
    Model,
    ModelFiber,
    ModelScope,
    Puppet,
    Tokens,
)

import fibers

EXAMPLES = max(300, int(10_000 * float(os.environ.get("FIBERS_SOAK", "0.01"))))
TICK = 2.0**-20  # no two moments of an example are equal, and all are exact
pick = st.integers(min_value=0, max_value=1_000_000)
seconds = st.integers(min_value=0, max_value=5)


def ignore(_fiber: object, _error: BaseException) -> None:
    """Take a failure of a child of a supervisor."""


class Trees(RuleBasedStateMachine):
    """The commands. A rule that finds nobody to command does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.tokens = Tokens()
        self.puppets: dict[ModelFiber, Puppet] = {}
        self.real_scopes: dict[ModelScope, fibers.Scope] = {}
        self.moments = 0
        self.items = 0
        self.base = fibers.now()
        self.locks = [fibers.Lock() for _ in self.model.locks]
        self.channels: list[Any] = [fibers.Channel(channel.capacity) for channel in self.model.channels]
        self.arena = fibers.supervisor(ignore)
        self.arena.__enter__()
        self.real_scopes[self.model.arena] = self.arena
        for _ in range(2):
            self.start(self.model.arena, daemon=False)
        self.rest()

    # Helpers

    def moment(self, after: int) -> float:
        """A time of the model `after` seconds from now that nothing else has."""
        self.moments += 1
        return int(self.model.now) + after + self.moments * TICK

    def rest(self) -> None:
        """Let the run come to rest: the clock does not move on before nothing can run."""
        with fibers.shield():  # main is in the arena itself
            fibers.sleep(1e-9)

    def start(self, nursery: ModelScope, *, daemon: bool) -> None:
        twin = self.model.spawn(nursery, daemon=daemon)
        scope = self.real_scopes[nursery]
        spawn = scope.daemon if daemon else scope.spawn
        if twin is None:
            with pytest.raises(RuntimeError):
                spawn(ignore, None, None)
            return
        puppet = Puppet(twin, self.tokens)
        puppet.fiber = spawn(puppet.body)
        self.puppets[twin] = puppet
        self.rest()
        self.real_scopes[twin.stack[0]] = puppet.stack[0]

    def idle(self, which: int) -> Puppet | None:
        """One of the puppets that wait for a command; if there is none, time passes until there may be."""
        for _ in range(3):
            free = [self.puppets[twin] for twin in self.model.fibers if not twin.done and twin.waits is None]
            if free:
                return free[which % len(free)]
            self.pass_time(2)
        return None

    def pass_time(self, after: int) -> None:
        target = self.moment(after)
        fibers.sleep_until(self.base + target)
        self.model.advance(target)
        self.check()

    # The rules: spawn, cancel, timeout, shield, fail, sleep, lock, channel

    @rule(who=pick, daemon=st.booleans())
    def spawn(self, who: int, daemon: bool) -> None:
        open_scopes = [scope for scope in self.model.scopes if scope.state != "closed"] or [self.model.arena]
        if len([twin for twin in self.model.fibers if not twin.done]) < 8:
            self.start(open_scopes[who % len(open_scopes)], daemon=daemon)
        self.check()

    @rule(who=pick, kind=st.sampled_from((*KINDS, TIMEOUT, TIMEOUT, MOVE_ON)), limit=st.none() | seconds)
    def enter(self, who: int, kind: str, limit: int | None) -> None:
        puppet = self.idle(who)
        if puppet is None or len(puppet.twin.stack) > 4:
            return
        timed = kind in (TIMEOUT, MOVE_ON) and limit is not None
        at = self.moment(limit) if timed and limit else self.model.now if timed else None
        scope = {
            SCOPE: fibers.scope,
            SHIELD: fibers.shield,
            SUPERVISOR: lambda: fibers.supervisor(ignore),
            TIMEOUT: lambda: fibers.timeout(deadline=None if at is None else self.base + at),
            MOVE_ON: lambda: fibers.move_on_after(deadline=None if at is None else self.base + at),
        }[kind]()
        twin = self.model.enter(puppet.twin, kind, at)
        self.real_scopes[twin] = scope
        puppet.tell("enter", scope, twin.number)
        self.check()

    @rule(who=pick)
    def leave(self, who: int) -> None:
        puppet = self.idle(who)
        if puppet is not None:
            self.model.leave(puppet.twin, None)
            puppet.tell("leave")
            self.check()

    @rule(who=pick)
    def fail(self, who: int) -> None:
        puppet = self.idle(who)
        if puppet is not None:
            self.items += 1
            error = self.tokens.boom(self.items)
            self.model.leave(puppet.twin, self.tokens.of(error))
            puppet.tell("raise", error)
            self.check()

    @rule(who=pick)
    def let_out(self, who: int) -> None:
        """Raise on what was caught last, a Cancelled or failures."""
        free = [twin for twin in self.model.fibers if not twin.done and twin.waits is None and twin.last is not None]
        if free:
            puppet = self.puppets[free[who % len(free)]]
            self.model.leave(puppet.twin, puppet.twin.last)
            puppet.tell("raise last")
            self.check()

    @precondition(lambda self: self.moments % 3 == 1)  # or most would be cancelled most of the time
    @rule(which=pick)
    def cancel_a_scope(self, which: int) -> None:
        if self.model.scopes:
            scope = self.model.scopes[which % len(self.model.scopes)]
            self.model.cancel(scope)
            self.real_scopes[scope].cancel("told to")
            self.check()

    @precondition(lambda self: self.moments % 3 == 2)
    @rule(which=pick)
    def cancel_a_fiber(self, which: int) -> None:
        twin = self.model.fibers[which % len(self.model.fibers)]
        if not twin.done:
            self.model.cancel(twin.stack[0])
        fiber = self.puppets[twin].fiber
        assert fiber is not None
        fiber.cancel()
        self.check()

    @rule(which=pick, after=st.none() | seconds)
    def move_a_deadline(self, which: int, after: int | None) -> None:
        if self.model.scopes:
            scope = self.model.scopes[which % len(self.model.scopes)]
            if scope.state == "closed":
                return
            at = None if after is None else self.moment(after) if after else self.model.now
            self.model.move_deadline(scope, at)
            self.real_scopes[scope].deadline = None if at is None else self.base + at
            self.check()

    @rule(who=pick, after=st.integers(min_value=1, max_value=5))
    def sleep(self, who: int, after: int) -> None:
        puppet = self.idle(who)
        if puppet is not None:
            until = self.moment(after)
            puppet.tell("do", fibers.sleep_until, self.base + until)
            self.model.sleep(puppet.twin, until)
            self.check()

    @rule(who=pick)
    def outlast_every_deadline(self, who: int) -> None:
        """Sleep beyond what the scopes allow, and let out what comes of it."""
        self.sleep(who, 6)
        self.pass_time(7)
        self.let_out(who)

    @rule(who=pick, whom=pick)
    def ask_for_a_result(self, who: int, whom: int) -> None:
        puppet = self.idle(who)
        twin = self.model.fibers[whom % len(self.model.fibers)]
        if puppet is not None and twin is not puppet.twin:
            fiber = self.puppets[twin].fiber
            assert fiber is not None
            puppet.tell("do", fiber.result)
            self.model.join(puppet.twin, twin)
            self.check()

    @rule(who=pick, which=pick)
    def lock(self, who: int, which: int) -> None:
        """Release it if it is mine, else acquire it."""
        puppet = self.idle(who)
        if puppet is not None:
            which %= len(self.locks)
            lock = self.model.locks[which]
            mine = lock.owner is puppet.twin
            puppet.tell("do", self.locks[which].release if mine else self.locks[which].acquire)
            (self.model.release if mine else self.model.acquire)(puppet.twin, lock)
            self.check()

    @rule(who=pick, which=pick)
    def put(self, who: int, which: int) -> None:
        puppet = self.idle(who)
        if puppet is not None:
            which %= len(self.channels)
            self.items += 1
            puppet.tell("do", self.channels[which].put, self.items)
            self.model.put(puppet.twin, self.model.channels[which], self.items)
            self.check()

    @rule(who=pick, which=pick)
    def get(self, who: int, which: int) -> None:
        puppet = self.idle(who)
        if puppet is not None:
            which %= len(self.channels)
            puppet.tell("do", self.channels[which].get)
            self.model.get(puppet.twin, self.model.channels[which])
            self.check()

    @precondition(lambda self: self.moments % 5 == 1)
    @rule(who=pick, which=pick)
    def close_a_channel(self, who: int, which: int) -> None:
        puppet = self.idle(who)
        if puppet is not None:
            which %= len(self.channels)
            puppet.tell("do", self.channels[which].close)
            self.model.close(puppet.twin, self.model.channels[which])
            self.check()

    @rule(after=seconds)
    def let_time_pass(self, after: int) -> None:
        self.pass_time(after)

    # The comparison

    def check(self) -> None:
        self.rest()
        for twin, puppet in self.puppets.items():
            fiber = puppet.fiber
            assert fiber is not None
            who = f"fiber {twin.number}: {fiber!r}"
            assert [plain(report) for report in puppet.reports] == [plain(report) for report in twin.reports], who
            assert fiber.done() == twin.done, who
            assert puppet.idle == (not twin.done and twin.waits is None), who
            assert fiber.status == twin.shown_status(), who
        for scope, real in self.real_scopes.items():
            where = f"scope {scope.number}: {real!r}"
            if scope.state != "closed":
                assert real.cancel_called == scope.cancel_called, where
                assert len(real.children) == len(scope.children), where
            elif scope.owner is not None and scope.kind in (TIMEOUT, MOVE_ON):
                assert real.cancelled_caught == scope.caught, where

    def teardown(self) -> None:
        """Everybody is cancelled, shields or not, and told to go; also after a failure, so without the model."""
        for _ in range(100):
            for puppet in self.puppets.values():
                for scope in puppet.stack:
                    scope.cancel()
                if puppet.idle:
                    puppet.tell("leave")
            self.rest()
        self.arena.__exit__(None, None, None)


def plain(report: Any) -> Any:
    return sorted(report) if isinstance(report, frozenset) else report


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_random_trees_do_what_the_model_says(seed: int | None) -> None:
    """Rules B1, B2, B4 to B9, C2 to C4, D1, D4 to D6, D8, E1, E4, G1 to G3, I1, I2, I4."""
    limits = settings(
        max_examples=EXAMPLES // 3 + 1,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )

    def main() -> None:
        run_state_machine_as_test(Trees, settings=limits)
        assert fibers.runtime().stats()["fibers"] == 1

    fibers.run(main, clock="auto", shuffle_seed=seed, cleanup_grace=0)


def test_helper_model_of_one_tree() -> None:
    """The model itself, by hand: a timeout ends a sleeping child, and the block says so."""
    model = Model()
    parent = model.spawn(model.arena, daemon=False)
    assert parent is not None
    block = model.enter(parent, TIMEOUT, 3.0)
    child = model.spawn(block, daemon=False)
    assert child is not None
    model.sleep(child, 5.0)
    model.leave(parent, None)
    model.advance(4.0)
    assert child.reports == [CANCELLED]
    assert not block.caught
    model.leave(child, CANCELLED)
    assert child.status == "cancelled"
    assert block.caught
    assert parent.reports == [frozenset({f"timeout {block.number}"})]
