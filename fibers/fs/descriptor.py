"""What is done to an open file: reading and writing at a position, syncing, sizing, advice.

Rule 1: the file is a descriptor or has one (`fileno()`); what a file object has buffered is not looked at.
Rule 2: offsets are of the file, in bytes; its own position is neither used nor moved.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Any

from fibers.driver import binding, native
from fibers.fs.call import called, handle, number, on_thread, operate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import FileDescriptorLike, ReadableBuffer, StrOrBytesPath, WriteableBuffer

__all__ = ["advise", "aligned", "fallocate", "fdatasync", "fsync", "pread", "preadv", "pwrite", "pwritev", "truncate"]

ffi = binding.ffi
DATA_ONLY = 1


def at(offset: int) -> int:
    """Check a position: OSError(EINVAL) if it is negative, which to a driver is the file's own."""
    if offset < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return offset


def pread(fd: FileDescriptorLike, n: int, offset: int, /) -> bytes:
    """Read up to n bytes at `offset`; fewer at the end of the file. Parks; a cancel point."""
    return native.pread(handle(fd), n, at(offset))


def pwrite(fd: FileDescriptorLike, data: ReadableBuffer, offset: int, /) -> int:
    """Write `data` at `offset`; the number of bytes. Parks; a cancel point."""
    return native.operate(native.WRITE, handle(fd), data, 0, at(offset), None)


def preadv(fd: FileDescriptorLike, buffers: Sequence[WriteableBuffer], offset: int, flags: int = 0, /) -> int:
    """Read at `offset` into buffers, one after the other; the number of bytes. `flags`: os.RWF_*.

    For a file opened with O_DIRECT the buffers come from aligned(). Parks; a cancel point.
    """
    if len(buffers) == 1 and not flags:
        return native.operate(native.READ, handle(fd), buffers[0], 0, at(offset), None)
    return vectored(native.READV, "preadv", fd, buffers, at(offset), flags, writable=True)


def pwritev(fd: FileDescriptorLike, buffers: Sequence[ReadableBuffer], offset: int, flags: int = 0, /) -> int:
    """Write buffers, one after the other, at `offset`; the number of bytes. `flags`: os.RWF_*.

    Parks; a cancel point.
    """
    if len(buffers) == 1 and not flags:
        return native.operate(native.WRITE, handle(fd), buffers[0], 0, at(offset), None)
    return vectored(native.WRITEV, "pwritev", fd, buffers, at(offset), flags, writable=False)


def vectored(
    code: int, name: str, fd: FileDescriptorLike, buffers: Sequence[Any], offset: int, flags: int, *, writable: bool
) -> int:
    """Name the buffers by an array, and hold them until the operation has ended."""
    held = [ffi.from_buffer("char[]", buffer, require_writable=writable) for buffer in buffers]
    parts = ffi.new("struct iovec[]", max(len(held), 1))
    for part, memory in zip(parts, held, strict=False):
        part.iov_base, part.iov_len = memory, len(memory)
    call = called(name, getattr(os, name), number(fd), buffers, offset, flags)
    result: int = operate(
        code, handle(fd), ffi.buffer(parts), flags=flags, offset=offset, length=len(held), otherwise=call
    )
    return result


def fsync(fd: FileDescriptorLike, /) -> None:
    """Wait until what was written to the file, and what describes it, is on its device. Parks; a cancel point."""
    native.operate(native.FSYNC, handle(fd), None, 0, -1, None)


def fdatasync(fd: FileDescriptorLike, /) -> None:
    """Wait until what was written to the file can be read again after a crash. Parks; a cancel point."""
    native.operate(native.FSYNC, handle(fd), None, DATA_ONLY, -1, None)


def truncate(file: StrOrBytesPath | FileDescriptorLike, length: int, /) -> None:
    """Cut or lengthen a file, open or named, to exactly `length` bytes. Parks; a cancel point."""
    if isinstance(file, str | bytes | os.PathLike):
        on_thread(os.truncate, file, length)
        return
    if length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    operate(
        native.FTRUNCATE,
        handle(file),
        length=length,
        otherwise=called("ftruncate", os.ftruncate, number(file), length),
    )


def fallocate(fd: FileDescriptorLike, offset: int, length: int, /, *, mode: int = 0) -> None:
    """Give a range of the file room on its device. `mode`: FALLOC_FL_* of the system call, Linux only.

    Parks; a cancel point.
    """
    otherwise = None if mode else called("fallocate", os.posix_fallocate, number(fd), offset, length)
    if length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    operate(native.FALLOCATE, handle(fd), flags=mode, offset=offset, length=length, otherwise=otherwise)


def advise(fd: FileDescriptorLike, offset: int, length: int, advice: int, /) -> None:
    """Tell the kernel how a range of the file will be used: os.POSIX_FADV_*. Parks; a cancel point."""
    if length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    otherwise = called("advise", os.posix_fadvise, number(fd), offset, length, advice)
    operate(native.FADVISE, handle(fd), flags=advice, offset=offset, length=length, otherwise=otherwise)


def aligned(size: int, /) -> memoryview:
    """Make a buffer of so many bytes that begins on a page, as reads and writes with O_DIRECT need."""
    return memoryview(mmap.mmap(-1, max(size, 1)))[:size]
