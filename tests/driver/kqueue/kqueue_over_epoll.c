/* kqueue and kevent over epoll, for tests: the two filters that kqueue.c uses, true to the manual pages.
 *
 *  1. A knote is one (ident, filter). The filters are apart: an edge of one is none of the other. epoll has one
 *     registration per descriptor, so each kqueue is two epolls, one for each filter, inside a third that is waited on.
 *  2. EV_CLEAR reports when something arrives, and after an EV_ADD what is there; without it, while it is there.
 *  3. EV_EOF comes with the bytes that are still to be read, `data` tells how many.
 *  4. A change that fails, and every one with EV_RECEIPT, is an event with EV_ERROR and an errno in `data`; kevent then
 *     returns at once and reports nothing else. Without room for it kevent fails.
 *  5. A knote goes with its descriptor, whoever else holds the file open; epoll's stays, so the file is compared.
 *  6. A child of a fork has no kqueues.
 *
 * What is less than the real one: ident must be something that epoll takes, and the errno of a socket cannot be looked
 * at without taking it, so that fflags just says that there is one.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/event.h>
#undef close

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

enum { READ_SIDE, WRITE_SIDE, SIDES, BATCH = 64, BUCKETS = 1024 };

struct knote {
    struct knote *next;
    int fd, side;
    int dead;                 /* its descriptor was closed; epoll may still report it */
    dev_t device;
    ino_t inode;
    void *udata;
};

struct queue {
    struct queue *next;
    int fd, sides[SIDES];
    int first;                /* side that is looked at first: they take turns */
    struct knote *notes[BUCKETS]; /* by number */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct queue *queues;

static void dispose(struct queue *q)
{
    for (int i = 0; i < BUCKETS; i++) {
        for (struct knote *note = q->notes[i], *next; note; note = next) {
            next = note->next;
            free(note);
        }
    }
    close(q->sides[READ_SIDE]);
    close(q->sides[WRITE_SIDE]);
    close(q->fd);
    free(q);
}

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

static void after_fork_in_child(void)
{
    struct queue *q;
    while ((q = queues)) {
        queues = q->next;
        dispose(q);
    }
    pthread_mutex_unlock(&lock);
}

static void set_up(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

static struct queue *find_queue(int fd)
{
    struct queue *q = queues;
    while (q && q->fd != fd)
        q = q->next;
    if (q && fcntl(q->sides[READ_SIDE], F_GETFD) >= 0) {
        /* Something else may be in its place by now: an epoll knows its members. */
        struct epoll_event inner = {.events = EPOLLIN, .data.u32 = READ_SIDE};
        if (epoll_ctl(fd, EPOLL_CTL_MOD, q->sides[READ_SIDE], &inner) == 0)
            return q;
    }
    errno = EBADF;
    return NULL;
}

int kqueue(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct queue *q = calloc(1, sizeof *q);
    pthread_once(&once, set_up);
    if (!q)
        return -1;
    q->fd = epoll_create1(0);
    q->sides[READ_SIDE] = q->fd < 0 ? -1 : epoll_create1(EPOLL_CLOEXEC);
    q->sides[WRITE_SIDE] = q->sides[READ_SIDE] < 0 ? -1 : epoll_create1(EPOLL_CLOEXEC);
    for (int side = 0; side < SIDES; side++) {
        struct epoll_event inner = {.events = EPOLLIN, .data.u32 = (uint32_t)side};
        if (q->sides[side] < 0 || epoll_ctl(q->fd, EPOLL_CTL_ADD, q->sides[side], &inner) < 0) {
            int error = errno;
            dispose(q);
            errno = error;
            return -1;
        }
    }
    pthread_mutex_lock(&lock);
    q->next = queues;
    queues = q;
    pthread_mutex_unlock(&lock);
    return q->fd;
}

int fibers_stand_in_close(int fd)
{
    struct queue **link = &queues, *q;
    pthread_mutex_lock(&lock);
    while (*link && (*link)->fd != fd)
        link = &(*link)->next;
    q = *link;
    if (q)
        *link = q->next;
    pthread_mutex_unlock(&lock);
    if (!q)
        return close(fd);
    dispose(q);
    return 0;
}

/* Changes. */

static int same_file(const struct knote *note)
{
    struct stat status;
    return fstat(note->fd, &status) == 0 && status.st_dev == note->device && status.st_ino == note->inode;
}

static struct knote *find_note(struct queue *q, int fd, int side)
{
    for (struct knote *note = q->notes[(unsigned)fd % BUCKETS]; note; note = note->next) {
        if (note->fd != fd || note->side != side || note->dead)
            continue;
        if (same_file(note))
            return note;
        note->dead = 1;
    }
    return NULL;
}

static int add(struct queue *q, const struct kevent *change, int side)
{
    struct epoll_event event = {.events = side == READ_SIDE ? EPOLLIN | EPOLLRDHUP : EPOLLOUT};
    int fd = (int)change->ident;
    struct knote *note = find_note(q, fd, side);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    struct stat status;
    if (fstat(fd, &status) < 0)
        return EBADF;
    if (side == WRITE_SIDE && S_ISFIFO(status.st_mode) && poll(&p, 1, 0) > 0 && (p.revents & POLLERR))
        return EPIPE; /* nobody reads that pipe any more */
    if (change->flags & EV_CLEAR)
        event.events |= EPOLLET;
    if (!note) {
        note = calloc(1, sizeof *note);
        if (!note)
            return ENOMEM;
        *note = (struct knote){q->notes[(unsigned)fd % BUCKETS], fd, side, 0, status.st_dev, status.st_ino, NULL};
        q->notes[(unsigned)fd % BUCKETS] = note;
    }
    note->udata = change->udata;
    event.data.ptr = note;
    /* Closed and opened again under the same number it is the same file, yet unknown to epoll. */
    if (epoll_ctl(q->sides[side], EPOLL_CTL_MOD, fd, &event) < 0 &&
        (errno != ENOENT || epoll_ctl(q->sides[side], EPOLL_CTL_ADD, fd, &event) < 0)) {
        note->dead = 1;
        return errno == EPERM ? EINVAL : errno;
    }
    return 0;
}

static int delete(struct queue *q, const struct kevent *change, int side)
{
    int fd = (int)change->ident;
    struct knote *note = find_note(q, fd, side);
    struct epoll_event ignored = {0};
    if (fcntl(fd, F_GETFD) < 0)
        return EBADF;
    if (!note)
        return ENOENT;
    note->dead = 1;
    return epoll_ctl(q->sides[side], EPOLL_CTL_DEL, fd, &ignored) < 0 ? ENOENT : 0;
}

static int apply(struct queue *q, const struct kevent *change)
{
    int side = change->filter == EVFILT_READ ? READ_SIDE : WRITE_SIDE;
    if (change->filter != EVFILT_READ && change->filter != EVFILT_WRITE)
        return EINVAL;
    if (change->flags & EV_DELETE)
        return delete(q, change, side);
    if (change->flags & EV_ADD)
        return add(q, change, side);
    return find_note(q, (int)change->ident, side) ? 0 : ENOENT;
}

/* Events. */

static int fill(struct kevent *event, const struct knote *note, uint32_t bits)
{
    int bytes = 0;
    if (note->dead || !same_file(note))
        return 0;
    *event = (struct kevent){.ident = (uintptr_t)note->fd, .udata = note->udata, .flags = EV_CLEAR};
    if (note->side == READ_SIDE) {
        event->filter = EVFILT_READ;
        event->data = ioctl(note->fd, FIONREAD, &bytes) < 0 ? 1 : bytes;
        if (bits & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            event->flags |= EV_EOF;
    } else {
        event->filter = EVFILT_WRITE;
        event->data = 4096;
        if (bits & (EPOLLHUP | EPOLLERR))
            event->flags |= EV_EOF;
    }
    if (bits & EPOLLERR)
        event->fflags = EIO;
    return 1;
}

static int collect(struct queue *q, struct kevent *events, int room)
{
    int n = 0;
    for (int i = 0; i < SIDES && n < room; i++) {
        struct epoll_event found[BATCH];
        int side = (q->first + i) % SIDES, want = room - n < BATCH ? room - n : BATCH;
        int got = epoll_wait(q->sides[side], found, want, 0);
        for (int j = 0; j < got; j++)
            n += fill(&events[n], found[j].data.ptr, found[j].events);
    }
    q->first = !q->first;
    return n;
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Nanoseconds, as in kqueue: tests of idleness count system calls. */
static int wait_until(int fd, int64_t end)
{
    struct epoll_event found;
    int64_t left = end == INT64_MAX ? 0 : end - now();
    struct timespec limit = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
    return epoll_pwait2(fd, &found, 1, end == INT64_MAX ? NULL : &limit, NULL);
}

int kevent(int kq, const struct kevent *changes, int change_count, struct kevent *events, int event_count,
           const struct timespec *timeout)
{
    int64_t end = timeout ? now() + (int64_t)timeout->tv_sec * 1000000000 + timeout->tv_nsec : INT64_MAX;
    int receipts = 0;
    struct queue *q;
    pthread_mutex_lock(&lock);
    q = find_queue(kq);
    for (int i = 0; q && i < change_count; i++) {
        struct kevent change = changes[i]; /* the lists may be the same memory */
        int error = apply(q, &change);
        if (!error && !(change.flags & EV_RECEIPT))
            continue;
        if (receipts == event_count) {
            pthread_mutex_unlock(&lock);
            errno = error;
            return error ? -1 : receipts;
        }
        events[receipts] = change;
        events[receipts].flags |= EV_ERROR;
        events[receipts++].data = error;
    }
    pthread_mutex_unlock(&lock);
    if (!q)
        return -1;
    if (receipts || !event_count)
        return receipts;
    for (;;) {
        int n, ready = wait_until(kq, end);
        if (ready <= 0)
            return ready;
        pthread_mutex_lock(&lock);
        n = collect(q, events, event_count);
        pthread_mutex_unlock(&lock);
        if (n)
            return n;
    }
}
