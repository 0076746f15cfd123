"""Path: pathlib.Path whose I/O parks only its fiber.

Rule 1: what only computes on the path is pathlib's own.
Rule 2: what the driver has no operation for is pathlib's own on a thread; glob, rglob and walk are gone through there
        as wholes, or directory by directory.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat as modes
from typing import TYPE_CHECKING, Any

from fibers.fs import entry, whole
from fibers.fs.call import on_thread
from fibers.fs.file import open as open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import ReadableBuffer, StrOrBytesPath, StrPath
    from typing_extensions import Self

__all__ = ["Path"]

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP}


class Path(pathlib.PosixPath):
    """A pathlib.Path for fibers: the same names and arguments; what asks the disk parks."""

    __slots__ = ()

    def _plain(self) -> pathlib.Path:
        """Make one whose methods block, for a thread."""
        return pathlib.PosixPath(os.fspath(self))

    def _like(self, path: Any) -> Self:
        """Make another of its kind."""
        made: Self = getattr(self, "with_segments", type(self))(path)  # from Python 3.12 on
        return made

    def _mode(self, *, follow_symlinks: bool = True) -> int:
        """Return the mode; 0 if there is nothing."""
        try:
            return self.stat(follow_symlinks=follow_symlinks).st_mode
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            return 0
        except ValueError:
            return 0

    # What is there

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what the file system knows of it. Parks; a cancel point."""
        return entry.stat(self, follow_symlinks=follow_symlinks)

    def lstat(self) -> os.stat_result:
        """Return the same, of a symbolic link itself. Parks; a cancel point."""
        return entry.lstat(self)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether there is such a file. Parks; a cancel point."""
        return self._mode(follow_symlinks=follow_symlinks) != 0

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a directory. Parks; a cancel point."""
        return modes.S_ISDIR(self._mode(follow_symlinks=follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a regular file. Parks; a cancel point."""
        return modes.S_ISREG(self._mode(follow_symlinks=follow_symlinks))

    def is_symlink(self) -> bool:
        """Tell whether it is a symbolic link. Parks; a cancel point."""
        return modes.S_ISLNK(self._mode(follow_symlinks=False))

    def is_socket(self) -> bool:
        """Tell whether it is a socket. Parks; a cancel point."""
        return modes.S_ISSOCK(self._mode())

    def is_fifo(self) -> bool:
        """Tell whether it is a named pipe. Parks; a cancel point."""
        return modes.S_ISFIFO(self._mode())

    def is_block_device(self) -> bool:
        """Tell whether it is a block device. Parks; a cancel point."""
        return modes.S_ISBLK(self._mode())

    def is_char_device(self) -> bool:
        """Tell whether it is a character device. Parks; a cancel point."""
        return modes.S_ISCHR(self._mode())

    def is_mount(self) -> bool:
        """Tell whether a file system is mounted here. Parks; a cancel point."""
        return on_thread(self._plain().is_mount)

    def samefile(self, other_path: StrPath) -> bool:
        """Tell whether both are names of one file. Parks; a cancel point."""
        return os.path.samestat(self.stat(), entry.stat(other_path))

    def owner(self, **kwargs: Any) -> str:
        """Return the name of its user. Parks; a cancel point."""
        return on_thread(self._plain().owner, **kwargs)

    def group(self, **kwargs: Any) -> str:
        """Return the name of its group. Parks; a cancel point."""
        return on_thread(self._plain().group, **kwargs)

    def readlink(self) -> Self:
        """Return what the symbolic link says. Parks; a cancel point."""
        return self._like(entry.readlink(os.fspath(self)))

    def resolve(self, strict: bool = False) -> Self:
        """Return the absolute path without symbolic links. Parks; a cancel point."""
        return self._like(on_thread(self._plain().resolve, strict))

    # What is in it

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open it: fs.open(). Parks; a cancel point."""
        return open_file(self, mode, buffering, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """Return what is in it. Parks; a cancel point."""
        return whole.read_bytes(self)

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """Return the text in it. Parks; a cancel point."""
        return whole.read_text(self, encoding, errors, newline)

    def write_bytes(self, data: ReadableBuffer) -> int:
        """Make `data` all that is in it. Parks; a cancel point."""
        return whole.write_bytes(self, data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """Make a text all that is in it. Parks; a cancel point."""
        return whole.write_text(self, data, encoding, errors, newline)

    def iterdir(self) -> Iterator[Self]:  # type: ignore[override] # newer stubs: Generator
        """Return the paths in the directory. Parks; a cancel point."""
        names = on_thread(os.listdir, os.fspath(self))
        return iter([self / name for name in names])

    def glob(self, pattern: Any, **kwargs: Any) -> Iterator[Self]:  # type: ignore[override] # case_sensitive: 3.12
        """Return the paths below that match. Parks; a cancel point."""
        return self._found(self._plain().glob, pattern, kwargs)

    def rglob(self, pattern: Any, **kwargs: Any) -> Iterator[Self]:  # type: ignore[override] # the same
        """Return the paths at any depth below that match. Parks; a cancel point."""
        return self._found(self._plain().rglob, pattern, kwargs)

    def _found(
        self, find: Callable[..., Iterator[pathlib.Path]], pattern: Any, kwargs: dict[str, Any]
    ) -> Iterator[Self]:
        def search() -> list[pathlib.Path]:
            return list(find(pattern, **kwargs))

        return iter([self._like(found) for found in on_thread(search)])

    def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[OSError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> Iterator[tuple[Self, list[str], list[str]]]:
        """Go through a tree: (path, names of directories, names of files) each.

        Unlike in walk(), a link to a directory is among the files unless they are followed. Parks; a cancel point.
        """
        for path, folders, files in entry.go_through(
            os.fspath(self), top_down, on_error, follow_symlinks, names_links=follow_symlinks
        ):
            yield self._like(path), folders, files

    # What is done to it

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Make it, or make it young. Parks; a cancel point."""
        on_thread(self._plain().touch, mode, exist_ok)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Make it a directory, with those above it if `parents`. Parks; a cancel point."""
        if parents:
            entry.makedirs(self, mode, exist_ok)
            return
        try:
            entry.mkdir(self, mode)
        except OSError:
            if not (exist_ok and self.is_dir()):
                raise

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set its mode. Parks; a cancel point."""
        on_thread(self._plain().chmod, mode, follow_symlinks=follow_symlinks)

    def lchmod(self, mode: int) -> None:
        """Set the mode of a symbolic link itself, where there is such a thing. Parks; a cancel point."""
        self.chmod(mode, follow_symlinks=False)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove this name. Parks; a cancel point."""
        try:
            entry.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Remove the empty directory. Parks; a cancel point."""
        entry.rmdir(self)

    def rename(self, target: StrPath) -> Self:
        """Rename it and return the new path. Parks; a cancel point."""
        entry.rename(self, target)
        return self._like(target)

    def replace(self, target: StrPath) -> Self:
        """Rename it, replacing what is there, and return the new path. Parks; a cancel point."""
        entry.replace(self, target)
        return self._like(target)

    def symlink_to(self, target: StrOrBytesPath, target_is_directory: bool = False) -> None:  # noqa: ARG002 - pathlib's
        """Make it a symbolic link to `target`. Parks; a cancel point."""
        entry.symlink(target, self)

    def hardlink_to(self, target: StrOrBytesPath) -> None:
        """Make it another name of `target`. Parks; a cancel point."""
        entry.link(target, self)
