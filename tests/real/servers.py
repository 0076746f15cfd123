"""Real servers for the tests: each on a free port, with a directory of its own, gone at the end of its block.

A server that refuses to run as root runs as the user that its Debian package made. Each dies with the tests, however
those end. A program that is missing is an error, not a skip: `make real` installs what is needed.
"""

from __future__ import annotations

import getpass
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from programs import HOST, PATIENCE, default_sigint, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
RSA_BITS = "2048"


@dataclass
class Server:
    """A server that runs: where it listens, where its files are, and whom it lets in."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    host: str = HOST
    user: str = ""
    password: str = ""
    database: str = ""

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.directory / "log").read_text(errors="replace")

    def url(self, scheme: str) -> str:
        """Its address, as SQLAlchemy, celery and redis-py want it."""
        who = f"{self.user}:{self.password}@" if self.password else f"{self.user}@" if self.user else ""
        return f"{scheme}://{who}{self.host}:{self.port}/{self.database}"


def program(name: str, *folders: str) -> str:
    """Find a program; Debian keeps some outside of $PATH."""
    for folder in folders:
        for found in sorted(glob.glob(f"{folder}/{name}"), reverse=True):  # noqa: PTH207
            return found
    found_on_path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    assert found_on_path, f"no program {name!r}: `make real` installs it"
    return found_on_path


def account(name: str) -> str:
    """Whom a server that refuses root runs as: `name`, if that is for us to say."""
    if os.geteuid() != 0:
        return getpass.getuser()
    pwd.getpwnam(name)
    return name


def as_user(name: str) -> list[str]:
    """The words before a command that runs as this user and dies with us."""
    words = ["setpriv", "--pdeathsig", "TERM"]
    if os.geteuid() == 0 and name != "root":
        words += ["--reuid", name, "--regid", str(pwd.getpwnam(name).pw_gid), "--clear-groups"]
    return words


@contextmanager
def own_directory(user: str) -> Iterator[Path]:
    """A directory that this user can reach: those that pytest makes are for ours alone."""
    with tempfile.TemporaryDirectory(prefix="fibers-", ignore_cleanup_errors=True) as made:
        if os.geteuid() == 0:
            os.chown(made, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        yield Path(made)


@contextmanager
def served(
    command: list[str],
    directory: Path,
    port: int,
    *,
    user: str,
    ready: Callable[[], bool] | None = None,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGKILL,
) -> Iterator[Server]:
    """Run a server until the end of the block; it is ready once it can be connected to, or `ready` says so.

    What it keeps goes with it, so that it is killed, unless it has children which only another signal ends, too.
    """
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_user(user), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=os.environ | {"HOME": str(directory)} | (env or {}),
            preexec_fn=default_sigint,
        )
    server = Server(port, directory, process)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (ready or (lambda: listens(port)))():
            assert process.poll() is None, f"{command[0]} ended:\n{server.log}"
            assert time.monotonic() < deadline, f"{command[0]} is not ready:\n{server.log}"
            time.sleep(0.02)
        yield server
    finally:
        process.send_signal(stop)
        process.wait()


def listens(port: int) -> bool:
    """Tell whether somebody accepts connections."""
    try:
        socket.create_connection((HOST, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def call(*command: str, user: str, cwd: Path, input: str | None = None) -> None:
    """Run a command to its end."""
    child = subprocess.run(
        [*as_user(user), *command],
        input=input,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"HOME": str(cwd)},
        timeout=PATIENCE,
    )
    assert child.returncode == 0, f"{command[0]}: {child.stdout}{child.stderr}"


@contextmanager
def start_redis() -> Iterator[Server]:
    """Run redis, which keeps nothing on disk."""
    me = getpass.getuser()
    with own_directory(me) as directory:
        port = free_port()
        command = [program("redis-server"), "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        with served(command, directory, port, user=me) as server:
            yield server


@contextmanager
def start_postgres() -> Iterator[Server]:
    """Run PostgreSQL with one database, `postgres`, and no password."""
    user = account("postgres")
    places = ("/usr/lib/postgresql/*/bin", "/usr/local/bin")
    with own_directory(user) as directory:
        data = str(directory / "data")
        initdb = program("initdb", *places)
        call(initdb, "-D", data, "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync", user=user, cwd=directory)
        port = free_port()
        settings = {"fsync": "off", "listen_addresses": HOST, "max_connections": "200"}
        command = [program("postgres", *places), "-D", data, "-p", str(port), "-k", str(directory)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        is_ready = [program("pg_isready", *places), "-q", "-h", HOST, "-p", str(port)]
        with served(
            command,
            directory,
            port,
            user=user,
            ready=lambda: subprocess.run(is_ready, cwd=directory).returncode == 0,
            stop=signal.SIGQUIT,
        ) as server:
            server.user, server.database = user, "postgres"
            yield server


@contextmanager
def start_mariadb() -> Iterator[Server]:
    """Run MariaDB with one database, `test`, and one user with a password."""
    user = account("mysql")
    with own_directory(user) as directory:
        data, path = str(directory / "data"), str(directory / "socket")
        call(
            program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            user=user,
            cwd=directory,
        )
        port = free_port()
        start = directory / "start.sql"
        start.write_text(
            "CREATE DATABASE test;\nCREATE USER fiber@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON *.* TO fiber@'%';\n"
        )
        start.chmod(0o644)
        command = [
            program("mariadbd"),
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={path}",
            f"--port={port}",
            f"--bind-address={HOST}",
            f"--pid-file={directory / 'pid'}",
            f"--init-file={start}",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
            "--max-connections=300",
            "--skip-name-resolve",
        ]
        with served(command, directory, port, user=user) as server:
            server.user, server.password, server.database = "fiber", "secret", "test"
            yield server


@contextmanager
def start_nginx(configuration: str = "", *, root: Path | None = None) -> Iterator[Server]:
    """Run nginx on the files of `root`; `configuration` goes into its `server` block."""
    me = getpass.getuser()
    with own_directory(me) as directory:
        port = free_port()
        temporary = "\n".join(
            f"  {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (directory / "nginx.conf").write_text(
            f"""{"user root;" if me == "root" else ""}
daemon off;
pid {directory}/pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000;
{temporary}
  server {{
    listen {HOST}:{port} backlog=4096;
    root {root or directory};
    {configuration}
  }}
}}
"""
        )
        command = [program("nginx"), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
        with served(command, directory, port, user=me, stop=signal.SIGTERM) as server:
            yield server


@contextmanager
def start_sshd() -> Iterator[Server]:
    """Run sshd for our own user, who is let in by the key in `directory / "key"`."""
    me = getpass.getuser()
    with own_directory(me) as directory:
        for name in ("host", "key"):
            made = str(directory / name)
            call("ssh-keygen", "-q", "-t", "rsa", "-b", RSA_BITS, "-N", "", "-f", made, user=me, cwd=directory)
        shutil.copy(directory / "key.pub", directory / "authorized_keys")
        port = free_port()
        (directory / "sshd_config").write_text(
            f"""ListenAddress {HOST}
Port {port}
HostKey {directory}/host
PidFile {directory}/pid
AuthorizedKeysFile {directory}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
MaxStartups 500
MaxSessions 500
Subsystem sftp internal-sftp
"""
        )
        if me == "root":
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself up before anybody is let in
        command = [program("sshd"), "-D", "-e", "-f", str(directory / "sshd_config")]
        with served(command, directory, port, user=me) as server:
            server.user = me
            yield server


@contextmanager
def start_rabbitmq() -> Iterator[Server]:
    """Run RabbitMQ with its user `guest`."""
    user = account("rabbitmq")
    with own_directory(user) as directory:
        port, names = free_port(), free_port()
        (directory / "rabbitmq.conf").write_text(f"listeners.tcp.default = {HOST}:{port}\nloopback_users = none\n")
        (directory / "plugins").write_text("[].\n")
        for made in ("rabbitmq.conf", "plugins"):
            (directory / made).chmod(0o644)
        env = {
            "RABBITMQ_NODENAME": f"fibers{port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +S 1:1",
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": HOST,
        }
        epmd = [program("epmd", "/usr/bin"), "-port", str(names), "-address", HOST]
        with served(epmd, directory, names, user=user):
            command = [program("rabbitmq-server", "/usr/lib/rabbitmq/bin")]
            with served(command, directory, port, user=user, env=env) as server:
                server.user = server.password = "guest"
                try:
                    yield server
                finally:
                    # The Erlang machine; the script that was started waits for it.
                    os.kill(int((directory / "pid").read_text()), signal.SIGKILL)
                    server.process.wait(PATIENCE)
