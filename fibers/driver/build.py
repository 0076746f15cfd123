"""Build the compiled module `fibers.driver.binding`: the cffi face, declared by hand, and the native face inside it.

Run by setuptools through setup.py: the drivers that the platform has. Environment: FIBERS_NO_LIBURING=1 builds without
the io_uring driver; FIBERS_STAND_IN=1 builds the kqueue driver on Linux, on the tests' stand-in for kqueue;
FIBERS_CFLAGS and FIBERS_LDFLAGS are appended (the sanitizer build uses them); CPATH names a foreign greenlet.h.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
SOURCES = [
    "core.c",
    "uring.c",
    "readiness.c",
    "workers.c",
    "file.c",
    "epoll.c",
    "kqueue.c",
    "sim.c",
    "simnet.c",
    "native.c",
    "tree.c",
    "objects.c",
    "operate.c",
    "records.c",
    "stream.c",
    "socket.c",
    "locks.c",
    "watch.c",
    "module.c",
]
HEADERS = ["core.h", "readiness.h", "workers.h", "sim.h", "simnet.h", "native.h"]
STAND_IN = HERE.parent.parent / "tests" / "driver" / "kqueue"  # sys/event.h, and kqueue over epoll

CDEF = """
enum fb_code { FB_NOP, FB_ACCEPT, FB_CONNECT, FB_RECV, FB_RECV_INTO, FB_RECVMSG, FB_SEND, FB_SENDALL, FB_SENDMSG,
               FB_POLL, FB_SHUTDOWN, FB_CLOSE, FB_READ, FB_WRITE, FB_FSYNC, FB_OPENAT, FB_READV, FB_WRITEV, FB_STATX,
               FB_RENAMEAT, FB_UNLINKAT, FB_MKDIRAT, FB_LINKAT, FB_SYMLINKAT, FB_FALLOCATE, FB_FADVISE, FB_FTRUNCATE,
               FB_CODES };
enum fb_state { FB_IDLE, FB_WAITING, FB_FLYING, FB_DONE };

struct fb_file { uint64_t driver, id; };

struct fb_op {
    uint8_t code, state, why, cancelling;
    int32_t fd, res;
    uint32_t flags;
    void *data, *extra;
    uint64_t len;
    int64_t off;
    int32_t buffer;
    struct fb_file *file;
    void *owner;
    ...;
};
struct fb_counters { uint64_t submits, completions, cancels, enters, waits, wakes, starved, attempts; };
struct fb_verbs { const char *name; int (*ready)(struct fb_driver *); ...; };
struct fb_driver {
    const struct fb_verbs *verbs;
    uint32_t flying;
    int64_t time;
    int wake_fd, wake_reader;
    int woken;
    uint64_t serial;
    struct fb_counters count;
    ...;
};
struct fb_interest { struct fb_driver *driver; uint8_t ready, armed, drains; ...; };
void fb_op_prepare(struct fb_op *, int, int);
int fb_attempt(struct fb_driver *, struct fb_op *);
void fb_submit(struct fb_driver *, struct fb_op *);
void fb_cancel(struct fb_driver *, struct fb_op *);
int fb_poll(struct fb_driver *, int64_t);
int fb_shut_down(struct fb_driver *, int, int);
int fb_close_fd(struct fb_driver *, int);
void fb_close(struct fb_driver *);
void fb_abandon(struct fb_driver *);
void fb_wake(struct fb_driver *);
struct fb_op *fb_reap(struct fb_driver *);
void fb_release(struct fb_driver *, struct fb_op *);
struct fb_interest *fb_follow(struct fb_driver *, int);
void fb_unfollow(struct fb_interest *);
void fb_orphan(struct fb_interest *);
void fb_drop_file(struct fb_driver *, struct fb_file *);
int64_t fb_now(void);

struct fb_timer { int64_t when; uint32_t slot, kind; };
struct fb_heap { uint32_t len, cap; ...; };
int fb_timer_arm(struct fb_heap *, struct fb_timer *, int64_t);
void fb_timer_disarm(struct fb_heap *, struct fb_timer *);
struct fb_timer *fb_timer_due(struct fb_heap *, int64_t);
void fb_heap_fini(struct fb_heap *);

struct fb_queue { uint32_t head, len, cap; ...; };
int fb_queue_reserve(struct fb_queue *, uint32_t);
void fb_queue_push(struct fb_queue *, void *);
void *fb_queue_pop(struct fb_queue *);
int fb_queue_remove(struct fb_queue *, void *);
void fb_queue_swap(struct fb_queue *, uint32_t);
void fb_queue_fini(struct fb_queue *);

struct fb_uring_config { uint32_t sq_entries, cq_entries, forbid, buffers, buffer_size; };
struct fb_uring_info {
    uint32_t setup_flags, features, sq_entries, cq_entries, buffers, buffer_size, registered_fd;
    uint64_t supported;
};
struct fb_driver *fb_uring_new(const struct fb_uring_config *, int *, const char **);
void fb_uring_info(struct fb_driver *, struct fb_uring_info *);
int fb_uring_built(void);

struct fb_readiness_config { uint32_t buffers, buffer_size, threads; };
struct fb_readiness_info { uint32_t buffers, buffer_size, threads; uint64_t supported; };
struct fb_driver *fb_readiness_new(const char *, const struct fb_readiness_config *, int *, const char **);
void fb_readiness_info(struct fb_driver *, struct fb_readiness_info *);
int fb_readiness_built(const char *);

enum fb_fault { FB_SHORT_READ, FB_SHORT_WRITE, FB_DELAY, FB_LATE_CANCEL, FB_LOST_CANCEL, FB_NO_BUFFER, FB_NO_DESCRIPTOR,
                FB_RESET, FB_REFUSED, FB_HALF_OPEN, FB_SLOW, FB_FAULTS };
struct fb_sim_config {
    uint64_t seed;
    uint32_t buffers, buffer_size, window, shuffled;
    int64_t latency, spread, late;
    uint64_t rate, steps;
    int64_t until;
    double chance[...];
};
struct fb_sim_info {
    uint32_t buffers, buffer_size;
    uint64_t supported, passes;
    int64_t time;
    uint64_t fired[...];
};
struct sockaddr_in;
struct fb_driver *fb_sim_new(const struct fb_sim_config *, int *, const char **);
void fb_sim_info(struct fb_driver *, struct fb_sim_info *);
int fb_sim_host(struct fb_driver *, const char *);
void fb_sim_link(struct fb_driver *, int, int, int);
void fb_sim_power(struct fb_driver *, int, int);
void fb_sim_kill(struct fb_driver *, int);
int fb_sim_socket(struct fb_driver *, int, int);
int fb_sim_pair(struct fb_driver *, int, int, int[2]);
int fb_sim_bind(struct fb_driver *, int, const struct sockaddr_in *);
int fb_sim_listen(struct fb_driver *, int, int);
int fb_sim_name(struct fb_driver *, int, int, struct sockaddr_in *);
int fb_sim_call(struct fb_driver *, struct fb_op *);
int fb_sim_open_after(struct fb_driver *, int);
void fb_sim_describe(struct fb_driver *, int, char *, size_t);
void fb_sim_note(struct fb_driver *, const char *);
const char *fb_sim_trace(struct fb_driver *, size_t *);

int fb_install(void);

typedef int... sa_family_t;
typedef int... fb_iovlen;
struct in_addr { ...; };
struct in6_addr { ...; };
struct sockaddr_in { sa_family_t sin_family; uint16_t sin_port; struct in_addr sin_addr; ...; };
struct sockaddr_in6 { sa_family_t sin6_family; uint16_t sin6_port; uint32_t sin6_flowinfo; struct in6_addr sin6_addr;
                      uint32_t sin6_scope_id; ...; };
struct sockaddr_un { sa_family_t sun_family; char sun_path[...]; ...; };
struct iovec { void *iov_base; size_t iov_len; };
struct msghdr { void *msg_name; struct iovec *msg_iov; fb_iovlen msg_iovlen; ...; };
"""

# What only Linux has: its layouts are read by fibers/fs.
CDEF_LINUX = """
struct statx_timestamp { int64_t tv_sec; uint32_t tv_nsec; ...; };
struct statx {
    uint32_t stx_blksize, stx_nlink, stx_uid, stx_gid;
    uint16_t stx_mode;
    uint64_t stx_ino, stx_size, stx_blocks;
    struct statx_timestamp stx_atime, stx_ctime, stx_mtime;
    uint32_t stx_rdev_major, stx_rdev_minor, stx_dev_major, stx_dev_minor;
    ...;
};
"""

PREAMBLE = """
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include "sim.h"

int fb_install(void);
typedef __typeof__(((struct msghdr *)0)->msg_iovlen) fb_iovlen; /* as POSIX says an int, on Linux a size_t */
static void fb_op_prepare(struct fb_op *op, int code, int fd) { fb_prepare(op, code, fd); }
"""


def greenlet_include() -> Path:
    """Find the folder that holds greenlet/greenlet.h; the wheel keeps it inside the package."""
    spec = importlib.util.find_spec("greenlet")
    if spec is None or spec.origin is None:
        msg = "building fibers needs greenlet (its wheel ships greenlet.h): pip install greenlet"
        raise RuntimeError(msg)
    header = Path(spec.origin).parent / "greenlet.h"
    if not header.exists():
        msg = f"greenlet is installed without its header: {header} does not exist"
        raise RuntimeError(msg)
    return header.parent.parent


def has_liburing() -> bool:
    """Try to compile against liburing: without its headers the module still builds, without the io_uring driver."""
    if os.environ.get("FIBERS_NO_LIBURING") == "1" or not sys.platform.startswith("linux"):
        return False
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return True
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("#include <liburing.h>\nint main(void) { return 0; }\n")
        done = subprocess.run([*compiler, "-fsyntax-only", str(source)], capture_output=True, check=False)
    if done.returncode:
        print("fibers: liburing.h not found: building without the io_uring driver", file=sys.stderr)
    return done.returncode == 0


def make() -> cffi.FFI:
    """Describe the extension to cffi."""
    uring = has_liburing()
    builder = cffi.FFI()
    builder.cdef(CDEF)
    if sys.platform.startswith("linux"):
        builder.cdef(CDEF_LINUX)
    macros = [("_CFFI_NO_LIMITED_API", None), ("_GNU_SOURCE", "1")]
    if not uring:
        macros.append(("FIBERS_NO_LIBURING", "1"))
    sources, folders = list(SOURCES), [str(HERE), str(greenlet_include())]
    linux, stand_in = sys.platform.startswith("linux"), os.environ.get("FIBERS_STAND_IN") == "1"
    if linux:
        macros.append(("FIBERS_EPOLL", "1"))
    else:
        sources.remove("epoll.c")
    if not linux or stand_in:
        macros.append(("FIBERS_KQUEUE", "1"))
    else:
        sources.remove("kqueue.c")
    paths = [HERE / name for name in sources]
    if linux and stand_in:
        folders.append(str(STAND_IN))
        paths.append(STAND_IN / "kqueue_over_epoll.c")
    builder.set_source(
        "fibers.driver.binding",
        PREAMBLE,
        sources=[os.path.relpath(path) for path in paths],
        depends=[os.path.relpath(HERE / name) for name in HEADERS],
        include_dirs=folders,
        libraries=["uring"] if uring else [],
        define_macros=macros,
        extra_compile_args=[
            "-std=gnu11",
            "-O2",
            "-UNDEBUG",  # the asserts are for our own mistakes, and cost nothing that a benchmark sees
            "-fvisibility=hidden",
            "-pthread",
            "-fno-strict-aliasing",
            *shlex.split(os.environ.get("FIBERS_CFLAGS", "")),
        ],
        extra_link_args=["-pthread", *shlex.split(os.environ.get("FIBERS_LDFLAGS", ""))],
        py_limited_api=False,
    )
    return builder


ffibuilder = make()
