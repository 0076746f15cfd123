"""fibers.net with programs that others wrote: curl, openssl, nginx, git, a hosts file. (socat: test_message.py)"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from certificates import client_context, directory, server_context
from helpers import bounded, raised
from programs import CHECKOUT, HOST, PATIENCE, connect, free_port, running

import fibers
from fibers import net, process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCAL = (HOST, 0)
BODY = os.urandom(1 << 20)
VERSIONS = ["1.2", "1.3"]
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@contextlib.contextmanager
def beside(*args: object, port: int | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs while the block does; it listens on the port when the block begins."""
    with subprocess.Popen(list(map(str, args)), **(QUIET | options)) as program:
        try:
            deadline = time.monotonic() + PATIENCE
            while port is not None and not listens(port):
                assert program.poll() is None, f"{args[0]} has ended: {program.returncode}"
                assert time.monotonic() < deadline, f"{args[0]} does not listen"
                time.sleep(0.01)
            yield program
        finally:
            program.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def http(stream: Any) -> None:
    """As much of HTTP/1.1 as curl needs: the body of a POST comes back, a GET gets BODY."""
    while True:
        with stream.idle():
            try:
                head = stream.recv_until(b"\r\n\r\n")
            except fibers.IncompleteRead:
                return
        length = int((re.search(rb"(?i)content-length: *(\d+)", head) or [b"", b"0"])[1])
        if b"100-continue" in head.lower():
            stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = stream.recv_exactly(length) if head.startswith(b"POST") else BODY
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        stream.sendall(body)


# Our TLS server.


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_talks_to_our_tls_server(version: str, tmp_path: Path) -> None:
    """Two requests over one connection; an upload; a protocol by ALPN; the certificate is checked."""
    context = server_context()
    context.set_alpn_protocols(["http/1.1"])
    failures: list[BaseException] = []
    (tmp_path / "up").write_bytes(BODY)

    def curl(*args: object) -> subprocess.CompletedProcess[bytes]:
        limits = (f"--tlsv{version}", "--tls-max", version)
        return process.run(["curl", "-sS", "--max-time", "20", *limits, *map(str, args)], capture_output=True)

    def main() -> None:
        with net.Server(http, LOCAL, ssl=context, on_error=lambda _, error: failures.append(error)) as server:
            url = f"https://localhost:{server.sockets[0].local_addr[1]}/"
            trusting = ("--cacert", directory() / "ca.pem")
            outputs = ("-o", tmp_path / "one", "-o", tmp_path / "two")
            got = curl(*trusting, *outputs, "-w", "%{num_connects} %{http_code}\n", url, url)
            assert (got.returncode, got.stderr) == (0, b"")
            assert got.stdout == b"1 200\n0 200\n"
            assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == BODY
            got = curl(*trusting, "--data-binary", f"@{tmp_path / 'up'}", url)
            assert got.stdout == BODY
            assert failures == []
            assert curl(url).returncode == 60, "it does not know the authority"
        assert all(isinstance(failure, ssl.SSLError) for failure in failures)
        assert len(failures) == 1

    bounded(main, 60)


def echo(stream: Any) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


def s_client(port: int, *args: object, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    trusting = ("-CAfile", directory() / "ca.pem", "-verify_return_error", "-servername", "localhost")
    command = ["openssl", "s_client", "-connect", f"{HOST}:{port}", *trusting, *args]
    return process.run(list(map(str, command)), input=input, capture_output=True)


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_openssl_s_client_talks_to_our_tls_server(version: str, tmp_path: Path) -> None:
    """A session is kept in a file and used again; the second time the handshake is the short one."""
    failures: list[Any] = []

    def answer(stream: Any) -> None:
        stream.sendall(stream.recv_until(b"\n"))
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""

    def main() -> None:
        on_error = lambda _, error: failures.append(error)  # noqa: E731
        with net.Server(answer, LOCAL, ssl=server_context(), on_error=on_error) as server:
            port = server.sockets[0].local_addr[1]
            session = tmp_path / "session"
            for kept, said in (("-sess_out", b"New, TLSv1"), ("-sess_in", b"Reused, TLSv1")):
                got = s_client(port, f"-{version}", kept, session, "-ign_eof", input=b"hello\n")
                assert got.returncode == 0, got.stderr
                assert b"hello\n" in got.stdout
                assert said in got.stdout
                assert b"Verify return code: 0 (ok)" in got.stdout
        assert failures == []

    bounded(main, 60)


def test_a_client_that_asks_for_renegotiation_harms_only_itself() -> None:
    """A line of "R" tells s_client to renegotiate."""

    def main() -> None:
        with net.Server(echo, LOCAL, ssl=server_context(), on_error=lambda *_: None) as server:
            port = server.sockets[0].local_addr[1]
            with net.connect((HOST, port), ssl=client_context(), server_hostname="localhost") as other:
                got = s_client(port, "-tls1_2", input=b"R\n")
                assert b"no renegotiation" in got.stderr
                other.sendall(b"x")
                assert other.recv(1) == b"x"

    bounded(main, 60)


def test_our_server_asks_openssl_for_its_certificate() -> None:
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(directory() / "ca.pem")
    seen: list[Any] = []
    failures: list[BaseException] = []

    def look(stream: Any) -> None:
        seen.append(stream.getpeercert()["subject"])

    def main() -> None:
        with net.Server(look, LOCAL, ssl=context, on_error=lambda _, error: failures.append(error)) as server:
            port = server.sockets[0].local_addr[1]
            s_client(port, "-cert", directory() / "client.pem", "-key", directory() / "client.key", "-ign_eof")
            s_client(port, "-ign_eof")
        assert seen == [((("commonName", "client"),),)]
        assert [type(failure) for failure in failures] == [ssl.SSLError]

    bounded(main, 60)


# Our TLS client.


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_our_tls_client_talks_to_openssl_s_server(version: str) -> None:
    """s_server -rev sends each line back, reversed. It wants a certificate, offers ALPN, and keeps sessions."""
    port = free_port()
    files = ("-cert", directory() / "server.pem", "-key", directory() / "server.key", "-CAfile", directory() / "ca.pem")
    options = (f"-{version}", "-alpn", "http/1.1", "-Verify", "1", "-verify_return_error", "-rev")
    context = client_context(certificate=True)
    context.set_alpn_protocols(["http/1.1"])

    def main() -> None:
        session = None
        for again in (False, True):
            plain = net.connect((HOST, port))
            with net.tls.wrap(plain, context, server_hostname="localhost", session=session) as stream:
                assert stream.session_reused == again
                assert stream.selected_alpn_protocol() == "http/1.1"
                stream.sendall(b"hello\n")
                assert stream.recv_until(b"\n") == b"olleh\n"
                session = stream.session
        error = raised(net.connect, (HOST, port), ssl=client_context(), server_hostname="two.example")
        assert isinstance(error, ssl.SSLCertVerificationError)

    with beside("openssl", "s_server", "-accept", port, *files, *options, port=port):
        bounded(main, 30)


# nginx, and git, behind our proxy.


NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {directory}/a; proxy_temp_path {directory}/b;
    fastcgi_temp_path {directory}/c; uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
    server {{ listen 127.0.0.1:{plain}; root {directory}/www; }}
    server {{ listen 127.0.0.1:{secure} ssl; root {directory}/www;
        ssl_certificate {certificates}/server.pem; ssl_certificate_key {certificates}/server.key; }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """The ports of an nginx without and with TLS, which serves folder/www."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    assert program, "nginx is missing: .ci/packages installs it"
    plain, secure = free_port(), free_port()
    (folder / "www").mkdir()
    text = NGINX.format(directory=folder, plain=plain, secure=secure, certificates=directory())
    (folder / "nginx.conf").write_text(text)
    with beside(program, "-c", folder / "nginx.conf", "-p", folder, "-e", folder / "error.log", port=plain):
        yield plain, secure


@pytest.mark.parametrize("secured", [False, True])
def test_nginx_serves_through_our_proxy_example(secured: bool, tmp_path: Path) -> None:
    """curl, eight connections at once, through the proxy; with TLS in front of it."""
    port = free_port()
    certificate = (directory() / "server.pem", directory() / "server.key") if secured else ()
    with (
        nginx(tmp_path) as (plain, _),
        running(CHECKOUT / "examples/proxy.py", HOST, port, HOST, plain, *certificate) as child,
    ):
        (tmp_path / "www/big").write_bytes(BODY * 8)
        connect(port, child).close()
        url = f"http{'s' if secured else ''}://localhost:{port}/big"
        command = ["curl", "-sS", "-Z", "--parallel-immediate", "--max-time", "30", "--cacert", directory() / "ca.pem"]
        for number in range(8):
            command += ["-o", tmp_path / f"got{number}", url]
        got = subprocess.run(list(map(str, command)), capture_output=True)
        assert got.returncode == 0, got.stderr
        wanted = hashlib.sha256(BODY * 8).digest()
        for number in range(8):
            assert hashlib.sha256((tmp_path / f"got{number}").read_bytes()).digest() == wanted


def test_our_tls_client_gets_a_page_from_nginx(tmp_path: Path) -> None:
    def main() -> None:
        with nginx(tmp_path) as (_, secure):
            (tmp_path / "www/page").write_bytes(BODY)
            with net.connect((HOST, secure), ssl=client_context(), server_hostname="localhost") as stream:
                stream.sendall(b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                head = stream.recv_until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert stream.recv_exactly(len(BODY)) == BODY
                assert stream.recv(1) == b""

    bounded(main, 30)


def test_git_clones_through_our_proxy_example(tmp_path: Path) -> None:
    def git(*args: object, cwd: Path) -> str:
        settings = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "HOME": str(tmp_path)}
        who = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        command = ["git", *who, *map(str, args)]
        return subprocess.run(
            command, cwd=cwd, env=os.environ | settings, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    origin, port, backend = tmp_path / "origin", free_port(), free_port()
    origin.mkdir()
    git("init", "-q", cwd=origin)
    (origin / "blob").write_bytes(BODY * 4)
    git("add", "blob", cwd=origin)
    git("commit", "-q", "-m", "one", cwd=origin)
    daemon = ("git", "daemon", "--reuseaddr", "--export-all", f"--base-path={tmp_path}", f"--listen={HOST}")
    with (
        beside(*daemon, f"--port={backend}", port=backend),
        running(CHECKOUT / "examples/proxy.py", HOST, port, HOST, backend) as child,
    ):
        connect(port, child).close()
        git("clone", "-q", f"git://{HOST}:{port}/origin", "copy", cwd=tmp_path)
    assert (tmp_path / "copy/blob").read_bytes() == BODY * 4
    assert git("rev-parse", "HEAD", cwd=tmp_path / "copy") == git("rev-parse", "HEAD", cwd=origin)


# Names.


HOSTS = """
import sys
import fibers
from fibers import net

def main():
    print(sorted({where[4][0] for where in net.getaddrinfo("one.fibers.test", 80)}))
    with net.listen(("both.fibers.test", 0)) as listener:
        port = listener.local_addr[1]
        with net.connect(("both.fibers.test", port), timeout=5) as stream:
            print("connected to", stream.peer_addr[0], "on", listener.local_addr[0])

fibers.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a hosts file of our own takes a mount namespace")
def test_a_hosts_file_gives_addresses_of_both_families(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "127.0.0.1 localhost\n192.0.2.7 one.fibers.test\n2001:db8::7 one.fibers.test\n"
        "127.0.0.1 both.fibers.test\n::1 both.fibers.test\n"
    )
    (tmp_path / "program.py").write_text(HOSTS)
    mount = f"mount --bind {tmp_path}/hosts /etc/hosts && exec {sys.executable} {tmp_path}/program.py"
    apart = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here, as in a container or a chroot: no hosts file of our own")
    child = subprocess.run([*apart, "sh", "-c", mount], capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    first, second = child.stdout.splitlines()
    assert first == "['192.0.2.7', '2001:db8::7']"
    assert re.fullmatch(r"connected to (127\.0\.0\.1|::1) on (127\.0\.0\.1|::1)", second)
