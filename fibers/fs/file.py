"""open(): file objects of the io stack whose reading and writing goes through the driver.

Rule 1: one fiber at a time in a file, first come first served, through all its layers: the stack of io is not made for
        two (it says "reentrant call").
Rule 2: a call is a cancel point when it begins. Once it has begun on a regular file or a device it ends: a cancellation
        in its middle would lose what was read, or buffered to be written. Only what reads a lot (over LARGE bytes, or
        all) can be cancelled in between; the position is then where it was.
Rule 3: on a pipe or terminal a wait may have no end, so the middle is a cancel point, too; what a buffer was to get or
        give may then be lost.
Rule 4: whatever waits parks, also where O_NONBLOCK is set: no call returns None.
Rule 5: close ends with a closed file, is no cancel point, and works outside a run. So does the end of a file that was
        dropped: it warns, and writes what was buffered without parking.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat as modes
import warnings
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.driver.native import current, wait
from fibers.fs.call import HERE, operate, path_of
from fibers.scope import shield
from fibers.sync import Lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import FileDescriptorOrPath, ReadableBuffer, WriteableBuffer

__all__ = ["open"]

LARGE = 1 << 20
BUFFER = 128 * 1024  # a trip through the ring costs as much as copying 20 KiB
KINDS = {"r": os.O_RDONLY, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}


class Turn(Lock):
    """Whose turn it is in a file, and what goes for its operations meanwhile."""

    __slots__ = ("direct", "finite", "masked", "seekable")

    def __init__(self, *, finite: bool, seekable: bool) -> None:
        """Note whether waits end by themselves, and whether there is a position."""
        super().__init__()
        self.finite = finite
        self.seekable = seekable
        self.masked = False  # what has begun is brought to its end
        self.direct = False  # os.read and os.write instead of operations: nothing may park any more


def is_large(args: tuple[Any, ...]) -> bool:
    """Tell whether a read with these arguments takes long enough to be cancelled in its middle."""
    if reads_all(args):
        return True
    size = args[0]
    return (size if isinstance(size, int) else memoryview(size).nbytes) > LARGE


def reads_all(args: tuple[Any, ...]) -> bool:
    """Tell whether a read with these arguments goes to the end of the file."""
    return not args or args[0] is None or (isinstance(args[0], int) and args[0] < 0)


def in_turn(
    base: Any, name: str, free: Callable[[tuple[Any, ...]], bool] | None = None, *, rewinds: bool = False
) -> Callable[..., Any]:
    """Make the method of a base class wait for its turn (rule 1) and heed cancellation as rule 2 says.

    `free` tells from the arguments whether the middle is a cancel point; `rewinds`: the position is put back then.
    """
    method = getattr(base, name)

    def begun(self: Any, turn: Turn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if turn.masked or not (rewinds and turn.seekable):
            return method(self, *args, **kwargs)
        where = base.tell(self)
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                base.seek(self, where)
            raise

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        turn: Turn = self._turn
        if turn.direct:
            return method(self, *args, **kwargs)
        fiber = current()
        if turn._owner is fiber:  # from a layer above
            return begun(self, turn, args, kwargs)
        wait(name, None, 0)  # raises if it is cancelled
        if turn._owner is None:  # turn.acquire(), for iterating over lines half of all the time
            turn._owner = fiber
        else:
            turn.acquire()
        turn.masked = turn.finite and not (free is not None and free(args))
        try:
            return method(self, *args, **kwargs) if turn.masked else begun(self, turn, args, kwargs)
        finally:
            if turn._waiters:
                turn.release()
            else:
                turn._owner = None

    return call


def positioned(name: str) -> Callable[..., Any]:
    """Make a method of RawFile wait for its turn, if the file has a position to share."""
    method = getattr(RawFile, name)

    @functools.wraps(method)
    def call(self: RawFile, *args: Any) -> Any:
        turn = self._turn
        if turn.direct or not turn.seekable or turn._owner is current():
            return method(self, *args)
        with turn:
            turn.masked = False
            return method(self, *args)

    return call


def closing(base: Any) -> Callable[[Any], None]:
    """Make the close() of a layer: rule 5."""

    def close(self: Any) -> None:
        turn: Turn = self._turn
        if not turn.direct and native.runtime() is None:
            turn.direct = True
        if turn.direct or turn._owner is current():
            base.close(self)
            return
        with shield():
            if turn.locked() and not turn.finite:
                self._file.close()  # who waits in it gets OSError(EBADF), and passes the turn
            with turn:
                turn.masked = turn.finite
                base.close(self)

    return close


def dropped(self: Any) -> None:
    """Close what nobody closed: in a finalizer, so nothing may park."""
    try:
        turn: Turn = self._turn
        if self.closed:
            return
    except (AttributeError, ValueError):
        return  # never quite opened; or detached from what it was a layer of
    try:
        warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
    finally:
        turn.direct = True
        self.close()


class RawFile(io.RawIOBase):
    """A file without a buffer: what io.FileIO is to io."""

    def __init__(self, name: Any, fd: int, mode: str, flags: int, *, closefd: bool) -> None:
        """Own an open descriptor."""
        found = os.fstat(fd)  # of an open file: no wait
        if modes.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        self.name = name
        self._mode = mode
        self._blksize = getattr(found, "st_blksize", 0)
        self._closefd = closefd
        self._access = flags & os.O_ACCMODE
        self._finite = modes.S_ISREG(found.st_mode) or modes.S_ISBLK(found.st_mode)
        try:
            os.lseek(fd, 0, os.SEEK_END if flags & os.O_APPEND else os.SEEK_CUR)
        except OSError:
            self._seekable = False
        else:
            self._seekable = True
        self._turn = Turn(finite=self._finite, seekable=self._seekable)
        self._file = native.File(fd)

    def fileno(self) -> int:
        """Return the descriptor."""
        self._check_open()
        return self._file.fileno()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self.fileno())

    def readable(self) -> bool:
        """Tell whether it was opened for reading."""
        self._check_open()
        return self._access != os.O_WRONLY

    def writable(self) -> bool:
        """Tell whether it was opened for writing."""
        self._check_open()
        return self._access != os.O_RDONLY

    def seekable(self) -> bool:
        """Tell whether it has a position."""
        self._check_open()
        return self._seekable

    @property
    def mode(self) -> str:
        """The mode, as io.FileIO tells it."""
        return self._mode

    @property
    def closefd(self) -> bool:
        """Whether the descriptor is closed with the file."""
        return self._closefd

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _check_readable(self) -> None:
        if not self.readable():
            raise io.UnsupportedOperation("the file is not open for reading")

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer; the number of bytes, 0 at the end."""
        self._check_readable()
        if self._turn.direct:
            return os.readv(self._file.fileno(), [buffer])
        return self._perform(native.READ, buffer)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of `data`; the number of bytes."""
        if not self.writable():
            raise io.UnsupportedOperation("the file is not open for writing")
        if self._turn.direct:
            return os.write(self._file.fileno(), data)
        return self._perform(native.WRITE, data)

    def _perform(self, code: int, data: Any) -> int:
        """Read or write at the file's own position."""
        if self._turn.masked:
            with shield():
                return native.operate(code, self._file, data, 0, -1, None)
        return native.operate(code, self._file, data, 0, -1, None)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes; to the end if it is negative or None."""
        if size is None or size < 0:
            return self.readall()
        part = bytearray(size)
        del part[self.readinto(part) :]
        return bytes(part)

    def readall(self) -> bytes:
        """Read to the end."""
        self._check_readable()
        where = os.lseek(self._file.fileno(), 0, os.SEEK_CUR) if self._seekable else 0
        expected = max(os.fstat(self._file.fileno()).st_size - where, 0) + 1 if self._finite else 0
        found = bytearray()
        try:
            while True:
                part = bytearray(min(max(expected - len(found), 8192 + len(found) // 8), LARGE))
                n = self.readinto(part)
                if not n:
                    break
                found += part[:n] if n < len(part) else part
        except BaseException:
            if self._seekable:
                os.lseek(self._file.fileno(), where, os.SEEK_SET)
            raise
        return bytes(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position and return it."""
        self._check_open()
        return os.lseek(self._file.fileno(), offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self.seek(0, os.SEEK_CUR)

    def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, or end at the position; the position stays."""
        if not self.writable():
            raise io.UnsupportedOperation("the file is not open for writing")
        size = self.tell() if size is None else size
        if size < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = self._file.fileno()
        if self._turn.direct:
            os.ftruncate(fd, size)
        else:
            with shield() if self._turn.masked else contextlib.nullcontext():
                operate(native.FTRUNCATE, self._file, length=size, otherwise=functools.partial(os.ftruncate, fd, size))
        return size

    def close(self) -> None:
        """Close; fibers that wait on it get OSError(EBADF). Never a cancel point."""
        if self.closed:
            return
        try:
            super().close()
        finally:
            if self._file.fileno() < 0:
                pass  # ended by a close that did not wait for its turn
            elif not self._closefd:
                self._file._detach()
            elif self._turn.direct or self._file._waiters or native.runtime() is None:
                self._file.close()
            else:
                self._close_by_driver()

    def _close_by_driver(self) -> None:
        """Close without blocking the thread: a network file system may have to write."""
        with shield():
            try:
                wait("close", None, 0)
            except BaseException as error:  # nothing can park here, or ^C
                self._file.close()
                if not isinstance(error, RuntimeError):
                    raise
                return
            native.operate(native.CLOSE, self._file._detach(), None, 0, -1, None)

    def __repr__(self) -> str:
        if self.closed:
            return "<fibers.fs.RawFile closed>"
        return f"<fibers.fs.RawFile name={self.name!r} mode={self.mode!r}>"


class Shared:
    """What the layers of a file have in common."""

    _file: native.File
    _turn: Turn

    def __init__(self, below: Any, *args: Any, **kwargs: Any) -> None:
        """Stand above a layer."""
        self._file, self._turn = below._file, below._turn
        super().__init__(below, *args, **kwargs)  # type: ignore[call-arg] # of the io class beside it


class BufferedReader(Shared, io.BufferedReader):
    """io.BufferedReader for fibers."""


class BufferedWriter(Shared, io.BufferedWriter):
    """io.BufferedWriter for fibers."""


class BufferedRandom(Shared, io.BufferedRandom):
    """io.BufferedRandom for fibers."""


class TextFile(Shared, io.TextIOWrapper):
    """io.TextIOWrapper for fibers."""


RAW = ("readinto", "readall", "write", "seek", "truncate")
READS = ("read", "read1", "readinto", "readinto1", "readline", "peek")
BOTH = ("flush", "seek", "tell", "truncate", "detach")
TEXT = ("read", "readline", "write", "flush", "seek", "tell", "truncate", "detach", "reconfigure")
LAYERS: dict[type, tuple[str, ...]] = {
    BufferedReader: (*READS, *BOTH),
    BufferedWriter: ("write", *BOTH),
    BufferedRandom: (*READS, "write", *BOTH),
    TextFile: TEXT,
}


def replace_methods() -> None:
    """Put the fibers' methods in the place of those that do I/O."""
    for name in RAW:
        setattr(RawFile, name, positioned(name))
    for kind, names in LAYERS.items():
        base = kind.__bases__[1]
        for name in names:
            setattr(kind, name, in_turn(base, name))
        if kind is TextFile:
            setattr(kind, "read", in_turn(base, "read", reads_all))  # noqa: B010 - mypy: a method
        elif "read" in names:
            for name in ("read", "readinto"):
                setattr(kind, name, in_turn(base, name, is_large, rewinds=True))
        setattr(kind, "close", closing(base))  # noqa: B010
    for kind in (RawFile, *LAYERS):
        setattr(kind, "__del__", dropped)  # noqa: B010


replace_methods()


def open(
    file: FileDescriptorOrPath,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
    *,
    flags: int = 0,
) -> Any:
    """Open a file and return a file object of io, as the builtin does; whatever is done to it parks only its fiber.

    `flags`: further os.O_* flags, such as O_DIRECT. Use the file in a with block. Fibers take turns in it. Reading and
    writing are cancel points when they begin; ValueError once it is closed. Parks; a cancel point.
    """
    kind, text, access = parse(mode, encoding, errors, newline, buffering)
    if text:
        encoding = io.text_encoding(encoding)
    access |= KINDS[kind] | flags | os.O_CLOEXEC
    updating = "+" if "+" in mode else ""
    raw_mode = ("r" if kind == "w" and updating else kind) + "b" + updating
    raw = open_raw(file, raw_mode, access, closefd=closefd, opener=opener)
    top: Any = raw
    turn = raw._turn
    turn.acquire()  # what follows does not wait: the open file is handed over, cancelled or not
    try:
        if buffering != 0:
            terminal = buffering < 0 and not raw._finite and raw.isatty()
            size = buffering if buffering > 1 else max(raw._blksize, BUFFER)
            top = buffered(raw, size)
            if text:
                top = TextFile(top, encoding, errors, newline, line_buffering=buffering == 1 or terminal)
                top.mode = mode
    except BaseException:
        turn.direct = True
        top.close()
        raise
    turn.release()
    return top


def parse(
    mode: str, encoding: str | None, errors: str | None, newline: str | None, buffering: int
) -> tuple[str, bool, int]:
    """Check what the builtin open() checks: the kind of opening, is it text, O_RDONLY, O_WRONLY or O_RDWR."""
    letters = set(mode)
    kinds = letters & set("rwxa")
    if letters - set("rwxabt+") or len(letters) < len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if len(kinds) != 1:
        raise ValueError(f"a mode has exactly one of r, w, x and a, got {mode!r}")
    if {"b", "t"} <= letters:
        raise ValueError(f"can't have text and binary mode at once, got {mode!r}")
    binary = "b" in letters
    for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
        if binary and value is not None:
            raise ValueError(f"binary mode doesn't take {name}, got {value!r}")
    if buffering == 0 and not binary:
        raise ValueError("can't have unbuffered text: use mode 'b', or buffering=1 for lines")
    if buffering == 1 and binary:
        warnings.warn("line buffering isn't supported in binary mode: the usual size is used", RuntimeWarning, 3)
    kind = kinds.pop()
    access = os.O_RDWR if "+" in letters else os.O_RDONLY if kind == "r" else os.O_WRONLY
    return kind, not binary, access


def open_raw(
    file: FileDescriptorOrPath, mode: str, access: int, *, closefd: bool, opener: Callable[[str, int], int] | None
) -> RawFile:
    """Open, or take over, a descriptor."""
    if isinstance(file, int):
        if file < 0:
            raise ValueError(f"can't open descriptor {file}: it is negative")
        wait("open", None, 0)
        return RawFile(file, file, mode, access, closefd=closefd)
    name = os.fspath(file)
    if not closefd:
        raise ValueError("can't open a path with closefd=False: nobody else has the descriptor")
    if opener is None:
        fd = operate(native.OPENAT, HERE, path_of(name), flags=access, length=0o666, path=name)
    else:
        wait("open", None, 0)
        fd = opener(name, access)  # type: ignore[arg-type]
        if fd < 0:
            raise ValueError(f"opener returned {fd}")
        os.set_inheritable(fd, False)
    return own(fd, name, mode, access)


def own(fd: int, name: Any, mode: str, access: int) -> RawFile:
    """Make the file of a descriptor that is closed if that fails."""
    try:
        return RawFile(name, fd, mode, access, closefd=True)
    except BaseException:
        os.close(fd)
        raise


def buffered(raw: RawFile, size: int) -> Any:
    """Put a buffer above a raw file."""
    kind: Any = BufferedWriter
    if raw.readable():
        kind = BufferedRandom if raw.writable() else BufferedReader
    return kind(raw, size)
