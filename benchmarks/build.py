"""Compiled programs: the C ones and, if their tools are found, those in Rust and Go, built on demand.

Rule 1: everything goes to benchmarks/build/, which ignores itself; the sources' folders stay clean.
Rule 2: a missing tool or library is `Missing`, with what to install; a compiler that fails is `Failure`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Failure, Missing, progress, tail

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["c_program", "go_program", "rust_program"]

HERE = Path(__file__).parent
BUILD = HERE / "build"
LIBRARIES = {"echo_uring": ["-luring"], "tls_load": ["-lssl", "-lcrypto"]}
HEADERS = {"-luring": ("liburing.h", "liburing-dev"), "-lssl": ("openssl/ssl.h", "libssl-dev")}
C_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]


def c_program(name: str) -> Path:
    """Return the program compiled from c/NAME.c."""
    source, program = HERE / "c" / f"{name}.c", BUILD / name
    if not is_current(program, (HERE / "c").iterdir()):
        compiler = tool("cc", "apt-get install gcc")
        libraries = LIBRARIES.get(name, [])
        for header, package in (HEADERS[library] for library in libraries if library in HEADERS):
            if not has_header(compiler, header):
                raise Missing(f"{header} not found: apt-get install {package}")
        make(program, [compiler, *C_FLAGS, "-o", f"{program}.new", str(source), *libraries])
        Path(f"{program}.new").rename(program)
    return program


def rust_program(name: str) -> Path:
    """Return the program compiled from rust/src/bin/NAME.rs."""
    target = BUILD / "rust"
    program = target / "release" / name
    source = HERE / "rust"
    if not is_current(program, [*source.glob("Cargo.*"), *source.glob("src/bin/*")]):
        cargo = tool("cargo", "rustup or apt-get install cargo")
        manifest = str(source / "Cargo.toml")
        make(
            program,
            [cargo, "build", "--release", "--locked", "--manifest-path", manifest],
            CARGO_TARGET_DIR=str(target),
        )
        for built in program.parent.glob("echo_*"):
            built.touch()  # cargo leaves a program alone that a change elsewhere did not touch
    return program


def go_program() -> Path:
    """Return the program compiled from go/."""
    program = BUILD / "echo_go"
    if not is_current(program, (HERE / "go").iterdir()):
        go = tool("go", "apt-get install golang")
        make(program, [go, "build", "-o", str(program), "."], cwd=HERE / "go")
    return program


def is_current(program: Path, sources: Iterable[Path]) -> bool:
    """Whether the program is there and newer than its sources."""
    return program.exists() and all(source.stat().st_mtime <= program.stat().st_mtime for source in sources)


def tool(name: str, hint: str) -> str:
    """Find a tool on the PATH."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} not found: {hint}")
    return found


def has_header(compiler: str, header: str) -> bool:
    """Whether the compiler finds a header."""
    check = subprocess.run(
        [compiler, "-E", "-xc", "-"],
        input=f"#include <{header}>\n".encode(),
        capture_output=True,
        check=False,
    )
    return check.returncode == 0


def make(program: Path, command: list[str], cwd: Path | None = None, **environment: str) -> None:
    """Run a compiler."""
    BUILD.mkdir(exist_ok=True)
    (BUILD / ".gitignore").write_text("*\n")
    progress(f"building {program.name}")
    built = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise Failure(f"building {program.name} failed", tail(built.stderr))
