"""Micro-benchmarks of asyncio on the standard library's loop; `micro_uvloop` runs the same on uvloop's."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import TYPE_CHECKING

from benchmarks import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeAlias

    Benchmark: TypeAlias = Coroutine[Any, Any, float]

MESSAGE = b"x" * 64


async def nothing() -> None:
    """Be the spawned function."""


async def spawn(count: int) -> float:
    """Create a task and await it."""
    await asyncio.create_task(nothing())
    watch = sample.Stopwatch()
    for _ in range(count):
        await asyncio.create_task(nothing())
    return watch.microseconds(count)


async def switch(count: int) -> float:
    """Pass sleep(0) while another task is ready."""

    async def loop() -> None:
        for _ in range(count // 2):
            await asyncio.sleep(0)

    watch = sample.Stopwatch()
    await asyncio.gather(loop(), loop())
    return watch.microseconds(count)


async def roundtrip(count: int) -> float:
    """Send 64 bytes to another task over a socket pair and receive them back.

    By the loop's own socket calls, the faster way on the standard library's loop.
    """
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)

    async def echo() -> None:
        while data := await loop.sock_recv(far, 64):
            await loop.sock_sendall(far, data)

    with near, far:
        echoing = asyncio.create_task(echo())
        watch = sample.Stopwatch()
        for _ in range(count):
            await loop.sock_sendall(near, MESSAGE)
            await loop.sock_recv(near, 64)
        elapsed = watch.microseconds(count)
        near.shutdown(socket.SHUT_WR)
        await echoing
    return elapsed


async def roundtrip_streams(count: int) -> float:
    """Send 64 bytes to another task over a socket pair and receive them back.

    By streams, the faster way on uvloop.
    """
    near, far = socket.socketpair()
    near_reader, near_writer = await asyncio.open_connection(sock=near)
    far_reader, far_writer = await asyncio.open_connection(sock=far)

    async def echo() -> None:
        while data := await far_reader.read(64):
            far_writer.write(data)
            await far_writer.drain()
        far_writer.close()

    echoing = asyncio.create_task(echo())
    watch = sample.Stopwatch()
    for _ in range(count):
        near_writer.write(MESSAGE)
        await near_writer.drain()
        await near_reader.read(64)
    elapsed = watch.microseconds(count)
    near_writer.close()
    await echoing
    return elapsed


async def handoff(count: int) -> float:
    """Put items into a queue with room for one, which another task gets."""
    items: asyncio.Queue[int] = asyncio.Queue(1)

    async def put() -> None:
        for number in range(count):
            await items.put(number)

    watch = sample.Stopwatch()
    putting = asyncio.create_task(put())
    for _ in range(count):
        await items.get()
    await putting
    return watch.microseconds(count)


async def memory(count: int) -> float:
    """Resident bytes of a task parked in sleep."""
    parked = 0

    async def park() -> None:
        nonlocal parked
        parked += 1
        await asyncio.sleep(3600)

    before = sample.resident()
    tasks = [asyncio.create_task(park()) for _ in range(count)]
    while parked < count:  # noqa: ASYNC110 - an Event would be one more object
        await asyncio.sleep(0)
    used = sample.resident() - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return used / count


async def timeout(count: int) -> float:
    """Enter and leave a timeout that does not fire."""
    watch = sample.Stopwatch()
    if sys.version_info >= (3, 11):  # it is not asked for on 3.10
        for _ in range(count):
            async with asyncio.timeout(10):  # noqa: ASYNC100 - the block is empty on purpose
                pass
    return watch.microseconds(count)


async def sleep(count: int) -> float:
    """CPU time of one sleep among many."""

    async def nap(number: int) -> None:
        for seconds in sample.naps(number):
            await asyncio.sleep(seconds)

    watch = sample.Stopwatch(time.process_time)
    await asyncio.gather(*[nap(number) for number in range(count)])
    return watch.microseconds(count * sample.NAPS)


async def thread(count: int) -> float:
    """Call a function on a worker thread."""
    await asyncio.to_thread(int)
    watch = sample.Stopwatch()
    for _ in range(count):
        await asyncio.to_thread(int)
    return watch.microseconds(count)


def main(run: Callable[[Benchmark], float], roundtrip: Callable[[int], Benchmark] = roundtrip) -> None:
    """Run one of the benchmarks on the loop that `run` makes."""
    sample.main(
        {
            "spawn": lambda count: run(spawn(count)),
            "switch": lambda count: run(switch(count)),
            "roundtrip": lambda count: run(roundtrip(count)),
            "handoff": lambda count: run(handoff(count)),
            "memory": lambda count: run(memory(count)),
            "timeout": lambda count: run(timeout(count)),
            "sleep": lambda count: run(sleep(count)),
            "thread": lambda count: run(thread(count)),
        }
    )


if __name__ == "__main__":
    main(asyncio.run)
