"""House rules that a machine can check: layers, cycles, sizes, headers, and what docstrings promise about
parking.

The source is the checkout's; the objects are those of the package that is imported, with its C functions.
"""

from __future__ import annotations

import ast
import inspect
import re
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import pytest
from programs import CHECKOUT

import fibers
from fibers import fs, monkey, net, process, testing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = CHECKOUT / "fibers"
MODULES = sorted(PACKAGE.rglob("*.py"))
C_FILES = sorted(PACKAGE.rglob("*.[ch]"))
REST = [path for name in ("tests", "examples", "benchmarks") for path in sorted((CHECKOUT / name).rglob("*.py"))]

# A module may import from its own layer and from those below it. The longest prefix decides.
LAYERS = {
    "fibers.errors": 0,
    "fibers.driver": 1,
    "fibers.scope": 2,
    "fibers.fiber": 2,
    "fibers.waiting": 2,
    "fibers.debug": 3,
    "fibers.signals": 3,
    "fibers.combine": 3,
    "fibers.channel": 3,
    "fibers.sync": 3,
    "fibers.queue": 3,
    "fibers.threads": 3,
    "fibers.runtime": 4,
    "fibers.net": 5,
    "fibers.faults": 0,
    "fibers.world": 2,
    "fibers.determinism": 3,
    "fibers.simulation": 5,
    "fibers.fs": 5,
    "fibers.process": 6,
    "fibers.testing": 6,
    "fibers.stdlib": 6,
    "fibers.monkey": 7,
    "fibers.contrib": 9,
    "fibers": 8,  # the package itself: it only gathers the public names
}

# Limits of size: a file that outgrows them has two responsibilities.
C_LINES = 1500
PYTHON_LINES = 800
HEADER_LINES = 30

# The three sentences, and who says which. A public function outside the table never parks, and says none.
CANCEL_POINT = "Parks; a cancel point."
IF_IT_MUST_WAIT = "Parks only if it must wait; then a cancel point."
NEVER = "May park; never a cancel point."
SENTENCES = (CANCEL_POINT, IF_IT_MUST_WAIT, NEVER)
PARKS = {
    "fibers.sleep": CANCEL_POINT,
    "fibers.sleep_until": CANCEL_POINT,
    "fibers.checkpoint": CANCEL_POINT,
    "fibers.park": CANCEL_POINT,
    "fibers.interval": CANCEL_POINT,
    "fibers.gather": IF_IT_MUST_WAIT,
    "fibers.map": IF_IT_MUST_WAIT,
    "fibers.first": IF_IT_MUST_WAIT,
    "fibers.any": IF_IT_MUST_WAIT,
    "fibers.as_completed": IF_IT_MUST_WAIT,
    "fibers.Channel.put": IF_IT_MUST_WAIT,
    "fibers.Channel.get": IF_IT_MUST_WAIT,
    "fibers.select": IF_IT_MUST_WAIT,
    "fibers.Receiver.get": IF_IT_MUST_WAIT,
    "fibers.Watch.wait": IF_IT_MUST_WAIT,
    "fibers.Fiber.join": IF_IT_MUST_WAIT,
    "fibers.Fiber.result": IF_IT_MUST_WAIT,
    "fibers.Fiber.exception": IF_IT_MUST_WAIT,
    "fibers.wait_readable": CANCEL_POINT,
    "fibers.wait_writable": CANCEL_POINT,
    "fibers.Lock.acquire": IF_IT_MUST_WAIT,
    "fibers.RLock.acquire": IF_IT_MUST_WAIT,
    "fibers.RWLock.acquire_read": IF_IT_MUST_WAIT,
    "fibers.RWLock.acquire_write": IF_IT_MUST_WAIT,
    "fibers.Semaphore.acquire": IF_IT_MUST_WAIT,
    "fibers.Event.wait": IF_IT_MUST_WAIT,
    "fibers.Condition.acquire": IF_IT_MUST_WAIT,
    "fibers.Condition.wait": CANCEL_POINT,
    "fibers.Condition.wait_for": IF_IT_MUST_WAIT,
    "fibers.Barrier.wait": IF_IT_MUST_WAIT,
    "fibers.Queue.put": IF_IT_MUST_WAIT,
    "fibers.Queue.get": IF_IT_MUST_WAIT,
    "fibers.Queue.join": IF_IT_MUST_WAIT,
    "fibers.LifoQueue.put": IF_IT_MUST_WAIT,
    "fibers.LifoQueue.get": IF_IT_MUST_WAIT,
    "fibers.LifoQueue.join": IF_IT_MUST_WAIT,
    "fibers.PriorityQueue.put": IF_IT_MUST_WAIT,
    "fibers.PriorityQueue.get": IF_IT_MUST_WAIT,
    "fibers.PriorityQueue.join": IF_IT_MUST_WAIT,
    "fibers.to_thread": CANCEL_POINT,
    "fibers.process.run": CANCEL_POINT,
    "fibers.process.Popen.wait": CANCEL_POINT,
    "fibers.process.Popen.communicate": CANCEL_POINT,
    "fibers.net.getaddrinfo": IF_IT_MUST_WAIT,
    "fibers.net.listen": IF_IT_MUST_WAIT,
    "fibers.net.connect": CANCEL_POINT,
    "fibers.net.serve": CANCEL_POINT,
    "fibers.net.Listener.accept": CANCEL_POINT,
    "fibers.net.Listener.close": NEVER,
    "fibers.net.Server.run": CANCEL_POINT,
    "fibers.net.copy": CANCEL_POINT,
    "fibers.net.proxy": CANCEL_POINT,
    "fibers.net.tls.wrap": CANCEL_POINT,
    "fibers.net.tls.TLSStream.sendmsg": CANCEL_POINT,
    "fibers.net.tls.TLSStream.shutdown": CANCEL_POINT,
    "fibers.net.tls.TLSStream.unwrap": CANCEL_POINT,
    "fibers.net.Stream.sendmsg": CANCEL_POINT,
    "fibers.net.Stream.send_fds": CANCEL_POINT,
    "fibers.net.Stream.recv_fds": CANCEL_POINT,
    "fibers.net.MessageSocket.recv": CANCEL_POINT,
    "fibers.net.MessageSocket.recv_into": CANCEL_POINT,
    "fibers.net.MessageSocket.recvfrom": CANCEL_POINT,
    "fibers.net.MessageSocket.recvmsg": CANCEL_POINT,
    "fibers.net.MessageSocket.recv_fds": CANCEL_POINT,
    "fibers.net.MessageSocket.send": CANCEL_POINT,
    "fibers.net.MessageSocket.sendto": CANCEL_POINT,
    "fibers.net.MessageSocket.sendmsg": CANCEL_POINT,
    "fibers.net.MessageSocket.send_fds": CANCEL_POINT,
    "fibers.net.MessageSocket.connect": IF_IT_MUST_WAIT,
    "fibers.net.MessageSocket.close": NEVER,
    "fibers.net.udp": IF_IT_MUST_WAIT,
    "fibers.net.getnameinfo": IF_IT_MUST_WAIT,
    "fibers.net.gethostbyname": IF_IT_MUST_WAIT,
    "fibers.net.gethostbyname_ex": CANCEL_POINT,
    "fibers.net.gethostbyaddr": CANCEL_POINT,
    "fibers.net.getfqdn": CANCEL_POINT,
    "fibers.testing.Simulation.restart": IF_IT_MUST_WAIT,
    "fibers.fs.atomic_write": CANCEL_POINT,
    "fibers.fs.copyfile": CANCEL_POINT,
    "fibers.fs.fallocate": CANCEL_POINT,
    "fibers.fs.fdatasync": CANCEL_POINT,
    "fibers.fs.fsync": CANCEL_POINT,
    "fibers.fs.advise": CANCEL_POINT,
    "fibers.fs.link": CANCEL_POINT,
    "fibers.fs.lstat": CANCEL_POINT,
    "fibers.fs.makedirs": CANCEL_POINT,
    "fibers.fs.mkdir": CANCEL_POINT,
    "fibers.fs.open": CANCEL_POINT,
    "fibers.fs.pread": CANCEL_POINT,
    "fibers.fs.preadv": CANCEL_POINT,
    "fibers.fs.pwrite": CANCEL_POINT,
    "fibers.fs.pwritev": CANCEL_POINT,
    "fibers.fs.read_bytes": CANCEL_POINT,
    "fibers.fs.read_text": CANCEL_POINT,
    "fibers.fs.readlink": CANCEL_POINT,
    "fibers.fs.rename": CANCEL_POINT,
    "fibers.fs.replace": CANCEL_POINT,
    "fibers.fs.rmdir": CANCEL_POINT,
    "fibers.fs.scandir": CANCEL_POINT,
    "fibers.fs.stat": CANCEL_POINT,
    "fibers.fs.symlink": CANCEL_POINT,
    "fibers.fs.temporary_directory": CANCEL_POINT,
    "fibers.fs.temporary_file": CANCEL_POINT,
    "fibers.fs.truncate": CANCEL_POINT,
    "fibers.fs.unlink": CANCEL_POINT,
    "fibers.fs.walk": CANCEL_POINT,
    "fibers.fs.write_bytes": CANCEL_POINT,
    "fibers.fs.write_text": CANCEL_POINT,
    "fibers.fs.DirEntry.is_dir": IF_IT_MUST_WAIT,
    "fibers.fs.DirEntry.is_file": IF_IT_MUST_WAIT,
    "fibers.fs.DirEntry.stat": IF_IT_MUST_WAIT,
    "fibers.fs.Path.stat": CANCEL_POINT,
    "fibers.fs.Path.lstat": CANCEL_POINT,
    "fibers.fs.Path.exists": CANCEL_POINT,
    "fibers.fs.Path.is_dir": CANCEL_POINT,
    "fibers.fs.Path.is_file": CANCEL_POINT,
    "fibers.fs.Path.is_symlink": CANCEL_POINT,
    "fibers.fs.Path.is_socket": CANCEL_POINT,
    "fibers.fs.Path.is_fifo": CANCEL_POINT,
    "fibers.fs.Path.is_block_device": CANCEL_POINT,
    "fibers.fs.Path.is_char_device": CANCEL_POINT,
    "fibers.fs.Path.is_mount": CANCEL_POINT,
    "fibers.fs.Path.samefile": CANCEL_POINT,
    "fibers.fs.Path.owner": CANCEL_POINT,
    "fibers.fs.Path.group": CANCEL_POINT,
    "fibers.fs.Path.readlink": CANCEL_POINT,
    "fibers.fs.Path.resolve": CANCEL_POINT,
    "fibers.fs.Path.open": CANCEL_POINT,
    "fibers.fs.Path.read_bytes": CANCEL_POINT,
    "fibers.fs.Path.read_text": CANCEL_POINT,
    "fibers.fs.Path.write_bytes": CANCEL_POINT,
    "fibers.fs.Path.write_text": CANCEL_POINT,
    "fibers.fs.Path.iterdir": CANCEL_POINT,
    "fibers.fs.Path.glob": CANCEL_POINT,
    "fibers.fs.Path.rglob": CANCEL_POINT,
    "fibers.fs.Path.walk": CANCEL_POINT,
    "fibers.fs.Path.touch": CANCEL_POINT,
    "fibers.fs.Path.mkdir": CANCEL_POINT,
    "fibers.fs.Path.chmod": CANCEL_POINT,
    "fibers.fs.Path.lchmod": CANCEL_POINT,
    "fibers.fs.Path.unlink": CANCEL_POINT,
    "fibers.fs.Path.rmdir": CANCEL_POINT,
    "fibers.fs.Path.rename": CANCEL_POINT,
    "fibers.fs.Path.replace": CANCEL_POINT,
    "fibers.fs.Path.symlink_to": CANCEL_POINT,
    "fibers.fs.Path.hardlink_to": CANCEL_POINT,
    "fibers.testing.wait_all_blocked": CANCEL_POINT,
    "fibers.testing.MemoryStream.sendmsg": CANCEL_POINT,
}
STREAMS = (
    "fibers.net.Stream",
    "fibers.net.Pipe",
    "fibers.process.Pipe",
    "fibers.net.tls.TLSStream",
    "fibers.testing.MemoryStream",
)
for row in STREAMS:
    for method in ("recv", "recv_into", "recv_exactly", "recv_until", "recv_frame"):
        PARKS[f"{row}.{method}"] = CANCEL_POINT
    for method in ("send", "sendall", "send_frame", "sendfile"):
        PARKS[f"{row}.{method}"] = CANCEL_POINT
    if "Memory" not in row:
        PARKS[f"{row}.close"] = NEVER


PUBLIC = (fibers, fs, monkey, net, net.tls, process, testing)


def name_of(path: Path) -> str:
    """The module's name: fibers/net/__init__.py is fibers.net."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# With the compiled module and its native face, which are stubs here.
KNOWN = {name_of(path) for path in [*MODULES, *PACKAGE.rglob("*.pyi")]}


def layer(module: str) -> int:
    while module not in LAYERS:
        module = module.rpartition(".")[0]
    return LAYERS[module]


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of a module that runs: not what stands under `if TYPE_CHECKING`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from statements(child)


def imports(path: Path) -> set[str]:
    """The modules of fibers that this module imports when it is imported."""
    found = set()
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{above}.{base}".rstrip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & KNOWN
            if names - KNOWN:
                found.add(base)
    return {name for name in found if name.split(".")[0] == "fibers"}


def by_name(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(CHECKOUT)) for path in paths])


# Layers


@by_name(MODULES)
def test_imports_point_downwards(path: Path) -> None:
    own = layer(name_of(path))
    upwards = {name for name in imports(path) if layer(name) > own}
    assert not upwards, f"{name_of(path)} is in layer {own}"


def test_no_import_cycles() -> None:
    graph = {name_of(path): imports(path) - {name_of(path)} for path in MODULES}
    TopologicalSorter(graph).prepare()  # CycleError names the cycle


@by_name(MODULES)
def test_imports_stand_at_the_top_of_the_module(path: Path) -> None:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.Lambda):
            inside = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inside, f"line {inside[0].lineno}"


def test_only_native_c_knows_python_and_greenlet() -> None:
    """Every other C file compiles, and can be sanitised and fuzzed, without Python."""
    for path in C_FILES:
        knows = re.findall(r'#\s*include\s*[<"](?:Python|.*greenlet)\.h[>"]', path.read_text())
        assert not knows or path.name.startswith("native"), path.name


# Files


@by_name(MODULES)
def test_a_module_opens_with_its_responsibility(path: Path) -> None:
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert header, "no docstring"
    lines = header.splitlines()
    assert lines[0].endswith((".", ":")), "the first line is a sentence"
    assert len(lines) <= HEADER_LINES or path.name == "__init__.py"


@by_name(C_FILES)
def test_a_c_file_opens_with_a_comment(path: Path) -> None:
    assert path.read_text().startswith("/*")


@by_name(MODULES + C_FILES)
def test_a_file_has_one_responsibility_or_at_least_its_size(path: Path) -> None:
    limit = PYTHON_LINES if path.suffix == ".py" else C_LINES
    assert len(path.read_text().splitlines()) <= limit


@by_name(MODULES + C_FILES + REST)
def test_nothing_is_left_for_later(path: Path) -> None:
    later = re.findall(r"\b(?:T[O]DO|F[I]XME|X[X]X)\b", path.read_text())
    assert not later, "file an issue instead"


# Docstrings


def public(module: object) -> list[str]:
    return list(module.__all__)  # type: ignore[attr-defined]


def public_callables() -> Iterator[tuple[str, object]]:
    """The public functions, and the public methods of the public classes."""
    for module in PUBLIC:
        for name in public(module):
            thing = getattr(module, name)
            if inspect.isclass(thing):
                for method in dir(thing):
                    inherited = any(hasattr(base, method) for base in (object, BaseException, tuple))
                    if not method.startswith("_") and not inherited and callable(getattr(thing, method)):
                        yield f"{module.__name__}.{name}.{method}", getattr(thing, method)
            elif callable(thing):
                yield f"{module.__name__}.{name}", thing


CALLABLES = dict(public_callables())


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module: object) -> None:
    for name in public(module):
        thing = getattr(module, name)
        if not isinstance(thing, str):
            assert inspect.getdoc(thing), name


def test_every_public_method_has_a_docstring() -> None:
    assert [name for name, thing in CALLABLES.items() if not inspect.getdoc(thing)] == []


def test_functions_that_park_are_public() -> None:
    assert set(PARKS) - set(CALLABLES) == set()


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_docstring_says_whether_it_parks(name: str) -> None:
    text = " ".join((inspect.getdoc(CALLABLES[name]) or "").split())
    said = [sentence for sentence in SENTENCES if sentence in text]
    expected = [PARKS[name]] if name in PARKS else []
    assert said == expected


def test_the_readme_says_what_performs_each_call() -> None:
    """Its two tables name every function of fibers.net and fibers.fs."""
    text = (CHECKOUT / "README.md").read_text()
    tables = text[text.index("## What performs a call on the network") : text.index("## Speed")]
    named = set(
        re.findall(r"\w+", " ".join(line.split("|")[1] for line in tables.splitlines() if line.startswith("|")))
    )
    functions = {name for module in (net, fs) for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    assert functions - named == {"aligned"}  # it makes a buffer, and calls nothing
