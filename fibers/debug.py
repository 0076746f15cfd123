"""Look into a run: dump what every fiber waits for, trace what they did, report who does not yield.

Rule 1: nothing here costs anything that a benchmark sees while it is off.
Rule 2: what looks on changes nothing: it wakes nobody and keeps no frame or fiber alive for longer than it prints.
Rule 3: a dump may be asked for at any time, by a fiber, a signal handler or another thread.

In debug mode, run(debug=True) or FIBERS_DEBUG=1, a thread of its own watches the running fiber. One that has run for
more than STALL_LIMIT seconds without yielding is reported with its stack to the logger `fibers.debug`, as a warning.
The thread needs the GIL to look: a fiber that holds it inside C code is reported as soon as that code gives it up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from _thread import allocate_lock, get_ident  # the thread's, patched or not
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fibers.driver import native
from fibers.fiber import walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from fibers.fiber import Fiber
    from fibers.runtime import Core

__all__ = ["dump", "trace"]

LOG = logging.getLogger("fibers.debug")
STALL_LIMIT = 0.1  # seconds; semantics.md N6
LOOKS = 4  # of the stall detector in that time
TREE_LIMIT = 200  # fibers that the message of a DeadlockError describes
PLACES = 4  # calls of each, there
OUR_CODE = str(Path(__file__).parent) + os.sep
UNUSABLE = {"SIGKILL", "SIGSTOP", "SIGINT", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGCHLD"}
RUN, PARK, WAKE, SPAWN, CANCEL, END = range(6)
OUTCOMES = ("none", "finished", "failed", "cancelled")

RUNS: dict[Core, int] = {}  # every run of the process, and the thread it is in: runtime.py's
TRACES: dict[int, native.Trace] = {}  # by thread: what a trace() outside a run records


@contextlib.contextmanager
def looked_at(core: Core, number: int | None, *, debug: bool) -> Iterator[None]:
    """Let a run be looked at for its length: by trace(), the dump signal, and in debug mode the stall detector."""
    recording = TRACES.get(get_ident())
    if recording is not None:
        recording.start(core)
    detector = StallDetector(core) if debug else None
    try:
        with DumpSignal(number):
            yield
    finally:
        if detector is not None:
            detector.end()


# Dumps


def dump(file: TextIO | None = None) -> None:
    """Print the tree of this run's fibers, each with state, wait, for how long, and stack, to `file` (sys.stderr).

    Outside a run, and in any other thread: of every run of the process. How long is as of the run's last poll. Set
    FIBERS_DUMP_SIGNAL=USR2 (or another signal; none by default) to have every run that starts in the main thread print
    it to sys.stderr when that signal comes, also while a fiber is busy.
    """
    core = native.runtime()
    print_runs(sys.stderr if file is None else file, [core] if core is not None else list(RUNS))


def print_runs(file: TextIO, cores: list[Core]) -> None:
    """Print the trees of these runs."""
    for core in cores:
        main = core._main
        if main is not None:
            print(f"fibers run in thread {thread_name(RUNS.get(core))}, {core._stats()['fibers']} fibers:", file=file)
            for depth, fiber in walk(main):
                print(f"{'  ' * depth}{tell(core, fiber)}", file=file)
                for entry in stack_of(core, fiber).format():
                    for line in entry.splitlines():
                        print(f"{'  ' * depth}  {line}", file=file)
    if not cores:
        print("no fibers.run() in this process", file=file)
    file.flush()


def thread_name(ident: int | None) -> str:
    """Find the name of a thread."""
    return next((repr(thread.name) for thread in threading.enumerate() if thread.ident == ident), str(ident))


def tell(core: Core, fiber: Fiber[object]) -> str:
    """Describe a fiber in a line: `<Fiber 'reader' parked in recv fd=7> for 3.2 s, cancelling`."""
    line = repr(fiber)
    since = fiber._since
    if since is not None:
        line += f" for {max(core._now - since, 0):.3g} s"
    if fiber.status == "cancelling":
        line += ", cancelling"
    return line


def stack_of(core: Core, fiber: Fiber[object], *, with_source: bool = True) -> traceback.StackSummary:
    """Extract a fiber's stack, outermost call first; empty if it has not started."""
    frames: list[tuple[FrameType, int]] = []
    if fiber is core._current:
        frame = sys._current_frames().get(RUNS.get(core, 0))
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        frames += traceback.walk_stack(frame) if frame is not None else ()
    else:
        # A foreign greenlet may run inside the fiber: what parked is that one, called from those it was started in.
        greenlet, hub = fiber._greenlet, core._hub
        while greenlet is not None and greenlet is not hub:
            if greenlet.gr_frame is not None:
                frames += traceback.walk_stack(greenlet.gr_frame)
            greenlet = greenlet.parent
    frames.reverse()
    return traceback.StackSummary.extract(iter(frames), lookup_lines=with_source)


def describe(core: Core) -> str:
    """Draw the tree of unfinished fibers: what each waits for, and below where in the user's code."""
    lines: list[str] = []
    for count, (depth, fiber) in enumerate(walk(core._main)):
        if count == TREE_LIMIT:
            lines.append(f"  ... and {core._stats()['fibers'] - TREE_LIMIT} more")
            break
        indent = "  " * (depth + 1)
        lines.append(f"{indent}{fiber!r}")
        lines += [f"{indent}    at {place}" for place in places(core, fiber)]
    return "\n".join(lines)


def places(core: Core, fiber: Fiber[object]) -> list[str]:
    """List the innermost calls of the fiber that are not ours, innermost first."""
    user = [entry for entry in stack_of(core, fiber, with_source=False) if not entry.filename.startswith(OUR_CODE)]
    return [f"{entry.filename}:{entry.lineno} in {entry.name}" for entry in reversed(user[-PLACES:])]


def dump_signal() -> int | None:
    """Read $FIBERS_DUMP_SIGNAL: the signal's number, or None. ValueError if there is no such signal."""
    name = os.environ.get("FIBERS_DUMP_SIGNAL")
    if not name:
        return None
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    known = signal.Signals.__members__.get(full)
    if known is None:
        msg = f"unknown signal {name!r} (from $FIBERS_DUMP_SIGNAL); name one such as USR2 or SIGUSR2"
        raise ValueError(msg)
    if full in UNUSABLE:
        msg = f"can't dump on {name!r} (from $FIBERS_DUMP_SIGNAL): that signal is not free; take one such as USR2"
        raise ValueError(msg)
    return int(known)


class DumpSignal:
    """The handler of $FIBERS_DUMP_SIGNAL during a run in the main thread."""

    def __init__(self, number: int | None) -> None:
        """Prepare; None: there is no such signal."""
        self.number = number if get_ident() == threading.main_thread().ident else None
        self.before: Any = None

    def __enter__(self) -> None:
        """Install."""
        if self.number is not None:
            self.before = signal.signal(self.number, self)

    def __exit__(self, *_error: object) -> None:
        """Put back what was there, unless the user's code has changed it meanwhile."""
        if self.number is None:
            return
        now: object = signal.getsignal(self.number)
        if now is self:
            signal.signal(self.number, signal.SIG_DFL if self.before is None else self.before)

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Dump every run. A closed sys.stderr must not hurt whom the signal happened to interrupt."""
        with contextlib.suppress(OSError, ValueError):
            print_runs(sys.stderr, list(RUNS))


# The stall detector


class StallDetector:
    """A thread that reports a fiber which keeps the run to itself; see the header."""

    def __init__(self, core: Core) -> None:
        """Start looking at a run of this thread."""
        self.core = core
        self.over = allocate_lock()  # a bare lock: unlike an Event's it is in a known state after a fork
        self.over.acquire()
        core._watch_steps(True)
        self.thread = threading.Thread(target=self.look, name="fibers stall detector", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stop looking."""
        self.core._watch_steps(False)
        self.over.release()
        self.thread.join()

    def look(self) -> None:
        """Look again and again; report each stall once."""
        reported = 0
        while not self.over.acquire(timeout=STALL_LIMIT / LOOKS):
            step = self.core._step()
            if step is not None and step[1] > STALL_LIMIT and step[0] != reported:
                reported = step[0]
                self.report(step)

    def report(self, step: tuple[int, float]) -> None:
        """Log who runs and where, if it still does."""
        fiber = self.core._current
        if fiber is None:
            return
        stack = "".join(stack_of(self.core, fiber).format())
        again = self.core._step()
        if again is None or again[0] != step[0]:
            stack = "it has yielded since\n"
        LOG.warning(
            "fiber %r has not yielded for %.3f s while others wait; use a thread for such work, or checkpoint():\n%s",
            fiber.name,
            step[1],
            stack.rstrip(),
        )


# Traces


@contextlib.contextmanager
def trace(path: str | os.PathLike[str]) -> Iterator[None]:
    """Record what the fibers of this run do inside the block and write it to `path` for ui.perfetto.dev or chrome://tracing.

    One track per fiber, with its name: when it ran, and in what it was parked; marks for spawn, wake, cancel and end,
    with arrows from the fiber that did it. Times are real, also under a virtual clock. Outside a run: every run
    of this thread inside the block. The file is written at the end of the block, also when it raises, and blocks the
    thread; until then an event takes 32 bytes. OSError if the file can't be opened, RuntimeError if a trace is on.
    """
    core = native.runtime()
    thread = get_ident()
    if TRACES.get(thread) is not None:
        msg = "can't trace: this thread is being traced already"
        raise RuntimeError(msg)
    recording = native.Trace()
    with Path(path).open("w", encoding="utf-8") as file:
        try:
            if core is None:
                TRACES[thread] = recording
            else:
                recording.start(core)
            yield
        finally:
            if core is None:
                TRACES.pop(thread, None)
            elif recording.runtime is core:
                for _, fiber in walk(core._main):
                    recording.names[recording.base + fiber._id] = fiber.name
            recording.stop()
            write(recording, file)


def write(recording: native.Trace, file: TextIO) -> None:
    """Write a recording as Trace Event JSON, an event a line."""
    file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
    process = os.getpid()
    mark = {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": "fibers"}}
    file.write(json.dumps(mark))
    for entry in entries(recording):
        entry["pid"] = process
        file.write(f",\n{json.dumps(entry)}")
    file.write(f'\n], "otherData": {{"events lost for lack of memory": {recording.lost}}}}}\n')


def entries(recording: native.Trace) -> Iterator[dict[str, Any]]:
    """Turn recorded events into trace events: complete ones ("X") for run and park, instant ones ("i") for the rest.

    Times are microseconds since the first event; a fiber's number is its track. Arrows are flow events ("s", "f").
    """
    names, begin = recording.names, recording.event(0)[0] if len(recording) else 0
    doing: dict[int, dict[str, Any]] = {}  # the unfinished slice of each fiber
    arrows: dict[int, int] = {}  # fibers that something made ready, with the number of the arrow
    seen: set[int] = set()

    def name_of(number: int) -> str:
        return names.get(number, f"fiber-{number}")

    def finish(number: int, at: float) -> Iterator[dict[str, Any]]:
        slice = doing.pop(number, None)
        if slice is not None:
            slice["dur"] = round(at - slice["ts"], 3)
            yield slice

    at = 0.0
    for index in range(len(recording)):
        ns, kind, number, what, other, fd, outcome = recording.event(index)
        at = (ns - begin) / 1000
        if number not in seen:
            seen.add(number)
            yield {"name": "thread_name", "ph": "M", "tid": number, "args": {"name": name_of(number)}}
            yield {"name": "thread_sort_index", "ph": "M", "tid": number, "args": {"sort_index": number}}
        if kind in (RUN, PARK, END) or (kind == WAKE and doing.get(number, {}).get("cat") == "park"):
            yield from finish(number, at)
        if kind == RUN:
            doing[number] = {"name": "run", "cat": "run", "ph": "X", "ts": at, "tid": number}
            if number in arrows:
                arrow = {"name": "wake", "cat": "wake", "ph": "f", "bp": "e", "id": arrows.pop(number)}
                yield {**arrow, "ts": at, "tid": number}
        elif kind == PARK:
            details: dict[str, object] = {"fd": fd} if fd >= 0 else {"fiber": name_of(other)} if other else {}
            doing[number] = {"name": f"parked in {what}", "cat": "park", "ph": "X", "ts": at, "tid": number}
            doing[number]["args"] = details
        elif kind == END:
            ended = {"name": "end", "cat": "end", "ph": "i", "s": "t", "ts": at, "tid": number}
            yield {**ended, "args": {"outcome": OUTCOMES[outcome]}}
        else:
            word = {WAKE: "wake", SPAWN: "spawn", CANCEL: "cancel"}[kind]
            by = {"by": name_of(other)} if other else {}
            yield {"name": word, "cat": word, "ph": "i", "s": "t", "ts": at, "tid": number, "args": by}
            if other and kind != CANCEL:
                arrows[number] = index
                yield {"name": "wake", "cat": "wake", "ph": "s", "id": index, "ts": at, "tid": other}
    at = max(at, (time.monotonic_ns() - begin) / 1000) if doing else at
    for number in list(doing):
        yield from finish(number, at)
