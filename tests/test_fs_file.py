"""fs.open and its file objects, beside the builtin."""

import errno
import gc
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import bounded, open_fds, raised, soak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fibers
from fibers import fs
from fibers.fs import file as files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"".join(b"line %d\n" % n for n in range(100)))
    return path


def content(path: Path, mode: str) -> Any:
    return path.read_bytes() if "b" in mode else path.read_text()


def on_fiber(fn: Callable[..., Any], /, *args: Any) -> Any:
    return bounded(lambda: fn(*args), 60)


# Opening


@pytest.mark.parametrize(
    "mode", ["r", "w", "x", "a", "r+", "w+", "x+", "a+", "rb", "wb", "xb", "ab", "r+b", "ab+", "rt"]
)
@pytest.mark.parametrize("buffering", [-1, 0, 100])
@pytest.mark.parametrize("exists", [True, False])
def test_modes_are_those_of_the_builtin(tmp_path: Path, mode: str, buffering: int, exists: bool) -> None:
    def attempt(open: Callable[..., Any]) -> Any:
        path = tmp_path / "file"
        path.unlink(missing_ok=True)
        if exists:
            path.write_bytes(b"some content")
        try:
            file = open(path, mode, buffering)
        except (OSError, ValueError) as error:
            return type(error), getattr(error, "errno", None), getattr(error, "filename", None)
        seen: list[Any] = [file.mode, file.name, file.tell(), file.readable(), file.writable(), file.seekable()]
        seen.append([base.__name__ for base in type(file).__mro__ if base.__module__ == "_io"][-2])
        for act in (lambda: file.read(4), lambda: file.write("new" if "b" not in mode else b"new"), file.tell):
            try:
                seen.append(act())
            except OSError as error:
                seen.append(type(error))
        file.close()
        return *seen, path.read_bytes()

    ours, theirs = on_fiber(attempt, fs.open), attempt(open)
    if buffering == 0 and "b" not in mode:
        assert ours[0] is ValueError  # before anything is opened, or cut; the builtin looks later
        return
    if buffering == 0 and len(theirs) > 3:
        ours, theirs = (*ours[:6], *ours[7:]), (*theirs[:6], *theirs[7:])  # RawIOBase beside FileIO
    assert ours == theirs


@pytest.mark.parametrize(
    "args",
    [
        ("q",),
        ("",),
        ("rw",),
        ("rr",),
        ("r+b+",),
        ("rbt",),
        ("r", 0),
        ("rb", -1, "utf-8"),
        ("rb", -1, None, "strict"),
        ("rb", -1, None, None, "\n"),
        ("r", -1, "no such encoding"),
        ("r", -1, None, None, "x"),
        ("r", -1, None, None, None, False),
    ],
)
def test_arguments_that_the_builtin_refuses(path: Path, args: tuple[Any, ...]) -> None:
    before = open_fds()
    assert type(raised(open, path, *args)) is type(on_fiber(raised, fs.open, path, *args))
    assert open_fds() == before


def test_line_buffering_is_for_text(path: Path) -> None:
    def main() -> None:
        with pytest.warns(RuntimeWarning, match="line buffering"):
            fs.open(path, "rb", 1).close()
        with fs.open(path, "w", 1) as file:
            file.write("part")
            assert path.read_bytes() == b""
            file.write(" whole\n")
            assert path.read_bytes() == b"part whole\n"

    on_fiber(main)


def test_descriptors_are_taken_over_or_borrowed(path: Path) -> None:
    def main() -> None:
        fd = os.open(path, os.O_RDONLY)
        with fs.open(fd, "rb", closefd=False) as file:
            assert file.read(4) == b"line"
        os.lseek(fd, 0, os.SEEK_SET)
        with fs.open(fd) as file:
            assert file.readline() == "line 0\n"
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        with pytest.raises(OSError, match="Bad file"):
            fs.open(fd)
        with pytest.raises(ValueError, match="negative"):
            fs.open(-1)
        with fs.open("name", opener=lambda _name, flags: os.open(path, flags)) as file:
            assert file.name == "name"
            assert not os.get_inheritable(file.fileno())
        with pytest.raises(ValueError, match="opener"):
            fs.open("name", opener=lambda *_: -1)
        with pytest.raises(IsADirectoryError):
            fs.open(path.parent)

    on_fiber(main)


def test_a_closed_file_raises_value_error_as_those_of_io_do(path: Path) -> None:
    def main() -> None:
        for mode, buffering in (("r", -1), ("rb", -1), ("rb", 0), ("r+b", -1), ("wb", -1)):
            file = fs.open(path, mode, buffering)
            file.close()
            file.close()
            assert file.closed
            for use in (
                file.read,
                file.readline,
                lambda f=file, m=mode: f.write(b"" if "b" in m else ""),
                file.tell,
                file.flush,
                file.fileno,
            ):
                assert isinstance(raised(use), ValueError), (mode, use)

    on_fiber(main)


def test_repr_tells_name_mode_and_state(path: Path) -> None:
    def main() -> None:
        file = fs.open(path, "rb", 0)
        assert repr(file) == f"<fibers.fs.RawFile name={str(path)!r} mode='rb'>"
        file.close()
        assert repr(file) == "<fibers.fs.RawFile closed>"

    on_fiber(main)


# The end of a file


@pytest.mark.parametrize("inside", [True, False])
def test_a_dropped_file_warns_and_writes_what_it_has(path: Path, inside: bool) -> None:
    def leave() -> Any:
        file = fs.open(path, "w")
        file.write("kept")
        return file

    def drop(file: list[Any]) -> None:
        with pytest.warns(ResourceWarning, match="unclosed file"):  # noqa: PT031 - a step each
            file.clear()
            gc.collect()

    left: list[Any] = []

    def main() -> None:
        left.append(leave())
        if inside:
            drop(left)

    on_fiber(main)
    if not inside:
        drop(left)
    assert path.read_text() == "kept"


def test_a_file_can_be_closed_after_the_run(path: Path) -> None:
    def main() -> Any:
        file = fs.open(path, "w")
        file.write("kept")
        return file

    file = on_fiber(main)
    with pytest.raises(RuntimeError):
        file.write("more")
    file.close()
    assert path.read_text() == "kept"


def test_a_file_goes_from_run_to_run(path: Path) -> None:
    file = on_fiber(fs.open, path)
    assert on_fiber(file.readline) == "line 0\n"
    assert on_fiber(file.readline) == "line 1\n"
    on_fiber(file.close)


def test_close_in_a_cancelled_scope_writes_and_closes(path: Path) -> None:
    """Rule F6."""

    def main() -> None:
        with fibers.move_on_after(60) as limit:
            file = fs.open(path, "w")
            file.write("kept")
            limit.cancel()
            file.close()
        assert file.closed

    on_fiber(main)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("buffering", [0, -1])
def test_close_ends_a_read_that_waits(tmp_path: Path, buffering: int) -> None:
    """Rule F6: OSError(EBADF) for who waits on it."""
    os.mkfifo(tmp_path / "fifo")

    def main() -> None:
        fd = os.open(tmp_path / "fifo", os.O_RDWR)
        file = fs.open(tmp_path / "fifo", "rb", buffering)
        with fibers.supervisor() as s:
            reader = s.spawn(file.read, 10)
            fibers.sleep(0.01)
            file.close()
            error = reader.exception()
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
        os.close(fd)

    on_fiber(main)


# Fibers in one file


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_fibers_take_turns_in_one_file(path: Path, mode: str) -> None:
    """The stack of io says "reentrant call" to the second one."""

    def main() -> None:
        lines: list[Any] = []
        with fs.open(path, mode, 64 if mode == "rb" else -1) as file:

            def read() -> None:
                while line := file.readline():
                    lines.append(line)
                    fibers.checkpoint()

            with fibers.scope() as s:
                for _ in range(5):
                    s.spawn(read)
        assert sorted(lines) == sorted(content(path, mode).splitlines(keepends=True))

    on_fiber(main)


def test_readers_of_one_raw_file_do_not_get_the_same_bytes(path: Path) -> None:
    def main() -> None:
        with fs.open(path, "rb", 0) as file:
            parts = fibers.map(lambda _: file.read(10), range(20))
        assert b"".join(parts) == path.read_bytes()[:200]

    on_fiber(main)


def test_writers_of_one_file_do_not_mix(path: Path) -> None:
    def main() -> None:
        with fs.open(path, "w") as file:
            fibers.map(lambda n: [file.write(f"{n} " + "x" * 5000 + "\n") for _ in range(10)], range(10))
        lines = path.read_text().splitlines()
        assert len(lines) == 100
        assert {line.split()[1] for line in lines} == {"x" * 5000}

    on_fiber(main)


def test_a_thread_outside_the_run_is_refused(path: Path) -> None:
    def main() -> None:
        with fs.open(path) as file:
            seen: list[Any] = []
            thread = threading.Thread(target=lambda: seen.append(raised(file.read)))
            thread.start()
            thread.join()
            assert isinstance(seen[0], RuntimeError)

    on_fiber(main)


# Cancellation


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_a_cancelled_read_leaves_the_position(tmp_path: Path, mode: str) -> None:
    """Whatever was cancelled and whatever was read: together all the file, once."""
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(b"%07d\n" % n for n in range(100_000)))
    counts = {"read": 0, "cancelled": 0}

    def main() -> None:
        got: list[Any] = []
        with fs.open(path, mode, 4096 if mode == "rb" else -1) as file:

            def read(n: int) -> None:
                try:
                    got.append(file.readline() if n % 3 else file.read((8, 5000, 3_000_000, -1)[n % 4]))
                    counts["read"] += 1
                except fibers.Cancelled:
                    counts["cancelled"] += 1
                    raise

            for n in range(soak(20_000)):
                with fibers.move_on_after(60) as limit:
                    limit.spawn(read, n if n < 90 else 8 * n)
                    for _ in range(n % 4):
                        fibers.checkpoint()
                    limit.cancel()
            got.append(file.read())
        assert got[0][:0].join(got) == content(path, mode)

    bounded(main, 600)
    print(f"\n{counts}")
    assert counts["read"]


def test_a_cancelled_write_is_written_or_not(path: Path) -> None:
    written: list[str] = []

    def main() -> None:
        with fs.open(path, "w") as file:

            def write(text: str) -> None:
                file.write(text)
                written.append(text)
                file.flush()

            for n in range(soak(20_000)):
                with fibers.move_on_after(60) as limit:
                    limit.spawn(write, f"{n}" * (n % 50 * 1000 + 1) + "\n")
                    for _ in range(n % 3):
                        fibers.checkpoint()
                    limit.cancel()

    bounded(main, 600)
    assert path.read_text() == "".join(written)


def test_every_use_is_a_cancel_point_first(path: Path) -> None:
    """Rule F1: also where the buffer has it all."""

    def main() -> None:
        with fs.open(path, "r+") as file:
            file.readline()
            for use in (file.readline, file.read, lambda: file.write("x"), file.flush, lambda: file.seek(0)):
                with fibers.move_on_after(60) as limit:
                    limit.cancel()
                    use()
                    raise AssertionError("not reached")
            assert file.readline() == "line 1\n"

    on_fiber(main)


def test_a_read_of_a_pipe_can_be_cancelled(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    def main() -> None:
        fd = os.open(tmp_path / "fifo", os.O_RDWR)
        with fs.open(tmp_path / "fifo") as file:
            with fibers.move_on_after(0.01) as limit:
                file.readline()
            assert limit.cancelled_caught
            os.write(fd, b"text\n")
            assert file.readline() == "text\n"
        os.close(fd)

    on_fiber(main)


@pytest.mark.parametrize("mode", ["r", "w"])
def test_opening_a_fifo_can_be_cancelled_while_nobody_opens_its_other_end(tmp_path: Path, mode: str) -> None:
    os.mkfifo(tmp_path / "fifo")

    def main() -> None:
        before = open_fds()
        for _ in range(10):  # more than there are threads
            with fibers.move_on_after(0.01):
                fs.open(tmp_path / "fifo", mode).close()
        assert open_fds() == before
        writer = fibers.spawn(fs.open, tmp_path / "fifo", "w")
        with fs.open(tmp_path / "fifo") as reading, writer.result() as writing:
            writing.write("text\n")
            writing.flush()
            assert reading.readline() == "text\n"

    on_fiber(main)


@pytest.mark.parametrize("mode", ["r", "w"])
def test_opening_a_fifo_waits_for_its_other_end(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def main() -> None:
        opening = fibers.spawn(fs.open, path, mode)
        fibers.sleep(0.02)
        assert not opening.done()
        other = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        with opening.result() as file:
            if mode == "r":
                os.write(other, b"text\n")
                assert file.readline() == "text\n"
            else:
                file.write("text\n")
                file.flush()
                assert os.read(other, 10) == b"text\n"
        os.close(other)

    on_fiber(main)


# Beside the builtin


SIZES = st.one_of(st.integers(0, 40), st.sampled_from([-1, 100, 5000, 300_000]))
STEPS = st.one_of(
    st.tuples(st.just("read"), SIZES),
    st.tuples(st.just("write"), st.integers(0, 300).map(lambda n: "0123456789" * n)),
    st.tuples(st.just("write"), st.sampled_from(["", "\n", "a\r\nb", "äöü" * 3000, "x" * 200_000])),
    st.tuples(st.just("readline"), st.integers(-1, 100)),
    st.tuples(st.just("seek"), st.integers(0, 400)),
    st.tuples(st.just("end"), st.just(0)),
    st.tuples(st.just("truncate"), st.one_of(st.none(), st.integers(0, 500))),
    st.tuples(st.sampled_from(["tell", "flush", "readlines", "peek", "read1", "readinto"]), st.integers(0, 50)),
)
MODES = ["r", "r+", "w", "w+", "a", "a+", "rb", "r+b", "wb", "w+b", "ab", "a+b"]


def play(open: Callable[..., Any], path: Path, mode: str, buffering: int, steps: list[tuple[str, Any]]) -> list[Any]:
    """Do the steps, and note what each returned or raised."""
    path.write_bytes("".join(f"line {n}ä\n" for n in range(60)).encode())
    seen: list[Any] = []
    with open(path, mode, buffering, **({} if "b" in mode else {"encoding": "utf-8"})) as file:
        for name, argument in steps:
            try:
                seen.append(step(file, name, argument, binary="b" in mode))
            except (OSError, AttributeError, UnicodeDecodeError) as error:
                seen.append(type(error))
    seen.append(path.read_bytes())
    return seen


def step(file: Any, name: str, argument: Any, *, binary: bool) -> Any:
    if name == "write":
        return file.write(argument.encode() if binary else argument)
    if name == "end":
        return file.seek(0, os.SEEK_END)
    if name == "seek" and not binary:
        argument = 0
    if name == "readinto":
        buffer = bytearray(argument)
        return file.readinto(buffer), buffer
    if name == "peek":
        return bytes(file.peek(1))[:1]
    if name == "read1":
        return file.read1(argument)[:1]
    if name in ("tell", "flush", "readlines"):
        return getattr(file, name)()
    return getattr(file, name)(argument)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(MODES), st.sampled_from([-1, 0, 16, 5000]), st.lists(STEPS, max_size=25))
def test_a_file_does_what_the_builtin_does(tmp_path: Path, mode: str, buffering: int, steps: list[Any]) -> None:
    if buffering == 0:
        if "b" not in mode:
            return
        steps = [step for step in steps if step[0] not in ("peek", "read1")]
    steps = [step for step in steps if step[0] != "read1" or "b" in mode]
    path = tmp_path / "file"
    found = on_fiber(play, fs.open, path, mode, buffering, steps)
    # Where text goes that is written before a read depends on what fits into the buffers of io: of the same size here.
    assert found == play(open, path, mode, files.BUFFER if buffering < 0 else buffering, steps)


def test_the_layers_are_those_of_io(path: Path) -> None:
    def main() -> None:
        with fs.open(path) as file:
            assert isinstance(file, io.TextIOWrapper)
            assert isinstance(file.buffer, io.BufferedReader)
            assert isinstance(file.buffer.raw, io.RawIOBase)
        file = fs.open(path, "r+b")
        assert isinstance(file, io.BufferedRandom)
        raw = file.detach()
        assert isinstance(raw, files.RawFile)
        raw.close()
        with fs.open(path, "ab") as file:
            assert isinstance(file, io.BufferedWriter)

    on_fiber(main)
