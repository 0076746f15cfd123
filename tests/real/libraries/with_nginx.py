"""requests, urllib3 and httpx get files from nginx, plain and over TLS. Arguments: two addresses, the certificate."""

from __future__ import annotations

import hashlib
import ssl
import sys
from typing import Any

import httpx
import requests
import urllib3
from at_once import MANY, PATIENCE, at_once, report

plain, secure, certificate = sys.argv[1:]
urllib3_pool = urllib3.PoolManager(maxsize=10, block=True, ca_certs=certificate)
httpx_client = httpx.Client(verify=ssl.create_default_context(cafile=certificate), timeout=PATIENCE)
session = requests.Session()
session.verify, session.trust_env = certificate, False  # $REQUESTS_CA_BUNDLE would win
session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=MANY))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def with_requests(n: int) -> list[Any]:
    answers = [session.get(f"{base}/{name}?{n}") for base in (plain, secure) for name in ("small", "large", "missing")]
    with session.get(f"{secure}/large", headers={"Range": f"bytes={n}-{n + 100_000}"}, stream=True) as part:
        return [[each.status_code, digest(each.content)] for each in (*answers, part)]


def with_urllib3(n: int) -> list[Any]:
    found: list[Any] = []
    for base in (plain, secure):
        answer = urllib3_pool.request("GET", f"{base}/large?{n}", preload_content=False)
        found += [answer.status, digest(b"".join(answer.stream(10_000 + n)))]
        answer.release_conn()
    return found


def with_httpx(n: int) -> list[Any]:
    answers = [httpx_client.get(f"{base}/{name}?{n}") for base in (plain, secure) for name in ("small", "large")]
    return [[each.status_code, digest(each.content)] for each in answers]


def refused(_n: int) -> str:
    """A certificate that nobody vouches for."""
    try:
        requests.get(secure, timeout=PATIENCE)
    except requests.exceptions.SSLError as error:
        return str(error.args[0].reason)[:60]
    return "trusted"


def without_session(n: int) -> list[Any]:
    """A connection for each."""
    answer = requests.get(f"{secure}/small?{n}", verify=certificate, timeout=PATIENCE)
    return [answer.status_code, answer.text]


with urllib3_pool, httpx_client, session:
    works = (with_requests, with_urllib3, with_httpx, refused, without_session)
    report(**{each.__name__: at_once(each) for each in works})
