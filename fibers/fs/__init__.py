"""Files in plain blocking style: signatures and errors of the builtin open(), os and pathlib; a call parks its fiber.

call        one call: an operation of the driver, or a thread
descriptor  reading and writing at a position, syncing, sizing
entry       names and directories
file        open() and its file objects
whole       whole files, copies, temporary files
path        Path
"""

from fibers.fs.descriptor import (
    advise,
    aligned,
    fallocate,
    fdatasync,
    fsync,
    pread,
    preadv,
    pwrite,
    pwritev,
    truncate,
)
from fibers.fs.entry import (
    DirEntry,
    link,
    lstat,
    makedirs,
    mkdir,
    readlink,
    rename,
    replace,
    rmdir,
    scandir,
    stat,
    symlink,
    unlink,
    walk,
)
from fibers.fs.file import open
from fibers.fs.path import Path
from fibers.fs.whole import (
    atomic_write,
    copyfile,
    read_bytes,
    read_text,
    temporary_directory,
    temporary_file,
    write_bytes,
    write_text,
)

__all__ = [
    "DirEntry",
    "Path",
    "advise",
    "aligned",
    "atomic_write",
    "copyfile",
    "fallocate",
    "fdatasync",
    "fsync",
    "link",
    "lstat",
    "makedirs",
    "mkdir",
    "open",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "read_bytes",
    "read_text",
    "readlink",
    "rename",
    "replace",
    "rmdir",
    "scandir",
    "stat",
    "symlink",
    "temporary_directory",
    "temporary_file",
    "truncate",
    "unlink",
    "walk",
    "write_bytes",
    "write_text",
]
