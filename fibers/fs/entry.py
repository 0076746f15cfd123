"""What is done to names: stat, rename, link, unlink, directories.

Rule 1: signatures and errors are those of os, without dir_fd.
Rule 2: a directory is read in lots, on a thread; what os.DirEntry would ask the disk for later is asked there, too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat as modes
from typing import TYPE_CHECKING, Any

from fibers.driver import binding, native
from fibers.fs.call import HERE, called, number, on_thread, operate, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from _typeshed import FileDescriptorOrPath, StrOrBytesPath
    from typing_extensions import Self

__all__ = [
    "DirEntry",
    "link",
    "lstat",
    "makedirs",
    "mkdir",
    "readlink",
    "rename",
    "replace",
    "rmdir",
    "scandir",
    "stat",
    "symlink",
    "unlink",
    "walk",
]

ffi = binding.ffi
HAS_STATX = "statx" in ffi.list_types()[1]
BASIC_STATS = 0x7FF
NO_FOLLOW, REMOVE_DIRECTORY, FOLLOW, NO_AUTOMOUNT, EMPTY_PATH = 0x100, 0x200, 0x400, 0x800, 0x1000  # AT_* of fcntl.h
LOT = 1000


def stat(path: FileDescriptorOrPath, *, follow_symlinks: bool = True) -> os.stat_result:
    """Return what the file system knows of a file, open or named, as os.stat does. Parks; a cancel point."""
    if not HAS_STATX:
        return on_thread(os.stat, path, follow_symlinks=follow_symlinks)
    found = ffi.new("struct statx *")
    flags = NO_AUTOMOUNT | (0 if follow_symlinks else NO_FOLLOW)
    if isinstance(path, str | bytes | os.PathLike):
        fd, name = HERE, path_of(path)
    else:
        fd, name, flags = number(path), b"", flags | EMPTY_PATH
    asked = operate(
        native.STATX,
        fd,
        name,
        flags=flags,
        length=BASIC_STATS,
        extra=ffi.buffer(found),
        path=path if fd == HERE else None,
        otherwise=called("stat", os.stat, path, follow_symlinks=follow_symlinks),
    )
    return asked if isinstance(asked, os.stat_result) else stat_result(found)


def stat_result(found: Any) -> os.stat_result:
    """Turn the kernel's record into Python's."""
    more: dict[str, Any] = {}
    for name in ("atime", "mtime", "ctime"):
        stamp = getattr(found, f"stx_{name}")
        more[f"st_{name}"] = stamp.tv_sec + 1e-9 * stamp.tv_nsec
        more[f"st_{name}_ns"] = stamp.tv_sec * 10**9 + stamp.tv_nsec
    more["st_blksize"] = found.stx_blksize
    more["st_blocks"] = found.stx_blocks
    more["st_rdev"] = os.makedev(found.stx_rdev_major, found.stx_rdev_minor)
    return os.stat_result(
        (
            found.stx_mode,
            found.stx_ino,
            os.makedev(found.stx_dev_major, found.stx_dev_minor),
            found.stx_nlink,
            found.stx_uid,
            found.stx_gid,
            found.stx_size,
            found.stx_atime.tv_sec,
            found.stx_mtime.tv_sec,
            found.stx_ctime.tv_sec,
        ),
        more,
    )


def lstat(path: StrOrBytesPath) -> os.stat_result:
    """Return what the file system knows of a name, of a symbolic link itself. Parks; a cancel point."""
    return stat(path, follow_symlinks=False)


def rename(src: StrOrBytesPath, dst: StrOrBytesPath) -> None:
    """Rename a file or directory; what `dst` named before is replaced, as by os.rename. Parks; a cancel point."""
    two_names(native.RENAMEAT, "rename", src, dst, os.rename)


def replace(src: StrOrBytesPath, dst: StrOrBytesPath) -> None:
    """Rename, replacing what is there. Parks; a cancel point."""
    two_names(native.RENAMEAT, "replace", src, dst, os.replace)


def link(src: StrOrBytesPath, dst: StrOrBytesPath, *, follow_symlinks: bool = False) -> None:
    """Give a file another name; a symbolic link itself unless `follow_symlinks`. Parks; a cancel point."""
    flags = FOLLOW if follow_symlinks else 0
    two_names(native.LINKAT, "link", src, dst, os.link, flags, follow_symlinks=follow_symlinks)


def two_names(
    code: int,
    name: str,
    src: StrOrBytesPath,
    dst: StrOrBytesPath,
    otherwise: Callable[..., None],
    flags: int = 0,
    **more: bool,
) -> None:
    """Perform an operation on two names."""
    operate(
        code,
        HERE,
        path_of(src),
        flags=flags,
        length=HERE,
        extra=path_of(dst),
        path=src,
        other=dst,
        otherwise=called(name, otherwise, src, dst, **more),
    )


def symlink(src: StrOrBytesPath, dst: StrOrBytesPath) -> None:
    """Make `dst` a symbolic link that says `src`. Parks; a cancel point."""
    operate(
        native.SYMLINKAT,
        HERE,
        path_of(src),
        extra=path_of(dst),
        path=src,
        other=dst,
        otherwise=called("symlink", os.symlink, src, dst),
    )


def readlink(path: Any) -> Any:
    """Return what a symbolic link says. Parks; a cancel point."""
    return on_thread(os.readlink, path)


def unlink(path: StrOrBytesPath) -> None:
    """Remove a name of a file. Parks; a cancel point."""
    operate(native.UNLINKAT, HERE, path_of(path), path=path, otherwise=called("unlink", os.unlink, path))


def rmdir(path: StrOrBytesPath) -> None:
    """Remove an empty directory. Parks; a cancel point."""
    otherwise = called("rmdir", os.rmdir, path)
    operate(native.UNLINKAT, HERE, path_of(path), flags=REMOVE_DIRECTORY, path=path, otherwise=otherwise)


def mkdir(path: StrOrBytesPath, mode: int = 0o777) -> None:
    """Make a directory; `mode` without the umask's bits. Parks; a cancel point."""
    otherwise = called("mkdir", os.mkdir, path, mode)
    operate(native.MKDIRAT, HERE, path_of(path), length=mode, path=path, otherwise=otherwise)


def makedirs(path: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
    """Make a directory and those above it that are missing; these with the default mode. Parks; a cancel point."""
    above = os.path.split(os.fspath(path).rstrip(b"/" if isinstance(path, bytes) else "/"))[0]
    try:
        mkdir(path, mode)
    except FileNotFoundError:
        if not above:
            raise
        makedirs(above, exist_ok=True)
        try:
            mkdir(path, mode)
        except FileExistsError:
            if not (exist_ok and is_directory(path)):
                raise
    except OSError:
        if not (exist_ok and is_directory(path)):
            raise


def is_directory(path: StrOrBytesPath) -> bool:
    """Tell whether a name is that of a directory."""
    try:
        return modes.S_ISDIR(stat(path).st_mode)
    except OSError:
        return False


class DirEntry:
    """One name in a directory, with what the directory tells about it; os.DirEntry, but stat() parks."""

    __slots__ = ("_inode", "_kind", "_stats", "name", "path")

    def __init__(self, found: os.DirEntry[Any]) -> None:
        """Take over what is known, and ask for what is not (on the thread)."""
        self.name: Any = found.name
        self.path: Any = found.path
        self._inode = found.inode()
        self._stats: dict[bool, os.stat_result] = {}
        self._kind = 0
        with contextlib.suppress(OSError):
            if found.is_symlink():
                self._kind = modes.S_IFLNK
            elif found.is_dir(follow_symlinks=False):
                self._kind = modes.S_IFDIR
            elif found.is_file(follow_symlinks=False):
                self._kind = modes.S_IFREG

    def inode(self) -> int:
        """Return the number of the file in its file system."""
        return self._inode

    def is_symlink(self) -> bool:
        """Tell whether it is a symbolic link."""
        return self._kind == modes.S_IFLNK

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a directory. Parks only if it must wait; then a cancel point."""
        return self._is(modes.S_IFDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a regular file. Parks only if it must wait; then a cancel point."""
        return self._is(modes.S_IFREG, follow_symlinks)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what the file system knows, asked for once. Parks only if it must wait; then a cancel point."""
        follow_symlinks = follow_symlinks and self.is_symlink()
        if follow_symlinks not in self._stats:
            self._stats[follow_symlinks] = stat(self.path, follow_symlinks=follow_symlinks)
        return self._stats[follow_symlinks]

    def _is(self, kind: int, follow_symlinks: bool) -> bool:
        if not (follow_symlinks and self.is_symlink()):
            return self._kind == kind
        try:
            return modes.S_IFMT(self.stat().st_mode) == kind
        except FileNotFoundError:
            return False

    def __fspath__(self) -> Any:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class Scan:
    """The entries of a directory, read as they are asked for; a context manager that ends the reading."""

    def __init__(self, entries: Any) -> None:
        """Go through what os.scandir returned."""
        self._entries: Any = entries
        self._lot: list[DirEntry] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DirEntry:
        """Return the next one. Parks only if it must wait; then a cancel point."""
        if not self._lot and self._entries is not None:
            self._lot = on_thread(next_lot, self._entries)
            if not self._lot:
                self.close()
        if not self._lot:
            raise StopIteration
        return self._lot.pop()

    def close(self) -> None:
        """Read no more."""
        self._lot = []
        if self._entries is not None:
            self._entries.close()
            self._entries = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def next_lot(entries: Iterator[os.DirEntry[Any]]) -> list[DirEntry]:
    """Read some entries (on the thread); the last one first."""
    lot = [DirEntry(found) for found in itertools.islice(entries, LOT)]
    lot.reverse()
    return lot


def scandir(path: Any = ".") -> Scan:
    """Return the entries of a directory one by one, in the order of the directory, as os.scandir does.

    Use it in a with block, or to the end. Parks; a cancel point.
    """
    return Scan(on_thread(os.scandir, path))


def walk(
    top: Any, topdown: bool = True, onerror: Callable[[OSError], object] | None = None, followlinks: bool = False
) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Yield (directory, names of directories, names of files) for a tree, as os.walk does, `topdown` or bottom up.

    What the caller removes from the names of directories is not entered. Parks; a cancel point.
    """
    return go_through(top, topdown, onerror, followlinks, names_links=True)


def go_through(
    top: Any,
    topdown: bool,
    onerror: Callable[[OSError], object] | None,
    followlinks: bool,
    *,
    names_links: bool,
) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Walk; `names_links`: a symbolic link to a directory is named among the directories."""
    # What is to be done, the next one last: a directory to read, or the triple of one that was read.
    todo: list[Any] = [os.fspath(top)]
    while todo:
        path = todo.pop()
        if isinstance(path, tuple):
            yield path
            continue
        folders: list[Any] = []
        files: list[Any] = []
        enter: list[Any] = []
        try:
            with scandir(path) as entries:
                for entry in entries:
                    folder = leads_to_directory(entry, follows_links=names_links)
                    (folders if folder else files).append(entry.name)
                    if folder and not topdown and (followlinks or not entry.is_symlink()):
                        enter.append(entry.path)
        except OSError as error:
            if onerror is not None:
                onerror(error)
            continue
        if topdown:
            yield path, folders, files
            enter = [os.path.join(path, name) for name in folders]
            if not followlinks:
                enter = [inner for inner in enter if not modes.S_ISLNK(mode_of(inner))]
        else:
            todo.append((path, folders, files))
        todo.extend(reversed(enter))


def leads_to_directory(entry: DirEntry, *, follows_links: bool) -> bool:
    """Tell whether an entry is a directory; False if it leads nowhere."""
    try:
        return entry.is_dir(follow_symlinks=follows_links)
    except OSError:
        return False


def mode_of(path: StrOrBytesPath) -> int:
    """Return the mode of a name itself; 0 if there is none."""
    try:
        return lstat(path).st_mode
    except OSError:
        return 0
