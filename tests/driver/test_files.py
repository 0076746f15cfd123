"""What the drivers do to files and their names, through cffi alone: the same on each of them."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from driver.checker import Checked, Op, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = -100
NO_FOLLOW, REMOVE_DIRECTORY, EMPTY_PATH = 0x100, 0x200, 0x1000
BASIC_STATS = 0x7FF
NOREPLACE = 1
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux has the call; fibers.fs does without"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def fd(tmp_path: Path, folder: int) -> Iterator[int]:  # noqa: ARG001 - made there
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd
    os.close(fd)


def named(code: int, fd: int, name: str, other: str | None = None, **fields: Any) -> Op:
    op = Checked.reads_from(Op(code, fd, **fields), os.fsencode(name) + b"\0")
    if other is not None:
        second = ffi.new("char[]", os.fsencode(other))
        op.keep.append(second)
        op.raw.extra = second
    return op


def vector(op: Op, parts: list[Any]) -> Op:
    vector = ffi.new("struct iovec[]", [{"iov_base": part, "iov_len": len(part)} for part in parts])
    op.raw.data, op.raw.len = vector, len(parts)
    op.keep += [vector, *parts]
    return op


def test_vectored_reads_fill_their_buffers_in_order(driver: Checked, fd: int) -> None:
    parts = [ffi.new("char[]", 2), ffi.new("char[]", 3), ffi.new("char[]", 9)]
    assert driver.do(vector(Op(lib.FB_READV, fd, off=1), parts)) == 9
    assert [bytes(ffi.buffer(part)).rstrip(b"\0") for part in parts] == [b"12", b"345", b"6789"]


def test_vectored_writes_write_their_buffers_in_order(driver: Checked, fd: int) -> None:
    parts = [ffi.from_buffer("char[]", b"ab"), ffi.from_buffer("char[]", b"cde")]
    assert driver.do(vector(Op(lib.FB_WRITEV, fd, off=8), parts)) == 5
    assert os.pread(fd, 20, 0) == b"01234567abcde"


def test_too_many_parts_are_an_error(driver: Checked, fd: int) -> None:
    part = ffi.new("char[]", 1)
    assert driver.do(vector(Op(lib.FB_READV, fd, off=0), [part] * 1025)) == -errno.EINVAL


@linux
def test_stat_of_a_name_and_of_a_descriptor(driver: Checked, folder: int, fd: int) -> None:
    for op in (named(lib.FB_STATX, folder, "file"), named(lib.FB_STATX, fd, "", flags=EMPTY_PATH)):
        found = ffi.new("struct statx *")
        op.raw.extra, op.raw.len = found, BASIC_STATS
        assert driver.do(op) == 0
        real = os.fstat(fd)
        assert (found.stx_size, found.stx_ino, found.stx_mode) == (10, real.st_ino, real.st_mode)
        assert found.stx_mtime.tv_sec * 10**9 + found.stx_mtime.tv_nsec == real.st_mtime_ns


@linux
def test_stat_of_a_link_itself_and_of_nothing(driver: Checked, folder: int) -> None:
    found = ffi.new("struct statx *")
    os.symlink("nowhere", "link", dir_fd=folder)
    op = named(lib.FB_STATX, folder, "link", len=BASIC_STATS, flags=NO_FOLLOW)
    op.raw.extra = found
    assert driver.do(op) == 0
    assert stat.S_ISLNK(found.stx_mode)
    op = named(lib.FB_STATX, folder, "link", len=BASIC_STATS)
    op.raw.extra = found
    assert driver.do(op) == -errno.ENOENT


def test_rename_replaces_unless_told_not_to(driver: Checked, folder: int, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    if sys.platform.startswith("linux"):
        op = named(lib.FB_RENAMEAT, folder, "file", "other", len=folder, flags=NOREPLACE)
        assert driver.do(op) == -errno.EEXIST
    assert driver.do(named(lib.FB_RENAMEAT, folder, "file", "other", len=folder)) == 0
    assert (tmp_path / "other").read_bytes() == b"0123456789"
    assert driver.do(named(lib.FB_RENAMEAT, folder, "file", "other", len=folder)) == -errno.ENOENT


def test_directories_are_made_and_removed(driver: Checked, folder: int, tmp_path: Path) -> None:
    assert driver.do(named(lib.FB_MKDIRAT, folder, "new", len=0o700)) == 0
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert driver.do(named(lib.FB_MKDIRAT, folder, "new", len=0o700)) == -errno.EEXIST
    assert driver.do(named(lib.FB_UNLINKAT, folder, "new")) in (-errno.EISDIR, -errno.EPERM)
    assert driver.do(named(lib.FB_UNLINKAT, folder, "new", flags=REMOVE_DIRECTORY)) == 0
    assert driver.do(named(lib.FB_UNLINKAT, folder, "new", flags=REMOVE_DIRECTORY)) == -errno.ENOENT


def test_names_are_linked_and_unlinked(driver: Checked, folder: int, tmp_path: Path) -> None:
    assert driver.do(named(lib.FB_LINKAT, folder, "file", "second", len=folder)) == 0
    assert (tmp_path / "second").stat().st_nlink == 2
    assert driver.do(named(lib.FB_SYMLINKAT, folder, "what it says", "soft")) == 0
    assert (tmp_path / "soft").readlink() == Path("what it says")
    for name in ("second", "soft"):
        assert driver.do(named(lib.FB_UNLINKAT, folder, name)) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_is_cut_and_lengthened(driver: Checked, fd: int) -> None:
    for size, content in ((4, b"0123"), (6, b"0123\0\0"), (0, b"")):
        assert driver.do(Op(lib.FB_FTRUNCATE, fd, len=size)) == 0
        assert os.pread(fd, 20, 0) == content


@linux
def test_room_is_reserved(driver: Checked, fd: int) -> None:
    assert driver.do(Op(lib.FB_FALLOCATE, fd, off=0, len=1 << 16)) == 0
    assert os.fstat(fd).st_size == 1 << 16
    assert driver.do(Op(lib.FB_FALLOCATE, fd, off=0, len=0)) == -errno.EINVAL


@linux
def test_advice_is_taken_or_refused(driver: Checked, fd: int) -> None:
    for advice in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM):
        assert driver.do(Op(lib.FB_FADVISE, fd, off=0, len=0, flags=advice)) == 0
    assert driver.do(Op(lib.FB_FADVISE, fd, off=0, len=0, flags=77)) == -errno.EINVAL


def test_a_long_read_and_write_do_the_same_as_short_ones(driver: Checked, fd: int) -> None:
    data = os.urandom(3 << 20)
    assert driver.do(driver.write(fd, data, 0)) == len(data)
    op = driver.read(fd, len(data) + 10, 0)
    assert driver.do(op) == len(data)
    assert op.value == data


def test_every_change_of_names_cancelled_is_done_or_not(driver: Checked, folder: int, tmp_path: Path) -> None:
    for number in range(50):
        op = driver.start(named(lib.FB_MKDIRAT, folder, f"d{number}", len=0o700))
        driver.cancel(op)
        driver.wait(op)
        assert op.res in (0, -errno.ECANCELED)
        assert (tmp_path / f"d{number}").exists() == (op.res == 0)
