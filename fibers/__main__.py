"""The command line: `python -m fibers SCRIPT.py` runs a program on fibers, `python -m fibers info` knows this machine.

Rule 1: a program finds what plain Python would give it: sys.argv, sys.path, __main__, its exit status, its traceback.
Rule 2: options stand before the program; what follows is the program's.
"""

from __future__ import annotations

import argparse
import functools
import importlib.machinery
import importlib.metadata
import json
import os
import platform
import runpy
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fibers import driver, monkey
from fibers.debug import trace
from fibers.runtime import run

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = str(Path(__file__).parent) + os.sep


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["info"]:
        return tell(arguments[1:])
    options, program = split(arguments)
    args = options_parser().parse_args(options)
    if args.info:
        return tell([])
    if args.module is None and not program:
        options_parser().error("give a program, -m MODULE, or info")
    if args.dump_on is not None:
        os.environ["FIBERS_DUMP_SIGNAL"] = args.dump_on
    monkey.patch_all()
    sys.argv = [args.module or program[0], *program[args.module is None :]]
    call = prepare_module(args.module) if args.module is not None else prepare_script(program[0])
    execute(call, args)
    return 0


def tell(arguments: list[str]) -> int:
    """Print what is known of this machine."""
    info = argparse.ArgumentParser(
        prog="python -m fibers info",
        description="Print the driver that run() takes here, what each driver has, and why it cannot be had. "
        "The exit status is 1 if there is none.",
    )
    info.add_argument("--json", action="store_true", help="as JSON")
    args = info.parse_args(arguments)
    found = driver.report()
    print(json.dumps(found, indent=1) if args.json else "\n".join(describe(found)))
    return 0 if found["driver"] else 1


def options_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        prog="python -m fibers",
        usage="python -m fibers [options] (SCRIPT | -m MODULE) [args]\n       python -m fibers info [--json]",
        description="Run a blocking program on fibers, its threads as fibers, with the standard library patched.",
        allow_abbrev=False,
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m")
    parser.add_argument("--driver", metavar="NAME", choices=driver.KNOWN, help=f"one of {', '.join(driver.KNOWN)}")
    parser.add_argument("--trace", metavar="PATH", help="write what the fibers do, for ui.perfetto.dev")
    parser.add_argument("--dump-on", metavar="SIGNAL", help="print every fiber with its stack on this signal: USR1")
    parser.add_argument("--info", action="store_true", help="tell about this machine, as the subcommand info")
    return parser


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part our options from the program and its arguments."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        if arguments[at] == "-m":
            return arguments[: at + 2], arguments[at + 2 :]
        at += 2 if arguments[at] in ("--driver", "--trace", "--dump-on") else 1
    return arguments[:at], arguments[at:]


def execute(call: Callable[[], object], args: argparse.Namespace) -> None:
    """Run a program under fibers.run; a traceback begins with the program's own first frame."""
    try:
        if args.trace is None:
            run(call, driver=args.driver)
        else:
            with trace(args.trace):
                run(call, driver=args.driver)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = functools.partial(show, sys.excepthook)
        raise


def show(hook: Callable[..., object], kind: type, error: BaseException, traceback: Any) -> None:
    """Report an exception without the frames that are ours."""
    while traceback is not None and is_ours(traceback.tb_frame.f_code.co_filename):
        traceback = traceback.tb_next
    hook(kind, error.with_traceback(traceback), traceback)


def is_ours(filename: str) -> bool:
    """Tell whether a frame of this file leads to the program."""
    return filename.startswith((HERE, "<frozen runpy")) or filename == runpy.__file__


def fresh_main() -> types.ModuleType:
    """Make the program's __main__."""
    module = types.ModuleType("__main__")
    vars(module)["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = module
    return module


def prepare_module(name: str) -> Callable[[], object]:
    """Find a module as `python -m` does; sys.path[0] is right: we were found in the same way."""
    fresh_main()
    return functools.partial(runpy._run_module_as_main, name)  # type: ignore[attr-defined]


def prepare_script(name: str) -> Callable[[], object]:
    """Find a script, a directory or a zip file with a __main__.py."""
    path = Path(name)
    if path.is_dir() or (path.is_file() and not is_source(path)):
        sys.path[0] = name
        fresh_main()
        return functools.partial(runpy._run_module_as_main, "__main__", alter_argv=False)  # type: ignore[attr-defined]
    try:
        source = path.read_bytes()
    except OSError as error:
        give_up(f"{sys.executable}: can't open file {str(path.absolute())!r}: [Errno {error.errno}] {error.strerror}")
    sys.path[0] = str(path.resolve().parent)
    module = fresh_main()
    module.__file__ = str(path.absolute())
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", name)
    return functools.partial(run_source, source, str(path.absolute()), vars(module))


def give_up(message: str) -> NoReturn:
    """End as Python does when it finds no program."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def is_source(path: Path) -> bool:
    """Tell a script from an archive."""
    with path.open("rb") as file:
        return file.read(2) != b"PK"


def run_source(source: bytes, path: str, names: dict[str, Any]) -> None:
    """Run a script."""
    exec(compile(source, path, "exec", dont_inherit=True), names)  # noqa: S102 - that is the task


def describe(found: dict[str, Any]) -> list[str]:
    """Write a report as lines for a person."""
    how = "chosen by $FIBERS_DRIVER" if found["chosen_by"] != "order" else "the first that can be had"
    rows = {
        "fibers": version(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{found['kernel']} {platform.machine()}",
        "driver": f"{found['driver']} ({how})" if found["driver"] else f"none ({how})",
    }
    rows |= {name: words(facts) for name, facts in found["drivers"].items()}
    return [f"{name:<8} {text}" for name, text in rows.items()]


def version() -> str:
    """Return the version that is installed."""
    try:
        return importlib.metadata.version("fibers-io")
    except importlib.metadata.PackageNotFoundError:
        return "a checkout that is not installed"


def words(facts: dict[str, Any]) -> str:
    """Describe a driver in a line."""
    if not facts["available"]:
        return str(facts["reason"])
    said = ["available"]
    if "setup_flags" in facts:
        said.append(" ".join(facts["setup_flags"]) or "no set-up flags")
        said.append(f"sq {facts['sq_entries']}, cq {facts['cq_entries']}")
        said.append(f"{'a' if facts['registered_fd'] else 'no'} registered ring fd")
        said.append(f"{facts['operations']} operations")
    if "threads" in facts:
        said.append(f"up to {facts['threads']} threads for files")
    said.append(f"{facts['buffers']} buffers of {facts['buffer_size']:,} bytes")
    return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main())
