/* The poller on Linux's epoll. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "readiness.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int epoll_open(void)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    return poller < 0 ? -errno : poller;
}

/* EPOLL_CTL_MOD on an armed descriptor reports anew what is possible now, as EPOLL_CTL_ADD does: who asks after an
 * attempt in vain misses no edge. */
static int epoll_arm(int poller, int fd, uint64_t id, uint32_t bits, int known)
{
    struct epoll_event event = {.events = EPOLLET, .data.u64 = id};
    if (bits & FB_IN)
        event.events |= EPOLLIN | EPOLLRDHUP | EPOLLPRI;
    if (bits & FB_OUT)
        event.events |= EPOLLOUT;
    if (epoll_ctl(poller, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0)
        return known ? FB_WAS_ARMED : 0;
    if (errno == (known ? ENOENT : EEXIST) &&
        epoll_ctl(poller, known ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) == 0)
        return known ? 0 : FB_WAS_ARMED;
    return -errno;
}

static int epoll_disarm(int poller, int fd)
{
    struct epoll_event ignored = {0};
    return epoll_ctl(poller, EPOLL_CTL_DEL, fd, &ignored) < 0 ? -errno : 0;
}

static int epoll_watch_pipe(int poller, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* epoll_pwait2 has nanoseconds (Linux 5.11); before, and in sandboxes that do not know it, milliseconds, rounded up. */
static int wait_for(int poller, struct epoll_event *found, int64_t timeout_ns)
{
    int64_t ms = timeout_ns < 0 ? INT_MAX : (timeout_ns + 999999) / 1000000;
#ifdef SYS_epoll_pwait2
    static volatile int lacking;
    if (timeout_ns > 0 && !lacking) {
        struct { int64_t seconds, nanoseconds; } limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        int n = (int)syscall(SYS_epoll_pwait2, poller, found, FB_EVENTS, &limit, NULL, (size_t)0);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return n;
        lacking = 1;
    }
#endif
    return epoll_wait(poller, found, FB_EVENTS, ms > INT_MAX ? INT_MAX : (int)ms);
}

static int epoll_wait_for(int poller, struct fb_event *events, int64_t timeout_ns)
{
    struct epoll_event found[FB_EVENTS];
    int n = wait_for(poller, found, timeout_ns);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < n; i++) {
        uint32_t e = found[i].events, bits = 0;
        if (e & (EPOLLIN | EPOLLPRI))
            bits |= FB_IN;
        if (e & EPOLLOUT)
            bits |= FB_OUT;
        if (e & EPOLLRDHUP)
            bits |= FB_IN | FB_ENDED;
        if (e & (EPOLLHUP | EPOLLERR))
            bits |= FB_IN | FB_OUT | FB_ENDED;
        if (e & EPOLLPRI)
            bits |= FB_URGENT;
        events[i] = (struct fb_event){found[i].data.u64, bits};
    }
    return n;
}

static void epoll_close(int poller) { close(poller); }

const struct fb_poller fb_epoll = {
    .name = "epoll",
    .step = "epoll_create1",
    .tells_urgent = 1,
    .open = epoll_open,
    .arm = epoll_arm,
    .disarm = epoll_disarm,
    .watch_pipe = epoll_watch_pipe,
    .wait = epoll_wait_for,
    .close = epoll_close,
    .abandon = epoll_close, /* it is the same object as the parent's: nothing may be removed from it */
};
