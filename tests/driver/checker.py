"""A driver in a wrapper that asserts contract rules 1 to 4 at every step (fibers/driver/core.h), through cffi alone.

Rule 1: after submit the op is the driver's, and nothing comes out before poll.
Rule 2: what fb_reap() hands out was submitted, and is handed out once.
Rule 3: an op's memory lies between guards. Beyond what the op's res says it was not touched; once the op is
        completed it is filled with poison, and verify(), also after close, finds the poison and the op unchanged.
Rule 4: cancel completes nothing by itself, and only ops that were asked to may end with -ECANCELED.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import Any

from fibers.driver import binding

__all__ = ["PATIENCE", "SETUPS", "Checked", "Op", "address", "ffi", "lib"]

lib, ffi = binding.lib, binding.ffi

PATIENCE = 20.0  # seconds until an op counts as lost; a sanitized Python is slow
GUARD = 64
FRESH, POISON = 0xA5, 0x5A

SOCK_CLOEXEC = getattr(socket, "SOCK_CLOEXEC", 0x10000000)  # core.h names it where the system has none
DEFER_TASKRUN, COOP_TASKRUN, SUBMIT_ALL = 1 << 13, 1 << 8, 1 << 7

# Driver -> name of a set-up -> fields of its configuration. A contract test runs on each of them.
SETUPS: dict[str, dict[str, dict[str, Any]]] = {
    "uring": {
        "default": {},
        "without DEFER_TASKRUN": {"forbid": DEFER_TASKRUN},
        "without COOP_TASKRUN": {"forbid": DEFER_TASKRUN | COOP_TASKRUN},
        "without SUBMIT_ALL": {"forbid": SUBMIT_ALL},
        "small buffers": {"buffers": 64, "buffer_size": 4096},
        "tiny": {"sq_entries": 4, "cq_entries": 8},
        "tiny and bare": {"sq_entries": 4, "cq_entries": 8, "forbid": SUBMIT_ALL},
    },
    # "kept": every op names the record of its file, as streams do; else descriptors are registered for each wait.
    "epoll": {
        "default": {},
        "kept": {"kept": 1},
        "small buffers": {"buffers": 64, "buffer_size": 4096},
    },
    "kqueue": {
        "default": {},
        "kept": {"kept": 1},
        "small buffers": {"buffers": 64, "buffer_size": 4096},
    },
    "sim": {
        "default": {},
        "shuffled": {"shuffled": 1, "seed": 7},
        "late cancels": {"chance": {lib.FB_LATE_CANCEL: 0.5}, "seed": 11},
        "small buffers": {"buffers": 64, "buffer_size": 4096},
    },
}
# What only a ring has: other drivers are asked for it in vain, and tests may ask all alike.
RING_ONLY = ("sq_entries", "cq_entries", "forbid")


class Memory:
    """Bytes that an op may write to, between two guards."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.whole = ffi.new("char[]", size + 2 * GUARD)
        self.at = self.whole + GUARD
        self.expected = self.fill(FRESH)

    def fill(self, byte: int) -> bytes:
        self.expected = bytes([byte]) * (self.size + 2 * GUARD)
        ffi.memmove(self.whole, self.expected, len(self.expected))
        return self.expected

    def take(self, moved: int) -> bytes:
        """What the op delivered; all the rest must be as it was. From here on nobody may write."""
        now = bytes(ffi.buffer(self.whole))
        moved = max(0, min(moved, self.size))
        assert now[:GUARD] == self.expected[:GUARD], "rule 3: written before the memory"
        assert now[GUARD + moved :] == self.expected[GUARD + moved :], "rule 3: written beyond the result"
        self.fill(POISON)
        return now[GUARD : GUARD + moved]

    def verify(self) -> None:
        assert bytes(ffi.buffer(self.whole)) == self.expected, "rule 3: memory touched after completion"


class Op:
    """An op, what it delivered (`value`), and how often it was completed."""

    def __init__(self, code: int, fd: int, **fields: Any) -> None:
        self.raw = ffi.new("struct fb_op *")
        lib.fb_op_prepare(self.raw, code, fd)
        for name, value in fields.items():
            setattr(self.raw, name, value)
        self.memory: Memory | None = None  # that the driver writes to
        self.source: Memory | None = None  # that the driver reads from
        self.keep: list[Any] = []
        self.held = False  # an FB_RECV whose buffer the test releases
        self.submitted = self.completed = 0
        self.asked_to_cancel = False
        self.value: bytes | None = None
        self.snapshot: bytes | None = None

    @property
    def res(self) -> int:
        assert self.completed, "not completed yet"
        return int(self.raw.res)

    @property
    def done(self) -> bool:
        return self.completed == self.submitted > 0

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.raw))

    def __repr__(self) -> str:
        return f"<Op {self.raw.code} fd={self.raw.fd} state={self.raw.state} res={self.raw.res}>"


def address(sock: socket.socket) -> bytes:
    """The sockaddr_in under which a socket can be reached, as connect wants it."""
    host, port = sock.getsockname()[:2]
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


class Checked:
    """A driver; see the module's docstring."""

    def __init__(self, name: str = "uring", *, kept: int = 0, **config: Any) -> None:
        code, step = ffi.new("int *"), ffi.new("const char **")
        self.name = name
        self.kept = kept
        self.files: dict[tuple[int, int], Any] = {}  # number and inode -> struct fb_file
        self.forbid = config.get("forbid", 0)
        self.simulated_time = 0.0
        self.peers: list[tuple[float, Any]] = []  # of a simulated driver: when to go on with which greenlet
        if name == "uring":
            self.raw = lib.fb_uring_new(ffi.new("struct fb_uring_config *", config), code, step)
        elif name == "sim":
            config = {field: value for field, value in config.items() if field not in RING_ONLY}
            chances = config.pop("chance", {})
            made = ffi.new("struct fb_sim_config *", config)
            for fault, chance in chances.items():
                made.chance[fault] = chance
            self.raw = lib.fb_sim_new(made, code, step)
        else:
            config = {field: value for field, value in config.items() if field not in RING_ONLY}
            self.raw = lib.fb_readiness_new(name.encode(), ffi.new("struct fb_readiness_config *", config), code, step)
        if not self.raw:
            raise OSError(-code[0], ffi.string(step[0]).decode())
        self.pending: dict[int, Op] = {}
        self.finished: dict[int, Op] = {}
        self.open = True

    # The verbs

    def start(self, *ops: Op) -> Op:
        """Submit; the last of the ops is returned."""
        for op in ops:
            assert op.raw.state == lib.FB_IDLE
            self.pending[op.address] = op
            self.finished.pop(op.address, None)
            op.submitted += 1
            op.snapshot = None
            op.asked_to_cancel = False
            if self.kept:
                op.raw.file = self.file_of(op.raw.fd)
            lib.fb_submit(self.raw, op.raw)
            assert op.raw.state != lib.FB_IDLE, "rule 1: submit gave the op back"
            assert self.raw.flying == len(self.pending), "rule 1: submit handed something out"
        return ops[-1]

    def file_of(self, fd: int) -> Any:
        """The record of what is open under this number; the test's tables outlive the descriptors."""
        try:
            key = fd, os.fstat(fd).st_ino
        except OSError:
            return ffi.NULL
        if key not in self.files:
            self.files[key] = ffi.new("struct fb_file *")
        return self.files[key]

    def drop_file(self, fd: int) -> None:
        """As an owner does before it closes the descriptor."""
        if self.kept and (file := self.file_of(fd)):
            lib.fb_drop_file(self.raw, file)

    def cancel(self, *ops: Op) -> None:
        for op in ops:
            op.asked_to_cancel = op.asked_to_cancel or op.address in self.pending
            lib.fb_cancel(self.raw, op.raw)
        assert self.raw.flying == len(self.pending), "cancel handed something out"

    def poll(self, seconds: float | None = 0) -> list[Op]:
        """Poll once and reap all that came out, in order."""
        if self.peers:
            seconds = self.let_peers_run(seconds)
        code = lib.fb_poll(self.raw, -1 if seconds is None else int(seconds * 1e9))
        assert code == 0, f"the driver failed: {os.strerror(-code)}"
        found = []
        while raw := lib.fb_reap(self.raw):
            op = self.pending.pop(int(ffi.cast("uintptr_t", raw)), None)
            assert op is not None, "rule 2: completed without being submitted, or twice"
            self.settle(op)
            found.append(op)
        assert self.raw.flying == len(self.pending)
        return found

    def clock(self) -> float:
        """Seconds, by the clock that the driver waits by."""
        if self.name != "sim":
            return time.monotonic()
        if self.open:
            self.simulated_time = float(self.raw.time) / 1e9
        return self.simulated_time

    def let_peers_run(self, seconds: float | None) -> float:
        """Go on with those whose time has come; how long to poll until the next one's comes."""
        waiting, self.peers = self.peers, []
        for when, peer in waiting:
            if when <= self.clock() + 1e-9:
                peer.switch()
            else:
                self.peers.append((when, peer))
        return min([when - self.clock() for when, _ in self.peers] + ([] if seconds is None else [seconds]), default=0)

    def settle(self, op: Op) -> None:
        op.completed += 1
        assert op.completed == op.submitted
        assert op.raw.state == lib.FB_IDLE
        if op.res == -errno.ECANCELED:
            assert op.asked_to_cancel, "rule 4: nobody cancelled it"
        if op.memory:
            op.value = op.memory.take(op.res)
        if op.source:
            assert bytes(ffi.buffer(op.source.whole)) == op.source.expected, "the driver wrote to what it sends"
            op.source.fill(POISON)
        if op.raw.code == lib.FB_RECV and op.res >= 0:
            op.value = bytes(ffi.buffer(op.raw.data, op.res)) if op.res else b""
        if not op.held:
            self.release(op)

    def release(self, op: Op) -> None:
        lib.fb_release(self.raw, op.raw)
        assert op.raw.buffer == -1
        op.snapshot = bytes(ffi.buffer(op.raw))
        self.finished[op.address] = op

    def close(self) -> None:
        assert self.open
        self.open = False
        lib.fb_close(self.raw)
        self.verify()

    # Waiting

    def wait(self, *ops: Op, seconds: float = PATIENCE) -> None:
        """Poll until these ops are done."""
        limit = self.clock() + seconds
        for op in ops:
            while not op.done:
                left = limit - self.clock()
                assert left > 0, f"lost: {op}"
                self.poll(left)

    def do(self, op: Op) -> int:
        """Submit and wait; the result."""
        self.start(op)
        self.wait(op)
        return op.res

    def settle_down(self, seconds: float = 0.01) -> None:
        """Let what was submitted get into the kernel, and wait there."""
        limit = self.clock() + seconds
        while (left := limit - self.clock()) > 1e-9:
            self.poll(left)

    def verify(self) -> None:
        """Rule 3: what was completed is untouched since."""
        for op in self.finished.values():
            for memory in (op.memory, op.source):
                if memory:
                    memory.verify()
            assert op.snapshot in (None, bytes(ffi.buffer(op.raw))), "rule 3: op touched after completion"

    def finish(self) -> None:
        """End everything, and look at all the memory again."""
        if self.open:
            self.cancel(*self.pending.values())
            self.wait(*self.pending.values())
            self.poll(0)
            self.close()

    # Facts

    @property
    def count(self) -> Any:
        return self.raw.count

    @property
    def info(self) -> Any:
        if self.name == "uring":
            info = ffi.new("struct fb_uring_info *")
            lib.fb_uring_info(self.raw, info)
        elif self.name == "sim":
            info = ffi.new("struct fb_sim_info *")
            lib.fb_sim_info(self.raw, info)
        else:
            info = ffi.new("struct fb_readiness_info *")
            lib.fb_readiness_info(self.raw, info)
        return info

    def ready(self) -> bool:
        return bool(self.raw.verbs.ready(self.raw))

    # Ops, not submitted yet

    def nop(self) -> Op:
        return Op(lib.FB_NOP, -1)

    def accept(self, fd: int) -> Op:
        return Op(lib.FB_ACCEPT, fd, flags=SOCK_CLOEXEC)

    def connect(self, fd: int, to: bytes) -> Op:
        op = Op(lib.FB_CONNECT, fd, len=len(to))
        return self.reads_from(op, to)

    def recv(self, fd: int, size: int = 65536, *, held: bool = False) -> Op:
        op = Op(lib.FB_RECV, fd, len=size)
        op.held = held
        return op

    def recv_into(self, fd: int, size: int = 65536, flags: int = 0) -> Op:
        return self.writes_to(Op(lib.FB_RECV_INTO, fd, len=size, flags=flags), size)

    def recvmsg(self, fd: int, size: int = 65536) -> Op:
        op = Op(lib.FB_RECVMSG, fd)
        op.memory = Memory(size)
        return self.as_message(op, op.memory)

    def send(self, fd: int, data: bytes) -> Op:
        return self.reads_from(Op(lib.FB_SEND, fd, len=len(data)), data)

    def sendall(self, fd: int, data: bytes) -> Op:
        return self.reads_from(Op(lib.FB_SENDALL, fd, len=len(data)), data)

    def sendmsg(self, fd: int, data: bytes) -> Op:
        op = self.reads_from(Op(lib.FB_SENDMSG, fd), data)
        assert op.source
        return self.as_message(op, op.source)

    def wait_events(self, fd: int, events: int) -> Op:
        return Op(lib.FB_POLL, fd, flags=events)

    def shutdown(self, fd: int, how: int) -> Op:
        return Op(lib.FB_SHUTDOWN, fd, flags=how)

    def close_fd(self, fd: int) -> Op:
        return Op(lib.FB_CLOSE, fd)

    def read(self, fd: int, size: int, at: int = -1) -> Op:
        return self.writes_to(Op(lib.FB_READ, fd, len=size, off=at), size)

    def write(self, fd: int, data: bytes, at: int = -1) -> Op:
        return self.reads_from(Op(lib.FB_WRITE, fd, len=len(data), off=at), data)

    def fsync(self, fd: int, *, data_only: bool = False) -> Op:
        return Op(lib.FB_FSYNC, fd, flags=int(data_only))

    def openat(self, directory: int, path: str, flags: int, mode: int = 0) -> Op:
        op = Op(lib.FB_OPENAT, directory, flags=flags | os.O_CLOEXEC, len=mode)
        return self.reads_from(op, os.fsencode(path) + b"\0")

    @staticmethod
    def writes_to(op: Op, size: int) -> Op:
        op.memory = Memory(size)
        op.raw.data = op.memory.at
        return op

    @staticmethod
    def reads_from(op: Op, data: bytes) -> Op:
        op.source = Memory(len(data))
        ffi.memmove(op.source.at, data, len(data))
        op.source.expected = bytes(ffi.buffer(op.source.whole))
        op.raw.data = op.source.at
        return op

    @staticmethod
    def as_message(op: Op, memory: Memory) -> Op:
        """Name memory by a msghdr of two parts."""
        half = memory.size // 2
        parts = ffi.new("struct iovec[2]")
        parts[0].iov_base, parts[0].iov_len = memory.at, half
        parts[1].iov_base, parts[1].iov_len = memory.at + half, memory.size - half
        header = ffi.new("struct msghdr *", {"msg_iov": parts, "msg_iovlen": 2})
        op.raw.data = header
        op.keep += [header, parts]
        return op
