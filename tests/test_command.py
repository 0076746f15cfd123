"""`python -m fibers`: a program finds what plain Python would give it."""

import signal
from pathlib import Path

import programs
import pytest

import fibers.driver

PROGRAM = """
import os, sys, threading, time
print(sys.argv[1:], __name__, os.path.basename(__file__), sys.path[0] == os.path.dirname(__file__))
print(threading.current_thread().name, threading.get_native_id() == os.getpid())
thread = threading.Thread(target=lambda: print(threading.get_native_id() == os.getpid()))
thread.start()
thread.join()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "program.py"


def test_a_script_runs_as_itself_its_threads_as_fibers(program: Path) -> None:
    program.write_text(PROGRAM)
    done = programs.run("-m", "fibers", program, "a", "--driver", "b")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['a', '--driver', 'b'] __main__ program.py True",
        "MainThread True",
        "True",
    ]


EVERYTHING = """
import concurrent.futures, os, queue, select, socket, subprocess, sys, threading, time

class Worker(threading.local):
    calls = 0

local, lock, items = Worker(), threading.Lock(), queue.Queue(2)

def serve(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()

def echo(connection):
    with connection, connection.makefile("rwb") as file:
        for line in file:
            file.write(line)
            file.flush()

def ask(n):
    local.calls += 1
    with socket.create_connection(address, timeout=9) as connection:
        connection.sendall(b"%d\\n" % n)
        select.select([connection], [], [])
        with lock:
            return int(connection.makefile().readline())

listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
threading.Thread(target=serve, args=(listener,), daemon=True).start()
with concurrent.futures.ThreadPoolExecutor(20) as executor:
    print(sum(executor.map(ask, range(100))), local.calls)
threading.Thread(target=lambda: [items.put(n) for n in range(10)]).start()
print([items.get() for _ in range(10)])
print(subprocess.run([sys.executable, "-c", "print(input())"], input="in", capture_output=True, text=True).stdout)
reader, writer = os.pipe()
timer = threading.Timer(0.01, os.write, (writer, b"tick"))
timer.start()
print(os.read(reader, 9), [thread.name for thread in threading.enumerate() if not thread.daemon and thread != timer])
"""


@pytest.mark.parametrize("driver", [name for name in fibers.driver.available() if name != "sim"])
def test_a_program_does_on_each_driver_what_it_does_in_plain_python(program: Path, driver: str) -> None:
    program.write_text(EVERYTHING)
    ours, plain = programs.run("-m", "fibers", "--driver", driver, program), programs.run(program)
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, 0)


def test_a_module_runs_as_with_python_m() -> None:
    done = programs.run("-m", "fibers", "-m", "platform")
    assert done.returncode == 0
    assert done.stdout == programs.run("-m", "platform").stdout


@pytest.mark.parametrize("source", ["import sys; sys.exit(7)", "import sys; sys.exit('message')", "1/0", "x ="])
def test_exit_status_and_traceback_are_those_of_plain_python(program: Path, source: str) -> None:
    program.write_text(f"def f():\n    {source}\nf()\n")
    ours, plain = programs.run("-m", "fibers", program), programs.run(program)
    assert (ours.returncode, ours.stderr, ours.stdout) == (plain.returncode, plain.stderr, plain.stdout)


@pytest.mark.parametrize("arguments", [["no_such_program.py"], ["-m", "no_such_module"]])
def test_what_does_not_exist_is_refused_as_by_plain_python(arguments: list[str]) -> None:
    ours, plain = programs.run("-m", "fibers", *arguments), programs.run(*arguments)
    assert ours.returncode == plain.returncode
    assert ours.stderr.splitlines()[-1].split("/")[-1] == plain.stderr.splitlines()[-1].split("/")[-1]


def test_an_interrupt_ends_it_as_plain_python(program: Path) -> None:
    program.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    with programs.running("-m", "fibers", program) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=programs.PATIENCE)
    assert child.returncode == -signal.SIGINT
    assert error.splitlines()[-1] == "KeyboardInterrupt"


def test_options_stand_before_the_program(program: Path, tmp_path: Path) -> None:
    program.write_text("import fibers, time; time.sleep(0.01); print(fibers.runtime().driver)")
    trace = tmp_path / "trace.json"
    done = programs.run("-m", "fibers", "--driver", "epoll", "--trace", trace, program)
    assert done.stdout == "epoll\n", done.stderr
    assert "traceEvents" in trace.read_text()


def test_dump_on_a_signal(program: Path) -> None:
    program.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    with programs.running("-m", "fibers", "--dump-on", "USR1", program) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGUSR1)
        assert child.stderr is not None
        assert "fibers run" in child.stderr.readline()
        child.kill()


def test_info_is_a_subcommand_and_an_option() -> None:
    as_option, as_command = programs.run("-m", "fibers", "--info"), programs.run("-m", "fibers", "info")
    assert as_option.stdout == as_command.stdout != ""
    assert programs.run("-m", "fibers").returncode == 2
    assert programs.run("-m", "fibers", "--no-such-option").returncode == 2
