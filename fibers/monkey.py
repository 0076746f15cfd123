"""Patch the standard library, so that libraries which know nothing of fibers park the fiber and not the thread.

Rule 1: one table says what is replaced: (module, name, replacement). It is applied, undone and asked.
Rule 2: a class stays what it is and gets other methods: objects and subclasses made before have them, too, isinstance
        and super() are as ever, and no class is found in two versions.
Rule 3: a function or a lock that somebody has imported or made before is replaced where it is found: in modules,
        classes, default arguments and the dictionaries of objects.
Rule 4: what is patched behaves as unpatched in threads without a run, before a run and after it (semantics.md L6). So
        it does not matter when, how often and in which order things are patched.
"""

from __future__ import annotations

import importlib
import importlib.util
import select as select_module
import sys
import time as time_module
import types
from typing import TYPE_CHECKING, Any, NamedTuple

from fibers.driver import native
from fibers.stdlib import multiprocessing, os, queue, select, signal, socket, ssl, subprocess, thread, time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "import_patched",
    "is_patched",
    "original",
    "patch_all",
    "patch_os",
    "patch_queue",
    "patch_select",
    "patch_signal",
    "patch_socket",
    "patch_ssl",
    "patch_subprocess",
    "patch_threading",
    "patch_time",
    "undo",
]

MISSING: Any = object()


class Patch(NamedTuple):
    """A row of the table: `name` may lead into a class, as in "socket.recv"."""

    module: str
    name: str
    replacement: Any


class Applied(NamedTuple):
    """A row that is in force: what was there before, MISSING if the attribute was inherited."""

    patch: Patch
    before: Any
    found: list[tuple[Any, Any]]  # where else it was found: (dictionary, key)


def socket_table() -> Iterator[Patch]:
    """List what is replaced in socket."""
    for name, method in socket.methods().items():
        yield Patch("socket", f"socket.{name}", method)
    for name, function in socket.module_functions().items():
        yield Patch("socket", name, function)


def select_table() -> Iterator[Patch]:
    """List what is replaced in select and selectors."""
    yield Patch("select", "select", select.selected)
    yield Patch("selectors", "SelectSelector._select", staticmethod(select.selected))
    yield Patch("fibers.stdlib.select", "Poll.poll", select.poll_poll)  # the type has no name in its module
    if hasattr(select_module, "epoll"):
        yield Patch("select", "epoll.poll", select.epoll_poll)


def tell_psycopg() -> None:
    """Let psycopg wait in Python, which parks, and not in C (L4): before it is imported and after."""
    environment = sys.modules["os"].environ
    environment.setdefault("PSYCOPG_WAIT_FUNC", "wait_poll")
    waiting: Any = sys.modules.get("psycopg.waiting")
    if waiting is not None:
        waiting.wait = waiting.wait_poll


def time_table() -> Iterator[Patch]:
    """List what is replaced in time."""
    yield Patch("time", "sleep", time.sleep)


def thread_table() -> Iterator[Patch]:
    """List what is replaced in threading and _thread."""
    for row in thread.functions():
        yield Patch(*row)


def queue_table() -> Iterator[Patch]:
    """List what is replaced in queue."""
    for name, function in queue.functions():
        yield Patch("_queue", name, function)


def ssl_table() -> Iterator[Patch]:
    """List what is replaced in ssl."""
    for name, function in ssl.functions():
        yield Patch("ssl", name, function)


def os_table() -> Iterator[Patch]:
    """List what is replaced in os."""
    for name, function in os.functions():
        yield Patch("os", name, function)


def subprocess_table() -> Iterator[Patch]:
    """List what is replaced in subprocess, and in multiprocessing."""
    for name, function in subprocess.functions():
        yield Patch("subprocess", name, function)
    for name, function in multiprocessing.functions():
        yield Patch("_multiprocessing", name, function)


def signal_table() -> Iterator[Patch]:
    """List what is replaced in signal."""
    for name, function in signal.functions():
        yield Patch("signal", name, function)


TABLE: dict[str, Callable[[], Iterator[Patch]]] = {
    "threading": thread_table,
    "queue": queue_table,
    "time": time_table,
    "select": select_table,
    "socket": socket_table,
    "ssl": ssl_table,
    "os": os_table,
    "subprocess": subprocess_table,
    "signal": signal_table,
}

APPLIED: dict[tuple[str, str], Applied] = {}


def patch_all(**groups: bool) -> None:
    """Patch everything that blocks, or all but what is False; idempotent, at any time.

    `patch_all(ssl=False)` leaves ssl alone. TypeError for an unknown group.
    """
    unknown = set(groups) - set(TABLE)
    if unknown:
        raise TypeError(f"can't patch {', '.join(sorted(unknown))}: know {', '.join(TABLE)}")
    apply([patch for group, table in TABLE.items() if groups.get(group, True) for patch in table()])
    if groups.get("threading", True):
        thread.replace_made_before()
    if groups.get("select", True):
        tell_psycopg()


def patch_socket() -> None:
    """Patch socket: the methods of its class, and the look-ups."""
    apply(list(socket_table()))


def patch_select() -> None:
    """Patch select, poll and epoll, and the selectors on them."""
    apply(list(select_table()))
    tell_psycopg()


def patch_threading() -> None:
    """Patch threading and _thread: threads are fibers, locks and local are theirs; locks made before are replaced."""
    apply(list(thread_table()))
    thread.replace_made_before()


def patch_queue() -> None:
    """Patch queue.SimpleQueue; the others are built on threading's locks."""
    apply(list(queue_table()))


def patch_ssl() -> None:
    """Patch ssl: its sockets, and every context there is."""
    apply(list(ssl_table()))


def patch_os() -> None:
    """Patch os: read, write and their kin, close, the waits for children, system."""
    apply(list(os_table()))


def patch_subprocess() -> None:
    """Patch subprocess: the wait for a child, and the files on its pipes; and the semaphores of multiprocessing."""
    apply(list(subprocess_table()))


def patch_signal() -> None:
    """Patch signal: sigwait and its kin, set_wakeup_fd."""
    apply(list(signal_table()))


def patch_time() -> None:
    """Patch time.sleep."""
    apply(list(time_table()))


def undo() -> None:
    """Put everything back; idempotent. Objects made meanwhile go on to work."""
    for key, done in reversed(list(APPLIED.items())):
        owner, name = locate(done.patch)
        assign(owner, name, done.before)
        for where, place in done.found:
            if where.get(place) is done.patch.replacement:
                put(where, place, done.before)
        del APPLIED[key]


def is_patched(module: str, name: str | None = None) -> bool:
    """Tell whether anything of a module is patched, or this name of it: "recv", "socket.recv"."""
    return any(
        key[0] == module and (name is None or key[1] == name or key[1].startswith(f"{name}.")) for key in APPLIED
    )


def original(module: str, name: str) -> Any:
    """Return what a name stood for before it was patched; of a class, one without the patches."""
    done = APPLIED.get((module, name))
    if done is not None:
        return done.before
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type) and is_patched(module, name):
        return unpatched_class(module, name, found)
    return found


def unpatched_class(module: str, name: str, found: type) -> type:
    """Make a class like the one that is patched, as it was before."""
    body = {key: value for key, value in vars(found).items() if not isinstance(value, types.MemberDescriptorType)}
    body.pop("__weakref__", None)
    for (where, path), done in APPLIED.items():
        if where == module and path.startswith(f"{name}."):
            key = path.rpartition(".")[2]
            body.pop(key, None)
            if done.before is not MISSING:
                body[key] = done.before
    return type(found)(found.__name__, found.__bases__, body)


# A private world of patched modules.

# Made anew, or a copy where it is C's or holds the state of the process.
COPIED = ("_thread", "time", "select", "signal", "os", "_queue")
MADE_ANEW = ("threading", "_threading_local", "queue", "socket", "selectors", "ssl", "subprocess")
PRIVATE: dict[str, types.ModuleType] = {}


def import_patched(name: str) -> Any:
    """Import a module that finds the standard library patched, and what it imports, too; the process is left alone.

    The result is a copy of its own: `import name` elsewhere gives another one, and so is every module that it is built
    on and that uses sockets, threads or time. What it imports only while its functions run is the ordinary one.
    """
    kept = dict(sys.modules)
    try:
        for hidden in private_names(kept):
            sys.modules.pop(hidden, None)
        sys.modules.update(PRIVATE)
        if not PRIVATE:
            make_copies()
        found = importlib.import_module(name)
        PRIVATE.update({key: module for key, module in sys.modules.items() if kept.get(key) is not module})
        return found
    finally:
        sys.modules.clear()
        sys.modules.update(kept)


def make_copies() -> None:
    """Make patched copies of what the table is about, in sys.modules."""
    for name in COPIED:
        plain = importlib.import_module(name)
        copy = types.ModuleType(name, plain.__doc__)
        vars(copy).update(vars(plain))
        sys.modules[name] = copy
    rows = [patch for table in TABLE.values() for patch in table()]
    for name in (*COPIED, *MADE_ANEW):
        if name in MADE_ANEW:
            sys.modules.pop(name, None)
            importlib.import_module(name)
        for patch in rows:
            if patch.module == name:
                owner, last = locate(patch)
                if isinstance(owner, types.ModuleType) or name in MADE_ANEW:
                    assign(owner, last, patch.replacement)
        if name == "select":
            vars(sys.modules[name]).update(poll=select.make_poll)
            if hasattr(select_module, "epoll"):
                vars(sys.modules[name]).update(epoll=select.make_epoll)
        if name == "_queue":
            vars(sys.modules[name]).update(SimpleQueue=queue.SimpleQueue)


def private_names(modules: dict[str, types.ModuleType]) -> set[str]:
    """Name the modules that must be imported anew: those built on the patched ones, by the package.

    Packages with a compiled part stay as they are: few of those can be imported twice.
    """
    compiled = {
        name.partition(".")[0]
        for name, module in modules.items()
        if str(getattr(module, "__file__", "")).endswith((".so", ".pyd"))
    }
    fixed = {*compiled, *COPIED, "fibers", "greenlet", "importlib", "sys", "builtins", "__main__"}
    found = set(MADE_ANEW)
    grown = True
    while grown:
        grown = False
        for name, module in modules.items():
            top = name.partition(".")[0]
            if top in fixed or top in found or not isinstance(module, types.ModuleType):
                continue
            for value in list(vars(module).values()):
                origin = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
                if isinstance(origin, str) and (origin.partition(".")[0] in found or value is time_module):
                    found.add(top)
                    grown = True
                    break
    return {name for name in modules if name.partition(".")[0] in found}


# Applying.


def apply(table: list[Patch]) -> None:
    """Put rows of the table in force; those that are stay."""
    fresh: dict[int, tuple[Any, Any]] = {}
    rows = []
    for patch in table:
        key = (patch.module, patch.name)
        if key in APPLIED:
            continue
        importlib.import_module(patch.module)
        owner, name = locate(patch)
        before = vars(owner).get(name, MISSING)
        row = Applied(patch, before, [])
        rows.append(row)
        if isinstance(owner, types.ModuleType) and before is not MISSING and not isinstance(before, types.ModuleType):
            fresh.setdefault(id(before), (before, row))
    for row in rows:
        owner, name = locate(row.patch)
        introduce(row.patch)
        assign(owner, name, row.patch.replacement)
        APPLIED[row.patch.module, row.patch.name] = row
    for where, place, value in references(fresh):
        if isinstance(where, Place) and (vars(where.owner).get("__name__"), place) in APPLIED:
            continue
        row = fresh[id(value)][1]
        put(where, place, row.patch.replacement)
        row.found.append((where, place))


def introduce(patch: Patch) -> None:
    """Let a function say where it is found, for pickle, which may take it to an unpatched process, and to pydoc."""
    function = patch.replacement
    if isinstance(function, types.FunctionType) and function.__module__.partition(".")[0] == "fibers":
        function.__module__, function.__qualname__ = patch.module, patch.name


def locate(patch: Patch) -> tuple[Any, str]:
    """Find the module or class that has the attribute."""
    owner: Any = sys.modules[patch.module]
    *path, name = patch.name.split(".")
    for step in path:
        owner = getattr(owner, step)
    return owner, name


def assign(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, or delete it if the value is MISSING."""
    try:
        if value is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    except TypeError:  # a type that does not let itself be changed
        native.force(owner, name, *(() if value is MISSING else (value,)))


def references(known: dict[int, tuple[Any, Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """Find who else refers to what is being replaced: modules and their classes, ours left out."""
    modules: dict[str, Any] = sys.modules
    for module_name, module in list(modules.items()):
        if not isinstance(module, types.ModuleType) or module_name.partition(".")[0] == "fibers":
            continue
        for where in (module, *(thing for thing in vars(module).values() if isinstance(thing, type))):
            if where is not module and where.__module__ != module_name:
                continue
            for name, value in list(vars(where).items()):
                if id(value) in known and known[id(value)][0] is value:
                    yield Place(where), name, value
                elif isinstance(value, types.FunctionType) and value.__defaults__:
                    for at, default in enumerate(value.__defaults__):
                        if id(default) in known and known[id(default)][0] is default:
                            yield Defaults(value), at, default


class Defaults:
    """The default arguments of a function, as a dictionary."""

    __slots__ = ("function",)

    def __init__(self, function: types.FunctionType) -> None:
        """Refer to it."""
        self.function = function

    def get(self, at: int) -> Any:
        """Return what is there."""
        defaults = self.function.__defaults__ or ()
        return defaults[at] if at < len(defaults) else None

    def __setitem__(self, at: int, value: Any) -> None:
        """Replace it."""
        defaults = self.function.__defaults__ or ()
        self.function.__defaults__ = (*defaults[:at], value, *defaults[at + 1 :])


class Place:
    """Attributes of a module or a class, as a dictionary."""

    __slots__ = ("owner",)

    def __init__(self, owner: Any) -> None:
        """Refer to it."""
        self.owner = owner

    def get(self, name: str) -> Any:
        """Return what is there."""
        found = vars(self.owner).get(name)
        return found.__func__ if isinstance(found, staticmethod) else found

    def __setitem__(self, name: str, value: Any) -> None:
        """Replace it; a function in place of a builtin one must not become a method."""
        method = isinstance(self.owner, type) and isinstance(value, types.FunctionType)
        assign(self.owner, name, staticmethod(value) if method else value)


def put(where: Any, place: Any, value: Any) -> None:
    """Replace what was found."""
    where[place] = value
