"""What cancellation does, in four libraries side by side: the same scenario in fibers, trio, asyncio and gevent.

    python examples/cancellation_table.py

Nothing in the table is written down: every cell is what the library did just now. A library that is not installed has
an empty column (pip install trio gevent); asyncio's needs Python 3.11.
"""

import asyncio
import functools
import logging
import socket
import struct
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import fibers
from fibers import net

HAVE = {
    "fibers": True,
    "trio": bool(find_spec("trio")),
    "asyncio": sys.version_info >= (3, 11),
    "gevent": bool(find_spec("gevent")),
}
if HAVE["trio"]:
    import trio
if HAVE["gevent"]:
    import gevent
    import gevent.socket

LIMIT = 0.05
SHORT, LONG = 0.3, 1.3  # cleanups; a run's cleanup_grace is 1 s
PEERS = 5


def shape(error: BaseException | None) -> str:
    """Describe what came out of a block."""
    if error is None:
        return "nothing"
    members = getattr(error, "exceptions", None)
    return f"bare {type(error).__name__}" if members is None else f"group of {len(members)}"


def outcome(run: Callable[..., object], *args: Any) -> str:
    try:
        run(*args)
    except BaseException as error:  # noqa: BLE001 - SystemExit is one of the scenarios
        return shape(error)
    return "nothing"


def fail(error: BaseException) -> None:
    raise error


async def fail_soon(error: BaseException) -> None:
    raise error


class Reset:
    """Connections that a peer resets, all at once."""

    def __init__(self, connect: Callable[..., Any] = socket.create_connection) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.ours = [connect(server.getsockname()) for _ in range(PEERS)]
            self.theirs = [server.accept()[0] for _ in range(PEERS)]

    def fire(self) -> None:
        for peer in self.theirs:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()


# A timeout fires; the body's `finally` blocks for a while.


def cleanup_fibers(seconds: float = SHORT) -> str:
    done = []

    def body() -> None:
        with fibers.move_on_after(LIMIT):
            try:
                fibers.sleep(10)
            finally:
                fibers.sleep(seconds)
                done.append(1)

    fibers.run(body)
    return "completes" if done else "is cut off"


def cleanup_trio(seconds: float = SHORT) -> str:
    done = []

    async def body() -> None:
        with trio.move_on_after(LIMIT):
            try:
                await trio.sleep(10)
            finally:
                await trio.sleep(seconds)
                done.append(1)

    trio.run(body)
    return "completes" if done else "is cut off"


def cleanup_asyncio(seconds: float = SHORT) -> str:
    done = []

    async def body() -> None:
        try:
            async with asyncio.timeout(LIMIT):
                try:
                    await asyncio.sleep(10)
                finally:
                    await asyncio.sleep(seconds)
                    done.append(1)
        except TimeoutError:
            pass

    asyncio.run(body())
    return "completes" if done else "is cut off"


def cleanup_gevent(seconds: float = SHORT) -> str:
    done = []
    with gevent.Timeout(LIMIT, False):  # its way to say: no exception
        try:
            gevent.sleep(10)
        finally:
            gevent.sleep(seconds)
            done.append(1)
    return "completes" if done else "is cut off"


# The same, for longer than anybody wants to wait.

hang_fibers = functools.partial(cleanup_fibers, LONG)
hang_trio = functools.partial(cleanup_trio, LONG)
hang_asyncio = functools.partial(cleanup_asyncio, LONG)
hang_gevent = functools.partial(cleanup_gevent, LONG)


# The body catches the cancellation, four times in a loop.


def swallow_fibers() -> str:
    caught = []

    def body() -> None:
        with fibers.timeout(LIMIT):
            for _ in range(4):
                try:
                    fibers.sleep(2 * LIMIT)
                except fibers.Cancelled:
                    caught.append(1)

    fibers.run(body)
    return f"raised {len(caught)} of 4 times"


def swallow_trio() -> str:
    caught = []

    async def body() -> None:
        with trio.fail_after(LIMIT):
            for _ in range(4):
                try:
                    await trio.sleep(2 * LIMIT)
                except trio.Cancelled:
                    caught.append(1)

    trio.run(body)
    return f"raised {len(caught)} of 4 times"


def swallow_asyncio() -> str:
    caught = []

    async def body() -> None:
        async with asyncio.timeout(LIMIT):
            for _ in range(4):
                try:
                    await asyncio.sleep(2 * LIMIT)
                except asyncio.CancelledError:
                    caught.append(1)

    asyncio.run(body())
    return f"raised {len(caught)} of 4 times"


def swallow_gevent() -> str:
    caught = []
    with gevent.Timeout(LIMIT):
        for _ in range(4):
            try:
                gevent.sleep(2 * LIMIT)
            except gevent.Timeout:
                caught.append(1)
    return f"raised {len(caught)} of 4 times"


# A child is cancelled before it has run.


def unstarted_fibers() -> str:
    started: list[int] = []
    fibers.run(lambda: fibers.spawn(started.append, 1).cancel())
    return "starts" if started else "never runs"


def unstarted_trio() -> str:
    started = []

    async def child() -> None:
        started.append(1)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.cancel_scope.cancel()

    trio.run(body)
    return "starts" if started else "never runs"


def unstarted_asyncio() -> str:
    started = []

    async def child() -> None:
        started.append(1)

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child()).cancel()

    asyncio.run(body())
    return "starts" if started else "never runs"


def unstarted_gevent() -> str:
    started: list[int] = []
    gevent.spawn(started.append, 1).kill()
    return "starts" if started else "never runs"


# Only the body of a block fails.


def body_error_fibers() -> str:
    def body() -> None:
        with fibers.scope():
            fail(KeyError())

    return outcome(fibers.run, body)


def body_error_trio() -> str:
    async def body() -> None:
        async with trio.open_nursery():
            fail(KeyError())

    return outcome(trio.run, body)


def body_error_asyncio() -> str:
    async def body() -> None:
        async with asyncio.TaskGroup():
            fail(KeyError())

    return outcome(lambda: asyncio.run(body()))


# The body waits for a child that fails, and catches its KeyError.


def join_fibers() -> str:
    seen = []

    def body() -> None:
        child = fibers.spawn(fail, KeyError())
        try:
            child.result()
        except BaseException as error:
            seen.append(error)
            raise

    outcome(fibers.run, body)
    return type(seen[0]).__name__


def join_asyncio() -> str:
    seen = []

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(fail_soon(KeyError()))
            try:
                await child
            except BaseException as error:
                seen.append(error)
                raise

    outcome(lambda: asyncio.run(body()))
    return type(seen[0]).__name__


def join_gevent() -> str:
    try:
        gevent.spawn(fail, KeyError()).get()
    except BaseException as error:  # noqa: BLE001
        return type(error).__name__
    return "nothing"


# A child calls sys.exit().


def exit_fibers() -> str:
    return outcome(fibers.run, lambda: fibers.spawn(fail, SystemExit(3)).join())


def exit_trio() -> str:
    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_soon, SystemExit(3))

    return outcome(trio.run, body)


def exit_asyncio() -> str:
    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_soon(SystemExit(3)))

    return outcome(lambda: asyncio.run(body()))


# Five connections are reset in the same tick.


def reset_fibers() -> str:
    def receive(stream: net.Stream) -> None:
        with stream:
            stream.recv(1)

    def body() -> None:
        reset = Reset(net.connect)
        for stream in reset.ours:
            fibers.spawn(receive, stream)
        fibers.sleep(0.01)
        reset.fire()

    return outcome(fibers.run, body)


def reset_trio() -> str:
    reset = Reset()

    async def receive(sock: socket.socket) -> None:
        with trio.socket.from_stdlib_socket(sock) as ours:
            await ours.recv(1)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            for sock in reset.ours:
                sock.setblocking(False)
                nursery.start_soon(receive, sock)
            await trio.sleep(0.01)
            reset.fire()

    return outcome(trio.run, body)


def reset_asyncio() -> str:
    reset = Reset()

    async def receive(sock: socket.socket) -> None:
        with sock:
            await asyncio.get_running_loop().sock_recv(sock, 1)

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            for sock in reset.ours:
                sock.setblocking(False)
                group.create_task(receive(sock))
            await asyncio.sleep(0.01)
            reset.fire()

    return outcome(lambda: asyncio.run(body()))


ROWS = {
    "cleanup": f"a timeout fires; a `finally` that blocks for {SHORT} s",
    "hang": f"the same for {LONG} s",
    "swallow": "the body swallows the cancellation in a loop",
    "unstarted": "a child cancelled before it ran",
    "body_error": "only the body fails",
    "join": "the body waits for a child that raises KeyError, and sees",
    "exit": "sys.exit() in a child",
    "reset": f"{PEERS} connections reset at once",
}


def cell(row: str, library: str) -> str:
    """Run a scenario; "-" where the library has nothing like it."""
    if not HAVE[library]:
        return "absent"
    scenario = globals().get(f"{row}_{library}")
    return scenario() if scenario is not None else "-"


def main() -> None:
    libraries = list(HAVE)
    print("| " + " | ".join(["", *libraries]) + " |")
    print("| " + " | ".join(["---"] * (1 + len(libraries))) + " |")
    logging.getLogger("asyncio").disabled = True  # it prints what a task raises
    if HAVE["gevent"]:
        gevent.get_hub().exception_stream = None  # as gevent's hub does
    for row, title in ROWS.items():
        cells = map(functools.partial(cell, row), libraries)
        print("| " + " | ".join([title, *cells]) + " |")


if __name__ == "__main__":
    main()
