"""Channels: items handed from fiber to fiber, to one (Channel), to all (Broadcast), or only the latest (Watch).

Rule 1: an item moves in one step, from who brings it to a buffer or to who gets it; nothing is ever under way (I1, I2).
Rule 2: first come, first served: whoever waits to get finds no item in the buffer, whoever waits to put finds it full.
Rule 3: who need not wait is no cancel point (F2).
Rule 4: select() waits in all its queues at once; the first to wake it takes it out of the others (wake_first passes it
over), so exactly one of its cases happens.
Rule 5: usable inside a run only, and in one at a time while somebody waits (I6).
"""

from __future__ import annotations

from collections import deque
from operator import index
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from fibers.driver import native
from fibers.errors import ChannelClosed, Lagged, WouldBlock
from fibers.waiting import Waiter, WaitQueue, no_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

    Case = tuple["Channel[Any]", str] | tuple["Channel[Any]", str, Any]
    Place = tuple[WaitQueue, Waiter, bool]

__all__ = ["Broadcast", "Channel", "Receiver", "Watch", "select"]

T = TypeVar("T")
NOTHING: Any = object()  # what a getter brings, and what is left of a putter whose item was taken


class Channel(Generic[T]):
    """Items in order from those who put to those who get, with a buffer for `capacity` of them.

    Capacity 0 is a rendezvous: put() returns when a getter has the item. Iterating gets until the channel is closed and
    empty. len() counts the buffered items.
    """

    __slots__ = ("__weakref__", "_capacity", "_closed", "_getters", "_items", "_putters")

    def __init__(self, capacity: int = 0) -> None:
        """Make it open and empty."""
        if index(capacity) < 0:
            msg = f"capacity can't be negative: {capacity!r}"
            raise ValueError(msg)
        self._capacity = capacity
        self._closed = False
        self._items: deque[T] = deque()
        self._getters = WaitQueue()
        self._putters = WaitQueue()

    def put(self, item: T, timeout: float | None = None) -> None:
        """Hand the item over, or wait until it is taken or buffered.

        ChannelClosed if the channel is closed, also meanwhile; TimeoutError after `timeout` seconds; then the item was
        not taken. Parks only if it must wait; then a cancel point.
        """
        if timeout is not None:
            check_timeout(timeout)
        if not self._offer(item) and self._putters.wait("put", self, timeout, item) is None:
            raise timed_out("put into", self)

    def get(self, timeout: float | None = None) -> T:
        """Return the oldest item, or wait for one.

        ChannelClosed if the channel is closed and empty; TimeoutError after `timeout` seconds. Parks only if it must
        wait; then a cancel point.
        """
        if timeout is not None:
            check_timeout(timeout)
        item = self._take()
        if item is NOTHING:
            getter = self._getters.wait("get", self, timeout)
            if getter is None:
                raise timed_out("get from", self)
            item = getter.value
        return item

    def put_nowait(self, item: T) -> None:
        """Hand the item over or buffer it; WouldBlock if that takes waiting, ChannelClosed if the channel is closed."""
        if not self._offer(item):
            msg = f"can't put into {self!r} without waiting"
            raise WouldBlock(msg)

    def get_nowait(self) -> T:
        """Return the oldest item; WouldBlock if there is none, ChannelClosed if the channel is closed, too."""
        item = self._take()
        if item is NOTHING:
            msg = f"can't get from {self!r} without waiting"
            raise WouldBlock(msg)
        return item

    def close(self) -> None:
        """Take no more items; buffered ones can still be got. Whoever waits to put or get has ChannelClosed raised."""
        if native.runtime() is None:
            raise no_run()
        self._closed = True
        end(self._getters, "get from", self)
        end(self._putters, "put into", self)

    @property
    def closed(self) -> bool:
        """Whether close() was called; there may be items left."""
        return self._closed

    def __len__(self) -> int:
        """Count the buffered items."""
        return len(self._items)

    def __iter__(self) -> Self:
        """Return itself: every item is got once, whoever iterates."""
        return self

    def __next__(self) -> T:
        """Get the next item, or end if the channel is closed and empty."""
        try:
            return self.get()
        except ChannelClosed:
            raise StopIteration from None

    def __repr__(self) -> str:
        """Tell the state and who waits: `<Channel capacity=1 open, 1 item, 2 putters>`."""
        load = counted(len(self._items), "item") + counted(len(self._getters), "getter")
        return f"<Channel capacity={self._capacity} {state(self)}{load}{counted(len(self._putters), 'putter')}>"

    def _offer(self, item: T) -> bool:
        """Give the item to who waits longest, or to the buffer; False if it can't be had."""
        if native.runtime() is None:
            raise no_run()
        if self._closed:
            raise is_closed("put into", self)
        getter = self._getters.wake_first()
        if getter is not None:
            getter.value = item
            return True
        if len(self._items) < self._capacity:
            self._items.append(item)
            return True
        return False

    def _take(self) -> T:
        """Take the oldest item, and that of the first who waits to put into the buffer; NOTHING if there is none."""
        if native.runtime() is None:
            raise no_run()
        putter = self._putters.wake_first()
        if putter is not None:
            self._items.append(putter.value)
            putter.value = NOTHING
        if self._items:
            return self._items.popleft()
        if self._closed:
            raise is_closed("get from", self)
        return NOTHING  # type: ignore[no-any-return]


def select(*cases: Case, timeout: float | None = None) -> tuple[int, Any]:
    """Do exactly one of several puts and gets; return its index and what was got, None for a put.

    A case is (channel, "get") or (channel, "put", item). Of several that can be done at once the first in order is;
    if none can, the first that can. A case whose channel is closed, also meanwhile, raises ChannelClosed; TimeoutError
    after `timeout` seconds, ValueError without cases. Parks only if it must wait; then a cancel point.
    """
    if not cases:
        msg = "select needs at least one case, got none: it would wait forever"
        raise ValueError(msg)
    check_timeout(timeout)
    parsed = [parse(case) for case in cases]
    for number, (channel, item) in enumerate(parsed):
        if item is NOTHING:
            got = channel._take()
            if got is not NOTHING:
                return number, got
        elif channel._offer(item):
            return number, None
    places: list[Place] = []
    try:
        for channel, item in parsed:
            places.append(stand(channel, item))
        native.wait("select", tuple(channel for channel, _ in parsed), timeout)
    finally:
        done = leave(places)
    if done is None:
        raise timed_out("select from", cases)
    number, value, error = done
    if error is not None:
        try:
            raise error
        finally:
            del done, error  # its traceback holds this frame
    return number, value


def parse(case: Case) -> tuple[Channel[Any], Any]:
    """Return the channel of a case and the item to put, or NOTHING."""
    channel, kind, *items = case
    if not isinstance(channel, Channel):
        msg = f"select needs cases of channels, got {case!r}"  # type: ignore[unreachable]  # callers have no types
        raise TypeError(msg)
    if kind == "get" and not items:
        return channel, NOTHING
    if kind == "put" and len(items) == 1:
        return channel, items[0]
    msg = f"a case is (channel, 'get') or (channel, 'put', item), got {case!r}"
    raise ValueError(msg)


def stand(channel: Channel[Any], item: Any) -> Place:
    """Take a place in the queue for a case."""
    queue = channel._getters if item is NOTHING else channel._putters
    waiter = Waiter(native.current(), item)
    queue.enter(waiter)
    return queue, waiter, item is NOTHING


def leave(places: list[Place]) -> tuple[int, Any, BaseException | None] | None:
    """Leave every place; return the index, value and error of the case that happened, or None if none did."""
    done = None
    for number, (queue, waiter, gets) in enumerate(places):
        queue.leave(waiter)
        if waiter.error is not None or (waiter.value is not NOTHING) == gets:
            done = number, waiter.value if gets else None, waiter.error
    places.clear()
    return done


class Broadcast:
    """Items for every receiver: subscribe().

    Putting never waits: a receiver that is more than `capacity` items behind loses the oldest.
    """

    __slots__ = ("__weakref__", "_capacity", "_closed", "_receivers")

    def __init__(self, capacity: int) -> None:
        """Make it open, without receivers."""
        if index(capacity) < 1:
            msg = f"capacity must be at least 1: {capacity!r}"
            raise ValueError(msg)
        self._capacity = capacity
        self._closed = False
        self._receivers: WeakKeyDictionary[Receiver, None] = WeakKeyDictionary()

    def subscribe(self) -> Receiver:
        """Return a receiver of what is put from now on: an iterator, and a context manager that closes it.

        One that is dropped is unsubscribed, too. That of a closed broadcast ends at once.
        """
        receiver = Receiver(Channel(self._capacity))
        if self._closed:
            receiver.close()
        self._receivers[receiver] = None
        return receiver

    def put(self, item: Any) -> None:
        """Give the item to every receiver; ChannelClosed if the broadcast is closed."""
        if native.runtime() is None:
            raise no_run()
        if self._closed:
            raise is_closed("put into", self)
        for receiver in self._receivers:
            receiver._push(item)

    def close(self) -> None:
        """Take no more items; receivers get what they have not got yet, then end."""
        if native.runtime() is None:
            raise no_run()
        self._closed = True
        for receiver in self._receivers:
            receiver.close()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def __repr__(self) -> str:
        """Tell the state and how many listen: `<Broadcast capacity=8 open, 2 receivers>`."""
        return f"<Broadcast capacity={self._capacity} {state(self)}{counted(len(self._receivers), 'receiver')}>"


class Receiver:
    """What Broadcast.subscribe() returns: the items in order, as long as the receiver keeps up."""

    __slots__ = ("__weakref__", "_channel", "_missed")

    def __init__(self, channel: Channel[Any]) -> None:
        """Have missed nothing."""
        self._channel = channel
        self._missed = 0

    def get(self, timeout: float | None = None) -> Any:
        """Return the oldest item, or wait for one.

        Lagged if items were lost since the last call; the next call returns the oldest that is left. ChannelClosed if
        the broadcast or the receiver is closed and nothing is left; TimeoutError after `timeout` seconds. Parks only if
        it must wait; then a cancel point.
        """
        check_timeout(timeout)
        if self._missed:
            missed, self._missed = self._missed, 0
            raise Lagged(f"the receiver was too slow and missed {missed}: get goes on after them", missed)
        return self._channel.get(timeout)

    def close(self) -> None:
        """Receive no more; what is left can still be got. Whoever waits in get() has ChannelClosed raised."""
        self._channel.close()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Get the next item, or end if closed and empty. Raises Lagged as get() does, and can go on after it."""
        try:
            return self.get()
        except ChannelClosed:
            raise StopIteration from None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Tell what it has: `<Receiver of <Channel capacity=8 open, 3 items>>`."""
        return f"<Receiver of {self._channel!r}>"

    def _push(self, item: Any) -> None:
        """Give it an item, in the place of the oldest if need be."""
        channel = self._channel
        if channel._closed:
            return
        if len(channel) == channel._capacity:
            channel.get_nowait()
            self._missed += 1
        channel.put_nowait(item)


class Watch:
    """A value that changes, for those who want the latest and need not see every one."""

    __slots__ = ("__weakref__", "_closed", "_value", "_version", "_waiters")

    def __init__(self, value: Any) -> None:
        """Begin with a value, at version 0."""
        self._closed = False
        self._value = value
        self._version = 0
        self._waiters = WaitQueue()

    @property
    def value(self) -> Any:
        """The latest value."""
        return self._value

    @property
    def version(self) -> int:
        """How often the value was set."""
        return self._version

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def set(self, value: Any) -> None:
        """Change the value, also to an equal one, and wake who waits for that; ChannelClosed if the watch is closed."""
        if native.runtime() is None:
            raise no_run()
        if self._closed:
            raise is_closed("set", self)
        self._value = value
        self._version += 1
        for waiter in list(self._waiters):
            if waiter.value < self._version:
                self._waiters.wake(waiter)

    def wait(self, version: int | None = None, timeout: float | None = None) -> Any:
        """Wait until the version is newer than `version`, by default the present one; return the latest value.

        ChannelClosed if the watch is closed before that; TimeoutError after `timeout` seconds. Parks only if it must
        wait; then a cancel point.
        """
        check_timeout(timeout)
        if native.runtime() is None:
            raise no_run()
        if version is None:
            version = self._version
        if self._version <= version:
            if self._closed:
                raise is_closed("wait for", self)
            if self._waiters.wait("wait", self, timeout, version) is None:
                raise timed_out("wait for", self)
        return self._value

    def close(self) -> None:
        """Let the value be the last: iteration ends after it, whoever waits for another has ChannelClosed raised."""
        if native.runtime() is None:
            raise no_run()
        self._closed = True
        end(self._waiters, "wait for", self)

    def __iter__(self) -> Iterator[Any]:
        """Yield the value, then the latest one after each change, until closed. A value may be passed over."""
        version = self._version
        yield self._value
        while True:
            try:
                value = self.wait(version)
            except ChannelClosed:
                return
            version = self._version
            yield value

    def __repr__(self) -> str:
        """Tell the value, its version and who waits: `<Watch 'on' version=3 open, 1 waiter>`."""
        return f"<Watch {self._value!r} version={self._version} {state(self)}{counted(len(self._waiters), 'waiter')}>"


def check_timeout(timeout: float | None) -> None:
    """Refuse what is no time to wait, also where there is no need to wait."""
    if timeout is not None and not timeout >= 0:
        msg = f"a timeout can't be negative or NaN: {timeout!r}"
        raise ValueError(msg)


def end(queue: WaitQueue, verb: str, what: Channel[Any] | Watch) -> None:
    """Have ChannelClosed raised in all who wait."""
    while (waiter := queue.wake_first()) is not None:
        waiter.error = is_closed(verb, what)


def is_closed(verb: str, what: Channel[Any] | Broadcast | Watch) -> ChannelClosed:
    """Make the error for something that a close has ended."""
    return ChannelClosed(f"can't {verb} {what!r}")


def timed_out(verb: str, what: object) -> TimeoutError:
    """Make the error for a wait that took too long."""
    return TimeoutError(f"timed out: could not {verb} {what!r}")


def state(what: Channel[Any] | Broadcast | Watch) -> str:
    """Return the word for a repr."""
    return "closed" if what._closed else "open"


def counted(number: int, noun: str) -> str:
    """Return a part of a repr; nothing if there are none."""
    return f", {number} {noun}{'s' * (number > 1)}" if number else ""
