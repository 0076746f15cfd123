"""Micro-benchmarks of trio."""

from __future__ import annotations

import time

import trio

from benchmarks import sample

MESSAGE = b"x" * 64


async def nothing() -> None:
    """Be the spawned function."""


async def spawn(count: int) -> float:
    """Open a nursery, start a task in it, wait for both."""
    watch = sample.Stopwatch()
    for _ in range(count):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nothing)
    return watch.microseconds(count)


async def switch(count: int) -> float:
    """Pass a checkpoint while another task is ready."""

    async def loop() -> None:
        for _ in range(count // 2):
            await trio.lowlevel.checkpoint()

    watch = sample.Stopwatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop)
        nursery.start_soon(loop)
    return watch.microseconds(count)


async def roundtrip(count: int) -> float:
    """Send 64 bytes to another task over a socket pair and receive them back."""
    near, far = map(trio.SocketStream, trio.socket.socketpair())

    async def echo() -> None:
        while data := await far.receive_some(64):
            await far.send_all(data)

    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        watch = sample.Stopwatch()
        for _ in range(count):
            await near.send_all(MESSAGE)
            await near.receive_some(64)
        elapsed = watch.microseconds(count)
        await near.send_eof()
    return elapsed


async def handoff(count: int, capacity: int) -> float:
    """Put items into a channel with room for so many, which another task gets."""
    sending, receiving = trio.open_memory_channel[int](capacity)

    async def put() -> None:
        for number in range(count):
            await sending.send(number)

    watch = sample.Stopwatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        for _ in range(count):
            await receiving.receive()
    return watch.microseconds(count)


async def memory(count: int) -> float:
    """Resident bytes of a task parked in sleep."""
    parked = 0

    async def park() -> None:
        nonlocal parked
        parked += 1
        await trio.sleep(3600)

    before = sample.resident()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(park)
        while parked < count:
            await trio.lowlevel.checkpoint()
        used = sample.resident() - before
        nursery.cancel_scope.cancel()
    return used / count


async def timeout(count: int) -> float:
    """Enter and leave a timeout that does not fire."""
    watch = sample.Stopwatch()
    for _ in range(count):
        with trio.move_on_after(10):  # noqa: ASYNC100 - the block is empty on purpose
            pass
    return watch.microseconds(count)


async def sleep(count: int) -> float:
    """CPU time of one sleep among many."""

    async def nap(number: int) -> None:
        for seconds in sample.naps(number):
            await trio.sleep(seconds)

    watch = sample.Stopwatch(time.process_time)
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(nap, number)
    return watch.microseconds(count * sample.NAPS)


async def thread(count: int) -> float:
    """Call a function on a worker thread."""
    await trio.to_thread.run_sync(int)
    watch = sample.Stopwatch()
    for _ in range(count):
        await trio.to_thread.run_sync(int)
    return watch.microseconds(count)


if __name__ == "__main__":
    sample.main(
        {
            "spawn": lambda count: trio.run(spawn, count),
            "switch": lambda count: trio.run(switch, count),
            "roundtrip": lambda count: trio.run(roundtrip, count),
            "handoff": lambda count: trio.run(handoff, count, 1),
            "rendezvous": lambda count: trio.run(handoff, count, 0),
            "memory": lambda count: trio.run(memory, count),
            "timeout": lambda count: trio.run(timeout, count),
            "sleep": lambda count: trio.run(sleep, count),
            "thread": lambda count: trio.run(thread, count),
        }
    )
