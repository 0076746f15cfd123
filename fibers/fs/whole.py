"""Whole files: read, written, written atomically, copied; and files and directories that go by themselves.

Rule 1: what is made here and not handed over is removed, cancelled or not.
Rule 2: what is copied is copied by the kernel where it can.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat as modes
import tempfile
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.fs.call import HERE, on_thread, operate, path_of
from fibers.fs.descriptor import fsync
from fibers.fs.entry import mkdir, readlink, replace, stat, symlink, unlink
from fibers.fs.file import open as open_file
from fibers.fs.file import open_raw, own
from fibers.scope import shield

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer, StrOrBytesPath, StrPath

__all__ = [
    "atomic_write",
    "copyfile",
    "read_bytes",
    "read_text",
    "temporary_directory",
    "temporary_file",
    "write_bytes",
    "write_text",
]

COPY = 8 << 20  # at once: between two of them a cancellation is heeded
CHUNK = 1 << 20
ATTEMPTS = 100
# What copy_file_range says where it can't: other devices, odd files, old kernels, sandboxes.
CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM, errno.ETXTBSY}


def read_bytes(path: StrOrBytesPath) -> bytes:
    """Return what is in a file. Parks; a cancel point."""
    with open_raw(path, "rb", os.O_RDONLY | os.O_CLOEXEC, closefd=True, opener=None) as file:
        return file.readall()


def read_text(
    path: StrOrBytesPath, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> str:
    """Return the text in a file. Parks; a cancel point."""
    with open_file(path, "r", encoding=io.text_encoding(encoding), errors=errors, newline=newline) as file:
        text: str = file.read()
    return text


def write_bytes(path: StrOrBytesPath, data: ReadableBuffer) -> int:
    """Make `data` all that is in a file; the number of bytes. Parks; a cancel point."""
    access = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with memoryview(data) as view, open_raw(path, "wb", access, closefd=True, opener=None) as file:
        return write_all(file, view)


def write_all(file: Any, data: ReadableBuffer) -> int:
    """Write until all is written; the number of bytes."""
    with memoryview(data).cast("B") as view:
        done = 0
        while done < len(view):
            with view[done : done + COPY] as rest:
                done += file.write(rest)
        return done


def write_text(
    path: StrOrBytesPath,
    data: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> int:
    """Make a text all that is in a file; the number of characters. Parks; a cancel point."""
    if not isinstance(data, str):
        raise TypeError(f"write_text needs a str, got {type(data).__name__}")
    with open_file(path, "w", encoding=io.text_encoding(encoding), errors=errors, newline=newline) as file:
        written: int = file.write(data)
    return written


def atomic_write(path: StrPath, data: ReadableBuffer | str, *, encoding: str = "utf-8") -> None:
    """Make `data` all that is in a file such that whoever looks, also after a crash, finds the old or the new.

    A file that is there keeps its mode; a symbolic link is replaced, not followed; what is neither, as a device or a
    pipe, is left alone: OSError (EINVAL). Parks; a cancel point.
    """
    if isinstance(data, str):
        data = data.encode(encoding)
    name = os.fspath(path)
    folder, base = os.path.split(name)
    temporary, file = new_file(folder, f".{base}.", ".tmp")
    try:
        with file:
            with contextlib.suppress(FileNotFoundError):
                found = stat(name, follow_symlinks=False)
                if modes.S_ISREG(found.st_mode):
                    on_thread(os.fchmod, file.fileno(), modes.S_IMODE(found.st_mode))
                elif not (modes.S_ISLNK(found.st_mode) or modes.S_ISDIR(found.st_mode)):
                    raise OSError(errno.EINVAL, "can't replace what is no regular file", path)
            write_all(file, data)
            fsync(file)
        with shield():  # from here on it is done, or it failed
            replace(temporary, name)
            sync_directory(folder or os.curdir)
    except BaseException:
        with shield(), contextlib.suppress(FileNotFoundError):
            unlink(temporary)
        raise


def new_file(folder: str, prefix: str, suffix: str, mode: int = 0o666) -> tuple[str, Any]:
    """Make a file with a name of its own: the path and the raw file."""
    access = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for attempt in range(ATTEMPTS):
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}{suffix}")
        try:
            fd = operate(native.OPENAT, HERE, path_of(path), flags=access, length=mode, path=path)
        except FileExistsError:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        return path, own(fd, path, "rb+", access)
    raise AssertionError("unreachable")


def sync_directory(folder: str) -> None:
    """Wait until the names in a directory are on its device."""
    access = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = operate(native.OPENAT, HERE, path_of(folder), flags=access, path=folder)
    try:
        fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing
            raise
    finally:
        with shield():
            native.operate(native.CLOSE, fd, None, 0, -1, None)


def copyfile(src: Any, dst: Any, *, follow_symlinks: bool = True) -> Any:
    """Copy what is in a file to another, and return that one's path, as shutil.copyfile does; a part if cancelled.

    Parks; a cancel point.
    """
    if not follow_symlinks and modes.S_ISLNK(stat(src, follow_symlinks=False).st_mode):
        symlink(readlink(src), dst)
        return dst
    with open_raw(src, "rb", os.O_RDONLY | os.O_CLOEXEC, closefd=True, opener=None) as source:
        found = os.fstat(source.fileno())
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(found, stat(dst)):
                raise shutil.SameFileError(f"{src!r} and {dst!r} are the same file")
        access = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open_raw(dst, "wb", access, closefd=True, opener=None) as target:
            if not copied_by_kernel(source, target):
                copy_by_hand(source, target)
    return dst


def copied_by_kernel(source: Any, target: Any) -> bool:
    """Copy with copy_file_range(2); False if it can't, and nothing was copied."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while True:
        try:
            n = on_thread(os.copy_file_range, source.fileno(), target.fileno(), COPY)
        except OSError as error:
            if done or error.errno not in CANNOT_COPY:
                raise
            return False
        if n == 0:
            return done > 0  # of files in /proc it says that they are empty
        done += n


def copy_by_hand(source: Any, target: Any) -> None:
    """Copy by reading and writing."""
    buffer = memoryview(bytearray(CHUNK))
    while n := source.readinto(buffer):
        write_all(target, buffer[:n])


def temporary_file(
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    dir: StrPath | None = None,
) -> Any:
    """Open a file without a name, in `dir` or where tempfile puts it: it is gone once it is closed.

    Parks; a cancel point.
    """
    folder = os.fspath(tempfile.gettempdir() if dir is None else dir)
    fd = -1
    if hasattr(os, "O_TMPFILE"):
        access = os.O_RDWR | os.O_TMPFILE | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = operate(native.OPENAT, HERE, path_of(folder), flags=access, length=0o600, path=folder)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
    if fd < 0:
        path, file = new_file(folder, "tmp", "", 0o600)
        with shield():
            unlink(path)
        fd = file._file._detach()
        file.close()
    try:
        return open_file(fd, mode, buffering, encoding, errors, newline)
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def temporary_directory(*, suffix: str = "", prefix: str = "tmp", dir: StrPath | None = None) -> Iterator[str]:
    """Make a directory for the time of a with block, which gets its path; it is removed with all that is in it.

    Parks; a cancel point.
    """
    folder = os.fspath(tempfile.gettempdir() if dir is None else dir)
    for attempt in range(ATTEMPTS):
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}{suffix}")
        try:
            mkdir(path, 0o700)
            break
        except FileExistsError:
            if attempt == ATTEMPTS - 1:
                raise
    try:
        yield path
    finally:
        with shield(), contextlib.suppress(FileNotFoundError):
            on_thread(shutil.rmtree, path)
