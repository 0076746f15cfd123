"""The scheduler's own corners: foreign greenlets, thrown exceptions, fork, the public park, calls from outside."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import greenlet
import programs
import pytest
from helpers import Boom, bounded, fail, nap, open_fds, raised

import fibers
from fibers import net
from fibers.driver import native

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_foreign_greenlet_may_park_and_is_the_one_resumed() -> None:
    """L8: what parks is the running greenlet, not the fiber's carrier."""

    def main() -> list[str]:
        steps: list[str] = []

        def foreign() -> str:
            steps.append("in")
            fibers.sleep(0.01)
            steps.append("out")
            return "value"

        assert greenlet.greenlet(foreign).switch() == "value"
        steps.append("back")
        return steps

    assert fibers.run(main) == ["in", "out", "back"]


def test_an_exception_thrown_into_a_parked_greenlet_ends_the_operation_first() -> None:
    def main() -> bytes:
        a, b = net.socketpair()
        with a, b:
            with pytest.raises(greenlet.GreenletExit):  # noqa: PT012 - the steps are the test
                inner = greenlet.greenlet(lambda: a.recv(10))

                def thrower() -> None:
                    inner.throw(greenlet.GreenletExit("stop"))

                fibers.spawn(thrower)
                inner.switch()
                raise greenlet.GreenletExit
            b.sendall(b"later")
            return a.recv(10)

    assert fibers.run(main) == b"later"


def test_c4_an_exception_thrown_into_the_exit_of_a_scope_leaves_it_when_its_children_are_done() -> None:
    log: list[str] = []

    def child() -> None:
        try:
            fibers.sleep(60)
        finally:
            fibers.sleep(0.01)
            log.append("child done")

    def parent() -> None:
        with pytest.raises(KeyError, match="thrown"), fibers.scope() as s:  # noqa: PT012 - the exit is the test
            s.spawn(child)
            s.spawn(fibers.sleep, 60)
        assert log == ["child done"]
        assert fibers.current().scope._is_root

    def main() -> None:
        fiber = fibers.spawn(parent)
        fibers.sleep(0.01)
        fibers.spawn(fiber._greenlet.throw, KeyError("thrown"))
        fiber.result()

    fibers.run(main, clock="auto")


def test_unpark_hands_a_value_over_and_tells_whether_it_did() -> None:
    def main() -> None:
        fiber = fibers.spawn(fibers.park)
        assert fibers.unpark(fiber, 1) is False
        fibers.checkpoint()
        assert fibers.unpark(fiber, "gift") is True
        assert fibers.unpark(fiber, "late") is False
        assert fiber.result() == "gift"

    fibers.run(main)


def test_on_cancel_decides_whether_the_wait_ends() -> None:
    def main() -> None:
        asked: list[str] = []

        def stays() -> object:
            return fibers.park(lambda: asked.append("stays") or False)

        def goes() -> object:
            return fibers.park(lambda: asked.append("goes") or True)

        first, second = fibers.spawn(stays), fibers.spawn(goes)
        fibers.checkpoint()
        first.cancel()
        second.cancel()
        assert second.join()
        assert asked == ["stays", "goes"]
        assert second.status == "cancelled"
        assert first.status == "cancelling"
        assert fibers.unpark(first, "came") is True
        assert first.result() == "came"

    fibers.run(main)


def test_what_on_cancel_raises_is_the_failure_of_its_fiber_and_of_no_other() -> None:
    boom = Boom()

    def main() -> None:
        with fibers.supervisor(on_error=lambda fiber, error: seen.append((fiber, error))) as s:
            parked = s.spawn(fibers.park, lambda: fail(boom))
            other = s.spawn(nap, 0.01, "went on")
            fibers.checkpoint()
            parked.cancel()
            assert other.result() == "went on"
        assert seen == [(parked, boom)]
        assert parked.status == "failed"

    seen: list[object] = []
    bounded(main)


def test_call_soon_from_a_thread_wakes_a_waiting_run() -> None:
    def main() -> str:
        me = fibers.current()
        runtime = fibers.runtime()

        def outside() -> None:
            time.sleep(0.05)
            runtime.call_soon(fibers.unpark, me, "from outside")

        thread = threading.Thread(target=outside)
        thread.start()
        value = fibers.park()
        thread.join()
        return str(value)

    assert fibers.run(main) == "from outside"


def test_a_failing_call_soon_is_raised_in_main() -> None:
    def main() -> None:
        fibers.runtime().call_soon(lambda: 1 / 0)
        fibers.sleep(5)

    with pytest.raises(ZeroDivisionError):
        fibers.run(main)


def test_call_soon_after_the_run_is_refused() -> None:
    runtime = fibers.run(fibers.runtime)
    with pytest.raises(RuntimeError, match="the run is over"):
        runtime.call_soon(print)


def test_parking_in_a_call_soon_callback_is_refused() -> None:
    def main() -> None:
        fibers.runtime().call_soon(fibers.sleep, 1)
        fibers.sleep(5)

    with pytest.raises(RuntimeError, match="not a fiber"):
        fibers.run(main)


def test_a_signal_handler_runs_while_the_run_waits_and_its_exception_reaches_main() -> None:
    class Hangup(Exception):
        pass

    def handler(_number: int, _frame: object) -> None:
        raise Hangup

    def main() -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGHUP)).start()
        bystander = fibers.spawn(fibers.sleep, 10)
        try:
            fibers.sleep(10)
        finally:
            assert bystander.status == "running"

    before = signal.signal(signal.SIGHUP, handler)
    try:
        with pytest.raises(Hangup):
            fibers.run(main)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_keyboard_interrupt_reaches_main_and_the_default_handler_is_restored() -> None:
    """Case 81: children are cancelled and it leaves bare."""

    def main() -> None:
        child = fibers.spawn(fibers.sleep, 10)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            child.join()
        finally:
            seen.append(child.status)

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        fibers.run(main)
    assert seen == ["running"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_ends_the_run_in_the_child_with_the_forking_fiber() -> None:
    """M4, the part that protects the parent: siblings do not run in the child, the parent's ring is not disturbed."""

    def main() -> int:
        ran: list[int] = []

        def sibling() -> None:
            try:
                fibers.sleep(0.05)
            finally:
                ran.append(os.getpid())

        fibers.spawn(sibling)
        fibers.checkpoint()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                fibers.sleep(1)
                os.write(write, b"slept")
            except RuntimeError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        message = os.read(read, 200)
        os.close(read)
        os.close(write)
        assert b"child of a fork" in message
        fibers.sleep(0.1)
        assert ran == [os.getpid()]
        return 7

    assert fibers.run(main) == 7


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_run_works_anew_in_a_forked_child() -> None:
    def main() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert fibers.run(main) == 3
    assert fibers.run(lambda: fibers.sleep(0.01) or 4) == 4


def test_a_second_ctrl_c_does_not_wait_for_a_thread() -> None:
    """M1: the first one stays undelivered while main is in a call that can't be cancelled."""
    program = """
import threading, time
import fibers

def started(main):
    while "parked" not in repr(main):
        time.sleep(0.001)
    print("ready", flush=True)
    threading.Event().wait()

try:
    fibers.run(lambda: fibers.to_thread(started, fibers.current()))
except KeyboardInterrupt:
    print("interrupted")
"""
    with programs.running("-c", program) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(0.2)  # else the kernel may make one of two
        assert child.communicate(timeout=programs.PATIENCE) == ("interrupted\n", "")
        assert child.returncode == 0


def forked(work: Callable[[], object]) -> tuple[int, str]:
    """Fork; in the child call work(), which may end it: its exit code and what it printed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - it must not go on as a second pytest
            traceback.print_exc()
            os._exit(70)
    os.close(write)
    with open(read) as output:  # noqa: PTH123 - a pipe
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_in_the_child_of_a_fork_the_run_ends_with_the_forking_fiber(depth: int) -> None:
    """M4: its scopes do not wait for children that do not exist, and no finally block of another fiber runs."""
    program = f"""
import os, sys
import fibers

def sibling():
    try:
        fibers.sleep(0.05)
    finally:
        print("sibling", "in the child" if child else "", flush=True)

def forker(depth):
    global child
    fibers.spawn(sibling)
    if depth:
        return fibers.spawn(forker, depth - 1).result()
    with fibers.scope() as s, fibers.timeout(10):
        s.spawn(sibling)
        fibers.daemon(sibling)
        fibers.checkpoint()
        child = os.fork()
        child = not child
        if child:
            assert fibers.run(lambda: fibers.sleep(0.01) or 5) == 5, "a new run inside the forked fiber"
            return "ended"
    os.wait()

child = False
result = fibers.run(forker, {depth})
if child:
    assert fibers.run(lambda: fibers.sleep(0.01) or 6) == 6, "and after it"
    os.write(1, f"child {{result}}\\n".encode())  # at once: the siblings print meanwhile
    sys.exit(0)
print("parent", result)
"""
    done = programs.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "child ended\n" in done.stdout
    assert done.stdout.endswith("parent None\n")
    assert "in the child" not in done.stdout


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_child_of_a_fork_has_nothing_of_the_run() -> None:
    stream: Any
    reader: Any
    runtime: Any

    def look() -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
        assert not [name for name in open_fds().values() if "io_uring" in name]
        stream.close()
        reader.cancel()
        with pytest.raises(RuntimeError, match="over"):
            runtime.call_soon(print)
        with pytest.raises(RuntimeError, match="child of a fork"):
            fibers.spawn(print)
        os.write(1, b"ok")

    def main() -> None:
        nonlocal stream, reader, runtime
        stream, other = net.socketpair()
        runtime = fibers.runtime()
        with other, stream, fibers.signals(signal.SIGTERM):
            reader = fibers.spawn(stream.recv, 10)
            fibers.checkpoint()
            assert forked(look) == (0, "ok")
            other.sendall(b"still here")
            assert reader.result() == b"still here"

    stream = reader = runtime = None
    fibers.run(main)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_primitives_that_outlive_a_fork_know_who_does_not_exist() -> None:
    """M4: what a sibling held is broken, whoever waited is passed over."""

    def holder() -> None:
        with held:
            fibers.sleep(1000)

    def anew() -> None:
        assert isinstance(raised(held.acquire), fibers.BrokenLockError)
        with mine:
            pass
        channel.put(1)
        assert channel.get() == 1
        assert fibers.to_thread(int) == 0
        event.set()

    def look() -> None:
        mine.release()  # not to the one who waits in the parent
        assert not mine.locked()
        fibers.run(anew)
        os.write(1, b"ok")

    def main() -> None:
        assert fibers.to_thread(int) == 0
        with fibers.scope() as s:
            s.spawn(holder)
            mine.acquire()
            for wait in (mine.acquire, channel.get, event.wait):
                s.spawn(wait)
            fibers.checkpoint()
            assert forked(look) == (0, "ok")
            s.cancel()

    held, mine, event = fibers.Lock(), fibers.Lock(), fibers.Event()
    channel: fibers.Channel[int] = fibers.Channel(1)
    fibers.run(main)


def test_a_fork_outside_a_fiber_ends_the_run_in_the_child() -> None:
    program = """
import os
import fibers

def fork():
    if os.fork():
        os.wait()

def main():
    fibers.runtime().call_soon(fork)
    fibers.sleep(0.01)

try:
    fibers.run(main)
    print("parent")
except fibers.InternalError as error:
    print("child:", error.__cause__, flush=True)
"""
    done = programs.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("child: forked outside a fiber")
    assert done.stdout.endswith("parent\n")


def test_closing_a_file_ends_an_operation_that_goes_through_operate() -> None:
    def main() -> None:
        read, write = os.pipe()
        file = native.File(read)
        reader = supervisor.spawn(native.operate, native.READ, file, bytearray(4), 0, -1, None)
        fibers.checkpoint()
        file.close()
        error = raised(reader.result)
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
        again = raised(native.operate, native.READ, file, bytearray(4), 0, -1, None)
        assert isinstance(again, OSError)
        assert again.errno == errno.EBADF
        os.close(write)

    def supervised() -> None:
        nonlocal supervisor
        with fibers.supervisor() as supervisor:
            main()

    supervisor = fibers.supervisor()
    fibers.run(supervised)


def test_a_stream_dropped_open_warns_and_is_closed() -> None:
    def main() -> None:
        a, b = net.socketpair()
        fd = a.fileno()
        with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - a step each
            del a
            gc.collect()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        b.close()

    fibers.run(main)


def test_every_operation_takes_a_timeout_and_can_be_cancelled() -> None:
    """The operations that no stream method covers go through operate()."""

    def main() -> None:
        read, write = os.pipe()
        buffer = bytearray(4)
        with pytest.raises(TimeoutError):
            native.operate(native.READ, read, buffer, 0, -1, 0.01)
        with fibers.move_on_after(0.01) as limit:
            native.operate(native.READ, read, buffer, 0, -1, None)
        assert limit.cancelled_caught
        with pytest.raises(TimeoutError):
            fibers.wait_readable(read, timeout=0.01)
        assert native.operate(native.WRITE, write, b"abcd", 0, -1, None) == 4
        fibers.wait_readable(read)
        fibers.wait_writable(write)
        assert native.operate(native.READ, read, buffer, 0, -1, 1.0) == 4
        assert buffer == b"abcd"
        assert native.operate(native.NOP, -1, None, 0, -1, None) == 0
        for fd in (read, write):
            assert native.operate(native.CLOSE, fd, None, 0, -1, None) == 0

    fibers.run(main)


@pytest.mark.abandons
def test_a_deadlock_that_cancellation_cannot_end_is_an_internal_error() -> None:
    """A6: no fiber is resumed, run raises InternalError with the cause, and the thread can run again."""

    def main() -> None:
        fibers.spawn(fibers.park, lambda: False)

    with pytest.raises(fibers.InternalError) as caught:
        fibers.run(main)
    assert "cancellation can't end" in str(caught.value.__cause__)
    assert fibers.run(lambda: 5) == 5


def test_wait_tells_what_for_and_since_when() -> None:
    def main() -> None:
        waiter = fibers.spawn(native.wait, "acquire", 7)
        bare = fibers.spawn(native.wait, "select")
        fibers.sleep(3)
        assert repr(waiter) == "<Fiber 'wait' parked in acquire of 7>"
        assert repr(bare) == "<Fiber 'wait' parked in select>"
        assert waiter._since == 0.0
        assert fibers.current()._since is None
        assert not fibers.unpark(waiter), "that is for park()"
        assert native.wake(waiter)
        assert not native.wake(waiter), "it is ready already"
        assert waiter.result() is True
        assert native.wait("get", None, 2) is False
        assert native.wait("get", None, 0) is False
        assert fibers.now() == 5.0
        bare.cancel()

    fibers.run(main, clock="auto")


def test_a_woken_waiter_stays_so_when_it_is_cancelled_before_it_runs() -> None:
    def main() -> None:
        waiter = fibers.spawn(native.wait, "get")
        fibers.checkpoint()
        native.wake(waiter)
        waiter.cancel()
        assert waiter.result() is True
        with fibers.move_on_after(0) as late:
            native.wait("get")
        assert late.cancelled_caught

    fibers.run(main)


def test_watchers_are_told_once_when_a_fiber_is_done() -> None:
    def main() -> None:
        told: list[fibers.Fiber[object]] = []
        unwanted: list[fibers.Fiber[object]] = []
        child = fibers.spawn(fibers.sleep, 1)
        child._watch(told.append)
        child._watch(unwanted.append)
        child._unwatch(unwanted.append)
        child._unwatch(print)
        child.join()
        assert told == [child]
        child._watch(told.append)
        assert told == [child, child]
        assert unwanted == []

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_finished_fiber_leaves_behind_cannot_park_in_its_name(kept: bool) -> None:
    """Its value may go with it; there is no fiber then that the destructor could park."""
    errors: list[BaseException | None] = []

    class Value:
        def __del__(self) -> None:
            errors.append(raised(fibers.checkpoint))

    def main() -> None:
        handles = [fibers.spawn(Value)]
        if not kept:
            handles.clear()
        fibers.sleep(0.01)

    fibers.run(main)
    assert len(errors) == 1
    assert isinstance(errors[0], RuntimeError) if not kept else True


def test_an_exception_thrown_at_a_sender_whose_turn_it_is_passes_the_turn_on() -> None:
    big = b"x" * 4_000_000

    def drain(peer: net.Stream) -> None:
        left = len(big) + 1
        while left:
            left -= len(peer.recv(1 << 20))

    def main() -> None:
        a, b = net.socketpair()
        with a, b:

            def first() -> None:
                a.sendall(big)
                second._greenlet.throw(KeyError("thrown"))  # it is ready: the turn is its

            def interrupted() -> None:
                with pytest.raises(KeyError):
                    a.sendall(b"never")

            fibers.spawn(first)
            fibers.checkpoint()
            second = fibers.spawn(interrupted)
            third = fibers.spawn(a.sendall, b"!")
            fibers.checkpoint()
            drain(b)
            with fibers.timeout(5):
                third.join()

    fibers.run(main)


def test_a_stream_whose_senders_wait_for_a_turn_is_no_other_runs() -> None:
    big = b"x" * 4_000_000
    errors: list[BaseException | None] = []

    def elsewhere(a: net.Stream) -> None:
        errors.append(raised(fibers.run, lambda: a.sendall(b"foreign")))

    def main() -> None:
        a, b = net.socketpair()
        with a, b:

            def first() -> None:
                a.sendall(big)
                thread = threading.Thread(target=elsewhere, args=(a,))
                thread.start()
                thread.join()

            fibers.spawn(first)
            fibers.checkpoint()
            second = fibers.spawn(a.sendall, b"!")
            fibers.checkpoint()
            left = len(big) + 1
            while left:
                left -= len(b.recv(1 << 20))
            second.join()

    fibers.run(main)
    assert isinstance(errors[0], RuntimeError)
    assert "in use by the run of another thread" in str(errors[0])


def test_an_operation_takes_nothing_extra_that_it_does_not_know() -> None:
    def main() -> None:
        buffer = bytearray(4)
        for code in (native.RECV_INTO, native.READ):
            with pytest.raises(ValueError, match="takes nothing extra"):
                native.operate(code, 0, buffer, 0, -1, None, -1, buffer)

    fibers.run(main)


@pytest.mark.abandons
def test_a_run_that_failed_leaves_no_timer_to_a_fiber_that_is_gone() -> None:
    """A6: on_cancel fails while main's own timer is armed; main and its run are collected together."""

    def main() -> None:
        with fibers.move_on_after(0.1):
            native.wait("never", None, 100.0, lambda: 1 / 0)

    error = raised(lambda: fibers.run(main, clock="auto"))
    assert isinstance(error, fibers.InternalError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    del error
    gc.collect()
    assert fibers.run(lambda: 5) == 5


def test_the_collector_counts_every_reference_once() -> None:
    def main() -> None:
        fiber = fibers.spawn(fibers.sleep, 0)
        for o in (fiber, fibers.scope(), native.runtime()):
            assert gc.get_referents(o).count(type(o)) == 1, o

    fibers.run(main)
