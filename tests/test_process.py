"""fibers.process: child processes that park the fiber, stream, and end with their scope.

Children are real, so these tests run in real time; every wait has a generous bound and nothing is asserted about
durations.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Boom, fail, nap, raised
from helpers import bounded as bounded_by

import fibers

PIPE = subprocess.PIPE
MEBIBYTE = bytes(range(256)) * 4096

# A child that says who it is and then stays; one that, told to end, says so; one that does not listen.
STAYS = "echo $$; exec sleep 1000"
SAYS_SO = "trap 'echo told; exit 5' TERM; echo $$; while :; do sleep 0.01; done"
DOES_NOT_LISTEN = "trap '' TERM; echo $$; while :; do sleep 0.01; done"


def bounded(main: Any) -> Any:
    return bounded_by(main, 30)


def children() -> set[int]:
    """The child processes of this one, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def no_child_is_left_behind() -> Iterator[None]:
    importlib.import_module("fibers.process")
    before = children()
    yield
    assert children() <= before, "a child is left, or a zombie"


def wait_for(path: Path) -> int:
    """Wait until a child has written its process id into a file."""
    while not (path.exists() and path.read_text().endswith("\n")):
        fibers.sleep(0.002)
    return int(path.read_text().split()[0])


def is_gone(pid: int) -> bool:
    """Neither running nor a zombie."""
    return isinstance(raised(os.kill, pid, 0), ProcessLookupError)


# run(): as subprocess.run.


def test_run_returns_a_completed_process() -> None:
    def main() -> None:
        done = fibers.process.run(["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True)
        assert isinstance(done, subprocess.CompletedProcess)
        assert done.args == ["sh", "-c", "echo out; echo err >&2; exit 3"]
        assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")

    bounded(main)


def test_run_without_capture_returns_no_output() -> None:
    def main() -> None:
        done = fibers.process.run(["true"])
        assert (done.returncode, done.stdout, done.stderr) == (0, None, None)

    bounded(main)


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "input": (["cat"], {"input": b"in", "stdout": PIPE}),
    "empty input": (["cat"], {"input": b"", "stdout": PIPE}),
    "text": (["cat"], {"input": "grün\n", "stdout": PIPE, "text": True, "encoding": "utf-8"}),
    "encoding": (["printf", r"\374"], {"stdout": PIPE, "encoding": "latin-1"}),
    "errors": (["printf", r"\377"], {"stdout": PIPE, "encoding": "utf-8", "errors": "replace"}),
    "newlines": (["printf", r"a\r\nb"], {"stdout": PIPE, "universal_newlines": True}),
    "merged": (["sh", "-c", "echo out; echo err >&2"], {"stdout": PIPE, "stderr": subprocess.STDOUT}),
    "discarded": (["echo", "x"], {"stdout": subprocess.DEVNULL}),
    "no input": (["cat"], {"stdin": subprocess.DEVNULL, "stdout": PIPE}),
    "shell": ("echo $((6 * 7))", {"shell": True, "stdout": PIPE}),
    "cwd": (["pwd"], {"cwd": "/", "stdout": PIPE}),
    "env": (["/bin/sh", "-c", "echo $WORD"], {"env": {"WORD": "yes"}, "stdout": PIPE}),
    "path": ([Path("/bin/echo"), "x"], {"stdout": PIPE}),
    "signal": (["sh", "-c", "kill -9 $$"], {}),
    "session": (["true"], {"start_new_session": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_run_takes_the_options_of_subprocess_run_and_returns_the_same(name: str) -> None:
    args, options = OPTIONS[name]
    expected = subprocess.run(args, **options)

    def main() -> None:
        done = fibers.process.run(args, **options)
        assert (done.args, done.returncode) == (expected.args, expected.returncode)
        assert (done.stdout, done.stderr) == (expected.stdout, expected.stderr)

    bounded(main)


def test_run_writes_into_a_file_it_is_given(tmp_path: Path) -> None:
    def main() -> None:
        with (tmp_path / "out").open("wb") as out:
            fibers.process.run(["echo", "into the file"], stdout=out)
        assert (tmp_path / "out").read_bytes() == b"into the file\n"

    bounded(main)


def test_run_check_raises_called_process_error_with_the_output() -> None:
    def main() -> None:
        args = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        error = raised(fibers.process.run, args, check=True, capture_output=True)
        assert type(error) is subprocess.CalledProcessError
        assert (error.returncode, error.cmd, error.output, error.stderr) == (3, args, b"out\n", b"err\n")
        assert fibers.process.run(["true"], check=True).returncode == 0

    bounded(main)


def test_run_timeout_raises_timeout_expired_and_leaves_no_process(tmp_path: Path) -> None:
    """As subprocess.run: not the TimeoutError of a scope, and no scope is cancelled."""

    def main() -> None:
        pid = tmp_path / "pid"
        args = ["sh", "-c", f"echo $$ > {pid}; exec sleep 1000"]
        with fibers.scope() as s:
            error = raised(fibers.process.run, args, timeout=0.5)
            assert type(error) is subprocess.TimeoutExpired
            assert (error.cmd, error.timeout) == (args, 0.5)
            fibers.checkpoint()
            assert not s.cancel_called
        assert is_gone(wait_for(pid))

    bounded(main)


def test_run_timeout_that_is_not_reached_changes_nothing() -> None:
    def main() -> None:
        assert fibers.process.run(["echo", "x"], timeout=25, stdout=PIPE).stdout == b"x\n"

    bounded(main)


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        (["/nonexistent/program"], {}, FileNotFoundError),
        (["/etc"], {}, PermissionError),
        (["true"], {"cwd": "/nonexistent"}, FileNotFoundError),
        (["true"], {"capture_output": True, "stdout": PIPE}, ValueError),
        (["true"], {"input": b"x", "stdin": PIPE}, ValueError),
        (["tr\0ue"], {}, ValueError),
        (["cat"], {"input": "text, not bytes", "stdout": PIPE}, TypeError),
        (None, {}, TypeError),
        (["true"], {"nonsense": 1}, TypeError),
    ],
    ids=["missing", "not executable", "no directory", "capture twice", "input twice", "nul", "text", "none", "option"],
)
def test_run_refuses_what_subprocess_run_refuses(args: Any, options: Any, error: type) -> None:
    """The same error, nothing left open, no process left."""
    assert isinstance(raised(subprocess.run, args, **options), error)

    def main() -> None:
        assert isinstance(raised(fibers.process.run, args, **options), error)
        assert fibers.process.run(["true"]).returncode == 0

    bounded(main)


def test_run_parks_only_its_fiber(tmp_path: Path) -> None:
    """The child waits for what a sibling does meanwhile."""

    def main() -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = fibers.spawn(fibers.process.run, ["cat", fifo], stdout=PIPE)
        nap(0.01)
        fibers.to_thread(fifo.write_bytes, b"from a sibling")
        assert reader.result().stdout == b"from a sibling"

    bounded(main)


def test_run_moves_a_mebibyte_both_ways_at_once() -> None:
    def main() -> None:
        done = fibers.process.run(["cat"], input=MEBIBYTE, capture_output=True)
        assert done.stdout == MEBIBYTE
        assert done.stderr == b""

    bounded(main)


def test_run_reads_two_large_outputs_at_once() -> None:
    program = "import sys; sys.stderr.write('e' * 1000000); sys.stdout.write('o' * 1000000)"

    def main() -> None:
        done = fibers.process.run([sys.executable, "-c", program], capture_output=True)
        assert done.stdout == b"o" * 1000000
        assert done.stderr == b"e" * 1000000

    bounded(main)


def test_run_survives_a_child_that_does_not_read_its_input() -> None:
    def main() -> None:
        assert fibers.process.run(["true"], input=MEBIBYTE).returncode == 0

    bounded(main)


def test_many_runs_at_once_each_get_their_own_output() -> None:
    def main() -> None:
        with fibers.scope() as s:
            handles = [s.spawn(fibers.process.run, ["echo", str(n)], stdout=PIPE) for n in range(30)]
        assert [int(handle.result().stdout) for handle in handles] == list(range(30))

    bounded(main)


# run() and its scope.


@pytest.mark.parametrize("program", [STAYS, SAYS_SO, DOES_NOT_LISTEN], ids=["stays", "says so", "does not listen"])
def test_cancelling_the_scope_of_run_ends_the_child(tmp_path: Path, program: str) -> None:
    """SIGTERM, a grace, SIGKILL; when the block is left the child has been reaped."""

    def main() -> None:
        out = tmp_path / "out"
        with fibers.scope() as s, out.open("wb") as file:
            s.spawn(fibers.process.run, ["sh", "-c", program], stdout=file)
            pid = wait_for(out)
            assert not is_gone(pid)
            s.cancel()
        assert is_gone(pid)
        assert ("told" in out.read_text()) == (program is SAYS_SO)

    bounded(main)


def test_a_timeout_around_run_ends_the_child_and_is_a_timeout_error(tmp_path: Path) -> None:
    """Rule G1."""

    def block(pid: Path) -> None:
        with fibers.timeout(0.5):
            fibers.process.run(["sh", "-c", f"echo $$ > {pid}; exec sleep 1000"], capture_output=True)

    def main() -> None:
        assert type(raised(block, tmp_path / "pid")) is TimeoutError
        assert is_gone(wait_for(tmp_path / "pid"))

    bounded(main)


def test_a_failing_sibling_ends_the_child(tmp_path: Path) -> None:
    """Rule C4: the error leaves the block only after the child has been reaped."""
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fibers.process.run, ["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000"])
            wait_for(tmp_path / "pid")
            s.spawn(fail, boom)

    def main() -> None:
        assert raised(block) is boom
        assert is_gone(wait_for(tmp_path / "pid"))

    bounded(main)


def test_f1_run_in_a_cancelled_scope_starts_no_process(tmp_path: Path) -> None:
    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            fibers.process.run(["touch", tmp_path / "started"])
        assert s.cancelled_caught
        assert not (tmp_path / "started").exists()

    bounded(main)


def test_cancelling_run_in_the_middle_of_much_output_ends_it() -> None:
    def main() -> None:
        with fibers.move_on_after(0.1) as limit:
            fibers.process.run(["yes"], input=MEBIBYTE, stdout=PIPE)
        assert limit.cancelled_caught

    bounded(main)


# Popen.


def test_popen_tells_what_it_started() -> None:
    def main() -> None:
        with fibers.process.Popen(["sh", "-c", "echo $$; read line; exit 3"], stdin=PIPE, stdout=PIPE) as child:
            assert child.args == ["sh", "-c", "echo $$; read line; exit 3"]
            assert child.stderr is None
            assert int(child.stdout.recv_until(b"\n")) == child.pid
            assert child.poll() is None
            assert child.returncode is None
            child.stdin.sendall(b"\n")
            assert child.wait() == 3
            assert (child.poll(), child.returncode) == (3, 3)
            assert child.wait() == 3
            assert "3" in repr(child)

    bounded(main)


def test_popen_output_is_streamed_while_other_fibers_run() -> None:
    def main() -> None:
        log: list[Any] = []

        def ticks() -> None:
            while True:
                fibers.sleep(0.001)
                log.append("tick")

        with fibers.scope() as s, fibers.process.Popen(["cat"], stdin=PIPE, stdout=PIPE) as child:
            s.daemon(ticks)
            for word in (b"one\n", b"two\n", b"three\n"):
                child.stdin.sendall(word)
                assert child.stdout.recv_until(b"\n") == word
                fibers.sleep(0.01)
            child.stdin.close()
            assert child.stdout.recv(100) == b""
            assert child.wait() == 0
        assert "tick" in log

    bounded(main)


def test_popen_streams_read_as_streams_do() -> None:
    def main() -> None:
        with fibers.process.Popen(["printf", "0123456789ab;rest"], stdout=PIPE) as child:
            assert child.stdout.recv_exactly(4) == b"0123"
            buffer = bytearray(2)
            assert child.stdout.recv_into(buffer) == 2
            assert buffer == b"45"
            assert child.stdout.recv_until(b";") == b"6789ab;"
            error = raised(child.stdout.recv_exactly, 10)
            assert isinstance(error, fibers.IncompleteRead)
            assert error.partial == b"rest"

    bounded(main)


def test_popen_reads_and_writes_a_mebibyte_at_once() -> None:
    def main() -> None:
        with fibers.process.Popen(["cat"], stdin=PIPE, stdout=PIPE) as child, fibers.scope() as s:

            def write() -> None:
                child.stdin.sendall(MEBIBYTE)
                child.stdin.close()

            s.spawn(write)
            received = bytearray()
            while data := child.stdout.recv(65536):
                received += data
            assert received == MEBIBYTE
            assert child.wait() == 0

    bounded(main)


def test_popen_separates_the_two_outputs() -> None:
    def main() -> None:
        with fibers.process.Popen(["sh", "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=PIPE) as child:
            assert child.stderr.recv_until(b"\n") == b"err\n"
            assert child.stdout.recv_until(b"\n") == b"out\n"

    bounded(main)


def test_popen_writing_to_a_child_that_has_ended_is_a_broken_pipe() -> None:
    def main() -> None:
        with fibers.process.Popen(["true"], stdin=PIPE) as child:
            child.wait()
            assert isinstance(raised(child.stdin.sendall, MEBIBYTE), BrokenPipeError)

    bounded(main)


@pytest.mark.parametrize("give", [b"some input", MEBIBYTE, b"", None], ids=["little", "much", "empty", "none"])
def test_popen_communicate_sends_everything_and_returns_everything(give: bytes | None) -> None:
    def main() -> None:
        program = "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data); sys.stderr.write('e')"
        with fibers.process.Popen([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE, stderr=PIPE) as child:
            assert child.communicate(give) == (give or b"", b"e")
            assert child.returncode == 0

    bounded(main)


def test_popen_communicate_without_pipes_waits() -> None:
    def main() -> None:
        with fibers.process.Popen(["true"]) as child:
            assert child.communicate() == (None, None)
            assert child.returncode == 0

    bounded(main)


def test_popen_communicate_may_be_called_again_after_its_timeout() -> None:
    """As in subprocess: no output is lost."""

    def main() -> None:
        program = "echo first; read line </dev/fd/3; echo second"
        read, write = os.pipe()
        try:
            with fibers.process.Popen(["sh", "-c", program.replace("3", str(read))], stdout=PIPE, pass_fds=[read]) as c:
                assert isinstance(raised(c.communicate, timeout=0.3), subprocess.TimeoutExpired)
                os.write(write, b"\n")
                assert c.communicate() == (b"first\nsecond\n", None)
        finally:
            os.close(read)
            os.close(write)

    bounded(main)


def test_popen_wait_gives_up_at_its_timeout_and_leaves_the_child_alone() -> None:
    def main() -> None:
        with fibers.process.Popen(["cat"], stdin=PIPE) as child:
            error = raised(child.wait, timeout=0.01)
            assert isinstance(error, subprocess.TimeoutExpired)
            assert child.poll() is None
            child.stdin.close()
            assert child.wait(timeout=25) == 0

    bounded(main)


def test_popen_many_fibers_may_wait_for_one_child() -> None:
    def main() -> None:
        with fibers.process.Popen(["sh", "-c", "read line; exit 4"], stdin=PIPE) as child, fibers.scope() as s:
            waiters = [s.spawn(child.wait) for _ in range(5)]
            fibers.sleep(0.01)
            child.stdin.sendall(b"\n")
            assert [waiter.result() for waiter in waiters] == [4] * 5

    bounded(main)


@pytest.mark.parametrize(
    ("method", "args", "code"),
    [
        ("terminate", (), -signal.SIGTERM),
        ("kill", (), -signal.SIGKILL),
        ("send_signal", (signal.SIGUSR1,), -signal.SIGUSR1),
    ],
)
def test_popen_signals_reach_the_child_and_are_harmless_afterwards(method: str, args: Any, code: int) -> None:
    def main() -> None:
        with fibers.process.Popen(["sh", "-c", STAYS], stdout=PIPE) as child:
            child.stdout.recv_until(b"\n")
            getattr(child, method)(*args)
            assert child.wait() == code
            getattr(child, method)(*args)
            assert child.returncode == code

    bounded(main)


def test_popen_leaving_the_block_waits_for_the_child_and_closes_the_pipes() -> None:
    def main() -> None:
        with fibers.process.Popen(["cat"], stdin=PIPE, stdout=PIPE) as child:
            child.stdin.sendall(b"unread")
        assert child.returncode == 0
        assert isinstance(raised(child.stdout.recv, 1), OSError | ValueError)
        assert isinstance(raised(child.stdin.sendall, b"x"), OSError | ValueError)

    bounded(main)


@pytest.mark.parametrize("wait", ["wait", "communicate", "recv", "sleep"])
@pytest.mark.parametrize("program", [STAYS, DOES_NOT_LISTEN], ids=["stays", "does not listen"])
def test_popen_cancelled_inside_its_block_ends_the_child(wait: str, program: str) -> None:
    """Wherever the cancellation meets the block: the child is told to end, then killed, and reaped."""

    def main() -> None:
        with fibers.scope() as s:
            with fibers.process.Popen(["sh", "-c", program], stdout=PIPE) as child:
                pid = int(child.stdout.recv_until(b"\n"))
                s.deadline = fibers.now() + 0.01
                if wait == "recv":
                    child.stdout.recv(1)
                elif wait == "sleep":
                    fibers.sleep(1000)
                else:
                    getattr(child, wait)()
        assert s.cancelled_caught
        assert is_gone(pid)
        assert child.returncode in {-signal.SIGTERM, -signal.SIGKILL}

    bounded(main)


def test_popen_that_is_left_by_cancellation_lets_a_child_clean_up() -> None:
    def main() -> None:
        with fibers.scope() as s:
            with fibers.process.Popen(["sh", "-c", SAYS_SO], stdout=PIPE) as child:
                child.stdout.recv_until(b"\n")
                s.cancel()
                fibers.checkpoint()
        assert child.returncode == 5

    bounded(main)


def test_f1_popen_operations_are_cancel_points_on_entry() -> None:
    def main() -> None:
        with fibers.process.Popen(["sh", "-c", "echo x; cat"], stdin=PIPE, stdout=PIPE) as child:
            fibers.wait_readable(child.stdout)
            with fibers.scope() as s:
                s.cancel()
                assert isinstance(raised(child.stdout.recv, 1), fibers.Cancelled)
                assert isinstance(raised(child.stdin.sendall, b"x"), fibers.Cancelled)
                assert isinstance(raised(child.wait), fibers.Cancelled)
            assert child.stdout.recv(2) == b"x\n"

    bounded(main)


def test_a_wait_for_a_child_is_no_deadlock() -> None:
    """Rule A5. Without a timeout around it: a pending timer would hide the report."""
    assert fibers.run(lambda: fibers.process.run(["sleep", "0.1"]).returncode) == 0


def test_a_handler_of_sigchld_is_neither_needed_nor_disturbed() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _frame: handled.append(number))
    try:
        assert bounded(lambda: fibers.process.run(["sh", "-c", "exit 3"]).returncode) == 3
        assert signal.getsignal(signal.SIGCHLD) not in {signal.SIG_DFL, signal.SIG_IGN}
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_processes_run_in_a_run_of_another_thread() -> None:
    codes: list[int] = []

    def main() -> None:
        codes.append(fibers.process.run(["sh", "-c", "exit 3"]).returncode)
        with fibers.process.Popen(["cat"], stdin=PIPE, stdout=PIPE) as child:
            codes.append(len(child.communicate(MEBIBYTE)[0]))

    thread = threading.Thread(target=bounded, args=(main,))
    thread.start()
    thread.join(30)
    assert codes == [3, len(MEBIBYTE)]


# Misuse.


def test_a3_a_process_outside_a_run_is_refused_and_not_started(tmp_path: Path) -> None:
    args = ["touch", tmp_path / "started"]
    assert type(raised(fibers.process.run, args)) is RuntimeError
    assert type(raised(lambda: fibers.process.Popen(args).wait())) is RuntimeError
    assert not (tmp_path / "started").exists()


def test_popen_refuses_a_program_that_does_not_exist_and_leaks_nothing() -> None:
    def main() -> None:
        args = ["/nonexistent/program"]
        error = raised(fibers.process.Popen, args, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert isinstance(error, FileNotFoundError)

    bounded(main)


def test_popen_communicate_refuses_text() -> None:
    def main() -> None:
        with fibers.process.Popen(["cat"], stdin=PIPE, stdout=PIPE) as child:
            assert isinstance(raised(child.communicate, "text"), TypeError)
            child.stdin.close()

    bounded(main)


# What has no pidfds, no end of output, or no descriptor left.


@pytest.mark.parametrize("refusal", [OSError(38, "no such call"), None], ids=["kernel", "python"])
def test_without_pidfds_a_thread_waits(monkeypatch: pytest.MonkeyPatch, refusal: OSError | None) -> None:
    if refusal is None:
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", lambda _pid: fail(refusal))

    def main() -> None:
        assert fibers.process.run(["sh", "-c", "exit 3"]).returncode == 3
        with fibers.process.Popen(["cat"], stdin=PIPE) as child:
            assert isinstance(raised(child.wait, timeout=0.01), subprocess.TimeoutExpired)
        assert child.returncode == 0
        with fibers.move_on_after(0.05) as limit:
            fibers.process.run(["sleep", "1000"])
        assert limit.cancelled_caught

    bounded(main)


def test_popen_left_normally_ends_a_child_that_writes_for_ever() -> None:
    def main() -> None:
        with fibers.process.Popen(["yes"], stdout=PIPE) as child:
            assert child.stdout.recv_until(b"\n") == b"y\n"
        assert child.returncode == -signal.SIGPIPE

    bounded(main)


def test_popen_streams_give_lines() -> None:
    def main() -> None:
        with fibers.process.Popen(["printf", r"one\n\ntwo"], stdout=PIPE) as child:
            assert list(child.stdout) == [b"one\n", b"\n", b"two"]

    bounded(main)


def test_a_cancelled_sendall_breaks_the_pipe() -> None:
    """Rule F7: nobody appends to half a message."""

    def main() -> None:
        with fibers.process.Popen(["sleep", "0.3"], stdin=PIPE) as child:
            with fibers.move_on_after(0.05) as limit:
                child.stdin.sendall(MEBIBYTE)
            assert limit.cancelled_caught
            error = raised(child.stdin.sendall, b"x")
            assert isinstance(error, BrokenPipeError)
            assert "65536 of 1048576 bytes" in str(error)

    bounded(main)


def test_closing_a_pipe_ends_the_receive_of_another_fiber() -> None:
    """Rule F6."""

    def main() -> None:
        with fibers.process.Popen(["cat"], stdin=PIPE, stdout=PIPE) as child, fibers.supervisor() as s:
            reader = s.spawn(child.stdout.recv, 1)
            fibers.checkpoint()
            assert "1 waiting" in repr(child.stdout)
            child.stdout.close()
            error = reader.exception()
            assert isinstance(error, OSError)
            assert repr(child.stdout) == "<Pipe closed>"

    bounded(main)


def test_popen_that_can_not_have_its_streams_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        error = OSError(24, "too many open files")
        monkeypatch.setattr(os, "dup", lambda _fd: fail(error))
        assert raised(fibers.process.Popen, ["sleep", "1000"], stdout=PIPE) is error

    bounded(main)


def test_ctrl_c_during_the_grace_kills_and_reaps() -> None:
    def main() -> None:
        with fibers.process.Popen(["sh", "-c", DOES_NOT_LISTEN], stdout=PIPE, grace=1000) as child:
            started.append(child)
            child.stdout.recv_until(b"\n")
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
            raise Boom

    started: list[Any] = []
    error = raised(fibers.run, main)
    assert type(error) is KeyboardInterrupt
    assert started[0].returncode == -signal.SIGKILL
