/* The thread pool of workers.h: one queue, one list of what is done, one lock. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "workers.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct fb_workers {
    struct fb_driver *driver; /* borrowed: it outlives its pool */
    pthread_mutex_t lock;     /* guards all below it */
    pthread_cond_t work;
    struct fb_op *queue, **queue_tail;
    struct fb_op *done, **done_tail;
    uint32_t idle, running, limit;
    int closing;
    _Atomic int collect;      /* `done` is not empty, and the driver was told so */
    pthread_t threads[];      /* `running` of them */
};

int fb_workers_can(int code)
{
    return code == FB_CLOSE || (code >= FB_READ && code <= FB_FTRUNCATE);
}

static int sync_file(int fd, int data_only)
{
#ifdef __APPLE__
    (void)data_only;
    return fsync(fd);
#else
    return data_only ? fdatasync(fd) : fsync(fd);
#endif
}

/* off < 0 is the file's own position; what has no positions (a pipe, a terminal) ignores off, as in io_uring. */
static ssize_t read_or_write(const struct fb_op *op)
{
    size_t len = op->len > 0x7ffff000u ? 0x7ffff000u : (size_t)op->len;
    ssize_t r = -1;
    errno = ESPIPE;
    if (op->code == FB_READ) {
        if (op->off >= 0)
            r = pread(op->fd, op->data, len, (off_t)op->off);
        if (r < 0 && errno == ESPIPE)
            r = read(op->fd, op->data, len);
    } else {
        if (op->moved && len > op->moved)
            len = (size_t)op->moved; /* what fits without waiting (readiness.c) */
        if (op->off >= 0)
            r = pwrite(op->fd, op->data, len, (off_t)op->off);
        if (r < 0 && errno == ESPIPE)
            r = write(op->fd, op->data, len);
    }
    return r;
}

static int32_t perform(const struct fb_op *op)
{
    ssize_t r;
    do {
        switch (op->code) {
        case FB_READ:
        case FB_WRITE:
            r = read_or_write(op);
            break;
        case FB_FSYNC:
            r = sync_file(op->fd, op->flags & 1);
            break;
        case FB_OPENAT:
            r = openat(op->fd, op->data, (int)op->flags, (mode_t)op->len);
            break;
        case FB_CLOSE:
            r = close(op->fd);
            if (r < 0 && errno == EINTR)
                r = 0; /* the fd is gone: again would close a stranger's */
            break;
        default:
            r = fb_file_call(op);
            break;
        }
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : (int32_t)r;
}

static void *work(void *pool)
{
    struct fb_workers *w = pool;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        struct fb_op *op = w->queue;
        if (!op) {
            if (w->closing)
                break;
            w->idle++;
            pthread_cond_wait(&w->work, &w->lock);
            w->idle--;
            continue;
        }
        w->queue = op->next;
        if (!w->queue)
            w->queue_tail = &w->queue;
        pthread_mutex_unlock(&w->lock);
        int32_t res = perform(op);
        pthread_mutex_lock(&w->lock);
        op->res = res;
        op->next = NULL;
        *w->done_tail = op;
        w->done_tail = &op->next;
        if (!w->collect) {
            w->collect = 1; /* before the byte: whoever reads it looks */
            ssize_t ignored = write(w->driver->wake_fd, &(char){FB_WORKED}, 1); /* EAGAIN: it is awake already */
            (void)ignored;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

struct fb_workers *fb_workers_new(struct fb_driver *d, uint32_t limit)
{
    struct fb_workers *w = calloc(1, sizeof *w + limit * sizeof w->threads[0]);
    if (!w)
        return NULL;
    w->driver = d;
    w->limit = limit;
    w->queue_tail = &w->queue;
    w->done_tail = &w->done;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->work, NULL);
    return w;
}

/* With all signals blocked: they are the process's own threads' to handle. */
static int start_thread(struct fb_workers *w)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&w->threads[w->running], NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        w->running++;
    return -error;
}

int fb_workers_submit(struct fb_workers *w, struct fb_op *op)
{
    int error = 0;
    uint32_t queued = 0;
    assert(fb_workers_can(op->code));
    pthread_mutex_lock(&w->lock);
    for (struct fb_op *o = w->queue; o && queued < w->limit; o = o->next)
        queued++;
    if (queued >= w->idle && w->running < w->limit)
        error = start_thread(w);
    if (w->running) {
        error = 0;
        op->state = FB_FLYING;
        op->next = NULL;
        *w->queue_tail = op;
        w->queue_tail = &op->next;
        pthread_cond_signal(&w->work);
    }
    pthread_mutex_unlock(&w->lock);
    return error;
}

int fb_workers_cancel(struct fb_workers *w, struct fb_op *op)
{
    int queued = 0;
    pthread_mutex_lock(&w->lock);
    for (struct fb_op **link = &w->queue; *link; link = &(*link)->next) {
        if (*link != op)
            continue;
        *link = op->next;
        if (!*link)
            w->queue_tail = link;
        queued = 1;
        break;
    }
    pthread_mutex_unlock(&w->lock);
    return queued;
}

int fb_workers_ready(struct fb_workers *w) { return w->collect; }

struct fb_op *fb_workers_collect(struct fb_workers *w)
{
    struct fb_op *op;
    if (!w->collect)
        return NULL;
    pthread_mutex_lock(&w->lock);
    op = w->done;
    if (op)
        w->done = op->next;
    if (!w->done) {
        w->done_tail = &w->done;
        w->collect = 0;
    }
    pthread_mutex_unlock(&w->lock);
    return op;
}

struct fb_op *fb_workers_close(struct fb_workers *w)
{
    struct fb_op *left;
    pthread_mutex_lock(&w->lock);
    for (struct fb_op *op = w->queue; op; op = op->next)
        op->res = -ECANCELED;
    *w->done_tail = w->queue;
    if (w->queue)
        w->done_tail = w->queue_tail;
    w->queue = NULL;
    w->queue_tail = &w->queue;
    w->collect = 1; /* no more wakes */
    w->closing = 1;
    pthread_cond_broadcast(&w->work);
    pthread_mutex_unlock(&w->lock);
    for (uint32_t i = 0; i < w->running; i++)
        pthread_join(w->threads[i], NULL);
    left = w->done;
    pthread_cond_destroy(&w->work);
    pthread_mutex_destroy(&w->lock);
    free(w);
    return left;
}
