"""Threads as fibers: start, end and identity, and the locks that were made before.

Rule 1: a thread started in a run is a fiber of the run's background: a child of main's own scope, out of reach of the
        scopes of whoever started it (semantics.md L2). Anywhere else it is a thread.
Rule 2: what it raises goes to threading.excepthook. SystemExit ends it alone; a cancellation ends it silently.
Rule 3: it begins in an empty context, as a thread does.
Rule 4: when main's function has returned, threading's exit callbacks run in the run, threads are joined and daemon ones
        cancelled.
"""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import functools
import gc
import os
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.driver.workers import ALIVE
from fibers.errors import Cancelled
from fibers.runtime import WAKERS
from fibers.threads import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fibers.fiber import Fiber

__all__ = ["functions", "replace_made_before"]

plain_start: Any = _thread.start_new_thread
plain_get_ident = _thread.get_ident
plain_lock: Any = type(_thread.allocate_lock())
plain_rlock: Any = _thread.RLock
plain_local: Any = _thread._local
JOINABLE = hasattr(_thread, "start_joinable_thread")  # Python 3.13
FAILED = 2

os.register_at_fork(after_in_child=native._locks_after_fork)


class Background:
    """The threads of a run."""

    def __init__(self) -> None:
        """Start with none."""
        self.threads: dict[Fiber[Any], bool] = {}  # and whether it is a daemon

    def start(self, fn: Callable[..., Any], args: Any, kwargs: Any, *, daemon: bool) -> Fiber[Any]:
        """Start a thread."""
        root = native.current()._runtime._main._root
        spawn = root.daemon if daemon else root.spawn
        fiber = contextvars.Context().run(spawn, body, fn, args, kwargs)
        fiber.name = name_of(fn)
        self.threads[fiber] = daemon
        fiber._watch(self.ended)
        return fiber

    def ended(self, fiber: Fiber[Any]) -> None:
        """Forget one."""
        self.threads.pop(fiber, None)

    def end(self, root: Any, error: BaseException | None) -> None:
        """Let the threads end: main's function has returned or raised."""
        if not self.threads:
            return
        if isinstance(error, (Cancelled, KeyboardInterrupt)):
            return  # main's scope cancels what is left
        if error is not None:
            for child in root.children:
                if child not in self.threads:
                    child.cancel(f"{type(error).__name__}: {error}")
        run_exit_callbacks()
        while waiting := [thread for thread, daemon in self.threads.items() if not daemon]:
            waiting[0].join()


def body(fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Run a thread's function, as that of its fiber."""
    try:
        fn(*args, **kwargs)
    except (SystemExit, Cancelled):
        pass
    except BaseException as error:  # noqa: BLE001 - a thread's failure is its own
        sys.unraisablehook(
            types.SimpleNamespace(  # type: ignore[arg-type]
                exc_type=type(error),
                exc_value=error,
                exc_traceback=error.__traceback__,
                err_msg="Exception ignored in thread started by" + (f" {fn!r}" if JOINABLE else ""),
                object=None if JOINABLE else fn,
            )
        )


def thread_of(fn: Any) -> Any:
    """Return the Thread that a function starts; None if it is just a function."""
    thread = getattr(fn, "__self__", None)
    return thread if hasattr(thread, "_bootstrap_inner") else None  # its class may be that of import_patched


def name_of(fn: Any) -> str:
    """Name the fiber as its thread."""
    thread = thread_of(fn)
    if thread is not None:
        return str(thread.name)
    return str(getattr(fn, "__name__", type(fn).__name__))


def run_exit_callbacks() -> None:
    """Run what threading would call at the end of the process, such as the end of idle executors."""
    executors = sys.modules.get("concurrent.futures.thread")
    for call in reversed(list(threading._threading_atexits)):
        call()
    if executors is not None:
        executors._shutdown = False  # the process goes on


def background() -> Any:
    """Return where a thread started here goes: the background of the run; None for a real one."""
    if not native.in_fiber():
        return None
    core = native.current()._runtime
    if core.background is None:
        core.background = Background()
    return core.background


def quiet(thread: threading.Thread) -> None:
    """Let a cancellation end the thread without a report."""
    report = thread._invoke_excepthook

    def invoke(*args: Any) -> None:
        if not isinstance(sys.exc_info()[1], Cancelled):
            report(*args)

    thread._invoke_excepthook = invoke


def start_new_thread(function: Any, args: Any, kwargs: Any = None, /) -> int:
    """start_new_thread(function, args[, kwargs]) -> identity: as _thread's; in a run a fiber."""
    where = background()
    if (
        where is None
        or not callable(function)
        or not isinstance(args, tuple)
        or not isinstance(kwargs, (dict, type(None)))
    ):
        return plain_start(function, args, *(() if kwargs is None else (kwargs,)))
    sys.audit("_thread.start_new_thread", function, args, kwargs)
    thread = thread_of(function)
    if thread is not None:
        quiet(thread)
    daemon = True if thread is None else thread.daemon
    return native.ident(where.start(function, args, kwargs or {}, daemon=daemon))


def _set_sentinel() -> Any:
    """_set_sentinel() -> a lock that is released at the end of the thread: as _thread's (before 3.13)."""
    if not native.in_fiber() or native.current() is native.current()._runtime._main:
        return plain_sentinel()
    lock = native.allocate_waiter()
    weak = functools.partial(released, lock)
    native.current()._watch(weak)
    return lock


plain_sentinel: Any = getattr(_thread, "_set_sentinel", None)


def released(lock: Any, _fiber: Fiber[Any]) -> None:
    """Release the sentinel of a fiber that has ended."""
    if lock.locked():
        lock.release()


plain_wait_for_tstate_lock: Any = getattr(threading.Thread, "_wait_for_tstate_lock", None)


def _wait_for_tstate_lock(self: Any, block: bool = True, timeout: float = -1) -> None:
    """Wait for a thread's end; for a real one on a thread."""
    lock = self._tstate_lock
    if block and isinstance(lock, plain_lock) and lock.locked() and native.in_fiber():
        acquired = UNLIMITED.call(functools.partial(lock.acquire, True, timeout), "join", self, abandon=True)
        if acquired:
            lock.release()
        block, timeout = False, -1
    plain_wait_for_tstate_lock(self, block, timeout)


class Handle:
    """What a Thread of Python 3.13 holds of its thread: a fiber's or, within, a real one's."""

    def __init__(self) -> None:
        """Refer to a thread that has not started."""
        self.real = plain_handle()
        self.fiber: Fiber[Any] | None = None
        self.number: int | None = None
        self.over = native.allocate_waiter()
        self.over.acquire()

    @property
    def ident(self) -> int:
        """The identity of the thread; 0 before it has started."""
        return self.real.ident if self.number is None else self.number

    def is_done(self) -> bool:
        """Tell whether the thread has ended."""
        return self.real.is_done() if self.number is None else not self.over.locked()

    def _set_done(self) -> None:
        """Take it for ended."""
        if self.number is None:
            self.real._set_done()
        elif self.over.locked():
            self.over.release()

    def ended(self, _fiber: Fiber[Any]) -> None:
        """Note the end of the fiber."""
        self.fiber = None
        self._set_done()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end; as _thread._ThreadHandle."""
        if self.number is None:
            if native.in_fiber() and self.real.ident and not self.real.is_done():
                UNLIMITED.call(functools.partial(self.real.join, timeout), "join", self, abandon=True)
            else:
                self.real.join(timeout)
            return
        if self.number == native.get_ident() and not self.is_done():
            raise RuntimeError("Cannot join current thread")
        if self.over.acquire(True, -1 if timeout is None or timeout < 0 else timeout):
            self.over.release()

    def __repr__(self) -> str:
        """Tell the identity."""
        return f"<_ThreadHandle object: ident={self.ident}>"


plain_handle: Any = getattr(_thread, "_ThreadHandle", None)
plain_joinable: Any = getattr(_thread, "start_joinable_thread", None)
plain_make_handle: Any = getattr(_thread, "_make_thread_handle", None)


def start_joinable_thread(function: Any, handle: Any = None, daemon: bool = True) -> Any:
    """start_joinable_thread(function, handle=None, daemon=True) -> handle: as _thread's; in a run a fiber."""
    where = background()
    if handle is not None and not isinstance(handle, Handle):
        thread = thread_of(function)
        if where is None or thread is None:
            return plain_joinable(function, handle=handle, daemon=daemon)
        handle = thread._handle = Handle()  # it was made before threading was patched
    if handle is None:
        handle = Handle()
    if where is None or not callable(function):
        plain_joinable(function, handle=handle.real, daemon=daemon)
        return handle
    if handle.number is not None or handle.real.ident:
        raise RuntimeError("thread already started")
    sys.audit("_thread.start_joinable_thread", function, daemon, handle)
    thread = thread_of(function)
    if thread is not None:
        quiet(thread)
    handle.fiber = where.start(function, (), {}, daemon=daemon)
    handle.number = native.ident(handle.fiber)
    handle.fiber._watch(handle.ended)
    return handle


def _make_thread_handle(ident: int) -> Any:
    """_make_thread_handle(ident) -> handle: as _thread's."""
    core = native.runtime()
    if ident == plain_get_ident() or core is None or core._forked or core._current is None:
        return plain_make_handle(ident)
    handle = Handle()
    handle.number = ident
    core._current._watch(handle.ended)
    return handle


plain_count = _thread._count


def _count() -> int:
    """_count() -> the number of threads that were started and run: as _thread's; the run's count, too."""
    core = native.runtime()
    others = plain_count() - len(ALIVE)
    return others + (len(core.background.threads) if core is not None and core.background is not None else 0)


plain_dummy_init: Any = threading._DummyThread.__init__


def dummy_init(self: Any) -> None:
    """Make the Thread of a fiber that was not started as one; its end forgets it."""
    core = native.runtime()
    fiber = None if core is None or core._forked else core._current  # None on the hub, where callbacks log, too
    if core is None or fiber is None or fiber is core._main:
        plain_dummy_init(self)
        return
    of_thread: dict[str, Any] = vars(getattr(threading, "_thread_local_info", plain_local()))
    before = of_thread.get(ON_DEL)
    plain_dummy_init(self)
    made = of_thread.pop(ON_DEL, None)
    if made is not None:
        made._dummy_thread = None  # it would forget it at the end of the thread
    if before is not None:
        of_thread[ON_DEL] = before
    started = core.background is not None and fiber in core.background.threads
    if not started or hasattr(threading, "_DeleteDummyThreadOnDel"):  # before, a thread's dummy stays for ever
        fiber._watch(functools.partial(forget, self.ident))


ON_DEL = "_track_dummy_thread_ref"  # late versions of Python 3.12 and on


def forget(ident: int, _fiber: Fiber[Any]) -> None:
    """Forget the Thread of a fiber that has ended."""
    threading._active.pop(ident, None)


def functions() -> Iterator[tuple[str, str, Any]]:
    """List what is replaced: module, name, replacement."""
    if threads_may_wake not in WAKERS:
        WAKERS.append(threads_may_wake)
    yield from (
        ("_thread", "allocate_lock", native.allocate_lock),
        ("_thread", "allocate", native.allocate_lock),
        ("_thread", "LockType", native.Lock),
        ("_thread", "RLock", native.RLock),
        ("_thread", "_count", _count),
        ("_thread", "get_ident", native.get_ident),
        ("_thread", "_local", native.Local),
        ("_thread", "start_new_thread", start_new_thread),
        ("_thread", "start_new", start_new_thread),
        ("threading", "Lock", native.Lock if JOINABLE else native.allocate_lock),
        ("threading", "_allocate_lock", native.allocate_waiter),
        ("threading", "_CRLock", native.RLock),
        ("threading", "get_ident", native.get_ident),
        ("threading", "local", native.Local),
        ("threading", "_DummyThread.__init__", dummy_init),
        ("_threading_local", "local", native.Local),
    )
    if JOINABLE:
        yield from (
            ("_thread", "lock", native.Lock),
            ("_thread", "start_joinable_thread", start_joinable_thread),
            ("_thread", "_ThreadHandle", Handle),
            ("_thread", "_make_thread_handle", _make_thread_handle),
            ("threading", "_start_joinable_thread", start_joinable_thread),
            ("threading", "_ThreadHandle", Handle),
            ("threading", "_make_thread_handle", _make_thread_handle),
            ("threading", "_LockType", native.Lock),
        )
    else:
        yield from (
            ("_thread", "_set_sentinel", _set_sentinel),
            ("threading", "_start_new_thread", start_new_thread),
            ("threading", "_set_sentinel", _set_sentinel),
            ("threading", "Thread._wait_for_tstate_lock", _wait_for_tstate_lock),
        )


def threads_may_wake() -> bool:
    """Tell whether there is another thread that could release a lock; fibers' own can't."""
    main = threading.main_thread()
    here = plain_get_ident()
    others = plain_count() - len(ALIVE)
    return others > (0 if here == main.ident else 1) or (here != main.ident and main.is_alive())


# What was made before.


def replace_made_before() -> None:
    """Replace the locks that objects, dictionaries, lists and closures refer to; those that are held stay."""
    made: dict[int, tuple[Any, Any]] = {}
    alone = plain_count() == 0

    def instead(old: Any) -> Any:
        kind = type(old)
        if kind is types.BuiltinMethodType and type(old.__self__) in (plain_lock, plain_rlock):
            new = instead(old.__self__)
            return None if new is None else getattr(new, old.__name__, None)
        if kind not in (plain_lock, plain_rlock) and not (alone and kind is plain_local):
            return None
        if id(old) not in made:
            made[id(old)] = (old, replacement(old))
        return made[id(old)][1]

    for thing in gc.get_objects():
        kind = type(thing)
        if kind in LEFT or REPLACED.isdisjoint(map(type, thing if kind is list else gc.get_referents(thing))):
            continue
        if kind is dict:
            if str(thing.get("__name__", "")).partition(".")[0] != "fibers":
                replace_in(thing, list(thing.items()), instead)
        elif kind is list:
            replace_in(thing, list(enumerate(thing)), instead)
        elif not isinstance(thing, (type, types.ModuleType)):
            replace_in(Attributes(thing), attributes(thing), instead)


def attributes(thing: Any) -> list[tuple[Any, Any]]:
    """List what an object, or the cell of a closure, refers to by a name; nothing of ours."""
    kind = type(thing)
    if kind is types.CellType:
        return [("cell_contents", thing.cell_contents)]
    if kind.__module__.partition(".")[0] == "fibers":
        return []
    found: list[tuple[Any, Any]] = []
    with contextlib.suppress(Exception):  # a proxy makes anything of it
        found += object.__getattribute__(thing, "__dict__").items()
    for each in kind.__mro__:
        for name, member in vars(each).items():
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):
                    found.append((name, member.__get__(thing)))
    return found


class Attributes:
    """The attributes of an object, as a dictionary."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        """Refer to it."""
        self.thing = thing

    def __setitem__(self, name: str, value: Any) -> None:
        """Set one; what is read-only stays."""
        with contextlib.suppress(AttributeError, TypeError):
            object.__setattr__(self.thing, name, value)


def replace_in(where: Any, items: list[tuple[Any, Any]], instead: Callable[[Any], Any]) -> None:
    """Replace what is referred to."""
    for key, value in items:
        if type(value) in REPLACED:
            new = instead(value)
            if new is not None:
                where[key] = new


REPLACED = {plain_lock, plain_rlock, plain_local, types.BuiltinMethodType}
LEFT = {types.FunctionType, tuple, set, frozenset, types.BuiltinMethodType}


def replacement(old: Any) -> Any:
    """Make what takes the place of a lock or local; None if it must stay."""
    if type(old) is plain_local:
        new = native.Local()
        vars(new).update(vars(old))
        return new
    if type(old) is plain_lock:
        return None if old.locked() else native.allocate_lock()
    if old._is_owned() or not old.acquire(blocking=False):
        return None
    old.release()
    return native.RLock()
