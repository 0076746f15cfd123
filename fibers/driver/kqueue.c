/* The poller on kqueue: macOS and the BSDs. A descriptor is two filters there, one for each direction.
 *
 * The kernel removes both when the descriptor is closed, whoever else holds the file open. EVFILT_USER is not needed:
 * the wake pipe has to be there for signal.set_wakeup_fd, and wakes for threads, too.
 */
#include "readiness.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/event.h>
#include <sys/time.h>
#include <unistd.h>

_Static_assert(sizeof(void *) >= sizeof(uint64_t), "an id must fit into udata");

static int kqueue_open(void)
{
    int poller = kqueue();
    if (poller < 0)
        return -errno;
    fcntl(poller, F_SETFD, FD_CLOEXEC);
    return poller;
}

/* Apply one change to the filters of these directions. Each has its own verdict: EV_RECEIPT makes the kernel return one for every change,
 * good or bad, and no event instead. */
static int change(int poller, int fd, uint64_t id, uint32_t bits, unsigned short flags, int verdicts[2])
{
    static const struct timespec AT_ONCE;
    struct kevent changes[2], receipts[2];
    int count = 0, n;
    if (bits & FB_IN)
        EV_SET(&changes[count++], (uintptr_t)fd, EVFILT_READ, flags | EV_RECEIPT, 0, 0, (void *)(uintptr_t)id);
    if (bits & FB_OUT)
        EV_SET(&changes[count++], (uintptr_t)fd, EVFILT_WRITE, flags | EV_RECEIPT, 0, 0, (void *)(uintptr_t)id);
    verdicts[0] = verdicts[1] = -ENOENT;
    do
        n = kevent(poller, changes, count, receipts, count, &AT_ONCE);
    while (n < 0 && errno == EINTR); /* the changes are applied before it waits; once more does no harm */
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++)
        if (receipts[i].flags & EV_ERROR)
            verdicts[receipts[i].filter == EVFILT_WRITE] = -(int)receipts[i].data;
    return 0;
}

static int kqueue_disarm(int poller, int fd)
{
    int verdicts[2], r = change(poller, fd, 0, FB_IN | FB_OUT, EV_DELETE, verdicts);
    if (r < 0)
        return r;
    return verdicts[0] < 0 && verdicts[1] < 0 ? verdicts[0] : 0; /* it may have had one of them only */
}

/* EV_ADD does not say whether there was a filter, and on an armed descriptor it reports anew what is possible now: as
 * after deleting it, which does say so. */
static int kqueue_arm(int poller, int fd, uint64_t id, uint32_t bits, int known)
{
    int verdicts[2], was = known && kqueue_disarm(poller, fd) == 0 ? FB_WAS_ARMED : 0;
    int r = change(poller, fd, id, bits, EV_ADD | EV_CLEAR, verdicts);
    if (r < 0)
        return r;
    if (verdicts[0] < 0 && verdicts[1] < 0)
        return bits & FB_IN ? verdicts[0] : verdicts[1] == -EPIPE ? was | FB_TRY_AGAIN : verdicts[1];
    /* The end of a pipe may lack the filter for the other direction. EPIPE: nobody reads that pipe any more, which an
     * attempt made just before may not have met yet. */
    return verdicts[1] == -EPIPE ? was | FB_TRY_AGAIN : was;
}

static int kqueue_watch_pipe(int poller, int fd)
{
    struct kevent one;
    EV_SET(&one, (uintptr_t)fd, EVFILT_READ, EV_ADD, 0, 0, NULL);
    return kevent(poller, &one, 1, NULL, 0, NULL) < 0 ? -errno : 0;
}

static int kqueue_wait(int poller, struct fb_event *events, int64_t timeout_ns)
{
    struct kevent found[FB_EVENTS];
    struct timespec limit = {.tv_sec = 1 << 26}; /* two years: macOS refuses much longer ones */
    int n;
    if (timeout_ns >= 0 && timeout_ns / 1000000000 < limit.tv_sec) {
        limit.tv_sec = timeout_ns / 1000000000;
        limit.tv_nsec = timeout_ns % 1000000000;
    }
    n = kevent(poller, NULL, 0, found, FB_EVENTS, &limit);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < n; i++) {
        uint32_t bits = found[i].filter == EVFILT_WRITE ? FB_OUT : FB_IN;
        if (found[i].flags & EV_EOF)
            bits |= FB_ENDED;
        if ((found[i].flags & EV_EOF) && found[i].fflags)
            bits |= FB_IN | FB_OUT; /* a socket's error concerns both */
        events[i] = (struct fb_event){(uint64_t)(uintptr_t)found[i].udata, bits};
    }
    return n;
}

static void kqueue_close(int poller) { close(poller); }

/* A kqueue is not inherited: unless this system's is, the number is free here, or a stranger's. */
static void kqueue_abandon(int poller)
{
    static const struct timespec AT_ONCE;
    if (kevent(poller, NULL, 0, NULL, 0, &AT_ONCE) == 0)
        close(poller);
}

const struct fb_poller fb_kqueue = {
    .name = "kqueue",
    .step = "kqueue",
    .open = kqueue_open,
    .arm = kqueue_arm,
    .disarm = kqueue_disarm,
    .watch_pipe = kqueue_watch_pipe,
    .wait = kqueue_wait,
    .close = kqueue_close,
    .abandon = kqueue_abandon,
};
