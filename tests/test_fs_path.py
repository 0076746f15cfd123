"""fs.Path beside pathlib.Path: every method, in like trees."""

import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import bounded

from fibers import fs


def plain(value: Any) -> Any:
    """What can be compared: paths as their text, iterators as sorted lists."""
    if isinstance(value, pathlib.PurePath):
        return os.fspath(value)
    if isinstance(value, os.stat_result):
        return value.st_size, value.st_mode, value.st_nlink
    if hasattr(value, "__next__"):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value


def attempt(kind: type[Any], step: Callable[[Any], Any]) -> Any:
    try:
        return plain(step(kind()))
    except (OSError, ValueError, NotImplementedError) as error:
        return type(error), getattr(error, "errno", None)


STEPS: dict[str, Callable[[Any], Any]] = {
    "stat": lambda p: (p / "file").stat(),
    "stat of nothing": lambda p: (p / "none").stat(),
    "lstat": lambda p: (p / "soft").lstat(),
    "exists": lambda p: tuple((p / name).exists() for name in ("file", "none", "broken", "file/x", "a\0b")),
    "kinds": lambda p: tuple(
        getattr(p / name, f"is_{kind}")()
        for name in ("file", "folder", "soft", "broken", "fifo", "none", "/dev/null", "/")
        for kind in ("dir", "file", "symlink", "socket", "fifo", "block_device", "char_device", "mount")
    ),
    "samefile": lambda p: ((p / "file").samefile("soft"), (p / "file").samefile(p / "folder")),
    "owner": lambda p: ((p / "file").owner(), (p / "file").group()),
    "readlink": lambda p: ((p / "soft").readlink(), (p / "broken").readlink()),
    "readlink of a file": lambda p: (p / "file").readlink(),
    "resolve": lambda p: ((p / "folder" / ".." / "soft").resolve(), (p / "none" / "x").resolve()),
    "resolve strictly": lambda p: (p / "none").resolve(strict=True),
    "read": lambda p: ((p / "file").read_text(), (p / "file").read_bytes(), (p / "soft").open().close()),
    "read a folder": lambda p: (p / "folder").read_bytes(),
    "write": lambda p: ((p / "new").write_text("äb", "utf-8"), (p / "new2").write_bytes(b"123")),
    "iterdir": lambda p: (p / "folder").iterdir(),
    "iterdir of nothing": lambda p: (p / "none").iterdir(),
    "glob": lambda p: p.glob("*f*"),
    "deep glob": lambda p: p.glob("**/*"),
    "rglob": lambda p: p.rglob("inner*"),
    "touch": lambda p: ((p / "new").touch(), (p / "file").touch()),
    "touch what exists": lambda p: (p / "file").touch(exist_ok=False),
    "mkdir": lambda p: (p / "new").mkdir(0o700),
    "mkdir again": lambda p: (p / "folder").mkdir(),
    "mkdir again is fine": lambda p: (p / "folder").mkdir(exist_ok=True),
    "mkdir over a file": lambda p: (p / "file").mkdir(exist_ok=True),
    "mkdir with parents": lambda p: ((p / "a/b/c").mkdir(parents=True), (p / "a/b").mkdir(parents=True, exist_ok=True)),
    "mkdir without parents": lambda p: (p / "a/b").mkdir(),
    "chmod": lambda p: ((p / "file").chmod(0o600), (p / "file").stat()),
    "unlink": lambda p: ((p / "file").unlink(), (p / "none").unlink(missing_ok=True)),
    "unlink nothing": lambda p: (p / "none").unlink(),
    "rmdir": lambda p: ((p / "folder/inner.txt").unlink(), (p / "folder").rmdir()),
    "rmdir what is not empty": lambda p: (p / "folder").rmdir(),
    "rename": lambda p: (p / "file").rename("new"),
    "replace": lambda p: (p / "file").replace(p / "soft"),
    "links": lambda p: ((p / "l1").symlink_to("file"), (p / "l2").hardlink_to("file"), (p / "l2").stat()),
    "pure": lambda p: (p / "a.b").with_suffix(".c").parent / "d",
}


@pytest.mark.parametrize("name", STEPS)
def test_a_path_does_what_that_of_pathlib_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen = []
    for kind in (pathlib.Path, fs.Path):
        folder = tmp_path / "tree"
        (folder / "folder").mkdir(parents=True)
        (folder / "file").write_text("content")
        (folder / "folder" / "inner.txt").touch()
        (folder / "soft").symlink_to("file")
        (folder / "broken").symlink_to("nowhere")
        os.mkfifo(folder / "fifo")
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            result = bounded(lambda: attempt(fs.Path, STEPS[name])) if kind is fs.Path else attempt(kind, STEPS[name])
            tree = sorted((where, sorted(folders), sorted(files)) for where, folders, files in os.walk("."))
        shutil.rmtree(folder)
        seen.append((result, tree))
    assert seen[0] == seen[1]


def test_walk_gives_paths(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")

    def main() -> None:
        found = list(fs.Path(tmp_path).walk())
        assert found == [(tmp_path, ["a"], ["link"]), (tmp_path / "a", ["b"], []), (tmp_path / "a" / "b", [], [])]
        assert all(type(path) is fs.Path for path, _, _ in found)

    bounded(main)


def test_what_comes_of_a_path_is_one_of_ours(tmp_path: Path) -> None:
    def main() -> None:
        path = fs.Path(tmp_path)
        (path / "x").touch()
        made = [path / "x", path.parent, path.resolve(), path.with_name("y"), *path.iterdir(), *path.glob("*")]
        assert {type(one) for one in made} == {fs.Path}
        assert path == tmp_path
        assert isinstance(path, pathlib.Path)

    bounded(main)


def test_outside_a_run_only_computing_works(tmp_path: Path) -> None:
    path = fs.Path(tmp_path) / "x"
    assert path.name == "x"
    for use in (path.stat, path.exists, path.read_bytes, path.touch, path.iterdir, lambda: path.glob("*")):
        with pytest.raises(RuntimeError):
            use()


def test_no_method_that_asks_the_disk_is_pathlibs_own() -> None:
    """A method that is new in pathlib blocks until it is replaced here, or named as one that does not."""
    computes = {"absolute", "cwd", "expanduser", "home", "link_to", "is_junction", "from_uri", "is_reserved", "as_uri"}
    own = set(vars(fs.Path))
    blocking = {name for name in vars(pathlib.Path) if not name.startswith("_")} - own - computes
    if sys.version_info < (3, 14):
        assert blocking == set()
