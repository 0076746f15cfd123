"""Libraries that know nothing of fibers, against real servers: the same program on threads and on fibers."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

import certificates
import pytest
from programs import HOST, free_port
from real.both import MANY, same_on_both
from real.servers import own_directory, served, start_nginx, start_rabbitmq, start_sshd

if TYPE_CHECKING:
    from pathlib import Path

    from real.servers import Server


def test_requests_urllib3_httpx_and_http_server() -> None:
    same_on_both("with_requests")


def test_requests_urllib3_and_httpx_with_nginx(tmp_path: Path) -> None:
    files = {"small": b"small", "large": bytes(range(256)) * 4000}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    made, secure = certificates.directory(), free_port()
    configuration = f"""
    listen {HOST}:{secure} ssl backlog=4096;
    ssl_certificate {made}/server.pem;
    ssl_certificate_key {made}/server.key;"""
    with start_nginx(configuration, root=tmp_path) as server:
        addresses = f"http://localhost:{server.port}", f"https://localhost:{secure}"
        same_on_both("with_nginx", *addresses, made / "ca.pem")


def test_redis(redis_server: Server) -> None:
    results = same_on_both("with_redis", redis_server.port)
    assert (results["total"], results["locked"]) == (str(MANY), str(MANY))


def test_pymysql(mariadb: Server) -> None:
    results = same_on_both("with_pymysql", mariadb.port, mariadb.user, mariadb.password, mariadb.database)
    assert results["counted"] == [MANY]


@pytest.mark.parametrize("module", ["psycopg", "psycopg2"])
def test_psycopg(postgres: Server, module: str) -> None:
    results = same_on_both("with_psycopg", module, postgres.port, postgres.user, postgres.database)
    assert results["counted"] == [MANY]


def test_sqlalchemy_on_psycopg(postgres: Server) -> None:
    assert same_on_both("with_sqlalchemy", postgres.url("postgresql+psycopg"))["left"] == 0


def test_sqlalchemy_on_pymysql(mariadb: Server) -> None:
    assert same_on_both("with_sqlalchemy", mariadb.url("mysql+pymysql"))["left"] == 0


def test_pymongo() -> None:
    assert same_on_both("with_pymongo")["monitored"]


def test_paramiko() -> None:
    with start_sshd() as server:
        same_on_both("with_paramiko", server.port, server.user, server.directory / "key")


def test_pika() -> None:
    with start_rabbitmq() as server:
        same_on_both("with_pika", server.port)


def test_boto3() -> None:
    me, port = getpass.getuser(), free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with own_directory(me) as directory, served(command, directory, port, user=me):
        same_on_both("with_boto3", f"http://{HOST}:{port}")


def test_xmlrpc_smtplib_logging_and_futures() -> None:
    same_on_both("with_stdlib")
