"""subprocess in a fiber: waiting for a child, and the files on its pipes."""

from __future__ import annotations

import io
import subprocess
import types
import warnings
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.stdlib import os as patched

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["functions"]

plain_wait: Any = subprocess.Popen._wait


class Pipe(io.FileIO):
    """A pipe's end whose reads and writes park a fiber."""

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer."""
        if not patched.blocks(self.fileno()):
            return super().readinto(buffer)
        with memoryview(buffer) as given, given.cast("B") as view:
            return native.operate(native.READ, self.fileno(), view, 0, -1, None) if len(view) else 0

    def read(self, size: int | None = -1) -> Any:
        """Read up to `size` bytes; all without one."""
        if size is None or size < 0:
            return self.readall()
        if not patched.blocks(self.fileno()):
            return super().read(size)
        return patched.read(self.fileno(), size) if size else b""

    def readall(self) -> Any:
        """Read to the end."""
        if not patched.blocks(self.fileno()):
            return super().readall()
        parts = []
        while data := patched.read(self.fileno(), patched.CHUNK):
            parts.append(data)
        return b"".join(parts)

    def write(self, data: Any, /) -> int:
        """Write."""
        if not patched.blocks(self.fileno()):
            return super().write(data)
        return patched.write(self.fileno(), data)


def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
    """open(): as io.open; on a descriptor in binary mode a file that parks a fiber."""
    if not isinstance(file, int) or "b" not in mode or "+" in mode or args or kwargs:
        return io.open(file, mode, buffering, *args, **kwargs)  # noqa: UP020
    if buffering == 1:
        warnings.warn(
            "line buffering (buffering=1) isn't supported in binary mode, the default buffer size will be used",
            RuntimeWarning,
            stacklevel=2,
        )
    raw = Pipe(file, mode.replace("b", ""))
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    return io.BufferedReader(raw, size) if "r" in mode else io.BufferedWriter(raw, size)


class Io(types.ModuleType):
    """What subprocess knows as `io`."""

    def __init__(self) -> None:
        """Be io, but for open."""
        super().__init__("io", io.__doc__)
        self.open = opened

    def __getattr__(self, name: str) -> Any:
        """Return io's."""
        return getattr(io, name)


def _wait(self: Any, timeout: float | None) -> Any:
    """Wait for the child; parks a fiber."""
    if self.returncode is None and native.in_fiber():
        began = native.now()
        while self.poll() is None:
            left = None if timeout is None else timeout - (native.now() - began)
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            patched.wait_for_exit(self.pid, left)
        return self.returncode
    return plain_wait(self, timeout)


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced."""
    yield "io", Io()
    yield "Popen._wait", _wait
