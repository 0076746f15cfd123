"""What users of other patching libraries ran into, as tests that pass here. The numbers are gevent's issues."""

import concurrent.futures
import contextlib
import functools
import gc
import http.client
import http.server
import multiprocessing
import queue
import select
import signal
import socket
import socketserver
import ssl
import sys
import threading
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path

import programs
import pytest
from helpers import bounded, raised

import fibers
from fibers import monkey

pytestmark = pytest.mark.usefixtures("patched")


def test_1777_contexts_made_before_ssl_was_patched() -> None:
    """SSLContext's properties call super(): with a subclass in its place that never ends."""
    monkey.undo()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkey.patch_all()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.verify_mode = ssl.CERT_REQUIRED
    assert isinstance(ssl.create_default_context(), ssl.SSLContext)
    a, b = socket.socketpair()

    def main() -> None:
        with a, b, contextlib.closing(context.wrap_socket(a, server_hostname="x", do_handshake_on_connect=False)) as c:
            shaking = fibers.spawn(raised, c.do_handshake)
            assert b.recv(1) == b"\x16"  # a handshake record
            b.shutdown(socket.SHUT_WR)
            assert isinstance(shaking.result(), ssl.SSLError)

    bounded(main)


def test_1957_a_lock_taken_by_the_collector() -> None:
    """weakref callbacks of pools take locks and queues without waiting, wherever the collector happens to run."""

    class Connection:
        pass

    def main() -> int:
        pool: queue.Queue[int] = queue.Queue()
        seen = []

        def give_back(_ref: object) -> None:
            seen.append(raised(pool.get, block=False))
            pool.put(1)

        def work(_: int) -> None:
            for _ in range(5):
                connection = Connection()
                cycle = [connection]
                cycle.append(cycle)  # type: ignore[arg-type]
                weakref.finalize(connection, give_back, None)
                del connection, cycle
                gc.collect()
                time.sleep(0)

        fibers.map(work, range(4))
        return len(seen)

    assert bounded(main) == 20


FORKS = """
import os, sys, threading, time, multiprocessing
from fibers import monkey; monkey.patch_all()
import fibers

def square(n):
    return n * n

def main():
    threading.Thread(target=time.sleep, args=(0.2,)).start()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(10)) == [n * n for n in range(10)]
    log = []
    def sibling():
        try:
            time.sleep(0.1)
        finally:
            os.write(1, b"sibling ended\\n")
    fibers.spawn(sibling)
    time.sleep(0)
    pid = os.fork()
    if pid == 0:
        time.sleep(0.01)      # blocks the child's only thread
        lock = threading.Lock()
        with lock:
            os.write(1, b"child\\n")
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

fibers.run(main)
"""


def test_1865_fork_and_pools_of_processes(tmp_path: Path) -> None:
    program = tmp_path / "forks.py"
    program.write_text(FORKS)
    done = programs.run(program)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "child", "sibling ended"]


INTERRUPTED = """
import os, signal, threading, time
from fibers import monkey; monkey.patch_all()
import fibers

def work(name):
    try:
        time.sleep(60)
    finally:
        os.write(1, f"{name}\\n".encode())

def main():
    threading.Thread(target=work, args=("thread",)).start()
    fibers.spawn(work, "fiber")
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        time.sleep(60)
    finally:
        os.write(1, b"main\\n")

try:
    fibers.run(main)
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
"""


def test_245_an_interrupt_runs_the_finally_blocks_of_all(tmp_path: Path) -> None:
    program = tmp_path / "interrupted.py"
    program.write_text(INTERRUPTED)
    with programs.running(program) as child:
        out, error = child.communicate(timeout=programs.PATIENCE)
    assert sorted(out.split()) == ["fiber", "interrupted", "main", "thread"], error


def test_392_a_signal_handler_sets_an_event() -> None:
    """Nothing else goes on in the run that could set it: no deadlock is reported."""
    event = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: event.set())
    try:

        def main() -> bool:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return event.wait()

        assert fibers.run(main)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_1904_work_on_threads_does_not_starve_look_ups() -> None:
    go_on = threading.Event()

    def main() -> None:
        with fibers.scope():
            for _ in range(100):
                fibers.spawn(fibers.to_thread, go_on.wait, 10)
            time.sleep(0.01)
            assert socket.getaddrinfo("localhost", 80)
            go_on.set()

    bounded(main)


def test_two_readers_and_a_writer_on_one_socket() -> None:
    def main() -> bytes:
        a, b = socket.socketpair()
        with a, b:
            got = [fibers.spawn(a.recv, 1) for _ in range(2)]
            fibers.spawn(b.sendall, b"12")
            fibers.spawn(a.sendall, b"3")
            assert b.recv(1) == b"3"
            return b"".join(sorted(one.result() for one in got))

    assert bounded(main) == b"12"


def test_a_timeout_leaves_a_pool_of_connections_whole() -> None:
    """The pool is a LifoQueue of as many tokens as there may be connections, as urllib3's."""

    def main() -> int:
        pool: queue.LifoQueue[int] = queue.LifoQueue(2)
        for n in range(2):
            pool.put(n)

        def request(n: int) -> None:
            with fibers.move_on_after(0.001 * (n % 5)):
                token = pool.get()
                try:
                    time.sleep(0.002)
                finally:
                    pool.put(token, block=False)

        fibers.map(request, range(100))
        assert not pool.not_empty._waiters  # type: ignore[attr-defined]
        assert not pool.mutex.locked()  # type: ignore[attr-defined]
        return pool.qsize()

    assert bounded(main) == 2


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_args: object) -> None:
        pass


@contextlib.contextmanager
def http_server() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


def test_an_unmodified_server_and_many_clients_in_one_thread() -> None:
    def get(port: int) -> bytes:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=9)) as connection:
            connection.request("GET", "/")
            return connection.getresponse().read()

    def main() -> list[bytes]:
        with http_server() as port, concurrent.futures.ThreadPoolExecutor(20) as executor:
            return list(executor.map(get, [port] * 60))

    assert bounded(main, 30) == [b"ok"] * 60


def test_import_patched_leaves_the_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkey.undo()
    (tmp_path / "a_client.py").write_text(
        "import http.client, queue, select, socket, threading, time\n"
        "def nap(seconds): time.sleep(seconds)\n"
        "def pair(): return socket.socketpair()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = dict(sys.modules)
    client = monkey.import_patched("a_client")
    assert sys.modules == modules
    assert "a_client" not in sys.modules
    assert not monkey.is_patched("socket")
    assert "recv" not in vars(socket.socket)
    assert client.socket is not socket
    assert client.http.client.socket is client.socket
    assert issubclass(client.socket.socket, client.socket._socket.socket)
    assert isinstance(client, types.ModuleType)
    assert select.epoll.poll is not client.select.epoll

    def main() -> None:
        start = fibers.now()
        fibers.map(client.nap, [1, 1, 1])
        assert fibers.now() - start == pytest.approx(1)
        items = client.queue.SimpleQueue()
        getter = fibers.spawn(items.get)
        fibers.sleep(0)
        items.put(1)
        assert getter.result() == 1
        thread = client.threading.Thread(target=client.nap, args=(1,))
        thread.start()
        assert thread.is_alive()
        thread.join()

    fibers.run(main, clock="auto")

    def talk() -> None:
        a, b = client.pair()
        with a, b:
            reader = fibers.spawn(a.recv, 1)
            fibers.sleep(0)
            b.sendall(b"x")
            assert reader.result() == b"x"
            poller = client.select.poll()
            poller.register(a, select.POLLIN)
            assert poller.poll(10) == []

    bounded(talk)
    assert functools.partial  # the ordinary one
    assert multiprocessing.current_process().name == "MainProcess"
