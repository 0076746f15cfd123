"""Tests with real libraries, programs and servers: only `make real` runs them, and there nothing may be missing."""

import os
from collections.abc import Iterator

import pytest
from real import servers

if "FIBERS_REAL" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Server]:
    with servers.start_redis() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Server]:
    with servers.start_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[servers.Server]:
    with servers.start_mariadb() as server:
        yield server
