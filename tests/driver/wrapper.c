/* A driver in a wrapper that checks the contract (fibers/driver/core.h) under whatever runs on it: wrapper.py puts one
 * on every driver that the suite runs on. It stands between the scheduler and the driver as verbs of its own.
 *
 * Each op that is submitted has a twin, and the driver knows only that; so has the memory that the op names, between
 * guards, unless it is large or aligned for O_DIRECT. What is written there when it may not be does no harm, and is found.
 *
 *  1. submit and cancel hand nothing out; an attempt leaves the op its owner's (rule 1).
 *  2. What poll hands out was submitted, and is handed out once (rule 2).
 *  3. The guards hold, nothing beyond the result was written, and an op that has ended lies in quarantine for a while
 *     with poison in its memory: it and the poison stay. What an FB_RECV received stays until it is released (rule 3).
 *  4. -ECANCELED ends only what was asked to end (rule 4).
 *  5. One thread owns a driver.
 *  6. Nothing is in flight on a descriptor that is closed, nor follows it, and no file does anything after its close.
 *  7. At the end of a driver no op is in flight, and no buffer is in its owner's hands.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LARGE = 1 << 17, GUARD = 32, QUARANTINED = 128, QUARANTINED_BYTES = 1 << 20, BUFFERS = 1024 };
enum { DESCRIPTORS = 1 << 20, POISON = 0x5a, FRESH = 0xa5, MAGIC = 0x7719 };

/* Memory that an op names: the driver reads it, fills it as far as the result says, or fills it with a record. */
enum use { READ, FILLED, RECORD };

struct part {
    char *theirs, *ours;
    size_t size;
    enum use use;
    uint64_t sum;             /* of what is read */
};

struct twin {
    struct fb_op op;          /* first: what the driver knows is a struct twin * */
    struct fb_op last;        /* as it was when it ended */
    struct fb_op *user;       /* borrowed: until it ends */
    struct twin *prev, *next; /* among those in flight, or in quarantine */
    struct msghdr header;
    struct iovec *vectors;    /* owned or NULL: of the header, or of a READV */
    struct part *parts;       /* owned or NULL */
    char *memory;             /* owned or NULL: of all parts */
    size_t size;
    uint32_t count, magic;
    int fd, ended;
};

struct checked {
    struct fb_verbs verbs;    /* first: a driver's verbs are a struct checked * */
    const struct fb_verbs *inner;
    struct fb_driver *driver; /* borrowed; NULL: a place to use again */
    struct checked *next;     /* of all there ever were */
    pthread_t owner;
    int owned;
    struct twin *flying;
    struct twin *oldest, *newest; /* in quarantine */
    uint32_t flying_count, quarantine_count;
    size_t quarantine_size;
    uint16_t *busy;           /* owned: by descriptor, how many ops are in flight */
    uint8_t *followed;        /* owned: by descriptor, whether an interest was set up */
    uint8_t *shut;            /* owned: by descriptor, whether its owner has closed it */
    uint32_t cap;
    uint8_t taken[BUFFERS];   /* a completed FB_RECV holds it */
    uint64_t sums[BUFFERS];
};

static struct checked *all;
static _Atomic uint64_t twins;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards `said` */
static char said[4000], told[4000];

__attribute__((format(printf, 2, 3))) static void complain(struct checked *c, const char *format, ...)
{
    char line[400];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(stderr, "contract: %s: %s\n", c->inner->name, line);
    pthread_mutex_lock(&lock);
    snprintf(said + strlen(said), sizeof said - strlen(said), "%s: %s\n", c->inner->name, line);
    pthread_mutex_unlock(&lock);
}

#define CHECK(what, ...)                                                                                               \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            complain(c, __VA_ARGS__);                                                                                  \
    } while (0)

static struct checked *of(struct fb_driver *d)
{
    struct checked *c = (struct checked *)(uintptr_t)d->verbs;
    if (!c->owned) {
        c->owned = 1;
        c->owner = pthread_self();
    }
    CHECK(pthread_equal(c->owner, pthread_self()), "a verb on another thread than the driver's");
    return c;
}

/* The driver may call its own verbs. */
#define INSIDE(call)                                                                                                   \
    do {                                                                                                               \
        d->verbs = c->inner;                                                                                           \
        call;                                                                                                          \
        d->verbs = &c->verbs;                                                                                          \
    } while (0)

static uint64_t sum_of(const void *at, size_t n)
{
    const unsigned char *p = at;
    uint64_t sum = n, word;
    for (; n >= sizeof word; p += sizeof word, n -= sizeof word) {
        memcpy(&word, p, sizeof word);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
    }
    while (n--)
        sum = (sum ^ *p++) * 0x9e3779b97f4a7c15ull;
    return sum;
}

static int all_bytes(const char *at, size_t n, int byte)
{
    return !n || (*at == (char)byte && memcmp(at, at + 1, n - 1) == 0);
}

/* Descriptors. */

static int reserve(struct checked *c, int fd)
{
    uint32_t cap = c->cap ? c->cap : 256;
    if (fd < 0 || fd >= DESCRIPTORS)
        return 0;
    if ((uint32_t)fd < c->cap)
        return 1;
    while (cap <= (uint32_t)fd)
        cap *= 2;
    c->busy = realloc(c->busy, cap * sizeof *c->busy);
    c->followed = realloc(c->followed, cap);
    c->shut = realloc(c->shut, cap);
    if (!c->busy || !c->followed || !c->shut)
        abort();
    memset(c->busy + c->cap, 0, (cap - c->cap) * sizeof *c->busy);
    memset(c->followed + c->cap, 0, cap - c->cap);
    memset(c->shut + c->cap, 0, cap - c->cap);
    c->cap = cap;
    return 1;
}

static void closes(struct checked *c, struct fb_driver *d, int fd)
{
    if (!reserve(c, fd))
        return;
    CHECK(!c->busy[fd], "descriptor %d is closed with %u operations in flight on it", fd, c->busy[fd]);
    if (c->followed[fd])
        for (struct fb_interest *it = d->interests; it; it = it->next)
            CHECK(it->fd != fd || __atomic_load_n(&it->orphan, __ATOMIC_ACQUIRE),
                  "descriptor %d is closed while an interest follows it", fd);
    c->followed[fd] = 0;
    c->shut[fd] = 1;
}

/* Twins. */

static void add(struct twin *t, void *at, size_t size, enum use use)
{
    if (at && size) {
        t->parts[t->count++] = (struct part){.theirs = at, .size = size, .use = use};
        t->size += size + GUARD;
    }
}

static void add_vectors(struct twin *t, const struct iovec *v, size_t n, enum use use)
{
    for (size_t i = 0; i < n; i++)
        add(t, v[i].iov_base, v[i].iov_len, use);
}

static void add_words(struct twin *t, void *words) { add(t, words, words ? strlen(words) + 1 : 0, READ); }

/* The memory that the op names. */
static void find_parts(struct twin *t, const struct fb_op *op)
{
    const struct msghdr *m = op->data;
    size_t vectors = op->code == FB_RECVMSG || op->code == FB_SENDMSG ? (size_t)m->msg_iovlen
                     : op->code == FB_READV || op->code == FB_WRITEV  ? (size_t)op->len
                                                                      : 0;
    t->parts = malloc((vectors + 3) * sizeof *t->parts);
    if (!t->parts)
        abort();
    switch ((enum fb_code)op->code) {
    case FB_RECV_INTO:
    case FB_READ:
        add(t, op->data, op->len, FILLED);
        break;
    case FB_SEND:
    case FB_SENDALL:
    case FB_WRITE:
    case FB_CONNECT:
        add(t, op->data, op->len, READ);
        break;
    case FB_ACCEPT:
        if (op->data && op->extra) {
            add(t, op->data, *(socklen_t *)op->extra, RECORD);
            add(t, op->extra, sizeof(socklen_t), RECORD);
        }
        break;
    case FB_RECVMSG:
    case FB_SENDMSG:
        add_vectors(t, m->msg_iov, vectors, op->code == FB_RECVMSG ? FILLED : READ);
        add(t, m->msg_name, m->msg_namelen, op->code == FB_RECVMSG ? RECORD : READ);
        add(t, m->msg_control, m->msg_controllen, op->code == FB_RECVMSG ? RECORD : READ);
        break;
    case FB_READV:
    case FB_WRITEV:
        add_vectors(t, op->data, vectors, op->code == FB_READV ? FILLED : READ);
        break;
    case FB_RENAMEAT:
    case FB_LINKAT:
    case FB_SYMLINKAT:
        add_words(t, op->extra);
        add_words(t, op->data);
        break;
    case FB_OPENAT:
    case FB_UNLINKAT:
    case FB_MKDIRAT:
        add_words(t, op->data);
        break;
#ifdef __linux__
    case FB_STATX:
        add_words(t, op->data);
        add(t, op->extra, sizeof(struct statx), RECORD);
        break;
#endif
    default:
        break;
    }
}

/* O_DIRECT wants what it gets aligned. */
static int may_be_direct(const struct twin *t)
{
    if (t->op.code != FB_READ && t->op.code != FB_WRITE && t->op.code != FB_READV && t->op.code != FB_WRITEV)
        return 0;
    return t->count && (uintptr_t)t->parts[0].theirs % 512 == 0;
}

static void *ours(const struct twin *t, void *theirs)
{
    for (uint32_t i = 0; i < t->count; i++)
        if (t->parts[i].theirs == theirs)
            return t->parts[i].ours;
    return theirs;
}

static struct iovec *our_vectors(struct twin *t, const struct iovec *v, size_t n)
{
    t->vectors = malloc(n * sizeof *v + 1);
    if (!t->vectors)
        abort();
    for (size_t i = 0; i < n; i++)
        t->vectors[i] = (struct iovec){ours(t, v[i].iov_base), v[i].iov_len};
    return t->vectors;
}

/* Give the twin memory of its own. */
static void double_memory(struct twin *t)
{
    struct fb_op *op = &t->op;
    char *at;
    find_parts(t, op);
    if (!t->count || t->size > LARGE || may_be_direct(t)) {
        t->count = 0;
        t->size = 0;
        return;
    }
    at = t->memory = malloc(t->size += GUARD);
    if (!at)
        abort();
    memset(at, FRESH, t->size);
    for (uint32_t i = 0; i < t->count; i++) {
        struct part *p = &t->parts[i];
        p->ours = at + GUARD;
        at += GUARD + p->size;
        if (p->use != FILLED)
            memcpy(p->ours, p->theirs, p->size);
        if (p->use == READ)
            p->sum = sum_of(p->ours, p->size);
    }
    switch ((enum fb_code)op->code) {
    case FB_RECVMSG:
    case FB_SENDMSG:
        t->header = *(struct msghdr *)op->data;
        t->header.msg_iov = our_vectors(t, t->header.msg_iov, (size_t)t->header.msg_iovlen);
        t->header.msg_name = ours(t, t->header.msg_name);
        t->header.msg_control = ours(t, t->header.msg_control);
        op->data = &t->header;
        break;
    case FB_READV:
    case FB_WRITEV:
        op->data = our_vectors(t, op->data, (size_t)op->len);
        break;
    default:
        op->data = ours(t, op->data);
        if (op->code != FB_RECV && op->code != FB_RECV_INTO) /* an interest is the driver's */
            op->extra = ours(t, op->extra);
        break;
    }
}

/* The op has ended: its owner gets what is in its memory. */
static void give_back(struct checked *c, struct twin *t)
{
    struct fb_op *user = t->user;
    size_t left = t->op.res > 0 ? (size_t)t->op.res : 0;
    for (uint32_t i = 0; i < t->count; i++) {
        struct part *p = &t->parts[i];
        size_t n = p->size;
        CHECK(all_bytes(p->ours - GUARD, GUARD, FRESH) && all_bytes(p->ours + n, GUARD, FRESH),
              "rule 3: operation %d wrote beside its memory", t->op.code);
        if (p->use == READ) {
            CHECK(sum_of(p->ours, n) == p->sum, "rule 3: operation %d wrote to what it was to read", t->op.code);
            continue;
        }
        if (p->use == FILLED) {
            n = left < n ? left : n;
            left -= n;
            CHECK(all_bytes(p->ours + n, p->size - n, FRESH),
                  "rule 3: operation %d wrote beyond its result", t->op.code);
        }
        memcpy(p->theirs, p->ours, n);
    }
    if (t->count && t->op.code == FB_RECVMSG) {
        struct msghdr *header = user->data;
        header->msg_namelen = t->header.msg_namelen;
        header->msg_controllen = t->header.msg_controllen;
        header->msg_flags = t->header.msg_flags;
    }
    user->res = t->op.res;
    user->moved = t->op.moved;
    user->buffer = t->op.buffer;
    if (t->op.code == FB_RECV)
        user->data = t->op.data;
}

/* Quarantine. */

static void free_twin(struct twin *t)
{
    free(t->vectors);
    free(t->parts);
    free(t->memory);
    free(t);
}

static void release_oldest(struct checked *c)
{
    struct twin *t = c->oldest;
    CHECK(memcmp(&t->op, &t->last, sizeof t->op) == 0, "rule 3: operation %d was touched after its end", t->last.code);
    CHECK(all_bytes(t->memory, t->size, POISON),
          "rule 3: memory of operation %d was touched after its end", t->last.code);
    c->oldest = t->next;
    if (!c->oldest)
        c->newest = NULL;
    c->quarantine_count--;
    c->quarantine_size -= t->size;
    free_twin(t);
}

static void quarantine(struct checked *c, struct twin *t)
{
    if (t->size)
        memset(t->memory, POISON, t->size);
    t->op.next = NULL;
    t->last = t->op;
    t->next = NULL;
    if (c->newest)
        c->newest->next = t;
    else
        c->oldest = t;
    c->newest = t;
    c->quarantine_count++;
    c->quarantine_size += t->size;
    while (c->quarantine_count > QUARANTINED || c->quarantine_size > QUARANTINED_BYTES)
        release_oldest(c);
}

/* Ends of ops. */

static void forget_flying(struct checked *c, struct twin *t)
{
    if (t->prev)
        t->prev->next = t->next;
    else
        c->flying = t->next;
    if (t->next)
        t->next->prev = t->prev;
    t->prev = t->next = NULL;
    c->flying_count--;
    if (reserve(c, t->fd))
        c->busy[t->fd]--;
}

static void end(struct checked *c, struct twin *t)
{
    CHECK(t->op.state == FB_DONE, "rule 2: operation %d is handed out in state %d", t->op.code, t->op.state);
    CHECK(t->op.res != -ECANCELED || t->op.cancelling, "rule 4: operation %d was cancelled by nobody", t->op.code);
    give_back(c, t);
    if (t->op.buffer >= 0 && t->op.buffer < BUFFERS) {
        CHECK(!c->taken[t->op.buffer], "rule 3: buffer %d was handed out twice", t->op.buffer);
        c->taken[t->op.buffer] = 1;
        c->sums[t->op.buffer] = sum_of(t->op.data, (size_t)t->op.res);
    }
    forget_flying(c, t);
    t->ended = 1;
    quarantine(c, t);
}

/* What poll hands out are twins: put their owners' ops in their place. */
static void hand_out(struct checked *c, struct fb_driver *d)
{
    struct fb_op **link = &d->done, *op, *next;
    for (op = d->done; op; op = next) {
        struct twin *t = (struct twin *)op;
        struct fb_op *user = t->user;
        if (t->magic != MAGIC || t->ended) {
            complain(c, "rule 2: an operation is handed out that was not submitted, or twice");
            break;
        }
        next = op->next;
        end(c, t);
        user->state = FB_DONE;
        *link = user;
        link = &user->next;
    }
    *link = NULL;
    d->done_tail = link;
}

/* The verbs. */

static int checked_attempt(struct fb_driver *d, struct fb_op *op)
{
    struct checked *c = of(d);
    uint32_t flying = d->flying;
    struct fb_op **tail = d->done_tail;
    int done;
    INSIDE(done = c->inner->attempt(d, op));
    CHECK(d->flying == flying && d->done_tail == tail && op->state == FB_IDLE,
          "rule 1: an attempt handed something out");
    return done;
}

static void checked_submit(struct fb_driver *d, struct fb_op *op)
{
    struct checked *c = of(d);
    struct twin *t = calloc(1, sizeof *t);
    if (!t)
        abort();
    twins++;
    t->magic = MAGIC;
    t->user = op;
    t->op = *op;
    t->fd = op->fd;
    if (op->code == FB_CLOSE)
        closes(c, d, op->fd);
    double_memory(t);
    if (reserve(c, t->fd)) {
        c->busy[t->fd]++;
        CHECK(!op->file || !c->shut[t->fd] || d->time >= 0 || fcntl(t->fd, F_GETFD) >= 0,
              "operation %d on a file whose owner has closed descriptor %d", op->code, t->fd);
        c->shut[t->fd] = 0;
    }
    t->next = c->flying;
    if (t->next)
        t->next->prev = t;
    c->flying = t;
    c->flying_count++;
    INSIDE(c->inner->submit(d, &t->op));
    CHECK(d->flying == c->flying_count && t->op.state != FB_IDLE, "rule 1: submit handed something out");
    op->state = t->op.state;
    op->next = &t->op; /* the driver's field: we are the driver */
}

static void checked_cancel(struct fb_driver *d, struct fb_op *op)
{
    struct checked *c = of(d);
    struct twin *t = (struct twin *)op->next;
    if (t->op.state != FB_WAITING && t->op.state != FB_FLYING)
        return;
    t->op.cancelling = 1;
    INSIDE(c->inner->cancel(d, &t->op));
    CHECK(d->flying == c->flying_count, "rule 4: cancel handed something out");
}

static int checked_poll(struct fb_driver *d, int64_t timeout_ns)
{
    struct checked *c = of(d);
    int r;
    CHECK(d->flying == c->flying_count, "%u operations are in flight, of %u", d->flying, c->flying_count);
    INSIDE(r = c->inner->poll(d, timeout_ns));
    hand_out(c, d);
    CHECK(r <= 0, "rule 7: poll returned %d", r);
    return r;
}

static int checked_ready(struct fb_driver *d)
{
    struct checked *c = of(d);
    int r;
    INSIDE(r = c->inner->ready(d));
    return r;
}

static void checked_release(struct fb_driver *d, struct fb_op *op)
{
    struct checked *c = of(d);
    int32_t buffer = op->buffer;
    if (buffer < BUFFERS) {
        CHECK(c->taken[buffer], "rule 3: buffer %d is released, and nobody's", buffer);
        CHECK(c->sums[buffer] == sum_of(op->data, (size_t)op->res),
              "rule 3: buffer %d was written to before its release", buffer);
        c->taken[buffer] = 0;
    }
    INSIDE(c->inner->release(d, op));
    CHECK(op->buffer == -1, "buffer %d is still an operation's after its release", buffer);
}

static void checked_follow(struct fb_driver *d, struct fb_interest *it)
{
    struct checked *c = of(d);
    if (reserve(c, it->fd))
        c->followed[it->fd] = 1;
    INSIDE(c->inner->follow(d, it));
}

static void checked_unfollow(struct fb_driver *d, struct fb_interest *it)
{
    struct checked *c = of(d);
    if (reserve(c, it->fd))
        c->followed[it->fd] = 0;
    INSIDE(c->inner->unfollow(d, it));
}

static void checked_drop_file(struct fb_driver *d, struct fb_file *file)
{
    struct checked *c = of(d);
    int n = 0;
    for (struct twin *t = c->flying; t && n < 100; t = t->next, n++)
        CHECK(t->op.file != file, "a file is dropped while operation %d is in flight on it", t->op.code);
    INSIDE(c->inner->drop_file(d, file));
}

static int checked_close_fd(struct fb_driver *d, int fd)
{
    struct checked *c = of(d);
    int r;
    closes(c, d, fd);
    if (!c->inner->close_fd)
        return close(fd) < 0 ? -errno : 0;
    INSIDE(r = c->inner->close_fd(d, fd));
    return r;
}

static void give_up(struct checked *c)
{
    free(c->busy);
    free(c->followed);
    free(c->shut);
    c->busy = NULL;
    c->followed = c->shut = NULL;
    c->cap = 0;
    c->driver = NULL;
}

static void checked_close(struct fb_driver *d)
{
    struct checked *c = (struct checked *)(uintptr_t)d->verbs;
    struct twin *next;
    for (struct twin *t = c->flying; t; t = t->next)
        complain(c, "the driver is closed with operation %d in flight", t->op.code);
    for (int i = 0; i < BUFFERS; i++)
        CHECK(!c->taken[i], "the driver is closed and buffer %d is not released", i);
    d->verbs = c->inner;
    c->inner->close(d);
    while (c->oldest)
        release_oldest(c);
    for (struct twin *t = c->flying; t; t = next) {
        next = t->next;
        free_twin(t);
    }
    give_up(c);
}

/* In the child of a fork: core.c has put other verbs in place of ours. */
static void checked_abandon(struct fb_driver *d)
{
    struct checked *c = all;
    while (c && c->driver != d)
        c = c->next;
    if (!c)
        return;
    c->inner->abandon(d);
    give_up(c);
}

/* What Python calls. */

/* A place of a driver that is gone, or a new one. They are never freed: the child of a fork looks through them, and no
 * lock is held then. */
static struct checked *place_for(struct fb_driver *d)
{
    struct checked *c;
    for (c = all; c; c = c->next) {
        struct fb_driver *nobody = NULL;
        if (__atomic_compare_exchange_n(&c->driver, &nobody, d, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return c;
    }
    if (!(c = calloc(1, sizeof *c)))
        abort();
    c->driver = d;
    c->next = all;
    while (!__atomic_compare_exchange_n(&all, &c->next, c, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        ;
    return c;
}

/* From here on this driver is checked. Nothing is in flight yet. */
void wrapper_put_on(struct fb_driver *d)
{
    struct checked *c = place_for(d);
    c->inner = d->verbs;
    c->verbs = *d->verbs;
    c->owned = 0;
    c->flying = c->oldest = c->newest = NULL;
    c->flying_count = c->quarantine_count = 0;
    c->quarantine_size = 0;
    memset(c->taken, 0, sizeof c->taken);
    c->verbs.attempt = checked_attempt;
    c->verbs.submit = checked_submit;
    c->verbs.cancel = checked_cancel;
    c->verbs.poll = checked_poll;
    c->verbs.ready = checked_ready;
    c->verbs.release = checked_release;
    c->verbs.close_fd = checked_close_fd;
    c->verbs.close = checked_close;
    c->verbs.abandon = checked_abandon;
    if (c->inner->follow) {
        c->verbs.follow = checked_follow;
        c->verbs.unfollow = checked_unfollow;
    }
    if (c->inner->drop_file)
        c->verbs.drop_file = checked_drop_file;
    d->verbs = &c->verbs;
}

/* What was wrong since the last call, in lines. */
const char *wrapper_complaints(void)
{
    pthread_mutex_lock(&lock);
    memcpy(told, said, sizeof told);
    said[0] = 0;
    pthread_mutex_unlock(&lock);
    return told;
}

/* Drivers that are not closed. */
int wrapper_open(void)
{
    int n = 0;
    for (struct checked *c = all; c; c = c->next)
        n += c->driver != NULL;
    return n;
}

/* How many ops were checked so far. */
unsigned long long wrapper_count(void) { return twins; }

/* For the test of the wrapper itself: what the driver knows of an op in flight, and a driver that ends one again. */
struct fb_op *wrapper_twin(struct fb_op *op) { return op->next; }

void wrapper_end_again(struct fb_driver *d, struct fb_op *twin)
{
    twin->next = NULL;
    *d->done_tail = twin;
    d->done_tail = &twin->next;
}
