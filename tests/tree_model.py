"""A model of the cancel tree, and puppets: fibers that do what they are told, one command at a time.

The model is written from semantics.md: plain recursion over plain objects, nothing cached, nothing shared with the
package. A puppet waits for its commands where nothing can cancel it, tries each, and reports what came of it; after
every command the machine in test_tree_model.py compares reports, states and flags with the model's.

What leaves a scope or a fiber is a set of tokens, one per failure ("boom 3", "timeout 5"); "cancelled" stands alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from helpers import BaseExceptionGroup, Boom

import fibers

CANCELLED = "cancelled"
SCOPE, TIMEOUT, MOVE_ON, SHIELD, SUPERVISOR = "scope", "timeout", "move_on_after", "shield", "supervisor"
KINDS = (SCOPE, TIMEOUT, MOVE_ON, SHIELD, SUPERVISOR)
Report = Any


# The model


@dataclass(eq=False)
class ModelScope:
    number: int
    kind: str
    parent: ModelScope | None
    owner: ModelFiber | None
    deadline: float | None = None
    cancel_called: bool = False
    expired: bool = False
    caught: bool = False
    saw_cancelled: bool = False
    children: list[ModelFiber] = field(default_factory=list)
    failures: list[frozenset[str]] = field(default_factory=list)
    state: str = "open"
    body: Any = None  # what the body ended with, while the exit waits

    def effective(self) -> bool:
        """D1."""
        return self.cancel_called or self.outer_effective()

    def outer_effective(self) -> bool:
        return self.kind != SHIELD and self.parent is not None and self.parent.effective()

    def live(self) -> list[ModelFiber]:
        return [child for child in self.children if not child.daemon]


@dataclass(eq=False)
class ModelFiber:
    number: int
    nursery: ModelScope
    daemon: bool
    stack: list[ModelScope] = field(default_factory=list)
    waits: tuple[Any, ...] | None = None  # the operation it is parked in; "exit" for a scope's
    status: str = "running"
    outcome: Any = None
    reports: list[Report] = field(default_factory=list)
    last: Any = None  # the failure it caught last and may let out

    @property
    def done(self) -> bool:
        return self.status in ("finished", "failed", "cancelled")

    def shown_status(self) -> str:
        if self.done:
            return self.status
        return "cancelling" if self.stack[0].effective() else "running"


@dataclass(eq=False)
class ModelLock:
    owner: ModelFiber | None = None
    waiters: list[ModelFiber] = field(default_factory=list)


@dataclass(eq=False)
class ModelChannel:
    capacity: int
    items: list[int] = field(default_factory=list)
    putters: list[tuple[ModelFiber, int]] = field(default_factory=list)
    getters: list[ModelFiber] = field(default_factory=list)
    closed: bool = False


class Model:
    """What semantics.md says must happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.numbers = 0
        self.arena = ModelScope(0, SUPERVISOR, None, None)
        self.fibers: list[ModelFiber] = []
        self.scopes: list[ModelScope] = []
        self.locks = [ModelLock(), ModelLock()]
        self.channels = [ModelChannel(0), ModelChannel(1), ModelChannel(2)]

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    # Commands

    def spawn(self, nursery: ModelScope, *, daemon: bool) -> ModelFiber | None:
        """B1, C2; None where RuntimeError is due."""
        if nursery.state == "closed" or (nursery.state == "closing" and not nursery.live()):
            return None
        fiber = ModelFiber(self.next_number(), nursery, daemon)
        fiber.stack.append(ModelScope(self.next_number(), SCOPE, nursery, fiber))
        nursery.children.append(fiber)
        self.fibers.append(fiber)
        self.scopes.append(fiber.stack[0])
        return fiber

    def enter(self, fiber: ModelFiber, kind: str, deadline: float | None) -> ModelScope:
        scope = ModelScope(self.next_number(), kind, fiber.stack[-1], fiber, deadline)
        fiber.stack.append(scope)
        self.scopes.append(scope)
        if deadline is not None and deadline <= self.now:
            self.expire(scope)
        return scope

    def cancel(self, scope: ModelScope) -> None:
        if scope.cancel_called or scope.state == "closed":
            return
        scope.cancel_called = True
        scope.deadline = None
        self.deliver()

    def expire(self, scope: ModelScope) -> None:
        if not scope.cancel_called and scope.state != "closed":
            scope.expired = True
            self.cancel(scope)

    def move_deadline(self, scope: ModelScope, deadline: float | None) -> None:
        if scope.state == "closed" or scope.cancel_called:
            return
        scope.deadline = deadline
        if deadline is not None and deadline <= self.now:
            self.expire(scope)

    def sleep(self, fiber: ModelFiber, until: float) -> None:
        self.wait(fiber, ("sleep", until))

    def join(self, fiber: ModelFiber, other: ModelFiber) -> None:
        if other.done:
            self.answer(fiber, other)
        else:
            self.wait(fiber, ("result", other))

    def acquire(self, fiber: ModelFiber, lock: ModelLock) -> None:
        if lock.owner is None:
            lock.owner = fiber
            fiber.reports.append("ok")
        elif lock.owner.done:
            fiber.reports.append("broken")
        else:
            lock.waiters.append(fiber)
            self.wait(fiber, ("acquire", lock))

    def release(self, fiber: ModelFiber, lock: ModelLock) -> None:
        lock.owner = None
        if lock.waiters:
            lock.owner = lock.waiters.pop(0)
            self.resume(lock.owner, "ok")
        fiber.reports.append("ok")

    def put(self, fiber: ModelFiber, channel: ModelChannel, item: int) -> None:
        if channel.closed:
            fiber.reports.append("closed")
        elif channel.getters:
            self.resume(channel.getters.pop(0), item)
            fiber.reports.append("ok")
        elif len(channel.items) < channel.capacity:
            channel.items.append(item)
            fiber.reports.append("ok")
        else:
            channel.putters.append((fiber, item))
            self.wait(fiber, ("put", channel))

    def get(self, fiber: ModelFiber, channel: ModelChannel) -> None:
        if channel.items or channel.putters:
            if channel.putters:
                putter, item = channel.putters.pop(0)
                channel.items.append(item)
                self.resume(putter, "ok")
            fiber.reports.append(channel.items.pop(0))
        elif channel.closed:
            fiber.reports.append("closed")
        else:
            channel.getters.append(fiber)
            self.wait(fiber, ("get", channel))

    def close(self, fiber: ModelFiber, channel: ModelChannel) -> None:
        channel.closed = True
        for waiter in [*channel.getters, *(putter for putter, _ in channel.putters)]:
            self.resume(waiter, "closed")
        channel.getters.clear()
        channel.putters.clear()
        fiber.reports.append("ok")

    def leave(self, fiber: ModelFiber, body: Any) -> None:
        """Leave the innermost block, or end the function: body is None, CANCELLED or a set of failures."""
        scope = fiber.stack[-1]
        scope.body = body
        fiber.last = None
        if isinstance(body, frozenset):
            scope.failures.append(body)
            self.cancel(scope)
        scope.state = "closing"
        fiber.waits = ("exit", scope)
        self.settle(scope)

    def advance(self, target: float) -> None:
        """Let time pass; whatever is due happens in order of time."""
        while True:
            due: list[tuple[float, Any]] = [
                (scope.deadline, scope)
                for scope in self.scopes
                if scope.deadline is not None and scope.state != "closed" and not scope.cancel_called
            ]
            due += [(fiber.waits[1], fiber) for fiber in self.fibers if fiber.waits and fiber.waits[0] == "sleep"]
            due = [entry for entry in due if entry[0] <= target]
            if not due:
                break
            self.now, what = min(due, key=lambda entry: entry[0])
            if isinstance(what, ModelScope):
                self.expire(what)
            else:
                self.resume(what, "ok")
        self.now = target

    # Consequences

    def wait(self, fiber: ModelFiber, what: tuple[Any, ...]) -> None:
        fiber.waits = what
        self.deliver()

    def resume(self, fiber: ModelFiber, report: Report) -> None:
        fiber.waits = None
        fiber.reports.append(report)
        fiber.last = report if report == CANCELLED or isinstance(report, frozenset) else None

    def deliver(self) -> None:
        """Level-triggered: whoever waits in a cancelled scope gets Cancelled; a scope's exit is no cancel point."""
        for fiber in self.fibers:
            if fiber.waits and fiber.waits[0] != "exit" and fiber.stack[-1].effective():
                for lock in self.locks:
                    if fiber in lock.waiters:
                        lock.waiters.remove(fiber)
                for channel in self.channels:
                    channel.getters = [getter for getter in channel.getters if getter is not fiber]
                    channel.putters = [entry for entry in channel.putters if entry[0] is not fiber]
                self.resume(fiber, CANCELLED)

    def settle(self, scope: ModelScope) -> None:
        """If the exit of the scope waits for nothing any more, leave it (C3, C4, B9, D4 to D6, E1)."""
        fiber = scope.owner
        if fiber is None or fiber.waits != ("exit", scope) or scope.live():
            return
        for daemon in list(scope.children):
            self.cancel(daemon.stack[0])
        if scope.children or scope.state == "closed":
            return
        outer, effective = scope.outer_effective(), scope.effective()
        left: Any = None
        if scope.failures:
            left = frozenset().union(*scope.failures)
        elif scope.body == CANCELLED or scope.saw_cancelled:
            if outer:
                left = CANCELLED
            elif effective:
                scope.caught = True
                if scope.kind == TIMEOUT and scope.expired:
                    left = frozenset({f"timeout {scope.number}"})
        scope.state = "closed"
        fiber.stack.pop()
        if fiber.stack:
            self.resume(fiber, "left" if left is None else left)
            self.deliver()
        else:
            self.finish(fiber, scope, left)

    def finish(self, fiber: ModelFiber, root: ModelScope, left: Any) -> None:
        """B6: those who joined hear of it before the scope does."""
        fiber.waits = None
        fiber.outcome = left
        if isinstance(left, frozenset):
            fiber.status = "failed"
        elif CANCELLED in (left, root.body) or root.caught:
            fiber.status = "cancelled"
        else:
            fiber.status = "finished"
        for other in self.fibers:
            if other.waits == ("result", fiber):
                other.waits = None
                self.answer(other, fiber)
        for lock in self.locks:
            if lock.owner is fiber:
                for waiter in lock.waiters:
                    self.resume(waiter, "broken")
                lock.waiters.clear()
        nursery = fiber.nursery
        nursery.children.remove(fiber)
        if isinstance(left, frozenset) and nursery.kind != SUPERVISOR:
            nursery.failures.append(left)
            self.cancel(nursery)
        elif left == CANCELLED:
            nursery.saw_cancelled = True
        self.settle(nursery)

    def answer(self, fiber: ModelFiber, other: ModelFiber) -> None:
        """What result() gives of a fiber that is done (B4)."""
        if other.status == "failed":
            self.resume(fiber, other.outcome)
        else:
            self.resume(fiber, "ok" if other.status == "finished" else "fiber cancelled")


# The puppets


class Puppet:
    """A real fiber that obeys."""

    def __init__(self, twin: ModelFiber, tokens: Tokens) -> None:
        self.twin = twin
        self.tokens = tokens
        self.command: tuple[Any, ...] | None = None
        self.stack: list[fibers.Scope] = []
        self.reports: list[Report] = []
        self.last: BaseException | None = None
        self.idle = False
        self.fiber: fibers.Fiber[None] | None = None

    def body(self) -> None:
        self.stack.append(fibers.current_scope())
        self.obey()

    def tell(self, *command: Any) -> None:
        assert self.idle
        assert self.fiber is not None
        self.command = command
        self.idle = False
        if command[0] in ("do", "enter"):
            self.twin.last = None
        fibers.unpark(self.fiber)

    def obey(self) -> None:
        """Obey until told to leave the block."""
        while True:
            self.idle = True
            while self.command is None:
                fibers.park(lambda: False)
            verb, *arguments = self.command
            self.command = None
            if verb == "leave":
                return
            if verb == "raise":
                raise arguments[0]
            if verb == "raise last":
                error, self.last = self.last, None
                assert error is not None
                try:
                    raise error
                finally:
                    del error
            self.last = None
            try:
                if verb == "enter":
                    scope, number = arguments
                    try:
                        with scope:
                            self.stack.append(scope)
                            self.obey()
                    except TimeoutError as error:
                        self.tokens.name(error, f"timeout {number}")
                        raise
                    finally:
                        self.stack.pop()
                    self.reports.append("left")
                else:
                    value = arguments[0](*arguments[1:])
                    self.reports.append("ok" if value is None or value is True else value)
            except BaseException as error:  # noqa: BLE001 - that is what is compared
                self.reports.append(self.tokens.of(error))
                self.last = error


class Tokens:
    """Names for exception objects, by identity: the same failure has one name wherever it turns up."""

    def __init__(self) -> None:
        self.known: list[tuple[BaseException, str]] = []

    def name(self, error: BaseException, token: str) -> None:
        if not any(error is known for known, _ in self.known):
            self.known.append((error, token))

    def of(self, error: BaseException) -> Report:
        if isinstance(error, fibers.Cancelled):
            return CANCELLED
        if isinstance(error, fibers.FiberCancelled):
            return "fiber cancelled"
        if isinstance(error, fibers.ChannelClosed):
            return "closed"
        if isinstance(error, fibers.BrokenLockError):
            return "broken"
        if isinstance(error, BaseExceptionGroup):
            assert len(error.exceptions) > 1, "a group of one"
            found = [self.leaf(inner) for inner in error.exceptions]
            assert len(set(found)) == len(found), f"a failure twice in one group: {found}"
            return frozenset(found)
        return frozenset({self.leaf(error)})

    def leaf(self, error: BaseException) -> str:
        for known, token in self.known:
            if known is error:
                return token
        raise AssertionError(f"an exception from nowhere: {error!r}") from error

    def boom(self, number: int) -> Boom:
        error = Boom(number)
        self.name(error, f"boom {number}")
        return error
