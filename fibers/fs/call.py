"""How a call of fibers.fs is made: by an operation of the run's driver, or on a thread where there is none.

Rule 1: what a driver does not do (EOPNOTSUPP) is done by the same call of os on a thread: one behaviour.
Rule 2: work on files is never abandoned: the fiber waits for its end, cancelled or not (semantics.md F4, J1).
Rule 3: the threads are a kind of their own: looking up a name never waits for a disk.
Rule 4: an OSError names the file, as that of os does.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any, TypeVar

from fibers.driver import native
from fibers.driver.workers import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import FileDescriptorLike, ReadableBuffer

__all__ = ["HERE", "called", "handle", "number", "on_thread", "operate", "path_of"]

T = TypeVar("T")

HERE = -100  # AT_FDCWD: paths are relative to the working directory
POOL = Pool(8)


def operate(
    code: int,
    fd: int | native.File,
    data: ReadableBuffer | None = None,
    *,
    flags: int = 0,
    offset: int = -1,
    length: int = -1,
    extra: ReadableBuffer | None = None,
    path: Any = None,
    other: Any = None,
    otherwise: Callable[[], Any] | None = None,
) -> Any:
    """Perform an operation of the driver and return its result; `path` and `other` are for its error to name.

    `otherwise` is called on a thread if the driver has none. Parks; a cancel point.
    """
    try:
        return native.operate(code, fd, data, flags, offset, None, length, extra)
    except OSError as error:
        if otherwise is None or error.errno != errno.EOPNOTSUPP:
            if path is not None:
                error.filename = path
            if other is not None:
                error.filename2 = other
            raise
    return POOL.call(otherwise, getattr(otherwise, "__name__", "file"), path, abandon=False)


def on_thread(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call fn(*args) on a thread for files. Parks; a cancel point."""
    call = functools.partial(fn, *args, **kwargs)
    return POOL.call(call, fn.__name__, args[0] if args else None, abandon=False)


def path_of(path: Any) -> bytes:
    """Give a path as the kernel takes it; ValueError if that can't be."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError(f"can't use {path!r} as a path: it has a null byte in it")
    return name


def handle(file: Any) -> int | native.File:
    """Give the descriptor of an int or of anything with fileno(); of a file of ours what knows of its operations."""
    if isinstance(file, int):
        return file
    number: int = file.fileno()
    record = getattr(file, "_file", None)
    return record if isinstance(record, native.File) else number


def number(file: FileDescriptorLike) -> int:
    """Give the descriptor as an int."""
    return file if isinstance(file, int) else file.fileno()


def called(name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Prepare a call under the name of what it stands for."""
    call = functools.partial(fn, *args, **kwargs)
    call.__name__ = name  # type: ignore[attr-defined]
    return call
