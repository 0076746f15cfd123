/* Completion emulated over readiness, for epoll and kqueue: attempt, wait for an edge, attempt again.
 *
 *  1. An op is attempted when it is submitted. What cannot be done without waiting is linked to the record of its
 *     descriptor, and attempted again when the poller reports an edge. Results come out of poll only.
 *  2. No attempt blocks, and no descriptor changes its blocking mode for it: MSG_DONTWAIT, RWF_NOWAIT. What has no such
 *     flag is written down at the attempt (accept, connect).
 *  3. A descriptor with a file record is registered once, until fb_drop_file(); any other for as long as an op waits on it.
 *  4. What may block whatever readiness says (files) goes to the threads of workers.h.
 *  5. The memory of FB_RECV is the driver's: one buffer for each result until it is released. A receive that finds none
 *     waits in order; its bytes stay in the socket.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "readiness.h"

#include "core.h"
#include "workers.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* As many and as large as io_uring's (uring.c says why), but the last one released is the next one used: it is in the
 * cache. */
enum { BUFFERS = 128, BUFFER_SIZE = 16384, MAX_BUFFERS = 1024, SCRATCH = 65536 };
/* How often poll and ready() may pass over the kernel while there are results to hand out. */
enum { SKIPS = 1 };
/* A sendall to a peer that keeps up sends so many times, then it is the others' turn. */
enum { SENDS = 16 };
/* Between attempts of what nobody reports: a connect to a Unix socket whose backlog is full. */
enum { RETRY_NS = 10000000 };

#ifdef MSG_ERRQUEUE
#define LOOKS_ELSEWHERE MSG_ERRQUEUE
#else
#define LOOKS_ELSEWHERE 0
#endif

/* Results of an attempt that is not the end. */
enum { WAIT = INT32_MIN, WORK, STARVE, TURN, RETRY };

/* op->place of an op that waits: 1 + the number of its record, or one of these. */
enum { NOWHERE = 0, AT_WORKERS = UINT32_MAX, IN_STARVED = UINT32_MAX - 1, IN_TURN = UINT32_MAX - 2,
       IN_RETRY = UINT32_MAX - 3, MAX_RECORDS = 1 << 30 };

/* A descriptor that the poller knows. */
struct record {
    struct fb_row waiting;    /* borrowed: their owners'. The record is freed with its last one, unless it is kept */
    int fd;
    uint32_t generation;      /* part of the id: what the poller reports about an earlier use of this place is ignored */
    uint32_t link;            /* next free record, or next one whose O_NONBLOCK is ours */
    uint32_t accepts;         /* ops of that code among the waiting */
    dev_t device;             /* what the number stood for when it was armed, if it is not kept */
    ino_t inode;
    uint8_t used;
    uint8_t kept;             /* a file record names it */
    uint8_t armed;            /* FB_IN, FB_OUT: what the poller was asked for */
    uint8_t ready;            /* FB_IN, FB_OUT: not known to be impossible */
    uint8_t ended, urgent;    /* FB_ENDED, FB_URGENT was reported */
    uint8_t drains;           /* a short receive means that nothing is left: TCP */
    uint8_t unblocked;        /* we have set O_NONBLOCK and owe the old mode */
};

struct readiness {
    struct fb_driver base;    /* first: an fb_driver * is a struct readiness * */
    const struct fb_poller *poller;
    int poll_fd;
    struct fb_readiness_info info;
    struct record *records;   /* owned: [0] is not used, so that 0 can mean none */
    uint32_t record_count, record_cap, free_record;
    uint32_t *by_fd;          /* owned: the record that was last armed for this number, or 0. A hint: arm() verifies it */
    uint32_t by_fd_cap;
    uint32_t unblocked;       /* first of the records whose O_NONBLOCK is ours */
    struct fb_row early;      /* completed, not yet handed over: only poll does that */
    struct fb_row starved;    /* receives that wait for a buffer */
    struct fb_row turn;       /* attempted again by the next poll */
    struct fb_row retry;      /* attempted again after RETRY_NS */
    uint32_t waiting;         /* how many ops wait in records */
    uint32_t skips, asked;
    char *memory;             /* owned, mapped: buffers x buffer_size, resident only where touched */
    uint16_t *free;           /* owned: a stack of buffers */
    uint32_t free_count;
    struct fb_workers *workers; /* owned, NULL until needed */
    int wake_error;
    char scratch[SCRATCH];    /* what an attempted FB_RECV received */
};

static void start(struct readiness *r, struct fb_op *op);

static void push_waiting(struct fb_row *row, struct fb_op *op, uint32_t place)
{
    op->state = FB_WAITING;
    op->place = place;
    fb_row_push(row, op);
}

/* Completing: into a row of our own, as submit and cancel must hand nothing out. */

static void finish(struct readiness *r, struct fb_op *op, int32_t res)
{
    assert(op->state != FB_DONE);
    op->res = res;
    op->state = FB_DONE;
    op->place = NOWHERE;
    fb_row_push(&r->early, op);
    r->base.count.completions++;
}

static void hand_over(struct readiness *r)
{
    if (!r->early.head)
        return;
    *r->base.done_tail = r->early.head;
    r->base.done_tail = &r->early.tail->next;
    r->early.head = r->early.tail = NULL;
}

static int32_t moved(const struct fb_op *op) { return op->moved > INT32_MAX ? INT32_MAX : (int32_t)op->moved; }

/* Does it go on after a part? */
static int wants_all(const struct fb_op *op)
{
    return op->code == FB_SENDALL || ((op->code == FB_SEND || op->code == FB_RECV || op->code == FB_RECV_INTO) &&
                                      (op->flags & MSG_WAITALL));
}

/* Ended before its result was there: what was moved already counts. */
static void finish_early(struct readiness *r, struct fb_op *op, int32_t error)
{
    finish(r, op, wants_all(op) && op->moved ? moved(op) : error);
}

/* Buffers. */

static void put_back(struct readiness *r, struct fb_op *op)
{
    r->free[r->free_count++] = (uint16_t)op->buffer;
    op->buffer = -1;
    op->data = NULL;
}

static void readiness_release(struct fb_driver *d, struct fb_op *op) { put_back((struct readiness *)d, op); }

/* Attempts: >= 0 or -errno is the result, WAIT until the poller reports, WORK for a thread. */

static size_t clamp(uint64_t len) { return len > 0x7ffff000u ? 0x7ffff000u : (size_t)len; }

static int32_t verdict(ssize_t n)
{
    if (n >= 0)
        return (int32_t)n;
    return errno == EAGAIN || errno == EWOULDBLOCK ? WAIT : errno == EINTR ? TURN : -errno;
}

static int32_t nothing(struct readiness *r, struct fb_op *op, struct record *record)
{
    (void)r, (void)op, (void)record;
    return 0;
}

/* Did a receive of n out of `asked` bytes take all there was? Then the attempt that would only say EAGAIN is saved.
 *
 * Facts: edges are reported when something arrives; after a receive that stops short of the end of the queue none need
 * follow. Datagrams end one at a time, Unix streams at every passed descriptor, TCP at the urgent mark, a peek takes
 * nothing; and an end of stream that was reported already is not reported again.
 * Consequence: trusting a short receive too far is a fiber that sleeps for ever beside its bytes.
 * Choice: only plain receives on TCP count, and only while no end and no urgent data was reported.
 * Cost: one more call for each message on everything else. */
static int drained(const struct record *record, const struct fb_op *op, ssize_t n, size_t asked)
{
    return record && record->drains && n > 0 && (size_t)n < asked && !record->ended && !record->urgent &&
           !(op->flags & ~(unsigned)MSG_WAITALL);
}

/* One recv(2) at op->data + op->moved; goes on for MSG_WAITALL. */
static int32_t receive_at(struct fb_op *op, struct record *record, size_t len, int flags)
{
    for (;;) {
        char *at = op->moved ? (char *)op->data + op->moved : op->data;
        ssize_t n = recv(op->fd, at, len - op->moved, flags | MSG_DONTWAIT);
        int32_t res = verdict(n);
        if (res == TURN)
            continue; /* a part may be in the buffer: it is not given back for an EINTR */
        if (drained(record, op, n, len - op->moved))
            record->ready &= (uint8_t)~FB_IN;
        if (!wants_all(op) || (op->flags & MSG_PEEK))
            return res;
        if (res <= 0)
            return res == WAIT ? WAIT : op->moved ? moved(op) : res;
        op->moved += (uint64_t)res;
        if (op->moved == len)
            return moved(op);
    }
}

static int32_t receive(struct readiness *r, struct fb_op *op, struct record *record)
{
    size_t len = op->len < r->info.buffer_size ? (size_t)op->len : r->info.buffer_size;
    int32_t res;
    if (op->len == 0) {
        op->code = FB_RECV_INTO; /* nothing to hold */
        return receive_at(op, record, 0, (int)op->flags);
    }
    if (op->buffer < 0) {
        if (!r->free_count)
            return STARVE;
        op->buffer = r->free[--r->free_count];
        op->data = r->memory + (size_t)op->buffer * r->info.buffer_size;
    }
    res = receive_at(op, record, len, (int)op->flags & ~MSG_TRUNC); /* with it the result may exceed the buffer */
    if (res <= 0 && !(res == WAIT && op->moved))
        put_back(r, op);
    return res;
}

static int32_t receive_into(struct readiness *r, struct fb_op *op, struct record *record)
{
    (void)r;
    return receive_at(op, record, clamp(op->len), (int)op->flags);
}

static int32_t receive_message(struct readiness *r, struct fb_op *op, struct record *record)
{
    (void)r, (void)record;
    return verdict(recvmsg(op->fd, op->data, (int)op->flags | MSG_DONTWAIT));
}

static int32_t send_some(struct readiness *r, struct fb_op *op, struct record *record)
{
    int flags = (int)(op->flags & ~(unsigned)MSG_WAITALL) | MSG_DONTWAIT | MSG_NOSIGNAL;
    (void)r, (void)record;
    for (int i = 0; i < SENDS; i++) {
        const char *at = op->moved ? (char *)op->data + op->moved : op->data;
        int32_t res = verdict(send(op->fd, at, clamp(op->len - op->moved), flags));
        if (!wants_all(op) || res == WAIT || res == TURN)
            return res;
        if (res <= 0)
            return op->moved ? moved(op) : res;
        op->moved += (uint64_t)res;
        if (op->moved >= op->len)
            return moved(op);
    }
    return TURN;
}

static int32_t send_message(struct readiness *r, struct fb_op *op, struct record *record)
{
    (void)r, (void)record;
    return verdict(sendmsg(op->fd, op->data, (int)op->flags | MSG_DONTWAIT | MSG_NOSIGNAL));
}

/* Only poll(2) knows exactly; it is asked each time. */
static int32_t poll_once(struct readiness *r, struct fb_op *op, struct record *record)
{
    struct pollfd p = {.fd = op->fd, .events = (short)op->flags};
    int n = poll(&p, 1, 0);
    (void)record;
    if (n < 0)
        return errno == EINTR ? TURN : -errno;
    if (n == 0)
        return op->flags == POLLPRI && !r->poller->tells_urgent ? -EOPNOTSUPP : WAIT;
    return p.revents & POLLNVAL ? -EBADF : (int32_t)(uint16_t)p.revents;
}

static int32_t shut_down(struct readiness *r, struct fb_op *op, struct record *record)
{
    (void)r, (void)record;
    return shutdown(op->fd, (int)op->flags) < 0 ? -errno : 0;
}

/* Accepting and connecting without blocking.
 *
 * Facts: accept(2) and connect(2) have no MSG_DONTWAIT. O_NONBLOCK belongs to the open file, which other processes may
 * share. Between a poll that says "ready" and an accept another process may take the connection; servers that fork
 * share listeners, and all are woken for each connection.
 * Consequence: an accept in blocking mode can stop every fiber until the next client comes.
 * Choice: O_NONBLOCK for the time of a connect. For a listener with a file record: as long as fibers keep accepting,
 * put back by the first poll that finds none of them, so that processes that share it do not undo it between one's
 * fcntl and its accept. Without a record (nothing says when such a number is closed): for the time of the attempt.
 * Cost: two calls more for each accept, three for a connect; who else uses a listener while fibers accept on it may
 * meet EAGAIN. */
static int unblock(int fd, int *before)
{
    *before = fcntl(fd, F_GETFL);
    if (*before < 0)
        return -errno;
    if (!(*before & O_NONBLOCK) && fcntl(fd, F_SETFL, *before | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

static void block_again(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

static int accept_with_flags(const struct fb_op *op)
{
#ifdef __APPLE__
    /* No accept4; and the new socket has the listener's O_NONBLOCK. */
    int fd = accept(op->fd, op->data, op->extra);
    if (fd >= 0 && (op->flags & SOCK_CLOEXEC))
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (fd >= 0)
        fcntl(fd, F_SETFL, op->flags & SOCK_NONBLOCK ? O_NONBLOCK : 0);
    return fd;
#else
    return accept4(op->fd, op->data, op->extra, (int)op->flags);
#endif
}

static int32_t accept_one(struct readiness *r, struct fb_op *op, struct record *record)
{
    int before, fd, error;
    if ((error = unblock(op->fd, &before)) < 0)
        return error;
    fd = accept_with_flags(op);
    error = errno;
    if (!(before & O_NONBLOCK)) {
        if (record && record->kept) {
            if (!record->unblocked) {
                record->unblocked = 1;
                record->link = r->unblocked;
                r->unblocked = (uint32_t)(record - r->records);
            }
        } else {
            block_again(op->fd);
        }
    }
    errno = error;
    return verdict(fd);
}

static int32_t connect_to(struct readiness *r, struct fb_op *op, struct record *record)
{
    int before, error;
    socklen_t size = sizeof error;
    (void)r, (void)record;
    if (op->moved) { /* begun */
        struct pollfd p = {.fd = op->fd, .events = POLLOUT};
        int n = poll(&p, 1, 0);
        if (n <= 0)
            return n == 0 ? WAIT : errno == EINTR ? TURN : -errno;
        return getsockopt(op->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? -errno : -error;
    }
    if ((error = unblock(op->fd, &before)) < 0)
        return error;
    error = connect(op->fd, op->data, (socklen_t)op->len) < 0 ? errno : 0;
    if (!(before & O_NONBLOCK))
        block_again(op->fd);
    if (error == EINPROGRESS || error == EINTR) {
        op->moved = 1;
        return WAIT;
    }
    if (error == EAGAIN && op->len >= sizeof(sa_family_t) && ((struct sockaddr *)op->data)->sa_family == AF_UNIX)
        return RETRY; /* its backlog is full, and nothing reports when it is not */
    return -error;
}

/* Reading and writing whatever a descriptor may be. */

static int on_disk(mode_t mode) { return S_ISREG(mode) || S_ISBLK(mode) || S_ISDIR(mode); }

/* Pipes, terminals, devices, event descriptors: without waiting where the kernel can; else by a thread, once poll(2) has
 * said that it should not wait. A thread and not here, as another reader may be quicker. */
static int32_t read_or_write(struct fb_op *op, mode_t mode)
{
    struct pollfd p = {.fd = op->fd, .events = op->code == FB_READ ? POLLIN : POLLOUT};
#ifdef RWF_NOWAIT
    struct iovec one = {op->data, clamp(op->len)};
    off_t off = S_ISCHR(mode) ? (off_t)op->off : -1;
    ssize_t n = op->code == FB_READ ? preadv2(op->fd, &one, 1, off, RWF_NOWAIT)
                                    : pwritev2(op->fd, &one, 1, off, RWF_NOWAIT);
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL && errno != ESPIPE && errno != EPERM))
        return verdict(n);
#endif
    if (poll(&p, 1, 0) == 0)
        return WAIT;
    if (op->code == FB_WRITE && !S_ISREG(mode))
        op->moved = PIPE_BUF; /* so much fits into what is writable */
    return WORK;
}

static int32_t read_some(struct readiness *r, struct fb_op *op, struct record *record)
{
    struct stat status;
    (void)r, (void)record;
    if (fstat(op->fd, &status) < 0)
        return -errno;
    if (on_disk(status.st_mode))
        return WORK;
    if (!S_ISSOCK(status.st_mode))
        return read_or_write(op, status.st_mode);
    return op->off > 0 ? -ESPIPE : verdict(recv(op->fd, op->data, clamp(op->len), MSG_DONTWAIT));
}

static int32_t write_some(struct readiness *r, struct fb_op *op, struct record *record)
{
    struct stat status;
    (void)r, (void)record;
    if (fstat(op->fd, &status) < 0)
        return -errno;
    if (on_disk(status.st_mode))
        return WORK;
    if (!S_ISSOCK(status.st_mode))
        return read_or_write(op, status.st_mode);
    return op->off > 0 ? -ESPIPE : verdict(send(op->fd, op->data, clamp(op->len), MSG_DONTWAIT | MSG_NOSIGNAL));
}

static int32_t by_worker(struct readiness *r, struct fb_op *op, struct record *record)
{
    (void)r, (void)op, (void)record;
    return WORK;
}

static int32_t close_it(struct readiness *r, struct fb_op *op, struct record *record);

/* One line for each op: what it waits for (0: it never waits for readiness), whether EAGAIN speaks for that whole
 * direction (is_plain), and how it is attempted. */
static const struct {
    uint8_t interest;
    uint8_t plain;
    int32_t (*attempt)(struct readiness *, struct fb_op *, struct record *);
} TABLE[FB_CODES] = {
    [FB_NOP] = {0, 0, nothing},
    [FB_ACCEPT] = {FB_IN, 1, accept_one},
    [FB_CONNECT] = {FB_OUT, 0, connect_to},
    [FB_RECV] = {FB_IN, 1, receive},
    [FB_RECV_INTO] = {FB_IN, 1, receive_into},
    [FB_RECVMSG] = {FB_IN, 1, receive_message},
    [FB_SEND] = {FB_OUT, 1, send_some},
    [FB_SENDALL] = {FB_OUT, 1, send_some},
    [FB_SENDMSG] = {FB_OUT, 1, send_message},
    [FB_POLL] = {FB_IN | FB_OUT, 0, poll_once},
    [FB_SHUTDOWN] = {0, 0, shut_down},
    [FB_CLOSE] = {0, 0, close_it},
    [FB_READ] = {FB_IN, 1, read_some},
    [FB_WRITE] = {FB_OUT, 1, write_some},
    [FB_FSYNC] = {0, 0, by_worker},
    [FB_OPENAT] = {0, 0, by_worker},
    [FB_READV] = {0, 0, by_worker},
    [FB_WRITEV] = {0, 0, by_worker},
    [FB_STATX] = {0, 0, by_worker},
    [FB_RENAMEAT] = {0, 0, by_worker},
    [FB_UNLINKAT] = {0, 0, by_worker},
    [FB_MKDIRAT] = {0, 0, by_worker},
    [FB_LINKAT] = {0, 0, by_worker},
    [FB_SYMLINKAT] = {0, 0, by_worker},
    [FB_FALLOCATE] = {0, 0, by_worker},
    [FB_FADVISE] = {0, 0, by_worker},
    [FB_FTRUNCATE] = {0, 0, by_worker},
};

/* What an op waits for; a poll may wait for one direction or both. */
static uint32_t interest_of(const struct fb_op *op)
{
    uint32_t bits = 0;
    if (op->code != FB_POLL)
        return TABLE[op->code].interest;
    if (op->flags & ~(uint32_t)(POLLOUT | POLLWRNORM | POLLWRBAND))
        bits |= FB_IN;
    if (op->flags & (POLLOUT | POLLWRNORM | POLLWRBAND))
        bits |= FB_OUT;
    return bits ? bits : FB_IN | FB_OUT;
}

/* MSG_DONTWAIT among its flags: EAGAIN is its result. */
static int never_waits(const struct fb_op *op)
{
    switch (op->code) {
    case FB_RECV: case FB_RECV_INTO: case FB_RECVMSG: case FB_SEND: case FB_SENDALL: case FB_SENDMSG:
        return (op->flags & MSG_DONTWAIT) != 0;
    default:
        return 0;
    }
}

/* May what an attempt said stand for others, and what others said for it? Not if it looks elsewhere than at the queue of
 * bytes, or asks for none. */
static int is_plain(const struct fb_op *op)
{
    if (!TABLE[op->code].plain)
        return 0;
    switch (op->code) {
    case FB_RECV: case FB_RECV_INTO:
        return op->len && !(op->flags & (MSG_OOB | MSG_PEEK | LOOKS_ELSEWHERE));
    case FB_RECVMSG:
        return !(op->flags & (MSG_OOB | MSG_PEEK | LOOKS_ELSEWHERE));
    case FB_SEND: case FB_SENDALL: case FB_READ: case FB_WRITE:
        return op->len != 0;
    default:
        return 1;
    }
}

/* Records. */

static uint64_t id_of(const struct readiness *r, uint32_t slot)
{
    return (uint64_t)r->records[slot].generation << 32 | slot;
}

static struct record *find(struct readiness *r, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    struct record *record = slot && slot < r->record_count ? &r->records[slot] : NULL;
    return record && record->used && record->generation == id >> 32 ? record : NULL;
}

static struct record *record_of(struct readiness *r, const struct fb_op *op)
{
    struct record *record;
    if (!op->file || op->file->driver != r->base.serial)
        return NULL;
    record = find(r, op->file->id);
    return record && record->fd == op->fd ? record : NULL;
}

static uint32_t new_record(struct readiness *r, int fd)
{
    uint32_t slot = r->free_record;
    if (slot) {
        r->free_record = r->records[slot].link;
    } else {
        if (r->record_count == r->record_cap) {
            uint32_t cap = r->record_cap ? 2 * r->record_cap : 64;
            struct record *records = cap <= MAX_RECORDS ? realloc(r->records, cap * sizeof *records) : NULL;
            if (!records)
                return 0;
            memset(records + r->record_cap, 0, (cap - r->record_cap) * sizeof *records);
            r->records = records;
            r->record_cap = cap;
        }
        if (!r->record_count)
            r->record_count = 1;
        slot = r->record_count++;
    }
    r->records[slot] = (struct record){
        .fd = fd, .generation = r->records[slot].generation, .used = 1, .ready = FB_IN | FB_OUT};
    return slot;
}

static void leave_unblocked(struct readiness *r, struct record *record)
{
    uint32_t *link = &r->unblocked, slot = (uint32_t)(record - r->records);
    if (!record->unblocked)
        return;
    while (*link != slot)
        link = &r->records[*link].link;
    *link = record->link;
    record->unblocked = 0;
}

static void free_record(struct readiness *r, struct record *record)
{
    uint32_t slot = (uint32_t)(record - r->records);
    assert(!record->waiting.head);
    leave_unblocked(r, record);
    if ((uint32_t)record->fd < r->by_fd_cap && r->by_fd[record->fd] == slot)
        r->by_fd[record->fd] = 0;
    record->used = 0;
    record->generation++;
    record->link = r->free_record;
    r->free_record = slot;
}

static int reserve_fd(struct readiness *r, int fd)
{
    uint32_t cap = r->by_fd_cap ? r->by_fd_cap : 64, *by_fd;
    if (fd < 0)
        return -EBADF;
    if ((uint32_t)fd < r->by_fd_cap)
        return 0;
    if (fcntl(fd, F_GETFD) < 0)
        return -errno; /* no room for a number that is nobody's */
    while (cap <= (uint32_t)fd)
        cap *= 2;
    by_fd = realloc(r->by_fd, cap * sizeof *by_fd);
    if (!by_fd)
        return -ENOMEM;
    memset(by_fd + r->by_fd_cap, 0, (cap - r->by_fd_cap) * sizeof *by_fd);
    r->by_fd = by_fd;
    r->by_fd_cap = cap;
    return 0;
}

/* Its file is gone, and with it what these ops waited for. */
static void lose(struct readiness *r, struct record *record)
{
    struct fb_op *op;
    while ((op = record->waiting.head)) {
        fb_row_remove(&record->waiting, op);
        r->waiting--;
        finish_early(r, op, -EBADF);
    }
    record->accepts = 0;
}

static int is_tcp(int fd)
{
#ifdef SO_PROTOCOL
    int protocol = 0;
    socklen_t size = sizeof protocol;
    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 && protocol == IPPROTO_TCP;
#else
    (void)fd;
    return 0;
#endif
}

/* Make the poller report op->fd. *result: what arm said, or -errno with NULL returned.
 *
 * Facts: epoll keys a registration by number and open file, and keeps it while anybody (a child process, a dup) holds
 * the file open, though the number may be another file's by now. kqueue drops it with the number.
 * Consequence: a table by number may speak of a file that is gone; trusting it is a fiber that is never woken, or one
 * that receives another file's bytes.
 * Choice: only an owner who promises fb_drop_file() is trusted. For any other number the poller is asked before an op waits
 * (it knows whether this number's present file is the one that was armed), and fstat before an op is attempted again.
 * Ids carry a generation, so that reports about a file that is gone name nobody.
 * Cost: three calls for each wait on a descriptor that is not ours. */
static struct record *arm(struct readiness *r, const struct fb_op *op, int *result)
{
    uint32_t slot, bits = op->file ? FB_IN | FB_OUT : interest_of(op);
    struct record *record;
    struct stat status;
    int known;
    if ((*result = reserve_fd(r, op->fd)) < 0)
        return NULL;
    slot = r->by_fd[op->fd];
    known = slot != 0;
    if (!slot && !(slot = new_record(r, op->fd))) {
        *result = -ENOMEM;
        return NULL;
    }
    record = &r->records[slot];
    *result = r->poller->arm(r->poll_fd, op->fd, id_of(r, slot), bits | record->armed, known);
    if (known && (*result < 0 || !(*result & FB_WAS_ARMED))) {
        lose(r, record);
        leave_unblocked(r, record);
        record->kept = record->armed = record->ended = record->urgent = record->drains = 0;
        record->ready = FB_IN | FB_OUT;
    }
    if (*result < 0) {
        free_record(r, record);
        return NULL;
    }
    r->by_fd[op->fd] = slot;
    record->armed |= (uint8_t)bits;
    if (!known && fstat(op->fd, &status) == 0) {
        record->device = status.st_dev;
        record->inode = status.st_ino;
    }
    if (op->file) {
        op->file->driver = r->base.serial;
        op->file->id = id_of(r, slot);
        if (!record->kept)
            record->drains = (uint8_t)(r->poller->tells_urgent && is_tcp(op->fd));
        record->kept = 1;
    }
    return record;
}

/* The last op has left it: what is not kept is not registered either. */
static void leave(struct readiness *r, struct record *record)
{
    if (record->waiting.head || record->kept)
        return;
    r->poller->disarm(r->poll_fd, record->fd); /* ENOENT, EBADF: closed meanwhile */
    free_record(r, record);
}

static void readiness_drop_file(struct fb_driver *d, struct fb_file *file)
{
    struct readiness *r = (struct readiness *)d;
    struct record *record = find(r, file->id);
    if (!record)
        return;
    if (record->unblocked)
        block_again(record->fd);
    leave_unblocked(r, record);
    record->kept = 0; /* ops without a record of the file's may still wait: theirs is now any other descriptor */
    leave(r, record);
}

/* What waited on it waits on, as in io_uring, but nothing will be reported: it is for their owners to cancel. */
static int32_t close_it(struct readiness *r, struct fb_op *op, struct record *record)
{
    struct stat status;
    if (fstat(op->fd, &status) < 0)
        return -errno;
    if (!record && (uint32_t)op->fd < r->by_fd_cap && r->by_fd[op->fd])
        record = &r->records[r->by_fd[op->fd]];
    if (record) {
        record->kept = 0;
        leave_unblocked(r, record);
        r->poller->disarm(r->poll_fd, op->fd);
        leave(r, record);
    }
    if (on_disk(status.st_mode) || S_ISCHR(status.st_mode))
        return WORK; /* what was written may have to go somewhere first */
    return close(op->fd) < 0 && errno != EINTR ? -errno : 0;
}

/* The life of an op: start -> attempt -> settle, and again from wake. */

static void wait_for(struct readiness *r, struct fb_op *op, struct record *record)
{
    int result = 0;
    if (never_waits(op)) {
        finish_early(r, op, -EAGAIN);
        return;
    }
    if (!record && !(record = arm(r, op, &result))) {
        finish_early(r, op, result);
        return;
    }
    if (is_plain(op))
        record->ready &= (uint8_t)~TABLE[op->code].interest; /* as an attempt has just said */
    if (result & FB_TRY_AGAIN) {
        push_waiting(&r->turn, op, IN_TURN);
        leave(r, record);
        return;
    }
    op->state = FB_FLYING;
    op->place = (uint32_t)(record - r->records);
    fb_row_push(&record->waiting, op);
    r->waiting++;
    record->accepts += op->code == FB_ACCEPT;
}

static void give_to_worker(struct readiness *r, struct fb_op *op)
{
    int error = -ENOMEM;
    if (!r->workers)
        r->workers = fb_workers_new(&r->base, r->info.threads);
    op->place = AT_WORKERS;
    if (!r->workers || (error = fb_workers_submit(r->workers, op)) < 0)
        finish(r, op, error);
}

static void settle(struct readiness *r, struct fb_op *op, struct record *record, int32_t res)
{
    switch (res) {
    case WAIT:
        wait_for(r, op, record);
        break;
    case WORK:
        give_to_worker(r, op);
        break;
    case STARVE:
        r->base.count.starved++;
        push_waiting(&r->starved, op, IN_STARVED);
        break;
    case TURN:
        push_waiting(&r->turn, op, IN_TURN);
        break;
    case RETRY:
        push_waiting(&r->retry, op, IN_RETRY);
        break;
    default:
        finish(r, op, res);
    }
}

/* An attempt in vain: until the poller reports there is no need of another one. What poll(2) says of some events is not
 * said of the whole direction. */
static int32_t try_op(struct readiness *r, struct fb_op *op, struct record *record)
{
    int32_t res = TABLE[op->code].attempt(r, op, record);
    if (res == WAIT && record && is_plain(op))
        record->ready &= (uint8_t)~TABLE[op->code].interest;
    return res;
}

static void start(struct readiness *r, struct fb_op *op)
{
    struct record *record = record_of(r, op);
    int result;
    if (op->code == FB_ACCEPT && (op->flags & ~(uint32_t)(SOCK_CLOEXEC | SOCK_NONBLOCK))) {
        finish(r, op, -EINVAL);
        return;
    }
    if (op->file && op->code == FB_ACCEPT && !record && !(record = arm(r, op, &result)) && result != -EPERM) {
        finish(r, op, result);
        return;
    }
    if (record && is_plain(op) && !(record->ready & TABLE[op->code].interest)) {
        wait_for(r, op, record);
        return;
    }
    settle(r, op, record, try_op(r, op, record));
}

/* Receives and sends that need not wait are done in their owner's place: no buffer, no switch to another fiber. */
static int readiness_attempt(struct fb_driver *d, struct fb_op *op)
{
    struct readiness *r = (struct readiness *)d;
    struct record *record = record_of(r, op);
    int32_t res;
    if (op->code < FB_RECV || op->code > FB_SENDMSG || never_waits(op) || (op->code == FB_RECV && wants_all(op)) ||
        (record && is_plain(op) && !(record->ready & TABLE[op->code].interest)))
        return 0;
    if (op->code == FB_RECV) {
        op->data = r->scratch;
        if (op->len > SCRATCH)
            op->len = SCRATCH;
        res = receive_at(op, record, (size_t)op->len, (int)op->flags & ~MSG_TRUNC);
        if (res == WAIT) {
            op->data = NULL;
            if (record && is_plain(op))
                record->ready &= (uint8_t)~FB_IN;
        }
    } else {
        res = try_op(r, op, record);
    }
    if (res == WAIT || res == TURN)
        return 0;
    op->res = res;
    return 1;
}

static void readiness_submit(struct fb_driver *d, struct fb_op *op)
{
    struct readiness *r = (struct readiness *)d;
    if (op->code >= FB_CODES)
        finish(r, op, -EOPNOTSUPP);
    else if (op->code == FB_RECV && r->starved.head)
        push_waiting(&r->starved, op, IN_STARVED); /* behind those that starve already: they asked first */
    else
        start(r, op);
}

/* Opening a FIFO waits for its other end, maybe for ever, and holds a thread.
 *
 * Facts: open(2) of a FIFO with O_RDWR does not wait, and lets all go that wait for either end.
 * Choice: so a cancel does, and keeps it open until the thread is through, wherever that was (op->moved: 1 + descriptor).
 * Cost: another process that waits to open the same FIFO goes on, too, as if somebody had come and gone. */
static void let_go_of_fifo(struct fb_op *op)
{
    struct stat status;
    int fd;
    if (fstatat(op->fd, op->data, &status, 0) < 0 || !S_ISFIFO(status.st_mode))
        return;
    fd = openat(op->fd, op->data, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0)
        op->moved = (uint64_t)fd + 1;
}

static int32_t result_of_work(struct fb_op *op)
{
    if (op->code != FB_OPENAT || !op->moved)
        return op->res;
    close((int)op->moved - 1);
    op->moved = 0;
    if (op->res >= 0)
        close(op->res);
    return -ECANCELED;
}

static void readiness_cancel(struct fb_driver *d, struct fb_op *op)
{
    struct readiness *r = (struct readiness *)d;
    struct record *record;
    switch (op->place) {
    case AT_WORKERS:
        if (fb_workers_cancel(r->workers, op))
            finish(r, op, -ECANCELED);
        else if (op->code == FB_OPENAT)
            let_go_of_fifo(op);
        return; /* it has begun, and ends with its own result */
    case IN_STARVED:
        fb_row_remove(&r->starved, op);
        break;
    case IN_TURN:
        fb_row_remove(&r->turn, op);
        break;
    case IN_RETRY:
        fb_row_remove(&r->retry, op);
        break;
    default:
        record = &r->records[op->place];
        fb_row_remove(&record->waiting, op);
        r->waiting--;
        record->accepts -= op->code == FB_ACCEPT;
        leave(r, record);
        break;
    }
    finish_early(r, op, -ECANCELED);
}

/* Attempt what waits for these bits. */
static void wake(struct readiness *r, struct record *record, uint32_t bits)
{
    struct fb_op *op = record->waiting.head, *next;
    for (; op; op = next) {
        int32_t res;
        next = op->next;
        if (!(interest_of(op) & bits) || (is_plain(op) && !(record->ready & TABLE[op->code].interest)))
            continue;
        res = try_op(r, op, record);
        if (res == WAIT)
            continue;
        fb_row_remove(&record->waiting, op);
        r->waiting--;
        record->accepts -= op->code == FB_ACCEPT;
        settle(r, op, record, res);
    }
}

static void drain_pipe(struct readiness *r)
{
    char bytes[4096];
    ssize_t n = read(r->base.wake_reader, bytes, sizeof bytes);
    if (n <= 0) {
        if (n == 0 || (errno != EINTR && errno != EAGAIN))
            r->wake_error = n ? -errno : -EPIPE; /* somebody closed our pipe: reading on would spin */
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] != FB_WORKED) {
            r->base.woken = 1;
            r->base.count.wakes++;
            break;
        }
    }
}

static int still_open(const struct record *record)
{
    struct stat status;
    return fstat(record->fd, &status) == 0 && status.st_dev == record->device && status.st_ino == record->inode;
}

static void report(struct readiness *r, const struct fb_event *event)
{
    struct record *record;
    if (event->id == 0) {
        drain_pipe(r);
        return;
    }
    record = find(r, event->id);
    if (!record)
        return;
    record->ready |= event->bits & (FB_IN | FB_OUT);
    record->ended |= (event->bits & FB_ENDED) != 0;
    record->urgent |= (event->bits & FB_URGENT) != 0;
    if (!record->kept && !still_open(record))
        lose(r, record); /* the number is another file's by now: hands off */
    wake(r, record, event->bits);
    leave(r, record);
}

/* Attempt all of a row once more; what has to go back to it goes behind. */
static void start_row(struct readiness *r, struct fb_row *row)
{
    struct fb_row old = *row;
    row->head = row->tail = NULL;
    while (old.head) {
        struct fb_op *op = old.head;
        fb_row_remove(&old, op);
        start(r, op);
    }
}

static void feed_starved(struct readiness *r)
{
    while (r->starved.head && r->free_count) {
        struct fb_op *op = r->starved.head;
        fb_row_remove(&r->starved, op);
        start(r, op);
    }
}

static void collect(struct readiness *r)
{
    struct fb_op *op;
    while (r->workers && (op = fb_workers_collect(r->workers)))
        finish(r, op, result_of_work(op));
}

/* Nobody accepts there any more: the mode is its owner's again; if the number is still that file's, which only the poller
 * knows should its owner have closed it without a word. */
static void restore_modes(struct readiness *r)
{
    uint32_t next;
    for (uint32_t slot = r->unblocked; slot; slot = next) {
        struct record *record = &r->records[slot];
        int result;
        next = record->link;
        if (record->accepts)
            continue;
        leave_unblocked(r, record);
        result = r->poller->arm(r->poll_fd, record->fd, id_of(r, slot), record->armed, 1);
        if (result >= 0 && (result & FB_WAS_ARMED)) {
            block_again(record->fd);
            continue;
        }
        lose(r, record);
        record->kept = 0;
        leave(r, record);
    }
}

static int readiness_ready(struct fb_driver *d)
{
    struct readiness *r = (struct readiness *)d;
    if (d->done || r->early.head || r->turn.head || (r->starved.head && r->free_count) || d->waking ||
        (r->workers && fb_workers_ready(r->workers)))
        return 1;
    /* Whether the kernel has something only a system call can tell: worth one now and then. */
    return (r->waiting || r->retry.head) && r->asked++ >= SKIPS;
}

static int readiness_poll(struct fb_driver *d, int64_t timeout_ns)
{
    struct readiness *r = (struct readiness *)d;
    struct fb_event events[FB_EVENTS];
    int n;
    collect(r);
    start_row(r, &r->turn);
    feed_starved(r);
    r->asked = 0;
    if (d->done || r->early.head || r->turn.head) {
        timeout_ns = 0;
        if (!d->waking && r->skips++ < SKIPS) {
            hand_over(r);
            return 0;
        }
    }
    r->skips = 0;
    if (r->unblocked)
        restore_modes(r);
    if (r->retry.head && (timeout_ns < 0 || timeout_ns > RETRY_NS))
        timeout_ns = RETRY_NS;
    d->count.enters++;
    if (timeout_ns)
        d->count.waits++;
    d->waking = 0;
    n = r->poller->wait(r->poll_fd, events, timeout_ns);
    for (int i = 0; i < n; i++)
        report(r, &events[i]);
    if (r->retry.head)
        start_row(r, &r->retry);
    collect(r);
    hand_over(r);
    return n < 0 ? n : r->wake_error;
}

/* Set-up and end. */

static void free_all(struct readiness *r)
{
    if (r->memory && r->memory != MAP_FAILED)
        munmap(r->memory, (size_t)r->info.buffers * r->info.buffer_size);
    free(r->free);
    free(r->records);
    free(r->by_fd);
    free(r);
}

static void close_unclaimed(struct readiness *r)
{
    struct fb_op *op;
    hand_over(r);
    while ((op = fb_reap(&r->base)))
        if ((op->code == FB_ACCEPT || op->code == FB_OPENAT) && op->res >= 0)
            close(op->res); /* nobody can take it (semantics.md F5) */
}

/* What waits is cancelled; what a thread has begun is waited for: its memory is the thread's until then. */
static void readiness_close(struct fb_driver *d)
{
    struct readiness *r = (struct readiness *)d;
    while (r->starved.head)
        readiness_cancel(d, r->starved.head);
    while (r->turn.head)
        readiness_cancel(d, r->turn.head);
    while (r->retry.head)
        readiness_cancel(d, r->retry.head);
    for (uint32_t slot = 1; slot < r->record_count; slot++) {
        struct record *record = &r->records[slot];
        if (!record->used)
            continue;
        while (record->used && record->waiting.head)
            readiness_cancel(d, record->waiting.head);
        /* A file may have been closed without a word: the mode is put back only if it is still there. */
        if (record->used && record->unblocked && r->poller->disarm(r->poll_fd, record->fd) == 0)
            block_again(record->fd);
    }
    if (r->workers) {
        for (struct fb_op *op = fb_workers_close(r->workers), *next; op; op = next) {
            next = op->next;
            finish(r, op, result_of_work(op));
        }
    }
    close_unclaimed(r);
    r->poller->close(r->poll_fd);
    fb_driver_fini(d);
    free_all(r);
}

static void readiness_abandon(struct fb_driver *d)
{
    struct readiness *r = (struct readiness *)d;
    r->poller->abandon(r->poll_fd);
}

static const struct fb_poller *const POLLERS[] = {
#ifdef FIBERS_EPOLL
    &fb_epoll,
#endif
#ifdef FIBERS_KQUEUE
    &fb_kqueue,
#endif
    NULL,
};

/* One table for each poller: its name is the driver's. */
#define VERBS(text)                                                                                                    \
    {                                                                                                                  \
        .name = text, .attempt = readiness_attempt, .submit = readiness_submit, .cancel = readiness_cancel,            \
        .poll = readiness_poll,                                                                                        \
        .ready = readiness_ready, .release = readiness_release, .drop_file = readiness_drop_file, .close = readiness_close,  \
        .abandon = readiness_abandon,                                                                                  \
    }
static const struct fb_verbs VERBS[] = {VERBS("epoll"), VERBS("kqueue")};

static const struct fb_poller *poller_named(const char *name)
{
    for (int i = 0; POLLERS[i]; i++)
        if (!strcmp(POLLERS[i]->name, name))
            return POLLERS[i];
    return NULL;
}

int fb_readiness_built(const char *name) { return poller_named(name) != NULL; }

static int set_up_buffers(struct readiness *r, const struct fb_readiness_config *c)
{
    uint32_t n = r->info.buffers = c->buffers ? c->buffers : BUFFERS;
    uint32_t size = r->info.buffer_size = c->buffer_size ? c->buffer_size : BUFFER_SIZE;
    int flags = MAP_ANON | MAP_PRIVATE;
    if (n > MAX_BUFFERS || (n & (n - 1)))
        return -EINVAL;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    r->memory = mmap(NULL, (size_t)n * size, PROT_READ | PROT_WRITE, flags, -1, 0);
    r->free = calloc(n, sizeof *r->free);
    if (r->memory == MAP_FAILED || !r->free)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        r->free[i] = (uint16_t)(n - 1 - i);
    r->free_count = n;
    return 0;
}

struct fb_driver *fb_readiness_new(const char *name, const struct fb_readiness_config *config, int *error,
                                   const char **step)
{
    static const struct fb_readiness_config DEFAULTS;
    const struct fb_readiness_config *c = config ? config : &DEFAULTS;
    const struct fb_poller *poller = poller_named(name);
    struct readiness *r;
    *error = -ENOSYS;
    *step = "built without it";
    if (!poller)
        return NULL;
    *error = -ENOMEM;
    *step = "memory";
    if (!(r = calloc(1, sizeof *r)))
        return NULL;
    r->poller = poller;
    r->info.threads = c->threads ? c->threads : FB_WORKERS;
    r->info.supported = (1ull << FB_CODES) - 1;
    *step = "provided buffers";
    if ((*error = set_up_buffers(r, c)) < 0)
        goto no_buffers;
    *step = "pipe2";
    if ((*error = fb_driver_init(&r->base, strcmp(name, VERBS[0].name) ? &VERBS[1] : &VERBS[0])) < 0)
        goto no_buffers;
    *step = poller->step;
    if ((*error = r->poll_fd = poller->open()) < 0)
        goto no_poller;
    if ((*error = poller->watch_pipe(r->poll_fd, r->base.wake_reader)) < 0)
        goto no_watch;
    *error = 0;
    return &r->base;
no_watch:
    r->poller->close(r->poll_fd);
no_poller:
    fb_driver_fini(&r->base);
no_buffers:
    free_all(r);
    return NULL;
}

void fb_readiness_info(struct fb_driver *d, struct fb_readiness_info *info) { *info = ((struct readiness *)d)->info; }
