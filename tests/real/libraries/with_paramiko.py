"""paramiko: commands, channels and sftp over ssh. Arguments: the server's port, the user, the file of the key."""

from __future__ import annotations

import io
import sys
import threading
from typing import Any

import paramiko
from at_once import MANY, PATIENCE, at_once, report

port, user, path = sys.argv[1:]
together = threading.Barrier(MANY)


def connect() -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(
        "127.0.0.1",
        int(port),
        user,
        key_filename=path,
        timeout=PATIENCE,
        banner_timeout=PATIENCE,
        auth_timeout=PATIENCE,
        allow_agent=False,
        look_for_keys=False,
    )
    return client


def own_connection(n: int) -> list[Any]:
    with connect() as client:
        together.wait(PATIENCE)
        stdin, stdout, stderr = client.exec_command(f"cat; echo error {n} >&2; exit {n}")
        stdin.write(f"{n}\n" * 100)
        stdin.channel.shutdown_write()
        return [stdout.read().decode(), stderr.read().decode(), stdout.channel.recv_exit_status()]


def channel(n: int) -> str:
    """A channel of the one connection that all share."""
    _, stdout, _ = shared.exec_command(f"echo {n}")
    return str(stdout.read().decode())


def sftp(n: int) -> int:
    with shared.open_sftp() as files:
        name = f"{path}.{n}"
        files.putfo(io.BytesIO(bytes([n]) * 100_000), name)
        got = io.BytesIO()
        files.getfo(name, got)
        assert got.getvalue() == bytes([n]) * 100_000
        size = files.stat(name).st_size or 0
        files.remove(name)
        return size


with connect() as shared:
    results = {each.__name__: at_once(each) for each in (own_connection, channel, sftp)}
report(**results)
