/* What every driver shares: the life of an op, the timer heap, the ready queue. No kernel interface beyond a pipe. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int64_t fb_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The life of an op: IDLE -> submit -> WAITING or FLYING -> complete -> DONE -> reap -> IDLE. */

int fb_attempt(struct fb_driver *d, struct fb_op *op)
{
    int done;
    assert(op->state == FB_IDLE);
    done = d->verbs->attempt(d, op);
    d->count.attempts += done != 0;
    return done;
}

void fb_submit(struct fb_driver *d, struct fb_op *op)
{
    assert(op->state == FB_IDLE);
    d->flying++;
    d->count.submits++;
    d->verbs->submit(d, op);
}

void fb_cancel(struct fb_driver *d, struct fb_op *op)
{
    if ((op->state != FB_WAITING && op->state != FB_FLYING) || op->cancelling)
        return;
    op->cancelling = 1;
    d->count.cancels++;
    d->verbs->cancel(d, op);
}

int fb_poll(struct fb_driver *d, int64_t timeout_ns)
{
    return d->verbs->poll(d, d->done || d->woken ? 0 : timeout_ns);
}

void fb_complete(struct fb_driver *d, struct fb_op *op, int32_t res)
{
    assert(op->state == FB_WAITING || op->state == FB_FLYING || op->state == FB_IDLE);
    op->res = res;
    op->state = FB_DONE;
    op->next = NULL;
    *d->done_tail = op;
    d->done_tail = &op->next;
    d->count.completions++;
}

struct fb_op *fb_reap(struct fb_driver *d)
{
    struct fb_op *op = d->done;
    if (!op)
        return NULL;
    assert(op->state == FB_DONE);
    d->done = op->next;
    if (!d->done)
        d->done_tail = &d->done;
    op->next = NULL;
    op->state = FB_IDLE;
    d->flying--;
    return op;
}

/* The life of an interest. */

struct fb_interest *fb_follow(struct fb_driver *d, int fd)
{
    struct fb_interest *it = d->verbs->follow ? calloc(1, sizeof *it) : NULL;
    if (!it)
        return NULL;
    it->driver = d;
    it->fd = fd;
    it->next = d->interests;
    if (d->interests)
        d->interests->prev = it;
    d->interests = it;
    d->verbs->follow(d, it);
    return it;
}

void fb_forget_interest(struct fb_interest *it)
{
    if (it->prev)
        it->prev->next = it->next;
    else
        it->driver->interests = it->next;
    if (it->next)
        it->next->prev = it->prev;
    free(it);
}

/* The driver ends: those that have an owner are his to free. */
void fb_forget_interests(struct fb_driver *d)
{
    struct fb_interest *next;
    for (struct fb_interest *it = d->interests; it; it = next) {
        next = it->next;
        it->driver = NULL;
        if (it->orphan)
            free(it);
    }
    d->interests = NULL;
}

void fb_unfollow(struct fb_interest *it)
{
    if (it->driver)
        it->driver->verbs->unfollow(it->driver, it);
    else
        free(it);
}

void fb_orphan(struct fb_interest *it)
{
    struct fb_driver *d = it->driver;
    __atomic_store_n(&it->orphan, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&d->orphans, 1, __ATOMIC_RELEASE);
    fb_wake(d);
}

void fb_release(struct fb_driver *d, struct fb_op *op)
{
    if (op->buffer >= 0)
        d->verbs->release(d, op);
}

void fb_drop_file(struct fb_driver *d, struct fb_file *file)
{
    if (file->driver == d->serial && d->verbs->drop_file)
        d->verbs->drop_file(d, file);
    file->driver = 0;
}

int fb_shut_down(struct fb_driver *d, int fd, int how)
{
    if (d && d->verbs->shut_down)
        return d->verbs->shut_down(d, fd, how);
    return shutdown(fd, how) < 0 ? -errno : 0;
}

int fb_close_fd(struct fb_driver *d, int fd)
{
    if (d && d->verbs->close_fd)
        return d->verbs->close_fd(d, fd);
    return close(fd) < 0 ? -errno : 0;
}

void fb_close(struct fb_driver *d)
{
    d->verbs->close(d);
}

/* What is left of a driver in the child of a fork. */

static void forked_op(struct fb_driver *d, struct fb_op *op) { (void)d; (void)op; }
static int forked_attempt(struct fb_driver *d, struct fb_op *op) { (void)d; (void)op; return 0; }
static int forked_poll(struct fb_driver *d, int64_t timeout_ns) { (void)d; (void)timeout_ns; return -ECANCELED; }
static int forked_ready(struct fb_driver *d) { (void)d; return 0; }
static void forked_end(struct fb_driver *d) { (void)d; }

static const struct fb_verbs FORKED = {
    .name = "forked",
    .attempt = forked_attempt,
    .submit = forked_op,
    .cancel = forked_op,
    .poll = forked_poll,
    .ready = forked_ready,
    .release = forked_op,
    .close = forked_end,
    .abandon = forked_end,
};

void fb_abandon(struct fb_driver *d)
{
    const struct fb_verbs *verbs = d->verbs;
    if (verbs == &FORKED)
        return;
    d->verbs = &FORKED;
    verbs->abandon(d);
    fb_forget_interests(d);
    fb_driver_fini(d);
    d->wake_fd = d->wake_reader = -1;
}

/* Waking. A pipe and not an eventfd: CPython's signal.set_wakeup_fd writes single bytes, which an eventfd refuses, and
 * one mechanism then serves threads and signals. Only the write end is non-blocking: io_uring answers a read on a
 * non-blocking empty pipe with -EAGAIN instead of waiting. A full pipe is a wake already on its way. */

static int open_pipe(int ends[2])
{
#ifdef __APPLE__
    if (pipe(ends) < 0)
        return -1;
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    return 0;
#else
    return pipe2(ends, O_CLOEXEC);
#endif
}

int fb_driver_init(struct fb_driver *d, const struct fb_verbs *verbs)
{
    static _Atomic uint64_t serial;
    int ends[2];
    if (open_pipe(ends) < 0)
        return -errno;
    if (fcntl(ends[1], F_SETFL, O_NONBLOCK) < 0) {
        int error = -errno;
        close(ends[0]);
        close(ends[1]);
        return error;
    }
    d->verbs = verbs;
    d->done = NULL;
    d->done_tail = &d->done;
    d->wake_reader = ends[0];
    d->wake_fd = ends[1];
    d->serial = ++serial;
    d->time = -1;
    return 0;
}

void fb_driver_fini(struct fb_driver *d)
{
    close(d->wake_reader);
    close(d->wake_fd);
}

void fb_wake(struct fb_driver *d)
{
    int saved = errno; /* a signal handler must leave it alone */
    ssize_t ignored = write(d->wake_fd, "", 1); /* EAGAIN: it is awake already; EINTR cannot be: non-blocking */
    (void)ignored;
    d->waking = 1; /* after the byte: whoever sees it finds the byte */
    errno = saved;
}

/* Timers: a 4-ary heap, half as deep as a binary one and its children in one or two cache lines. */

static int earlier(const struct fb_slot *a, const struct fb_slot *b)
{
    return a->when < b->when || (a->when == b->when && a->order < b->order);
}

static void place(struct fb_heap *h, uint32_t i, struct fb_slot s)
{
    h->slots[i] = s;
    s.timer->slot = i + 1;
}

static void rise(struct fb_heap *h, uint32_t i, struct fb_slot s)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;
        if (!earlier(&s, &h->slots[parent]))
            break;
        place(h, i, h->slots[parent]);
        i = parent;
    }
    place(h, i, s);
}

static void sink(struct fb_heap *h, uint32_t i, struct fb_slot s)
{
    for (;;) {
        uint32_t first = 4 * i + 1, best = first;
        if (first >= h->len)
            break;
        for (uint32_t c = first + 1; c < first + 4 && c < h->len; c++)
            if (earlier(&h->slots[c], &h->slots[best]))
                best = c;
        if (!earlier(&h->slots[best], &s))
            break;
        place(h, i, h->slots[best]);
        i = best;
    }
    place(h, i, s);
}

int fb_timer_arm(struct fb_heap *h, struct fb_timer *t, int64_t when)
{
    fb_timer_disarm(h, t);
    if (h->len == h->cap) {
        uint32_t cap = h->cap ? 2 * h->cap : 64;
        struct fb_slot *slots = realloc(h->slots, cap * sizeof *slots);
        if (!slots)
            return -ENOMEM;
        h->slots = slots;
        h->cap = cap;
    }
    t->when = when;
    rise(h, h->len++, (struct fb_slot){when, h->order++, t});
    return 0;
}

void fb_timer_disarm(struct fb_heap *h, struct fb_timer *t)
{
    if (!t->slot)
        return;
    uint32_t i = t->slot - 1;
    assert(i < h->len && h->slots[i].timer == t);
    t->slot = 0;
    struct fb_slot last = h->slots[--h->len];
    if (i == h->len)
        return;
    if (i > 0 && earlier(&last, &h->slots[(i - 1) / 4]))
        rise(h, i, last);
    else
        sink(h, i, last);
}

struct fb_timer *fb_timer_due(struct fb_heap *h, int64_t now)
{
    if (!h->len || h->slots[0].when > now)
        return NULL;
    struct fb_timer *t = h->slots[0].timer;
    fb_timer_disarm(h, t);
    return t;
}

void fb_heap_fini(struct fb_heap *h)
{
    for (uint32_t i = 0; i < h->len; i++)
        h->slots[i].timer->slot = 0;
    free(h->slots);
    h->slots = NULL;
    h->len = h->cap = 0;
}

/* The ready queue. */

int fb_queue_reserve(struct fb_queue *q, uint32_t room)
{
    if (room <= q->cap)
        return 0;
    uint32_t cap = q->cap ? q->cap : 64;
    while (cap < room)
        cap *= 2;
    void **slots = malloc(cap * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < q->len; i++)
        slots[i] = q->slots[(q->head + i) & (q->cap - 1)];
    free(q->slots);
    q->slots = slots;
    q->head = 0;
    q->cap = cap;
    return 0;
}

void fb_queue_push(struct fb_queue *q, void *item)
{
    assert(q->len < q->cap);
    q->slots[(q->head + q->len++) & (q->cap - 1)] = item;
}

void *fb_queue_pop(struct fb_queue *q)
{
    if (!q->len)
        return NULL;
    void *item = q->slots[q->head];
    q->head = (q->head + 1) & (q->cap - 1);
    q->len--;
    return item;
}

int fb_queue_remove(struct fb_queue *q, void *item)
{
    for (uint32_t i = 0; i < q->len; i++) {
        if (q->slots[(q->head + i) & (q->cap - 1)] != item)
            continue;
        for (uint32_t j = i + 1; j < q->len; j++)
            q->slots[(q->head + j - 1) & (q->cap - 1)] = q->slots[(q->head + j) & (q->cap - 1)];
        q->len--;
        return 1;
    }
    return 0;
}

void fb_queue_swap(struct fb_queue *q, uint32_t by)
{
    void **a = &q->slots[q->head], **b = &q->slots[(q->head + by) & (q->cap - 1)], *x = *a;
    *a = *b;
    *b = x;
}

void fb_queue_fini(struct fb_queue *q)
{
    free(q->slots);
    q->slots = NULL;
    q->len = q->cap = q->head = 0;
}
