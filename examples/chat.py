"""A chat server: every line goes to everybody else. Two fibers per connection, a reader and a writer.

    python examples/chat.py 127.0.0.1 7001        (then, a few times: nc 127.0.0.1 7001)

The reader is the handler. The writer is its daemon: it ends with the reader, whatever ends that. Between them
stands an outbox, so that somebody who does not read holds up nobody: the oldest lines are dropped.
"""

import sys
from collections import deque
from contextlib import suppress

import fibers
from fibers import net

BACKLOG = 1000  # lines kept for a slow reader


class Member:
    def __init__(self, stream: net.Stream) -> None:
        self.stream = stream
        self.outbox: deque[bytes] = deque(maxlen=BACKLOG)
        self.idle_writer: fibers.Fiber[object] | None = None

    def tell(self, line: bytes) -> None:
        self.outbox.append(line)
        if self.idle_writer is not None:
            fibers.unpark(self.idle_writer)
            self.idle_writer = None

    def write(self) -> None:
        with suppress(ConnectionError):  # the reader meets it too, and ends us both
            while True:
                while self.outbox:
                    self.stream.sendall(self.outbox.popleft())
                self.idle_writer = fibers.current()
                fibers.park()


members: dict[str, Member] = {}


def announce(line: str, but: Member | None = None) -> None:
    for member in members.values():
        if member is not but:
            member.tell(line.encode() + b"\n")


def read_line(stream: net.Stream) -> str:
    return stream.recv_until(b"\n", 4096).decode("utf-8", "replace").strip()


def talk(stream: net.Stream) -> None:
    stream.sendall(b"your name?\n")
    name = read_line(stream)
    if not name or name in members:
        stream.sendall(b"that name is taken\n")
        return
    me = members[name] = Member(stream)
    fibers.daemon(me.write)
    try:
        announce(f"{name} is here")
        while True:
            announce(f"{name}: {read_line(stream)}", but=me)
    except (EOFError, ConnectionError):
        pass  # hung up
    finally:
        del members[name]
        announce(f"{name} has left")


if __name__ == "__main__":
    fibers.run(net.serve, talk, (sys.argv[1], int(sys.argv[2])))
