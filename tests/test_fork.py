"""fork, multiprocessing and subprocess, inside and outside a run (rule M4, case 84).

Every test is a program in a process of its own, with a time limit: what goes wrong after a fork goes wrong at the
end of the child, in its destructors, or by a wait that nobody ends.
"""

import textwrap
from pathlib import Path

import pytest
from programs import run

PRELUDE = """
import multiprocessing, os, signal, subprocess, sys, threading, time
import fibers
from fibers import net

PARENT = os.getpid()

def who():
    return "parent" if os.getpid() == PARENT else "child"

def say(*words):
    # One write: nothing is buffered that a fork would double.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kind(fn, *args):
    try:
        fn(*args)
    except BaseException as error:
        return type(error).__name__
    return "returned"

def sibling(name):
    # What must happen in the parent only.
    say(f"{name} began in {who()}")
    try:
        fibers.sleep(0.05)
    finally:
        say(f"{name} ended in {who()}")

def rings():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return [link for link in links if "io_uring" in link]
"""


def program(tmp_path: Path, text: str) -> list[str]:
    """Run a program to its end and return its lines; 3.12 warns of forks beside threads, which is not our matter."""
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(text))
    child = run("-W", "ignore::DeprecationWarning", path)
    assert child.stderr == ""
    assert child.returncode == 0
    return child.stdout.splitlines()


# The child of a fork.


@pytest.mark.parametrize("forker", ["forker()", "fibers.spawn(forker).result()"], ids=["main", "a child"])
def test_case_84_only_the_forking_fiber_exists_in_the_child(tmp_path: Path, forker: str) -> None:
    """Rule M4: run returns its value there, at once; the child then ends like any program, destructors and all."""
    lines = program(
        tmp_path,
        f"""
        def forker():
            pid = os.fork()
            if pid == 0:
                return "the child's value"
            say("exit code", wait(pid))
            return "the parent's value"

        def main():
            fibers.spawn(sibling, "parked")
            fibers.checkpoint()
            fibers.spawn(sibling, "new")
            value = {forker}
            say("main goes on in", who())
            return value

        value = fibers.run(main)
        say("run returned", value, "in", who())
        if who() == "child":
            sys.exit(5)
        """,
    )
    assert lines[0] == "parked began in parent"
    child, parent = lines[: lines.index("exit code 5")], lines[lines.index("exit code 5") + 1 :]
    assert "run returned the child's value in child" in child
    assert not [line for line in child[1:] if "in child" in line and "ended" in line]
    if "spawn" in forker:
        assert "main goes on in child" not in child
        assert "main goes on in parent" in parent
    assert "run returned the parent's value in parent" in parent
    everything = "\n".join(lines)
    for name in ("parked", "new"):
        assert f"{name} ended in child" not in everything
        assert f"{name} ended in parent" in everything
    assert "new began in child" not in everything


def test_m4_an_error_of_the_forking_fiber_leaves_run_bare_in_the_child(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def forker():
            pid = os.fork()
            if pid == 0:
                raise LookupError("of the child")
            say("exit code", wait(pid))

        def main():
            fibers.spawn(sibling, "sibling")
            fibers.checkpoint()
            with fibers.scope() as s:
                s.spawn(forker)

        try:
            fibers.run(main)
        except LookupError as error:
            say("caught", error, "in", who())
            sys.exit(6)
        """,
    )
    assert lines == [
        "sibling began in parent",
        "caught of the child in child",
        "exit code 6",
        "sibling ended in parent",
    ]


@pytest.mark.parametrize(
    ("leave", "code"),
    [("sys.exit(7)", 7), ("os._exit(8)", 8), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("return", 0)],
    ids=["sys.exit", "os._exit", "killed", "return"],
)
def test_m4_the_exit_code_of_the_child_is_what_it_says(tmp_path: Path, leave: str, code: int) -> None:
    """Rule E5: SystemExit leaves the run, and the interpreter, of the child."""
    lines = program(
        tmp_path,
        f"""
        def forker():
            pid = os.fork()
            if pid == 0:
                {leave}
            return wait(pid)

        def main():
            fibers.spawn(sibling, "sibling")
            fibers.checkpoint()
            return fibers.spawn(forker).result()

        value = fibers.run(main)
        if who() == "parent":
            say("exit code", value)
        """,
    )
    assert lines == ["sibling began in parent", "sibling ended in parent", f"exit code {code}"]


@pytest.mark.parametrize("block", ["scope()", "timeout(0.01)", "move_on_after(0.01)", "shield()", "supervisor()"])
def test_m4_a_block_with_children_is_left_in_the_child_without_waiting(tmp_path: Path, block: str) -> None:
    lines = program(
        tmp_path,
        f"""
        def stuck():
            try:
                fibers.sleep(1000)
            finally:
                say("stuck ended in", who())

        def main():
            with fibers.scope() as outer:
                outer.spawn(stuck)
                with fibers.{block} as inner:
                    inner.spawn(stuck)
                    fibers.checkpoint()
                    pid = os.fork()
                    if pid:
                        code = wait(pid)
                        inner.cancel()
                say("inner left in", who())
                if pid:
                    outer.cancel()
            say("outer left in", who())
            return pid and code

        def attempt():
            try:
                return fibers.run(main)
            except TimeoutError:
                # The parent's: the deadline of a block that was busy waiting for its child.
                return "timed out"

        outcome = attempt()
        say("end of", who(), outcome)
        """,
    )
    mine = [line for line in lines if "child" in line]
    assert mine == ["inner left in child", "outer left in child", "end of child 0"]
    assert lines.count("stuck ended in parent") == 2
    assert lines[-1].startswith("end of parent")


def test_m4_an_error_passes_through_blocks_with_children_as_it_is(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def main():
            with fibers.scope() as outer, fibers.scope(strict=True) as inner:
                outer.spawn(fibers.sleep, 1000)
                inner.spawn(fibers.sleep, 1000)
                fibers.checkpoint()
                pid = os.fork()
                if pid == 0:
                    raise LookupError("bare")
                code = wait(pid)
                outer.cancel()
            return code

        try:
            say(fibers.run(main))
        except LookupError as error:
            say("caught", error, "in", who())
            sys.exit(3)
        """,
    )
    assert lines == ["caught bare in child", "3"]


def test_m4_the_child_holds_no_ring(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def main():
            fibers.sleep(0.001)
            pid = os.fork()
            if pid == 0:
                say("in the child:", rings())
                os._exit(0)
            wait(pid)

        fibers.run(main)
        """,
    )
    assert lines == ["in the child: []"]


@pytest.mark.parametrize(
    "call",
    [
        "fibers.sleep, 0.01",
        "fibers.park",
        "a.recv, 1",
        "a.sendall, b'x'",
        "handle.join",
        "fibers.to_thread, print",
        "fibers.runtime().call, print",
    ],
)
def test_m4_what_would_park_is_refused_in_the_child(tmp_path: Path, call: str) -> None:
    """Rule A3: there is no run any more that could wake it."""
    lines = program(
        tmp_path,
        f"""
        def main():
            a, b = net.socketpair()
            with a, b:
                handle = fibers.spawn(fibers.sleep, 0.01)
                fibers.checkpoint()
                pid = os.fork()
                if pid == 0:
                    try:
                        say(kind({call}))
                    except BaseException as error:
                        say(type(error).__name__)
                    os._exit(0)
                wait(pid)

        fibers.run(main)
        """,
    )
    assert lines == ["RuntimeError"]


RUN_ANEW = """
    def work(word):
        with fibers.timeout(20):
            a, b = net.socketpair()
            with a, b:
                reader = fibers.spawn(a.recv_exactly, 4)
                fibers.sleep(0.001)
                b.sendall(b"ping")
                assert reader.result() == b"ping"
            assert fibers.to_thread(threading.get_ident) != threading.get_ident()
            with fibers.move_on_after(0.001) as limit:
                fibers.sleep(1000)
            assert limit.cancelled_caught
        return word
"""


@pytest.mark.parametrize("when", ["inside the forking fiber", "after its run has ended"])
def test_m4_run_may_be_called_anew_in_the_child(tmp_path: Path, when: str) -> None:
    inside = when == "inside the forking fiber"
    lines = program(
        tmp_path,
        textwrap.dedent(RUN_ANEW)
        + textwrap.dedent(
            f"""
            def main():
                assert work("before the fork") == "before the fork"
                fibers.spawn(sibling, "sibling")
                fibers.checkpoint()
                pid = os.fork()
                if pid == 0:
                    if {inside}:
                        say(fibers.run(work, "anew"))
                    return "the child's value"
                say("exit code", wait(pid))
                return work("the parent's value")

            value = fibers.run(main)
            if who() == "child" and not {inside}:
                say(fibers.run(work, "anew"))
            say(value)
            """
        ),
    )
    assert [line for line in lines if "sibling" not in line] == [
        "anew",
        "the child's value",
        "exit code 0",
        "the parent's value",
    ]
    assert [line for line in lines if "sibling" in line] == ["sibling began in parent", "sibling ended in parent"]


def test_m4_the_run_of_a_child_may_fork_again(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def generation(n):
            fibers.spawn(fibers.sleep, 0.001)
            fibers.checkpoint()
            if n == 3:
                return 0
            pid = os.fork()
            if pid == 0:
                os._exit(10 + fibers.run(generation, n + 1))
            code = wait(pid)
            fibers.sleep(0.001)
            return code

        say(fibers.run(generation, 0))
        """,
    )
    assert lines == ["30"]


def test_m4_fork_in_debug_mode(tmp_path: Path) -> None:
    """Whatever watches the run in the parent does not exist in the child, and must not be waited for."""
    lines = program(
        tmp_path,
        """
        def main():
            pid = os.fork()
            if pid == 0:
                say(fibers.run(lambda: fibers.sleep(0.01) or "anew", debug=True))
                return "the child's value"
            fibers.to_thread(wait, pid)
            return "the parent's value"

        say(fibers.run(main, debug=True))
        """,
    )
    assert lines == ["anew", "the child's value", "the parent's value"]


def test_m4_fork_outside_a_run_before_and_after_one(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def fork_and_run(name):
            pid = os.fork()
            if pid == 0:
                fibers.run(fibers.sleep, 0.001)
                say(name, fibers.run(lambda: fibers.to_thread(lambda: "ran")))
                sys.exit(0)
            assert wait(pid) == 0

        fork_and_run("before")
        fibers.run(lambda: fibers.to_thread(fibers.from_thread, fibers.sleep, 0.001))
        fork_and_run("after")
        fibers.run(fibers.sleep, 0.001)
        """,
    )
    assert lines == ["before ran", "after ran"]


# The parent.


def test_case_84_the_parents_operations_in_flight_are_not_disturbed(tmp_path: Path) -> None:
    """Rule M4: twenty forks beside a ping-pong and a pending read; the children run rings of their own."""
    lines = program(
        tmp_path,
        """
        def echo(stream):
            while data := stream.recv(100):
                stream.sendall(data)

        def player(stream, count):
            for n in range(count):
                message = f"{n:08}".encode()
                stream.sendall(message)
                assert stream.recv_exactly(8) == message
            stream.close()

        def main():
            a, b = net.socketpair()
            quiet, late = net.socketpair()
            with quiet, late:
                reader = fibers.spawn(quiet.recv_exactly, 5)
                fibers.spawn(echo, b)
                game = fibers.spawn(player, a, 2000)
                for n in range(20):
                    fibers.sleep(0.001)
                    pid = os.fork()
                    if pid == 0:
                        fibers.run(fibers.sleep, 0.001)
                        if n % 2:
                            return "a child's value"
                        os._exit(0)
                    assert wait(pid) == 0
                game.result()
                late.sendall(b"later")
                return reader.result()

        value = fibers.run(main)
        if who() == "parent":
            say(value)
        """,
    )
    assert lines == ["b'later'"]


def test_m4_the_childs_end_does_not_close_or_shut_down_the_parents_streams(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def main():
            with net.listen(("127.0.0.1", 0)) as listener, net.connect(listener.local_addr) as client:
                with listener.accept() as served:
                    pid = os.fork()
                    if pid == 0:
                        return "leaves the blocks, and so closes its copies"
                    assert wait(pid) == 0
                    client.sendall(b"still open")
                    data = served.recv_exactly(10)
                with net.connect(listener.local_addr), listener.accept():
                    return data

        value = fibers.run(main)
        if who() == "parent":
            say(value)
        """,
    )
    assert lines == ["b'still open'"]


def test_m4_an_open_deadline_of_the_parent_still_fires(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def main():
            with fibers.move_on_after(0.05) as limit:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                wait(pid)
                fibers.sleep(1000)
            return limit.cancelled_caught

        say(fibers.run(main))
        """,
    )
    assert lines == ["True"]


# multiprocessing and subprocess.

WHERE = {
    "outside a run": "value = job()",
    "before and after a run": "fibers.run(fibers.sleep, 0); value = job(); fibers.run(fibers.sleep, 0)",
    "in main": "value = fibers.run(busy, job)",
    "in a child": "value = fibers.run(busy, lambda: fibers.spawn(job).result())",
    "in a worker thread": "value = fibers.run(busy, lambda: fibers.to_thread(job))",
}

BUSY = """
    def busy(job):
        # Siblings, open scopes and an operation in flight around the job.
        a, b = net.socketpair()
        with a, b, fibers.scope() as outer, fibers.timeout(25):
            outer.daemon(sibling_for_long)
            reader = fibers.spawn(a.recv_exactly, 5)
            fibers.to_thread(time.sleep, 0)
            fibers.checkpoint()
            value = job()
            b.sendall(b"after")
            assert reader.result() == b"after"
        return value

    def sibling_for_long():
        try:
            fibers.sleep(1000)
        finally:
            say("sibling ended in", who())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("where", WHERE)
def test_case_84_multiprocessing_works_wherever_it_is_used(tmp_path: Path, where: str, method: str) -> None:
    """The function of the process may call run; its exit code and what it sends through a pipe arrive."""
    lines = program(
        tmp_path,
        textwrap.dedent(BUSY)
        + textwrap.dedent(
            f"""
            def work(pipe, number):
                pipe.send(fibers.run(lambda: fibers.sleep(0.001) or number + 1))
                sys.exit(number)

            def job():
                context = multiprocessing.get_context("{method}")
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, 4))
                process.start()
                theirs.close()
                value = ours.recv()
                process.join()
                ours.close()
                return value, process.exitcode

            if __name__ == "__main__":
                {WHERE[where]}
                say(value)
            """
        ),
    )
    assert [line for line in lines if "sibling" not in line] == ["(5, 4)"]
    assert "sibling ended in child" not in lines


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_case_84_a_process_pool_works_inside_a_run(tmp_path: Path, method: str) -> None:
    lines = program(
        tmp_path,
        textwrap.dedent(BUSY)
        + textwrap.dedent(
            f"""
            def job():
                with multiprocessing.get_context("{method}").Pool(2) as pool:
                    values = pool.map(abs, range(-20, 0))
                    pool.close()
                    pool.join()
                return sum(values)

            if __name__ == "__main__":
                say(fibers.run(busy, job))
            """
        ),
    )
    assert [line for line in lines if "sibling" not in line] == ["210"]


@pytest.mark.parametrize("where", WHERE)
def test_case_84_subprocess_works_wherever_it_is_used(tmp_path: Path, where: str) -> None:
    lines = program(
        tmp_path,
        textwrap.dedent(BUSY)
        + textwrap.dedent(
            f"""
            def job():
                plain = subprocess.run(["sh", "-c", "cat; exit 3"], input=b"through", capture_output=True)
                forked = subprocess.run(["sh", "-c", "exit 4"], preexec_fn=os.getpid)
                failed = kind(subprocess.run, ["/nonexistent/program"])
                return plain.stdout, plain.returncode, forked.returncode, failed

            {WHERE[where]}
            say(value)
            """
        ),
    )
    assert [line for line in lines if "sibling" not in line] == ["(b'through', 3, 4, 'FileNotFoundError')"]
    assert "sibling ended in child" not in lines


def test_m4_a_program_started_from_a_run_inherits_no_ring(tmp_path: Path) -> None:
    lines = program(
        tmp_path,
        """
        def main():
            fibers.sleep(0.001)
            done = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)
            return "io_uring" in done.stdout

        say(fibers.run(main))
        """,
    )
    assert lines == ["False"]


def test_helper_runs_the_prelude(tmp_path: Path) -> None:
    lines = program(tmp_path, 'say(who(), kind(int, "x"), kind(int), rings())')
    assert lines == ["parent ValueError returned []"]
