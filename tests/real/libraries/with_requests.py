"""requests, urllib3 and httpx get from http.server in this process, which answers nobody before all have asked."""

from __future__ import annotations

import http.server
import threading
from typing import Any

import httpx
import requests
import urllib3
from at_once import MANY, PATIENCE, at_once, report

asked = threading.Barrier(MANY)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/meet"):
            asked.wait(PATIENCE)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/landed")
            body = b""
        else:
            self.send_response(200)
            body = f"{self.path} for {self.headers['X-Number']}".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (body[:1000], body[1000:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


def with_requests(n: int) -> list[Any]:
    with requests.Session() as session:
        session.headers["X-Number"] = str(n)
        answers = [session.get(f"{base}/meet/{n}"), session.get(f"{base}/redirect")]
        answers += [session.get(f"{base}/{each}") for each in range(3)]
        sent = session.post(f"{base}/", data=bytes(range(256)) * (n + 5), stream=True)
        return [*([each.status_code, each.text, len(each.history)] for each in answers), len(sent.content)]


def with_shared_session(n: int) -> str:
    return shared.get(f"{base}/meet/{n}").text


def with_urllib3(n: int) -> list[Any]:
    answer = pool.request("GET", f"/meet/{n}", headers={"X-Number": str(n)})
    sent = pool.request("POST", "/", body=b"x" * (1001 + n), preload_content=False)
    parts = [len(part) for part in sent.stream(4096)]
    sent.release_conn()
    return [answer.status, answer.data.decode(), sum(parts)]


def with_small_pool(n: int) -> str:
    """Ten connections for fifty: who finds none waits for one."""
    return small.request("GET", f"/{n}").data.decode()


def with_httpx(n: int) -> list[Any]:
    with httpx.Client(base_url=base, headers={"X-Number": str(n)}, timeout=PATIENCE, follow_redirects=True) as client:
        answers = [client.get(f"/meet/{n}"), client.get("/redirect")]
        with client.stream("POST", "/", content=b"y" * (2000 + n)) as streamed:
            size = sum(map(len, streamed.iter_bytes()))
        return [*([each.status_code, each.text] for each in answers), size]


def with_shared_httpx(n: int) -> str:
    """Ten connections for fifty."""
    return few.get(f"/{n}").text


with Server(("127.0.0.1", 0), Handler) as server:
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    base = f"http://127.0.0.1:{server.server_port}"
    shared = requests.Session()
    shared.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=MANY))
    pool = urllib3.HTTPConnectionPool("127.0.0.1", server.server_port, maxsize=MANY, block=True)
    small = urllib3.HTTPConnectionPool("127.0.0.1", server.server_port, maxsize=10, block=True)
    few = httpx.Client(base_url=base, limits=httpx.Limits(max_connections=10), timeout=PATIENCE)
    with shared, pool, small, few:
        results = {
            each.__name__: at_once(each)
            for each in (
                with_requests,
                with_shared_session,
                with_urllib3,
                with_small_pool,
                with_httpx,
                with_shared_httpx,
            )
        }
    server.shutdown()
    serving.join()
report(**results)
