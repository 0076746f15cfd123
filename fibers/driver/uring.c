/* The io_uring driver: an op becomes one SQE, its CQE completes it. liburing does the ring's bookkeeping.
 *
 * Numbers that Debian's liburing 2.3 does not know are defined here by value.
 *
 * user_data is the op's address, or an interest's with the lowest bit set; 0 marks a cancel request, whose own CQE
 * means nothing (it often comes first).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core.h"

#ifdef FIBERS_NO_LIBURING

#include <errno.h>

int fb_uring_built(void) { return 0; }
struct fb_driver *fb_uring_new(const struct fb_uring_config *config, int *error, const char **step)
{
    (void)config;
    *error = -ENOSYS;
    *step = "built without liburing";
    return NULL;
}
void fb_uring_info(struct fb_driver *d, struct fb_uring_info *info) { (void)d; (void)info; }

#else

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Provided buffers, each handed out whole.
 *
 * Facts: since Linux 6.12 a buffer can be handed out in slices (IOU_PBUF_RING_INC), where user space works out each
 * slice's place by adding up results. A recv woken 128 times in vain moves to a worker thread (APOLL_MAX_RETRY), which
 * commits the length asked for, not the length received, and no CQE tells which of the two it was.
 * Consequence: after that every sum is off and receivers get each other's bytes (seen on 6.18). A slice at the end of a
 * buffer also cuts a datagram short.
 * Choice: whole buffers, 128 of them. More cost cache: at 10,000 connections 256 took 6 % more CPU per request, 1,024 a
 * quarter more; running out costs a wait in the order of asking, never data.
 * Cost: none measured at 1 KiB messages; a 64 KiB message arrives in four pieces. */
enum { SQ_ENTRIES = 256, CQ_ENTRIES = 4096, BUFFERS = 128, BUFFER_SIZE = 16384, MAX_BUFFERS = 1024, SCRATCH = 65536 };

struct uring {
    struct fb_driver base;    /* first: an fb_driver * is a struct uring * */
    struct io_uring ring;
    struct fb_uring_info info;
    struct io_uring_buf_ring *table; /* owned, mapped */
    char *memory;             /* owned, mapped: buffers x buffer_size, resident only where touched */
    uint32_t free;            /* buffers not in our owners' hands; a worker thread may hold some while it waits */
    uint64_t given;           /* how often a buffer was given to the kernel */
    uint64_t dry;             /* `given` at the last -ENOBUFS: until it grows no receive finds a buffer */
    struct fb_row waiting;    /* ops in state WAITING for room in the queue */
    struct fb_row starved;    /* receives in state WAITING for a buffer, or for room */
    struct fb_op wake_op;     /* a read of the wake pipe, always in flight */
    char wake_bytes[64];
    int wake_error;           /* the wake pipe is gone: the driver is broken */
    uint8_t closing;          /* what ends now ends for good */
    uint8_t unarmed;          /* some interest is waited on, and there was no room to arm it */
    char scratch[SCRATCH];    /* what an attempted FB_RECV received */
};

enum { OP_FTRUNCATE = 55 }; /* Linux 6.9 */

static const uint8_t KERNEL_OPCODE[FB_CODES] = {
    [FB_NOP] = IORING_OP_NOP,         [FB_ACCEPT] = IORING_OP_ACCEPT,   [FB_CONNECT] = IORING_OP_CONNECT,
    [FB_RECV] = IORING_OP_RECV,       [FB_RECV_INTO] = IORING_OP_RECV,  [FB_RECVMSG] = IORING_OP_RECVMSG,
    [FB_SEND] = IORING_OP_SEND,       [FB_SENDALL] = IORING_OP_SEND,    [FB_SENDMSG] = IORING_OP_SENDMSG,
    [FB_POLL] = IORING_OP_POLL_ADD,   [FB_SHUTDOWN] = IORING_OP_SHUTDOWN, [FB_CLOSE] = IORING_OP_CLOSE,
    [FB_READ] = IORING_OP_READ,       [FB_WRITE] = IORING_OP_WRITE,     [FB_FSYNC] = IORING_OP_FSYNC,
    [FB_OPENAT] = IORING_OP_OPENAT,   [FB_READV] = IORING_OP_READV,     [FB_WRITEV] = IORING_OP_WRITEV,
    [FB_STATX] = IORING_OP_STATX,     [FB_RENAMEAT] = IORING_OP_RENAMEAT, [FB_UNLINKAT] = IORING_OP_UNLINKAT,
    [FB_MKDIRAT] = IORING_OP_MKDIRAT, [FB_LINKAT] = IORING_OP_LINKAT,   [FB_SYMLINKAT] = IORING_OP_SYMLINKAT,
    [FB_FALLOCATE] = IORING_OP_FALLOCATE, [FB_FADVISE] = IORING_OP_FADVISE, [FB_FTRUNCATE] = OP_FTRUNCATE,
};

int fb_uring_built(void) { return 1; }

static unsigned clamp(uint64_t len) { return len > 0x7ffff000u ? 0x7ffff000u : (unsigned)len; }

/* A long read or write of cached data copies all of it where it is submitted, 0.1 s for a GiB, and every fiber waits.
 * Begun by a worker thread it costs them nothing, and itself some 10 us. */
enum { BY_WORKER_FROM = (1 << 20) + 1 };

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

/* Does open(2) of this path wait for somebody, as that of a FIFO does for its other end?
 *
 * Facts: io_uring tries an OPENAT with O_NONBLOCK first, unless it may create or truncate. A FIFO without a writer is
 * open then, and its first read says that the writer has gone; one without a reader is ENXIO.
 * Choice: look first, at what the kernel has at hand (RESOLVE_CACHED: no wait for a disk), and have what is neither file
 * nor directory opened by a worker thread, which waits and can be cancelled. What is not at hand goes to one anyway.
 * Cost: three short system calls, 1 us, for each open that neither creates nor truncates. */
static int waits_to_open(const struct fb_op *op)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC | (op->flags & O_NOFOLLOW), .resolve = RESOLVE_CACHED};
    struct stat found;
    int fd, waits;
    if (op->flags & (O_CREAT | O_TRUNC | O_NONBLOCK | O_PATH) || (op->flags & O_ACCMODE) == O_RDWR)
        return 0;
    fd = (int)syscall(SYS_openat2, op->fd, op->data, &how, sizeof how);
    if (fd < 0)
        return 0;
    waits = fstat(fd, &found) == 0 && !S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode);
    close(fd);
    return waits;
}

static void fill(struct uring *u, struct io_uring_sqe *sqe, struct fb_op *op)
{
    switch ((enum fb_code)op->code) {
    case FB_ACCEPT:
        io_uring_prep_accept(sqe, op->fd, op->data, op->extra, (int)op->flags);
        break;
    case FB_CONNECT:
        io_uring_prep_connect(sqe, op->fd, op->data, (socklen_t)op->len);
        break;
    case FB_RECV:
        io_uring_prep_recv(sqe, op->fd, NULL, op->len < u->info.buffer_size ? op->len : u->info.buffer_size,
                           (int)op->flags & ~MSG_TRUNC); /* with it res may exceed the buffer */
        sqe->flags |= IOSQE_BUFFER_SELECT;
        sqe->buf_group = 0;
        break;
    case FB_RECV_INTO:
        io_uring_prep_recv(sqe, op->fd, op->data, clamp(op->len), (int)op->flags);
        break;
    case FB_RECVMSG:
        io_uring_prep_recvmsg(sqe, op->fd, op->data, op->flags);
        break;
    case FB_SEND:
        io_uring_prep_send(sqe, op->fd, op->data, clamp(op->len), (int)op->flags | MSG_NOSIGNAL);
        break;
    case FB_SENDALL:
        io_uring_prep_send(sqe, op->fd, (char *)op->data + op->moved, clamp(op->len - op->moved),
                           (int)op->flags | MSG_NOSIGNAL | MSG_WAITALL);
        break;
    case FB_SENDMSG:
        io_uring_prep_sendmsg(sqe, op->fd, op->data, op->flags | MSG_NOSIGNAL);
        break;
    case FB_POLL:
        io_uring_prep_poll_add(sqe, op->fd, op->flags);
        break;
    case FB_SHUTDOWN:
        io_uring_prep_shutdown(sqe, op->fd, (int)op->flags);
        break;
    case FB_CLOSE:
        io_uring_prep_close(sqe, op->fd);
        break;
    case FB_READ:
        io_uring_prep_read(sqe, op->fd, op->data, clamp(op->len), (uint64_t)op->off);
        break;
    case FB_WRITE:
        io_uring_prep_write(sqe, op->fd, op->data, clamp(op->len), (uint64_t)op->off);
        break;
    case FB_FSYNC:
        io_uring_prep_fsync(sqe, op->fd, op->flags ? IORING_FSYNC_DATASYNC : 0);
        break;
    case FB_OPENAT:
        io_uring_prep_openat(sqe, op->fd, op->data, (int)op->flags, (mode_t)op->len);
        break;
    case FB_READV:
        io_uring_prep_readv2(sqe, op->fd, op->data, (unsigned)op->len, (uint64_t)op->off, (int)op->flags);
        break;
    case FB_WRITEV:
        io_uring_prep_writev2(sqe, op->fd, op->data, (unsigned)op->len, (uint64_t)op->off, (int)op->flags);
        break;
    case FB_STATX:
        io_uring_prep_statx(sqe, op->fd, op->data, (int)op->flags, (unsigned)op->len, op->extra);
        break;
    case FB_RENAMEAT:
        io_uring_prep_renameat(sqe, op->fd, op->data, (int)op->len, op->extra, op->flags);
        break;
    case FB_UNLINKAT:
        io_uring_prep_unlinkat(sqe, op->fd, op->data, (int)op->flags);
        break;
    case FB_MKDIRAT:
        io_uring_prep_mkdirat(sqe, op->fd, op->data, (mode_t)op->len);
        break;
    case FB_LINKAT:
        io_uring_prep_linkat(sqe, op->fd, op->data, (int)op->len, op->extra, (int)op->flags);
        break;
    case FB_SYMLINKAT:
        io_uring_prep_symlinkat(sqe, op->data, op->fd, op->extra);
        break;
    case FB_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, (int)op->flags, (off_t)op->off, (off_t)op->len);
        break;
    case FB_FADVISE:
        io_uring_prep_fadvise(sqe, op->fd, (uint64_t)op->off, (off_t)op->len, (int)op->flags);
        break;
    case FB_FTRUNCATE:
        io_uring_prep_rw(OP_FTRUNCATE, sqe, op->fd, NULL, 0, op->len);
        break;
    default:
        io_uring_prep_nop(sqe);
        break;
    }
    if ((op->code == FB_READ || op->code == FB_WRITE) ? op->len >= BY_WORKER_FROM
                                                      : op->code == FB_OPENAT && waits_to_open(op))
        sqe->flags |= IOSQE_ASYNC;
    io_uring_sqe_set_data(sqe, op);
}

/* A free SQE, after a submission if the queue was full; NULL while the kernel takes nothing (its CQ overflowed). */
static struct io_uring_sqe *next_sqe(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe) {
        u->base.count.enters++;
        io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

static struct fb_interest *interest_of(struct fb_op *op)
{
    return op->code == FB_RECV || op->code == FB_RECV_INTO ? op->extra : NULL;
}

static struct fb_row *row_of(struct uring *u, struct fb_op *op)
{
    struct fb_interest *it = interest_of(op);
    return it ? &it->waiters : op->code == FB_RECV ? &u->starved : &u->waiting;
}

static void queue_waiting(struct uring *u, struct fb_op *op)
{
    op->state = FB_WAITING;
    fb_row_push(row_of(u, op), op);
}

static int launch(struct uring *u, struct fb_op *op)
{
    struct io_uring_sqe *sqe;
    if (op->code == FB_RECV && u->dry == u->given)
        return 0;
    sqe = next_sqe(u);
    if (!sqe)
        return 0;
    if (op->code == FB_RECV)
        op->moved = u->given; /* it moves nothing in rounds: here, what it was launched at */
    fill(u, sqe, op);
    op->state = FB_FLYING;
    return 1;
}

/* At once, or behind those that starve already: they asked first. */
static void start(struct uring *u, struct fb_op *op)
{
    if ((op->code == FB_RECV && u->starved.head) || !launch(u, op))
        queue_waiting(u, op);
}

/* Interests: a multishot poll, edge-triggered, that says when to call recv(2).
 *
 * Facts: a one-shot receive costs an SQE each time, and a buffer. A multishot receive costs neither, but reads ahead:
 * what it took can be neither handed on with the fd nor left to the peer's flow control. A multishot poll costs about
 * as little and reads nothing.
 * A TCP receive that got less than it asked for has emptied the socket, unless urgent data, an error or the peer's end
 * stands behind what it got; the poll tells of each of those. On other sockets a short receive says nothing.
 * Choice: a multishot poll, and this shortcut for TCP. Without it each wait costs a recv(2) in vain.
 * Cost: what arrives while nobody receives wakes the driver once for each arrival, and a close has to end the poll. */

static void uring_follow(struct fb_driver *d, struct fb_interest *it)
{
    int protocol = 0;
    socklen_t size = sizeof protocol;
    (void)d;
    it->ready = 1; /* nobody knows yet */
    it->drains = getsockopt(it->fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 && protocol == IPPROTO_TCP;
}

static uint64_t tag_of(struct fb_interest *it) { return (uint64_t)(uintptr_t)it | 1; }

static void arm(struct uring *u, struct fb_interest *it)
{
    struct io_uring_sqe *sqe = next_sqe(u);
    if (!sqe) {
        u->unarmed = 1;
        return;
    }
    io_uring_prep_poll_multishot(sqe, it->fd, POLLIN | POLLPRI | POLLRDHUP);
    io_uring_sqe_set_data64(sqe, tag_of(it));
    it->armed = 1;
}

static void arm_all(struct uring *u)
{
    u->unarmed = 0;
    for (struct fb_interest *it = u->base.interests; it && !u->unarmed; it = it->next)
        if (it->waiters.head && !it->armed)
            arm(u, it);
}

/* Complete all that wait: each attempts, and the late ones wait again. */
static void tell(struct uring *u, struct fb_interest *it, int32_t res)
{
    struct fb_op *op = it->waiters.head, *next;
    it->waiters.head = it->waiters.tail = NULL;
    for (; op; op = next) {
        next = op->next;
        fb_complete(&u->base, op, res);
    }
}

static void interest_event(struct uring *u, struct fb_interest *it, const struct io_uring_cqe *cqe)
{
    if (!(cqe->flags & IORING_CQE_F_MORE))
        it->armed = 0; /* ended by an error, by us, or because the CQ overflowed */
    if (it->orphan) {
        if (!it->armed)
            fb_forget_interest(it);
        return;
    }
    it->ready = 1;
    if (cqe->res & ~POLLIN)
        it->drains = 0;
    tell(u, it, cqe->res < 0 ? cqe->res : -EAGAIN);
}

static void submit_to_interest(struct uring *u, struct fb_interest *it, struct fb_op *op)
{
    if (it->ready) {
        fb_complete(&u->base, op, -EAGAIN);
        return;
    }
    queue_waiting(u, op);
    if (!it->armed)
        arm(u, it);
}

/* Attempts: without a wait, as the scheduler asks; what does not fit goes on through the ring. */

static int attempt_recv(struct uring *u, struct fb_interest *it, struct fb_op *op)
{
    ssize_t n;
    if (!it->ready)
        return 0;
    if (op->code == FB_RECV) {
        op->data = u->scratch;
        if (op->len > SCRATCH)
            op->len = SCRATCH;
    }
    n = recv(it->fd, op->data, clamp(op->len), (int)op->flags | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        it->ready = errno == EINTR;
        return 0;
    }
    if (n > 0 && (uint64_t)n < op->len && it->drains && !op->flags)
        it->ready = 0;
    op->res = n < 0 ? -errno : (int32_t)n;
    return 1;
}

static int uring_attempt(struct fb_driver *d, struct fb_op *op)
{
    int flags = (int)op->flags | MSG_NOSIGNAL | MSG_DONTWAIT;
    struct fb_interest *it = interest_of(op);
    ssize_t sent;
    if (it)
        return attempt_recv((struct uring *)d, it, op);
    if (op->code == FB_SEND || op->code == FB_SENDALL)
        sent = send(op->fd, op->data, clamp(op->len), flags);
    else if (op->code == FB_SENDMSG)
        sent = sendmsg(op->fd, op->data, flags);
    else
        return 0;
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (op->code == FB_SENDALL && sent >= 0) {
        op->moved = (uint64_t)sent;
        if (op->moved < op->len)
            return 0;
    }
    op->res = sent < 0 ? -errno : (int32_t)sent;
    return 1;
}

static void uring_submit(struct fb_driver *d, struct fb_op *op)
{
    struct uring *u = (struct uring *)d;
    if (op->code == FB_RECV && op->len == 0)
        op->code = FB_RECV_INTO; /* to the kernel, no length with buffer selection means the buffer's */
    if (op->code >= FB_CODES || !(u->info.supported >> op->code & 1)) {
        fb_complete(d, op, -EOPNOTSUPP);
        return;
    }
    if (interest_of(op)) {
        submit_to_interest(u, interest_of(op), op);
        return;
    }
    start(u, op);
}

static int32_t sent(const struct fb_op *op) { return op->moved > INT32_MAX ? INT32_MAX : (int32_t)op->moved; }

static int ask_cancel(struct uring *u, uint64_t user_data)
{
    struct io_uring_sqe *sqe = next_sqe(u);
    if (!sqe)
        return 0;
    io_uring_prep_cancel64(sqe, user_data, 0);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(sqe, 0);
    return 1;
}

static void uring_cancel(struct fb_driver *d, struct fb_op *op)
{
    struct uring *u = (struct uring *)d;
    if (op->state == FB_WAITING) {
        fb_row_remove(row_of(u, op), op);
        fb_complete(d, op, op->code == FB_SENDALL && op->moved ? sent(op) : -ECANCELED);
        return;
    }
    while (!ask_cancel(u, (uint64_t)(uintptr_t)op)) {
        /* The CQ overflowed, and the kernel refuses submissions until it is flushed. Reap and ask again: a request that
         * was dropped here would leave its fiber parked for ever. */
        if (d->verbs->poll(d, 0) < 0 || op->state == FB_DONE)
            return;
    }
}

/* Until the kernel let go: the poll holds the file, and a close(2) would send no FIN meanwhile. One enter as a rule. */
static void uring_unfollow(struct fb_driver *d, struct fb_interest *it)
{
    struct uring *u = (struct uring *)d;
    int asked = 0;
    for (int i = 0; it->armed && i < 10000; i++) {
        asked = asked || ask_cancel(u, tag_of(it));
        if (d->verbs->poll(d, 0) < 0 && !io_uring_cq_ready(&u->ring))
            break;
    }
    if (it->armed)
        it->orphan = 1; /* a broken ring: its close frees it */
    else
        fb_forget_interest(it);
}

static int some_armed(struct fb_driver *d)
{
    struct fb_interest *it = d->interests;
    while (it && !it->armed)
        it = it->next;
    return it != NULL;
}

static void end_orphans(struct uring *u)
{
    struct fb_interest *next;
    __atomic_exchange_n(&u->base.orphans, 0, __ATOMIC_ACQ_REL);
    for (struct fb_interest *it = u->base.interests; it; it = next) {
        next = it->next;
        if (!it->orphan)
            continue;
        if (!it->armed)
            fb_forget_interest(it);
        else if (!ask_cancel(u, tag_of(it)))
            u->base.orphans = 1;
    }
}

/* Buffers. */

static void give(struct uring *u, uint32_t bid)
{
    io_uring_buf_ring_add(u->table, u->memory + (size_t)bid * u->info.buffer_size, u->info.buffer_size,
                          (unsigned short)bid, io_uring_buf_ring_mask(u->info.buffers), 0);
    io_uring_buf_ring_advance(u->table, 1);
    u->given++;
    u->free++;
}

static void take(struct uring *u, struct fb_op *op, const struct io_uring_cqe *cqe)
{
    uint32_t bid = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    u->free--;
    if (cqe->res <= 0) {
        give(u, bid); /* the end of the stream, or a cancel after a worker thread had chosen */
        return;
    }
    op->buffer = (int32_t)bid;
    op->data = u->memory + (size_t)bid * u->info.buffer_size;
}

static void uring_release(struct fb_driver *d, struct fb_op *op)
{
    give((struct uring *)d, (uint32_t)op->buffer);
    op->buffer = -1;
    op->data = NULL;
}

/* Reaping. */

static void arm_wake(struct uring *u)
{
    struct io_uring_sqe *sqe = next_sqe(u);
    if (!sqe) {
        u->wake_op.state = FB_IDLE;
        return;
    }
    io_uring_prep_read(sqe, u->base.wake_reader, u->wake_bytes, sizeof u->wake_bytes, (uint64_t)-1);
    io_uring_sqe_set_data(sqe, &u->wake_op);
    u->wake_op.state = FB_FLYING;
}

/* A completion that arrives as a signal (no DEFER_TASKRUN), or the cancel of what a worker thread did before, interrupts
 * an op that has nothing to do with it: it did nothing and begins anew. Not so connect(2) and close(2), which go on by
 * themselves (POSIX). */
static int begins_anew(const struct fb_op *op) { return op->code != FB_CONNECT && op->code != FB_CLOSE; }

static void finish(struct uring *u, struct fb_op *op, const struct io_uring_cqe *cqe)
{
    int32_t res = cqe->res;
    if (cqe->flags & IORING_CQE_F_BUFFER)
        take(u, op, cqe);
    if (op->code == FB_RECV && res == -ENOBUFS) {
        /* Every buffer holds data that its fiber has not copied yet. Arming again at once would fail at once: wait for
         * one to come back. The bytes are still in the socket. */
        u->base.count.starved++;
        if (!op->cancelling && !u->closing) {
            if (op->moved == u->given) /* else one came back meanwhile: try again */
                u->dry = u->given;
            queue_waiting(u, op);
            return;
        }
        res = -ECANCELED;
    }
    if (res == -EINTR && op->cancelling)
        res = -ECANCELED; /* how a cancel ends an op that runs in a worker thread (io_uring_prep_cancel(3)) */
    if (res == -EINTR && begins_anew(op) && !u->closing) {
        start(u, op);
        return;
    }
    if (op->code == FB_SENDALL) {
        if (res > 0)
            op->moved += (uint64_t)res;
        if (res > 0 && op->moved < op->len && !op->cancelling && !u->closing) {
            start(u, op);
            return;
        }
        if (op->moved)
            res = sent(op);
    }
    fb_complete(&u->base, op, res);
}

static unsigned reap(struct uring *u)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe) {
        struct fb_op *op = io_uring_cqe_get_data(cqe);
        n++;
        if (op == &u->wake_op) {
            if (cqe->res <= 0 && cqe->res != -ECANCELED && cqe->res != -EINTR)
                u->wake_error = cqe->res ? cqe->res : -EPIPE; /* somebody closed our pipe: reading on would spin */
            u->base.woken = 1;
            u->base.waking = 0;
            u->base.count.wakes++;
            u->wake_op.state = FB_IDLE;
        } else if ((uintptr_t)op & 1) {
            interest_event(u, (struct fb_interest *)((uintptr_t)op - 1), cqe);
        } else if (op) {
            finish(u, op, cqe);
        }
    }
    io_uring_cq_advance(&u->ring, n);
    return n;
}

static void relaunch_row(struct uring *u, struct fb_row *row, uint32_t limit)
{
    for (struct fb_op *op; (op = row->head) && limit--; fb_row_remove(row, op))
        if (!launch(u, op))
            return;
}

static void relaunch(struct uring *u)
{
    if (u->wake_op.state == FB_IDLE && !u->wake_error)
        arm_wake(u);
    if (u->unarmed)
        arm_all(u);
    if (u->base.orphans)
        end_orphans(u);
    relaunch_row(u, &u->waiting, UINT32_MAX);
    /* No more than there are buffers: the rest would fail, and cost a round through the kernel each. */
    relaunch_row(u, &u->starved, u->free ? u->free : 1);
}

static int can_relaunch(struct uring *u)
{
    return u->waiting.head || (u->starved.head && u->dry != u->given) || u->unarmed || u->base.orphans;
}

static unsigned kernel_wants(struct uring *u)
{
    return IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

static int uring_ready(struct fb_driver *d)
{
    struct uring *u = (struct uring *)d;
    return io_uring_sq_ready(&u->ring) || io_uring_cq_ready(&u->ring) || kernel_wants(u) || d->done != NULL ||
           d->woken || can_relaunch(u);
}

static int wait_in_kernel(struct uring *u, int64_t timeout_ns)
{
    struct io_uring_cqe *cqe;
    struct __kernel_timespec limit = {.tv_sec = 1 << 30};
    if (timeout_ns > 0) {
        limit.tv_sec = timeout_ns / 1000000000;
        limit.tv_nsec = timeout_ns % 1000000000;
    }
    int r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &limit, NULL);
    return r == -ETIME || r == -EINTR ? 0 : r;
}

/* Waiting, and signals.
 *
 * Facts: a signal ends io_uring_enter with EINTR even with SA_RESTART, but an enter that also submitted returns the
 * count of submissions instead, and liburing 2.3 without a timeout argument goes back to sleep after it. With
 * DEFER_TASKRUN completions appear only on an enter that asks for events.
 * Consequence: what the call returned says nothing about why it returned.
 * Choice: always a timeout argument (years, when there is none), no retry here, and no verdict beyond "the ring is
 * broken": the scheduler looks at signals and the clock after every wait without a completion.
 * Cost: 50 ns for copying the timeout. */
static int uring_poll(struct fb_driver *d, int64_t timeout_ns)
{
    struct uring *u = (struct uring *)d;
    int r;
    relaunch(u);
    if (timeout_ns == 0 || d->done || io_uring_cq_ready(&u->ring) || can_relaunch(u)) {
        if (!io_uring_sq_ready(&u->ring) && !kernel_wants(u)) {
            reap(u);
            return 0;
        }
        d->count.enters++;
        r = io_uring_submit_and_get_events(&u->ring);
    } else {
        d->count.enters++;
        d->count.waits++;
        r = wait_in_kernel(u, timeout_ns);
    }
    reap(u);
    /* ETIME: the limit. EINTR: a signal. EBUSY, EAGAIN: the kernel is short of room or memory; what was reaped made
     * some, and nothing that was queued is lost. */
    if (r < 0 && r != -ETIME && r != -EINTR && r != -EBUSY && r != -EAGAIN)
        return r;
    return u->wake_error;
}

/* Set-up. */

static int set_up_ring(struct uring *u, const struct fb_uring_config *c)
{
    /* Peeled from the right on EINVAL: each is an optimisation that older or restricted kernels lack. Without
     * DEFER_TASKRUN the cost is 45 % (design.md 5), not correctness. */
    static const unsigned PEEL[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    unsigned sq = c->sq_entries ? c->sq_entries : SQ_ENTRIES, cq = c->cq_entries ? c->cq_entries : CQ_ENTRIES;
    unsigned peel = 0;
    for (;;) {
        struct io_uring_params p = {0};
        unsigned want = PEEL[peel];
        int r;
        if (want & c->forbid & 0xffffff) {
            peel++;
            continue;
        }
        p.flags = want | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
        p.cq_entries = cq;
        r = io_uring_queue_init_params(sq, &u->ring, &p);
        if (r == -EINVAL && peel + 1 < sizeof PEEL / sizeof *PEEL) {
            peel++;
        } else if (r == -ENOMEM && sq > 16) {
            /* Rings count against RLIMIT_MEMLOCK again since Linux 6.14. */
            sq /= 2;
            cq /= 2;
        } else {
            u->info.setup_flags = p.flags;
            u->info.features = p.features;
            u->info.sq_entries = p.sq_entries;
            u->info.cq_entries = p.cq_entries;
            return r;
        }
    }
}

static void probe(struct uring *u)
{
    struct io_uring_probe *p = io_uring_get_probe_ring(&u->ring);
    for (int code = 0; code < FB_CODES; code++)
        if (!p || io_uring_opcode_supported(p, KERNEL_OPCODE[code]))
            u->info.supported |= 1ull << code;
    io_uring_free_probe(p);
}

static int set_up_buffers(struct uring *u, const struct fb_uring_config *c)
{
    /* 16 KiB: 4 KiB buffers cost five times the CPU on 64 KiB messages. Untouched pages are not resident. */
    uint32_t n = c->buffers ? c->buffers : BUFFERS;
    uint32_t size = c->buffer_size ? c->buffer_size : BUFFER_SIZE;
    struct io_uring_buf_reg reg;
    int r;
    if (n > MAX_BUFFERS || (n & (n - 1)))
        return -EINVAL;
    u->info.buffers = n;
    u->info.buffer_size = size;
    u->table = mmap(NULL, n * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    u->memory = mmap(NULL, (size_t)n * size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
    if (u->table == MAP_FAILED || u->memory == MAP_FAILED)
        return -ENOMEM;
    memset(&reg, 0, sizeof reg);
    reg.ring_addr = (uint64_t)(uintptr_t)u->table;
    reg.ring_entries = n;
    reg.bgid = 0;
    r = io_uring_register_buf_ring(&u->ring, &reg, 0);
    if (r < 0)
        return r;
    io_uring_buf_ring_init(u->table);
    for (uint32_t bid = 0; bid < n; bid++)
        give(u, bid);
    return 0;
}

static void free_buffers(struct uring *u)
{
    if (u->table && u->table != MAP_FAILED)
        munmap(u->table, u->info.buffers * sizeof(struct io_uring_buf));
    if (u->memory && u->memory != MAP_FAILED)
        munmap(u->memory, (size_t)u->info.buffers * u->info.buffer_size);
    u->table = NULL;
    u->memory = NULL;
}

/* Everything in flight is cancelled and waited for before memory goes: the kernel writes into it until the last CQE.
 * Ops that are still somebody's complete into the done list and are dropped with it. */
static void uring_close(struct fb_driver *d)
{
    struct uring *u = (struct uring *)d;
    struct io_uring_sync_cancel_reg all = {
        .flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL, .fd = -1, .timeout = {1, 0}};
    u->closing = 1;
    while (u->waiting.head || u->starved.head)
        uring_cancel(d, u->waiting.head ? u->waiting.head : u->starved.head);
    for (struct fb_interest *it = d->interests; it; it = it->next)
        tell(u, it, -ECANCELED);
    /* What stands in the queue behind an op that the kernel refused must be started before it can be cancelled: it would
     * be started by a later enter otherwise. */
    for (int i = 0; io_uring_sq_ready(&u->ring) && i < 10000; i++)
        if (io_uring_submit(&u->ring) < 0)
            reap(u);
    /* Results: the count of ops cancelled (the read of the wake pipe is one), or -ENOENT, or -ETIME: one runs on in a
     * worker and is polled for below. */
    io_uring_register_sync_cancel(&u->ring, &all);
    for (int i = 0; i < 100; i++) {
        struct fb_op *op;
        while ((op = fb_reap(d)))
            if ((op->code == FB_ACCEPT || op->code == FB_OPENAT) && op->res >= 0)
                close(op->res); /* nobody can take it (semantics.md F5) */
        if (!d->flying && !some_armed(d))
            break;
        d->count.enters++;
        if (wait_in_kernel(u, 10000000) < 0)
            break;
        reap(u);
    }
    io_uring_queue_exit(&u->ring);
    fb_forget_interests(d);
    if (!d->flying) /* else leaked on purpose: an uncancellable op may still write */
        free_buffers(u);
    fb_driver_fini(d);
    free(u);
}

static void uring_abandon(struct fb_driver *d) { close(((struct uring *)d)->ring.ring_fd); }

static const struct fb_verbs URING = {
    .name = "uring",
    .attempt = uring_attempt,
    .submit = uring_submit,
    .cancel = uring_cancel,
    .poll = uring_poll,
    .ready = uring_ready,
    .release = uring_release,
    .follow = uring_follow,
    .unfollow = uring_unfollow,
    .close = uring_close,
    .abandon = uring_abandon,
    .gathers = 1,
};

struct fb_driver *fb_uring_new(const struct fb_uring_config *config, int *error, const char **step)
{
    static const struct fb_uring_config DEFAULTS;
    const struct fb_uring_config *c = config ? config : &DEFAULTS;
    unsigned workers[2] = {4, 64}; /* bounded (files), unbounded (the rest): 400 threads were seen without a cap */
    struct uring *u = calloc(1, sizeof *u);
    *error = -ENOMEM;
    *step = "memory";
    if (!u)
        return NULL;
    *step = "pipe2";
    if ((*error = fb_driver_init(&u->base, &URING)) < 0)
        goto no_pipe;
    *step = "io_uring_setup";
    if ((*error = set_up_ring(u, c)) < 0)
        goto no_ring;
    *step = "io_uring without EXT_ARG and NODROP (Linux 5.11)";
    *error = -ENOSYS;
    if (!(u->info.features & IORING_FEAT_EXT_ARG) || !(u->info.features & IORING_FEAT_NODROP))
        goto no_features;
    probe(u);
    *step = "io_uring provided buffers (Linux 5.19)";
    if ((*error = set_up_buffers(u, c)) < 0)
        goto no_features;
    u->info.registered_fd = io_uring_register_ring_fd(&u->ring) == 1; /* 48 ns an enter; absent before 5.18 */
    io_uring_register_iowq_max_workers(&u->ring, workers);            /* absent before 5.15: the kernel's own caps hold */
    io_uring_ring_dontfork(&u->ring);
    arm_wake(u);
    /* A sandbox may let set-up pass and forbid enter: try a round trip before anybody depends on it. */
    *step = "io_uring_enter";
    u->base.count.enters++;
    if ((*error = io_uring_submit(&u->ring)) < 0)
        goto no_features;
    *error = 0;
    return &u->base;
no_features:
    io_uring_queue_exit(&u->ring);
    free_buffers(u);
no_ring:
    fb_driver_fini(&u->base);
no_pipe:
    free(u);
    return NULL;
}

void fb_uring_info(struct fb_driver *d, struct fb_uring_info *info) { *info = ((struct uring *)d)->info; }

#endif
