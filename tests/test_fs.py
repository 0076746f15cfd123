"""fibers.fs: calls on descriptors, names and whole files. The os module beside them says what is right."""

import collections
import errno
import functools
import mmap
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Boom, bounded, open_fds, raised, soak

import fibers
from fibers import fs, testing
from fibers.driver import native
from fibers.fs import call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def on_fiber(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return bounded(functools.partial(fn, *args, **kwargs), 60)


def outcome(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The value, or what identifies the error."""
    try:
        return fn(*args, **kwargs)
    except OSError as error:
        return type(error), error.errno, error.strerror, error.filename, error.filename2


# On descriptors


def test_reading_and_writing_at_a_position(file: Path) -> None:
    def main() -> None:
        fd = os.open(file, os.O_RDWR)
        assert fs.pread(fd, 4, 3) == b"3456"
        assert fs.pread(fd, 100, 8) == b"89"
        assert fs.pread(fd, 100, 10) == b""
        assert fs.pread(fd, 0, 0) == b""
        assert fs.pwrite(fd, b"ab", 9) == 2
        assert fs.pwrite(fd, b"", 9) == 0
        first, second = bytearray(3), bytearray(20)
        assert fs.preadv(fd, [first, second], 1) == 10
        assert (bytes(first), bytes(second[:7])) == (b"123", b"45678ab")
        assert fs.pwritev(fd, [b"xy", memoryview(b"z"), b""], 0) == 3
        assert fs.pwritev(fd, [b"Z"], 2) == 1
        assert fs.preadv(fd, [first], 0) == 3
        assert bytes(first) == b"xyZ"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
        os.close(fd)

    on_fiber(main)


def test_arguments_that_make_no_sense(file: Path) -> None:
    def main() -> None:
        fd = os.open(file, os.O_RDWR)
        for bad in (
            lambda: fs.pread(fd, 1, -1),
            lambda: fs.pwrite(fd, b"a", -1),
            lambda: fs.preadv(fd, [bytearray(1)], -5),
            lambda: fs.truncate(fd, -1),
            lambda: fs.fallocate(fd, 0, -1),
            lambda: fs.fallocate(fd, 0, 0),
            lambda: fs.advise(fd, 0, -1, 0),
        ):
            error = raised(bad)
            assert isinstance(error, OSError)
            assert error.errno == errno.EINVAL
        with pytest.raises(ValueError, match="negative"):
            fs.pread(fd, -1, 0)
        with pytest.raises(OverflowError):
            fs.pread(1 << 40, 1, 0)
        with pytest.raises(BufferError):
            fs.preadv(fd, [b"read only"], 0)  # type: ignore[list-item]
        with pytest.raises(ValueError, match="null byte"):
            fs.stat("a\0b")
        os.close(fd)
        assert outcome(fs.pread, fd, 1, 0)[1] == errno.EBADF

    on_fiber(main)


def test_odd_buffers_are_filled_and_written_as_by_os(file: Path) -> None:
    """Overlapping, empty, too many; and one larger than the kernel moves at a time."""

    def main() -> None:
        with file.open("rb+", buffering=0) as opened, mmap.mmap(-1, 1 << 31) as huge:
            fd = opened.fileno()
            steps: list[Callable[[Any], Any]] = [
                lambda module: (buffer := bytearray(8), module.preadv(fd, overlapping(buffer), 0)),
                lambda module: module.pwritev(fd, overlapping(bytearray(b"abcdefgh")), 10),
                lambda module: module.preadv(fd, [], 0),
                lambda module: module.preadv(fd, [bytearray(), bytearray()], 0),
                lambda module: module.preadv(fd, [bytearray(1)] * 1025, 0),
                lambda module: module.preadv(fd, [huge, huge], 1 << 30),
                lambda module: module.preadv(fd, [huge], 20),
                lambda module: str(raised(module.pread, fd, 1, -1)),
                lambda module: str(raised(module.preadv, fd, [bytearray(1)] * 1025, 0)),
            ]
            for step in steps:
                assert outcome(step, fs) == outcome(step, os)
            with fs.open("/dev/null", "wb", buffering=0) as null, fs.open("/dev/null", "wb") as buffered:
                assert fs.pwrite(null.fileno(), huge, 0) == null.write(huge) == (1 << 31) - 4096
                assert buffered.write(huge) == 1 << 31

    def overlapping(buffer: bytearray) -> list[memoryview]:
        return [memoryview(buffer)[:6], memoryview(buffer)[2:]]

    on_fiber(main)


def test_sizes_syncing_and_advice(file: Path) -> None:
    def main() -> None:
        with fs.open(file, "r+b") as opened:
            fs.truncate(opened, 4)
            fs.fsync(opened)
            fs.fdatasync(opened.fileno())
            fs.fallocate(opened, 0, 1000)
            assert file.read_bytes() == b"0123".ljust(1000, b"\0")
            fs.advise(opened, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        fs.truncate(file, 2)
        assert file.read_bytes() == b"01"
        with pytest.raises(ValueError, match="closed"):
            fs.fsync(opened)

    on_fiber(main)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT here")
def test_many_direct_reads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    path.write_bytes(b"".join(bytes([n]) * 4096 for n in range(64)))

    def read(fd: int, n: int) -> int:
        buffer = fs.aligned(4096)
        assert fs.preadv(fd, [buffer], 4096 * n) == 4096
        assert bytes(buffer) == bytes([n]) * 4096
        return n

    def main() -> None:
        with fs.open(path, "rb", buffering=0, flags=os.O_DIRECT) as file:
            fd = file.fileno()
            assert fibers.map(functools.partial(read, fd), range(64)) == list(range(64))

    on_fiber(main)


# On names


def both(tmp_path: Path, fn: Callable[[Any], Any]) -> None:
    """Do the same with fibers.fs and with os, in like directories, and compare outcome and result."""
    seen = []
    for module in (os, fs):
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "file").write_text("content")
        (folder / "folder").mkdir()
        before = Path.cwd()
        os.chdir(folder)
        try:
            result = fn(module) if module is os else on_fiber(fn, module)
            tree = [(where, sorted(folders), sorted(files)) for where, folders, files in sorted(os.walk("."))]
        finally:
            os.chdir(before)
            shutil.rmtree(folder)
        seen.append((result, tree))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "step",
    [
        lambda m: outcome(m.rename, "file", "new"),
        lambda m: outcome(m.rename, b"file", b"new"),
        lambda m: outcome(m.rename, "missing", "new"),
        lambda m: outcome(m.rename, "file", "folder"),
        lambda m: outcome(m.replace, Path("file"), Path("folder/x")),
        lambda m: outcome(m.unlink, "file"),
        lambda m: outcome(m.unlink, "missing"),
        lambda m: outcome(m.unlink, "folder"),
        lambda m: outcome(m.rmdir, "folder"),
        lambda m: outcome(m.rmdir, "file"),
        lambda m: outcome(m.mkdir, "new", 0o700),
        lambda m: outcome(m.mkdir, "folder"),
        lambda m: outcome(m.mkdir, "a/b"),
        lambda m: outcome(m.makedirs, "a/b/c"),
        lambda m: outcome(m.makedirs, "a/b/c/"),
        lambda m: outcome(m.makedirs, b"a/b"),
        lambda m: outcome(m.makedirs, "folder"),
        lambda m: outcome(m.makedirs, "folder/x", exist_ok=True),
        lambda m: outcome(m.makedirs, "folder", exist_ok=True),
        lambda m: outcome(m.makedirs, "file", exist_ok=True),
        lambda m: outcome(m.makedirs, "file/x", exist_ok=True)[:2],
        lambda m: outcome(m.link, "file", "second"),
        lambda m: outcome(m.link, "missing", "second"),
        lambda m: outcome(m.symlink, "file", "soft"),
        lambda m: outcome(m.symlink, "x", "file"),
        lambda m: (m.symlink("file", "soft"), outcome(m.readlink, "soft"), outcome(m.readlink, b"soft")),
        lambda m: outcome(m.readlink, "file"),
        lambda m: outcome(m.stat, "missing"),
        lambda m: outcome(m.lstat, "missing"),
        lambda m: outcome(m.stat, 9999)[:2],
        lambda m: outcome(m.scandir, "missing"),
        lambda m: outcome(m.truncate, "missing", 3),
        lambda m: list(m.walk("missing")),
    ],
)
def test_names_are_treated_as_by_os(tmp_path: Path, step: Callable[[Any], Any]) -> None:
    both(tmp_path, step)


def test_stat_says_what_os_stat_says(file: Path, tmp_path: Path) -> None:
    def main() -> None:
        (tmp_path / "soft").symlink_to("file")
        for path in (file, tmp_path, tmp_path / "soft", "/dev/null", os.fsencode(file)):
            for ours, theirs in ((fs.stat(path), os.stat(path)), (fs.lstat(path), os.lstat(path))):  # noqa: PTH116 - what ours is compared with
                for name in dir(theirs):
                    if name.startswith("st_"):
                        assert getattr(ours, name) == getattr(theirs, name), name
                assert tuple(ours) == tuple(theirs)
        fd = os.open(file, os.O_RDONLY)
        assert fs.stat(fd) == os.fstat(fd)
        os.close(fd)

    on_fiber(main)


def test_scandir_gives_what_os_scandir_gives(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "soft").symlink_to("folder")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")

    def facts(entry: Any) -> tuple[Any, ...]:
        return (
            entry.name,
            entry.path,
            entry.inode(),
            entry.is_symlink(),
            *(entry.is_dir(follow_symlinks=follow) for follow in (True, False)),
            *(entry.is_file(follow_symlinks=follow) for follow in (True, False)),
            entry.stat(follow_symlinks=False),
            outcome(entry.stat),
            os.fspath(entry),
        )

    def main() -> None:
        for path in (str(tmp_path), os.fsencode(tmp_path)):
            with os.scandir(path) as theirs, fs.scandir(path) as ours:
                assert [facts(entry) for entry in ours] == [facts(entry) for entry in theirs]
        with fs.scandir(tmp_path) as some:
            entry = next(some)
            assert repr(entry) == f"<DirEntry {entry.name!r}>"
        assert list(some) == []

    on_fiber(main)


def test_scandir_reads_a_large_directory_in_lots(tmp_path: Path) -> None:
    names = {f"{n}" for n in range(2500)}
    for name in names:
        (tmp_path / name).touch()

    def main() -> None:
        assert {entry.name for entry in fs.scandir(tmp_path)} == names

    on_fiber(main)


@pytest.mark.parametrize("topdown", [True, False])
@pytest.mark.parametrize("followlinks", [True, False])
def test_walk_goes_where_os_walk_goes(tmp_path: Path, topdown: bool, followlinks: bool) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "through a file").symlink_to("e/file/x")

    def main() -> None:
        ours, theirs = (list(walk(tmp_path, topdown=topdown, followlinks=followlinks)) for walk in (fs.walk, os.walk))
        assert [(os.fspath(where), folders, files) for where, folders, files in ours] == [
            (os.fspath(where), folders, files) for where, folders, files in theirs
        ]

    on_fiber(main)


def test_walk_goes_deeper_than_the_stack(tmp_path: Path) -> None:
    depth = 300
    (tmp_path / "/".join("d" * depth)).mkdir(parents=True)

    def main() -> None:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(200)
        try:
            assert [len(list(fs.walk(tmp_path, topdown=topdown))) for topdown in (True, False)] == [depth + 1] * 2
        finally:
            sys.setrecursionlimit(before)

    on_fiber(main)


def test_walk_does_not_enter_what_the_caller_removes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    errors: list[OSError] = []

    def main() -> None:
        seen = []
        for where, folders, _ in fs.walk(str(tmp_path)):
            seen.append(where)
            folders.clear()
        assert seen == [str(tmp_path)]
        assert list(fs.walk(tmp_path / "none", onerror=errors.append)) == []

    on_fiber(main)
    assert [error.errno for error in errors] == [errno.ENOENT]


# Whole files


def test_whole_files(tmp_path: Path) -> None:
    def main() -> None:
        path = tmp_path / "whole"
        for size in (0, 1, 70000, 3_000_000):
            data = os.urandom(size)
            assert fs.write_bytes(path, data) == size
            assert fs.read_bytes(path) == data
        assert fs.write_text(path, "häh\r\n", encoding="latin-1") == 5
        assert path.read_bytes() == b"h\xe4h\r\n"
        assert fs.read_text(path, encoding="latin-1") == "häh\n"
        assert fs.read_text(path, encoding="latin-1", newline="") == "häh\r\n"
        with pytest.raises(TypeError):
            fs.write_bytes(path, "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            fs.write_text(path, b"bytes")  # type: ignore[arg-type]
        assert path.stat().st_size == 5
        assert outcome(fs.read_bytes, tmp_path)[1] == errno.EISDIR
        assert len(fs.read_bytes("/proc/self/status")) > 100

    on_fiber(main)


def test_atomic_write_replaces_all_and_keeps_the_mode(tmp_path: Path) -> None:
    def main() -> None:
        path = tmp_path / "target"
        fs.atomic_write(path, b"first")
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        path.chmod(0o640)
        other = tmp_path / "second name"
        other.hardlink_to(path)
        fs.atomic_write(str(path), "zwölf")
        assert path.read_text(encoding="utf-8") == "zwölf"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert other.read_bytes() == b"first"
        assert sorted(tmp_path.iterdir()) == sorted([path, other])

    on_fiber(main)


def test_atomic_write_that_fails_or_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_bytes(b"old")
    counts = {"old": 0, "new": 0}

    def main() -> None:
        (tmp_path / "folder").mkdir()
        assert outcome(fs.atomic_write, tmp_path / "folder", b"new")[1] == errno.EISDIR
        with pytest.raises(FileNotFoundError):
            fs.atomic_write(tmp_path / "missing" / "x", b"")
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(OSError, match=r"no regular file: .*fifo"):
            fs.atomic_write(tmp_path / "fifo", b"")
        assert (tmp_path / "fifo").is_fifo()
        (tmp_path / "fifo").unlink()
        for n in range(soak(10_000)):
            with fibers.move_on_after(60) as limit:
                fibers.spawn(cancel_after, limit, n % 20 / 10_000)
                fs.atomic_write(path, b"new")
            counts[path.read_text()] += 1
            path.write_bytes(b"old")
        assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "folder"])

    before = open_fds()
    bounded(main, 300)
    print("\ncancelled atomic writes:", counts)
    assert open_fds() == before


def cancel_after(scope: fibers.Scope, seconds: float) -> None:
    fibers.sleep(seconds)
    scope.cancel()


def test_copyfile_copies_as_shutil_does(tmp_path: Path) -> None:
    def main() -> None:
        data = os.urandom(20 << 20)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(data)
        assert fs.copyfile(source, target) is target
        assert target.read_bytes() == data
        source.write_bytes(b"")
        fs.copyfile(str(source), str(target))
        assert target.read_bytes() == b""
        with pytest.raises(shutil.SameFileError):
            fs.copyfile(source, source)
        fs.copyfile("/proc/self/limits", target)
        assert target.read_text() == Path("/proc/self/limits").read_text()
        (tmp_path / "soft").symlink_to("source")
        fs.copyfile(tmp_path / "soft", tmp_path / "soft too", follow_symlinks=False)
        assert (tmp_path / "soft too").readlink() == Path("source")

    on_fiber(main)


def test_copyfile_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_args: object) -> int:
        raise OSError(errno.EXDEV, "never")

    def main() -> None:
        (tmp_path / "source").write_bytes(data)
        fs.copyfile(tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == data

    data = os.urandom(3_000_000)
    monkeypatch.setattr(os, "copy_file_range", cannot, raising=False)
    on_fiber(main)
    monkeypatch.delattr(os, "copy_file_range")
    on_fiber(main)


def test_temporary_files_and_directories_are_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        with fs.temporary_file("w+", encoding="utf-8", dir=tmp_path) as file:
            file.write("text")
            file.seek(0)
            assert file.read() == "text"
        assert list(tmp_path.iterdir()) == []
        with fs.temporary_directory(dir=tmp_path, prefix="p", suffix="s") as path:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700  # noqa: PTH116
            assert Path(path).name[:: len(Path(path).name) - 1] == "ps"
            fs.makedirs(path + "/a/b")
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(Boom), fs.temporary_directory(dir=tmp_path):
            raise Boom
        with pytest.raises(ValueError, match="invalid mode"):
            fs.temporary_file("q")
        assert list(tmp_path.iterdir()) == []

    on_fiber(main)
    monkeypatch.delattr(os, "O_TMPFILE")
    on_fiber(main)


# In general


CALLS: dict[str, Callable[[str], Any]] = {
    "atomic_write": lambda path: fs.atomic_write(path, b""),
    "copyfile": lambda path: fs.copyfile(path, path + "2"),
    "fsync": lambda _: fs.fsync(0),
    "link": lambda path: fs.link(path, path + "2"),
    "mkdir": fs.mkdir,
    "open": fs.open,
    "pread": lambda _: fs.pread(0, 1, 0),
    "preadv": lambda _: fs.preadv(0, [bytearray(1), bytearray(1)], 0),
    "read_bytes": fs.read_bytes,
    "readlink": fs.readlink,
    "scandir": fs.scandir,
    "stat": fs.stat,
    "temporary_file": lambda _: fs.temporary_file(),
    "truncate": lambda path: fs.truncate(path, 0),
    "unlink": fs.unlink,
    "walk": lambda path: next(iter(fs.walk(path))),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_in_a_cancelled_scope_is_cancelled_and_does_nothing(name: str, file: Path) -> None:
    """Rule F1: cancelled on entry."""

    def main() -> None:
        with fibers.move_on_after(60) as limit:
            limit.cancel()
            CALLS[name](str(file))
            raise AssertionError("not reached")
        assert limit.cancelled_caught

    on_fiber(main)
    assert file.read_bytes() == b"0123456789"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_outside_a_run_says_so(name: str, file: Path) -> None:
    with pytest.raises(RuntimeError, match=r"outside|not in"):
        CALLS[name](str(file))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", ["stat", "read_bytes", "scandir", "mkdir"])
def test_a_call_parks_its_fiber_only(name: str, tmp_path: Path) -> None:
    def main() -> None:
        with testing.assert_parks():
            result = CALLS[name](str(tmp_path / "new") if name == "mkdir" else str(target))
        if name == "scandir":
            result.close()

    target = tmp_path / "x" if name != "scandir" else tmp_path
    if name != "scandir":
        target.touch()
    on_fiber(main)


def test_threads_for_files_are_not_those_for_names() -> None:
    from fibers.net import dns

    assert call.POOL is not dns.POOL


def test_what_a_driver_has_not_is_done_on_a_thread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outcome, also of errors."""

    def lacking(code: int, *args: Any) -> int:
        if code > native.OPENAT:
            raise OSError(errno.EOPNOTSUPP, "no such operation")
        return operate(code, *args)

    def main() -> None:
        folder = file.parent
        assert fs.stat(file) == os.stat(file)  # noqa: PTH116
        assert outcome(fs.stat, folder / "none") == outcome(os.stat, folder / "none")
        fs.mkdir(folder / "new")
        fs.rename(file, folder / "new" / "file")
        fs.link(folder / "new" / "file", file)
        fs.symlink("file", folder / "soft")
        fs.unlink(folder / "new" / "file")
        fs.rmdir(folder / "new")
        with fs.open(file, "r+b") as opened:
            first, second = bytearray(3), bytearray(4)
            assert fs.preadv(opened, [first, second], 1) == 7
            assert (first, second) == (b"123", b"4567")
            assert fs.pwritev(opened, [b"a", b"b"], 0) == 2
            fs.truncate(opened, 4)
            opened.seek(5)
            opened.truncate(6)
            fs.fallocate(opened, 0, 8)
            fs.advise(opened, 0, 0, os.POSIX_FADV_RANDOM)
        assert file.read_bytes() == b"ab23".ljust(8, b"\0")

    operate = native.operate
    monkeypatch.setattr(native, "operate", lacking)
    on_fiber(main)


def test_a_file_op_that_was_cancelled_in_flight_waits_for_its_end(tmp_path: Path) -> None:
    """Rule F4, J1: never abandoned, on the ring or on a thread."""
    running, go = threading.Event(), threading.Event()

    def slow(_path: Any) -> str:
        running.set()
        go.wait(10)
        return "done"

    def main() -> None:
        with fibers.move_on_after(60) as limit:
            fiber = fibers.spawn(call.on_thread, slow, tmp_path)
            fibers.to_thread(running.wait, 10)
            limit.cancel()
            assert not fiber.done()
            go.set()
        assert fiber.done()

    on_fiber(main)


def test_cancelled_reads_give_their_data_or_did_nothing(file: Path) -> None:
    """Rule F3: what completes is delivered, also to a cancelled fiber."""
    counts = {"read": 0, "cancelled": 0}

    def read(fd: int) -> None:
        try:
            assert fs.pread(fd, 10, 0) == b"0123456789"
            counts["read"] += 1
        except fibers.Cancelled:
            counts["cancelled"] += 1
            raise

    def main() -> None:
        fd = os.open(file, os.O_RDONLY)
        for n in range(soak(100_000)):
            with fibers.move_on_after(60) as limit:
                reading = limit.spawn(read, fd)
                for _ in range(n % 4):
                    fibers.checkpoint()
                if n % 4 == 3:
                    reading.join()  # some complete, however late their worker thread is
                limit.cancel()
        os.close(fd)

    count = soak(100_000)
    bounded(main, 600)
    print(f"\n{count:,} cancelled reads: {counts}")
    assert sum(counts.values()) <= count
    assert counts["read"] > 0


def test_cancelled_opens_leak_no_descriptor(tmp_path: Path) -> None:
    """Rule F5: an opened descriptor reaches its fiber or is closed."""
    (tmp_path / "file").touch()

    def opens(n: int) -> None:
        with fs.open(tmp_path / ("file" if n % 2 else f"new{n % 20}"), "r" if n % 2 else "w"):
            pass

    def main() -> None:
        for n in range(soak(10_000)):
            with fibers.move_on_after(60) as limit:
                limit.spawn(opens, n)
                for _ in range(n % 5):
                    fibers.checkpoint()
                limit.cancel()

    before = open_fds()
    bounded(main, 600)
    assert open_fds() == before


RACED: dict[str, Callable[[str, int], Any]] = {
    "advise": lambda _, fd: fs.advise(fd, 0, 0, os.POSIX_FADV_WILLNEED),
    "copyfile": lambda path, _: fs.copyfile(path, path + "2"),
    "fallocate": lambda _, fd: fs.fallocate(fd, 0, 8192),
    "fdatasync": lambda _, fd: fs.fdatasync(fd),
    "fsync": lambda _, fd: fs.fsync(fd),
    "link": lambda path, _: fs.link(path, path + "2"),
    "lstat": lambda path, _: fs.lstat(path),
    "makedirs": lambda path, _: fs.makedirs(path + "2/a/b"),
    "mkdir": lambda path, _: fs.mkdir(path + "2"),
    "preadv": lambda _, fd: fs.preadv(fd, [bytearray(4), bytearray(4)], 0),
    "pwrite": lambda _, fd: fs.pwrite(fd, b"abc", 2),
    "pwritev": lambda _, fd: fs.pwritev(fd, [b"a", b"bc"], 2),
    "read_text": lambda path, _: fs.read_text(path),
    "readlink": lambda path, _: raised(fs.readlink, path),
    "rename": lambda path, _: fs.rename(path, path + "2"),
    "scandir": lambda path, _: fs.scandir(os.path.dirname(path)).close(),  # noqa: PTH120 - a str
    "symlink": lambda path, _: fs.symlink(path, path + "2"),
    "temporary_file": lambda _, __: fs.temporary_file().close(),
    "truncate": lambda _, fd: fs.truncate(fd, 3),
    "unlink": lambda path, _: fs.unlink(path),
    "walk": lambda path, _: list(fs.walk(os.path.dirname(path))),  # noqa: PTH120 - a str
    "write_bytes": lambda path, _: fs.write_bytes(path, b"new"),
}


@pytest.mark.parametrize("name", RACED)
def test_a_call_that_is_cancelled_at_any_step_leaves_nothing_behind(name: str, file: Path) -> None:
    """Rules F4, F5: it was made or not, and is over; whatever it opened is closed."""
    rounds = soak(10_000)
    ended: collections.Counter[str] = collections.Counter()

    def main() -> None:
        with file.open("rb+", buffering=0) as kept:
            for number in range(rounds):
                with fibers.move_on_after(60) as limit:
                    fiber = limit.spawn(RACED[name], str(file), kept.fileno())
                    for _ in range(2 ** (number % 10) - 1):
                        fibers.checkpoint()
                    limit.cancel()
                ended[fiber.status] += 1
                for other in file.parent.iterdir():
                    if other.is_dir():
                        shutil.rmtree(other)
                    elif other != file:
                        other.unlink()
                if name in ("rename", "unlink", "write_bytes", "truncate"):
                    file.write_bytes(b"0123456789")
            fs.stat(file)
            assert len(file.read_bytes()) in (10, 8192)

    before = open_fds()
    bounded(main, 600)
    print(f"\n{name}: {dict(ended)}")
    assert open_fds() == before
    assert set(ended) <= {"cancelled", "finished"}


def test_a_full_device_and_one_that_fails() -> None:
    def main() -> None:
        with fs.open("/dev/full", "wb", buffering=0) as full:
            assert outcome(full.write, b"x")[1] == errno.ENOSPC
        file = fs.open("/dev/full", "w")
        file.write("x")
        assert outcome(file.flush)[1] == errno.ENOSPC
        assert outcome(file.close)[1] == errno.ENOSPC
        assert file.closed
        assert outcome(fs.write_bytes, "/dev/full", b"x")[1] == errno.ENOSPC
        with fs.open("/proc/self/mem", "rb", buffering=0) as memory:
            assert outcome(memory.read, 10)[1] == errno.EIO
            assert outcome(fs.pread, memory.fileno(), 10, 0)[1] == errno.EIO

    if not sys.platform.startswith("linux"):
        pytest.skip("/dev/full and /proc are Linux's")
    on_fiber(main)


def test_without_descriptors_open_fails_cleanly(file: Path) -> None:
    import resource

    def main() -> None:
        fs.stat(file)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with fs.open(file, "rb") as kept:
            resource.setrlimit(resource.RLIMIT_NOFILE, (kept.fileno(), hard))
            try:
                error = raised(fs.open, file)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(error, OSError)
        assert error.errno == errno.EMFILE
        assert error.filename == str(file)
        fs.open(file).close()

    on_fiber(main)
