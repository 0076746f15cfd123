/* THE CONTRACT between the scheduler and a driver, and the parts that every driver shares.
 *
 * A driver performs operations. It has five verbs: submit, cancel, poll, wake, close. The rules, each a test in
 * tests/driver/test_contract.py (attempts and interests: test_interest.py) that runs on every driver:
 *
 *  1. submit never hands a completion to anyone and never fails: completions come out of poll only, through fb_reap().
 *     An op that cannot be started completes with its -errno like any other.
 *  2. An op is completed exactly once. Its res is what the kernel said: >= 0, or -errno.
 *  3. From submit until fb_reap() returns it, the op and all memory it names belong to the driver. It lives on the heap,
 *     never on the C stack: greenlet moves stacks.
 *  4. cancel is a request. The op ends with -ECANCELED or with its real result. Cancelling twice, too late, or an op
 *     that was never submitted is harmless.
 *  5. Several ops may wait on one fd in the same direction; their order is not promised.
 *  6. poll returns on a completion, on wake, on a signal, or at its timeout, and may return early for no reason.
 *  7. A driver's failure is poll's return value (-errno); an op's failure is the op's res.
 *
 * A shortcut beside them, attempt: it performs an idle op at once if that needs no wait and is worth it, and says
 * whether it did. The op was then never submitted: it comes out of no poll.
 *
 * One thread owns a driver. Only wake may be called from elsewhere: any thread, any signal handler, it takes no lock.
 *
 * Nothing in this file knows Python. Errors are -errno; nothing here prints or exits.
 */
#ifndef FIBERS_CORE_H
#define FIBERS_CORE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* macOS has none of these: there an accepted descriptor gets its flags after accept(2), Python ignores SIGPIPE, and a
 * descriptor that was passed is inherited until its receiver says otherwise. */
#ifndef SOCK_CLOEXEC
#define SOCK_CLOEXEC 0x10000000
#define SOCK_NONBLOCK 0x20000000
#endif
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif
#ifndef MSG_CMSG_CLOEXEC
#define MSG_CMSG_CLOEXEC 0
#endif

/* What an op does. Adding one is a line here and a row in every driver's table; a test asserts that they agree. */
enum fb_code {
    FB_NOP = 0,       /* completes with 0 */
    FB_ACCEPT,        /* data: struct sockaddr * or NULL, extra: socklen_t *; flags: SOCK_*; res: the new fd */
    FB_CONNECT,       /* data: struct sockaddr *, len: its size */
    FB_RECV,          /* len: at most; the driver chooses the memory: data is set on completion, see fb_release */
    FB_RECV_INTO,     /* data, len; flags: MSG_*; extra, of both: an interest, see struct fb_interest, or NULL */
    FB_RECVMSG,       /* data: struct msghdr *; flags: MSG_* */
    FB_SEND,          /* data, len; flags: MSG_*; res: how many bytes */
    FB_SENDALL,       /* as SEND until all is sent; res < len only if an error or a cancel ended it after a part */
    FB_SENDMSG,       /* data: struct msghdr *; flags: MSG_* */
    FB_POLL,          /* flags: POLL* events; res: the events that are ready */
    FB_SHUTDOWN,      /* flags: SHUT_* */
    FB_CLOSE,         /* the fd is gone whatever res says, as with close(2) */
    FB_READ,          /* data, len; off: position, or -1 for the file's own */
    FB_WRITE,         /* the same */
    FB_FSYNC,         /* flags: 1 for data only, as fdatasync(2) */
    FB_OPENAT,        /* fd: directory, data: path, flags: O_*, len: mode; res: the new fd */
    FB_READV,         /* data: struct iovec *, len: how many, off: position, flags: RWF_* */
    FB_WRITEV,        /* the same */
    FB_STATX,         /* fd: directory, data: path, flags: AT_*, len: mask; extra: struct statx * */
    FB_RENAMEAT,      /* fd: directory, data: path; len: directory of the new path, extra: new path; flags: RENAME_* */
    FB_UNLINKAT,      /* fd: directory, data: path, flags: AT_REMOVEDIR or 0 */
    FB_MKDIRAT,       /* fd: directory, data: path, len: mode */
    FB_LINKAT,        /* as RENAMEAT; flags: AT_SYMLINK_FOLLOW or 0 */
    FB_SYMLINKAT,     /* data: what it points to; fd: directory, extra: path */
    FB_FALLOCATE,     /* flags: FALLOC_FL_*, off, len */
    FB_FADVISE,       /* flags: POSIX_FADV_*, off, len */
    FB_FTRUNCATE,     /* len: the new size */
    FB_CODES
};

/* Where an op is in its life. */
enum fb_state {
    FB_IDLE = 0,      /* its owner's */
    FB_WAITING,       /* the driver's; not yet in the kernel: no room, or no buffer */
    FB_FLYING,        /* the driver's; in the kernel */
    FB_DONE,          /* the driver's; completed, not yet reaped */
};

/* Why an op was cancelled; it decides the exception (semantics.md F3). */
enum fb_why { FB_NOT = 0, FB_BY_SCOPE, FB_BY_CLOSE, FB_BY_TIMEOUT, FB_BY_THROW };

/* What a driver notes about a file whose owner keeps it for many ops: a readiness driver registers it once. Its owner
 * says fb_drop_file() before it closes the fd or gives it away. An op without one is registered for its own wait only. */
struct fb_file {
    uint64_t driver;          /* serial of the driver that wrote `id`; 0: none */
    uint64_t id;
};

struct fb_op {
    uint8_t code;             /* enum fb_code */
    uint8_t state;            /* enum fb_state; the driver's */
    uint8_t why;              /* enum fb_why; the owner's, cleared by fb_prepare */
    uint8_t cancelling;       /* the driver's: a cancel was asked for */
    int32_t fd;
    int32_t res;
    uint32_t flags;
    void *data;               /* the owner's memory; for FB_RECV the driver's, until fb_release */
    void *extra;              /* the owner's memory */
    uint64_t len;
    int64_t off;
    uint64_t moved;           /* the driver's: bytes that a SENDALL has sent (its owner may read it when completed) */
    int32_t buffer;           /* the driver's: number of the selected buffer, or -1 */
    uint32_t place;           /* the driver's: where the op waits */
    struct fb_op *next;       /* the driver's: link in its lists */
    struct fb_op *prev;
    struct fb_file *file;     /* the owner's, who keeps it until the op is reaped; or NULL */
    struct fb_op *file_next;  /* the file record's: link among the ops in flight on one file */
    struct fb_op *file_prev;
    void *owner;              /* the scheduler's; no driver looks at it */
};

struct fb_counters {
    uint64_t submits, completions, cancels, enters, waits, wakes, starved;
    uint64_t attempts;        /* that performed their op at once: it was not submitted */
};

struct fb_driver;

/* For drivers: ops in order of arrival, each in one row at a time. */
struct fb_row {
    struct fb_op *head, *tail; /* borrowed: their owners' */
};
static inline void fb_row_push(struct fb_row *row, struct fb_op *op)
{
    op->next = NULL;
    op->prev = row->tail;
    if (row->tail)
        row->tail->next = op;
    else
        row->head = op;
    row->tail = op;
}
static inline void fb_row_remove(struct fb_row *row, struct fb_op *op)
{
    if (op->prev)
        op->prev->next = op->next;
    else
        row->head = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        row->tail = op->prev;
}

/* A standing interest in what one socket has to receive: a stream that receives again and again then costs one
 * submission in its life. Nothing is read that no receive asked for. FB_RECV and FB_RECV_INTO take one: fb_attempt()
 * receives if there may be something, and fb_submit() waits: the op completes with -EAGAIN, having moved nothing, when
 * there may be something, and its owner attempts again.
 *
 * From fb_follow() until fb_unfollow() or fb_orphan() it is its owner's, who reads `driver`: NULL once that is closed.
 * While it lives the fd must not be closed. */
struct fb_interest {
    struct fb_driver *driver;
    struct fb_interest *next, *prev; /* the driver's: all its interests */
    struct fb_row waiters;    /* the driver's: receives in state WAITING */
    int32_t fd;
    uint8_t ready;            /* the driver's: an attempt may find something */
    uint8_t armed;            /* the driver's: the kernel follows the fd, and tells of every change */
    uint8_t drains;           /* the driver's: a short receive has emptied the socket */
    uint8_t orphan;           /* nobody's any more: the driver ends it */
};

/* One per driver; the table is what "a driver" is. */
struct fb_verbs {
    const char *name;
    int (*attempt)(struct fb_driver *, struct fb_op *);
    void (*submit)(struct fb_driver *, struct fb_op *);
    void (*cancel)(struct fb_driver *, struct fb_op *);
    int (*poll)(struct fb_driver *, int64_t timeout_ns);  /* < 0: no limit; 0: do not wait */
    int (*ready)(struct fb_driver *);                     /* would a poll(0) have anything to do? no system call */
    int64_t (*next)(struct fb_driver *);                  /* of a driver with a `time`: when something will happen by
                                                             itself, or INT64_MAX; else NULL */
    void (*release)(struct fb_driver *, struct fb_op *);
    void (*follow)(struct fb_driver *, struct fb_interest *); /* set it up; NULL: the driver has none */
    void (*unfollow)(struct fb_driver *, struct fb_interest *);
    void (*drop_file)(struct fb_driver *, struct fb_file *);  /* NULL: it keeps nothing of files */
    int (*shut_down)(struct fb_driver *, int fd, int how);   /* or NULL: shutdown(2) */
    int (*close_fd)(struct fb_driver *, int fd);             /* or NULL: close(2) */
    void (*close)(struct fb_driver *);
    void (*abandon)(struct fb_driver *);                  /* close what a fork inherited, touch nothing else */
    uint8_t gathers;          /* ops submitted in one pass of the scheduler share a system call */
};

struct fb_driver {
    const struct fb_verbs *verbs;
    struct fb_op *done;       /* completed ops in order; fb_reap takes from the head */
    struct fb_op **done_tail;
    uint32_t flying;          /* ops submitted and not yet reaped, the driver's own not counted */
    int wake_fd;              /* write end, non-blocking: one byte wakes (fit for signal.set_wakeup_fd) */
    int wake_reader;          /* read end; the driver drains it */
    volatile int woken;       /* set by poll when a wake was drained; the scheduler clears it */
    int orphans;              /* some interest is one; set by any thread */
    struct fb_interest *interests; /* owned together with their owners */
    _Atomic int waking;       /* set by fb_wake, cleared before a look at the pipe: ready() needs no system call */
    int64_t time;             /* ns: its own, of a driver that keeps one (N1); else -1 */
    uint64_t serial;          /* of all drivers of the process: never used again */
    struct fb_counters count;
};

static inline void fb_prepare(struct fb_op *op, int code, int fd)
{
    op->code = (uint8_t)code;
    op->state = FB_IDLE;
    op->why = FB_NOT;
    op->cancelling = 0;
    op->fd = fd;
    op->res = 0;
    op->flags = 0;
    op->data = op->extra = NULL;
    op->len = 0;
    op->off = -1;
    op->moved = 0;
    op->buffer = -1;
    op->place = 0;
    op->file = NULL;
}

/* 1: the op is done, and its res says how; it stayed its owner's. 0: submit it, and change nothing about it: a SENDALL
 * may have sent a part. The data of an FB_RECV is good until the next attempt of one. */
int fb_attempt(struct fb_driver *d, struct fb_op *op);
/* The verbs. */
void fb_submit(struct fb_driver *d, struct fb_op *op);
void fb_cancel(struct fb_driver *d, struct fb_op *op);
int fb_poll(struct fb_driver *d, int64_t timeout_ns);
void fb_close(struct fb_driver *d);
/* The child of a fork: close the copies of the driver's fds, unused. From then on every verb does nothing, and its memory
 * is leaked: the kernel, or the parent, has mapped parts of it away. */
void fb_abandon(struct fb_driver *d);
/* Any thread. Signal safe: takes no locks. */
void fb_wake(struct fb_driver *d);
/* The next completed op, or NULL; from then on it is its owner's again. */
struct fb_op *fb_reap(struct fb_driver *d);
/* Give back the memory of a completed FB_RECV. Harmless on any other op and twice. */
void fb_release(struct fb_driver *d, struct fb_op *op);
/* Before the owner of a kept file closes it or gives it away, with none of its ops in flight. Harmless twice, and for a
 * file that this driver does not know. */
void fb_drop_file(struct fb_driver *d, struct fb_file *file);

/* An interest on a socket, or NULL: no memory, or the driver has none (receive without one then). */
struct fb_interest *fb_follow(struct fb_driver *d, int fd);
/* The end of an interest that no op waits on, and of its memory; the fd may be closed then. On the driver's thread, or
 * once the driver is closed. */
void fb_unfollow(struct fb_interest *it);
/* The same from any other thread, while the driver is not being closed: it is done at the driver's next poll. */
void fb_orphan(struct fb_interest *it);

/* Calls on a file that its owner makes besides ops; without a driver (NULL) the kernel's. 0, or -errno. */
int fb_shut_down(struct fb_driver *d, int fd, int how);
int fb_close_fd(struct fb_driver *d, int fd);

/* For drivers: the shared life of an op, and of an interest. */
void fb_forget_interest(struct fb_interest *it);
void fb_forget_interests(struct fb_driver *d);
int fb_driver_init(struct fb_driver *d, const struct fb_verbs *verbs);
void fb_driver_fini(struct fb_driver *d);
void fb_complete(struct fb_driver *d, struct fb_op *op, int32_t res);

/* Monotonic nanoseconds. */
int64_t fb_now(void);

/* Timers: one heap ordered by time, then by order of arming. The slot that holds a timer knows it and the reverse, so
 * that disarming costs O(log n) and leaves nothing behind: a million timeouts set and left keep the heap flat. */
struct fb_timer {
    int64_t when;             /* fb_now() clock */
    uint32_t slot;            /* 1 + index in the heap; 0: not armed */
    uint32_t kind;            /* the owner's */
};

struct fb_slot {
    int64_t when;
    uint64_t order;
    struct fb_timer *timer;   /* borrowed: its owner disarms it before it dies */
};

struct fb_heap {
    struct fb_slot *slots;    /* owned */
    uint32_t len, cap;
    uint64_t order;
};

/* 0, or -ENOMEM. Arming an armed timer moves it. */
int fb_timer_arm(struct fb_heap *h, struct fb_timer *t, int64_t when);
void fb_timer_disarm(struct fb_heap *h, struct fb_timer *t);
/* The earliest timer that is due at `now`, disarmed, or NULL. */
struct fb_timer *fb_timer_due(struct fb_heap *h, int64_t now);
void fb_heap_fini(struct fb_heap *h);

/* The ready queue: a ring of pointers, first in first out. Room is reserved when a fiber is born (it is queued at most
 * once), so that making it ready cannot fail. */
struct fb_queue {
    void **slots;             /* owned; what they point to is the scheduler's */
    uint32_t head, len, cap;  /* cap is a power of two */
};

int fb_queue_reserve(struct fb_queue *q, uint32_t room);
void fb_queue_push(struct fb_queue *q, void *item);
void *fb_queue_pop(struct fb_queue *q);
int fb_queue_remove(struct fb_queue *q, void *item);
/* Swap the head with the item `by` places behind it (for shuffled order in tests). */
void fb_queue_swap(struct fb_queue *q, uint32_t by);
void fb_queue_fini(struct fb_queue *q);

/* The io_uring driver. */
struct fb_uring_config {
    uint32_t sq_entries, cq_entries;  /* 0: the defaults */
    uint32_t forbid;                  /* set-up flags not to ask for: tests degrade a ring with it */
    uint32_t buffers, buffer_size;    /* 0: the defaults */
};

struct fb_uring_info {
    uint32_t setup_flags, features, sq_entries, cq_entries;
    uint32_t buffers, buffer_size, registered_fd;
    uint64_t supported;               /* bit per enum fb_code */
};

/* A driver, or NULL and *error = -errno and *step = what failed (static text). */
struct fb_driver *fb_uring_new(const struct fb_uring_config *config, int *error, const char **step);
void fb_uring_info(struct fb_driver *d, struct fb_uring_info *info);
/* 1 if this build contains the io_uring driver. */
int fb_uring_built(void);

/* The readiness drivers: "epoll" and "kqueue". */
struct fb_readiness_config {
    uint32_t buffers, buffer_size;    /* 0: the defaults */
    uint32_t threads;                 /* at most, for what may block; 0: the default */
};

struct fb_readiness_info {
    uint32_t buffers, buffer_size, threads;
    uint64_t supported;               /* bit per enum fb_code */
};

/* A driver, or NULL and *error = -errno and *step = what failed (static text). */
struct fb_driver *fb_readiness_new(const char *name, const struct fb_readiness_config *config, int *error,
                                   const char **step);
void fb_readiness_info(struct fb_driver *d, struct fb_readiness_info *info);
/* 1 if this build contains the readiness driver of that name. */
int fb_readiness_built(const char *name);

#endif
