"""xmlrpc, smtplib, logging.handlers and concurrent.futures, with their servers in this process."""

from __future__ import annotations

import concurrent.futures
import logging.handlers
import pickle
import queue
import smtplib
import socketserver
import struct
import threading
import xmlrpc.client
import xmlrpc.server
from contextlib import contextmanager
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

from at_once import MANY, PATIENCE, at_once, report, until

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# xmlrpc

called = threading.Barrier(MANY)


class XmlServer(socketserver.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer):
    request_queue_size = 1024


def meet_and_double(n: int) -> int:
    called.wait(PATIENCE)
    return n * 2


def fail(n: int) -> None:
    raise ValueError(n)


def with_xmlrpc(n: int) -> list[Any]:
    with xmlrpc.client.ServerProxy(f"http://{HOST}:{xml.server_address[1]}", allow_none=True) as proxy:
        answers: list[Any] = [proxy.meet_and_double(n), proxy.pow(n, 2), proxy.system.listMethods()]
        try:
            proxy.fail(n)
        except xmlrpc.client.Fault as fault:
            answers.append(fault.faultString)
        return answers


# smtplib

mails: queue.Queue[str] = queue.Queue()
said = threading.Barrier(MANY)


class Smtp(socketserver.StreamRequestHandler):
    """As much of a mail server as smtplib needs; it accepts nobody's mail before all have sent theirs."""

    def handle(self) -> None:
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line[:4].upper()
            if word == "EHLO":
                self.say("250-here\r\n250 SIZE 10000")
            elif word == "DATA":
                self.say("354 go on")
                body = b"".join(iter(self.rfile.readline, b".\r\n"))
                mails.put(body.decode())
                said.wait(PATIENCE)
                self.say("250 done")
            elif line.endswith("<nobody@example.org>"):
                self.say("550 no such user")
            else:
                self.say("221 bye" if word == "QUIT" else "250 ok")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


class ThreadingServer(socketserver.ThreadingTCPServer):
    request_queue_size = 1024


def with_smtplib(n: int) -> list[Any]:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "a@example.org", "b@example.org, nobody@example.org", f"mail {n}"
    mail.set_content("line\n" * n)
    with smtplib.SMTP(HOST, smtp.server_address[1], timeout=PATIENCE) as client:
        refused = client.send_message(mail)
        return [str(refused), client.noop()[0]]


# logging.handlers


class Records(socketserver.StreamRequestHandler):
    """What a SocketHandler sends to."""

    def handle(self) -> None:
        while head := self.rfile.read(4):
            record = logging.makeLogRecord(pickle.loads(self.rfile.read(struct.unpack(">L", head)[0])))
            logged.put(record.getMessage())


class Datagrams(socketserver.BaseRequestHandler):
    """What a SysLogHandler sends to."""

    def handle(self) -> None:
        logged.put(self.request[0].decode().rstrip("\0"))


logged: queue.Queue[str] = queue.Queue()


def with_logging(n: int) -> bool:
    for each in range(5):
        log.warning("from %d: %d", n, each)
    return True


# concurrent.futures


def with_futures(n: int) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(3) as own:
        results: list[Any] = [own.submit(pow, n, 2).result(), list(own.map(str, range(n)))]
        first = {own.submit(divmod, n, each) for each in (0, 1, 2)}
        done, _ = concurrent.futures.wait(first)
        results += sorted(str(future.exception() or future.result()) for future in done)
        return results


def submit_all(n: int) -> list[int]:
    futures = [shared.submit(int, n + each) for each in range(5)]
    return sorted(each.result(PATIENCE) for each in concurrent.futures.as_completed(futures))


xml = XmlServer((HOST, 0), logRequests=False, allow_none=True)
xml.register_introspection_functions()
for function in (meet_and_double, fail, pow):
    xml.register_function(function)
with serving(xml):
    results: dict[str, Any] = {"xmlrpc": at_once(with_xmlrpc)}

with serving(ThreadingServer((HOST, 0), Smtp)) as smtp:
    results["smtplib"] = at_once(with_smtplib)
results["mails"] = sorted(mails.get() for _ in range(MANY))

log = logging.getLogger("log")
log.propagate = False
with serving(ThreadingServer((HOST, 0), Records)) as tcp, serving(socketserver.UDPServer((HOST, 0), Datagrams)) as udp:
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    memory = logging.handlers.MemoryHandler(7, target=logging.handlers.QueueHandler(items))
    handlers = [
        logging.handlers.SocketHandler(HOST, tcp.server_address[1]),
        logging.handlers.SysLogHandler((HOST, udp.server_address[1])),
        memory,
    ]

    class Put(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.put(f"queue: {record.getMessage()}")

    listener = logging.handlers.QueueListener(items, Put())
    listener.start()
    for handler in handlers:
        log.addHandler(handler)
    results["logging"] = at_once(with_logging)
    for handler in handlers:
        handler.close()
    until(lambda: logged.qsize() >= 3 * 5 * MANY - 20 and items.empty())
    listener.stop()
    results["logged"] = sorted(logged.get(timeout=PATIENCE) for _ in range(3 * 5 * MANY))

with concurrent.futures.ThreadPoolExecutor(MANY) as shared:
    results["futures"] = at_once(with_futures)
    results["submit"] = at_once(submit_all)
report(**results)
