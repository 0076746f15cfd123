/* What readiness.c wants of a kernel interface: a poller. epoll.c and kqueue.c are one each.
 *
 *  1. A poller reports edges: after an arm, and then each time that something has become possible, once.
 *  2. A report names the id given to arm, never a descriptor: numbers are used again.
 *  3. Nothing here retries, allocates or knows of ops. Errors are -errno.
 */
#ifndef FIBERS_READINESS_H
#define FIBERS_READINESS_H

#include <stdint.h>

enum {
    FB_IN = 1,                /* a receive, accept or read may succeed */
    FB_OUT = 2,               /* a send, write or connect may succeed */
    FB_ENDED = 4,             /* the peer will send no more, or there is an error: an attempt tells */
    FB_URGENT = 8,            /* out-of-band data: a receive may stop short at its mark */
};

enum { FB_WAS_ARMED = 1, FB_TRY_AGAIN = 2 };

struct fb_event {
    uint64_t id;
    uint32_t bits;
};

enum { FB_EVENTS = 128 };     /* at most, of one wait: a longer batch holds more buffers, and its first op waits longer */

struct fb_poller {
    const char *name;
    const char *step;         /* the call that makes one, for messages */
    int tells_urgent;         /* it reports FB_URGENT; else nothing is known of out-of-band data */
    /* A descriptor that is closed on exec; or -errno. */
    int (*open)(void);
    /* Report which of `bits` (FB_IN, FB_OUT) `fd` can do, now and from now on, as `id`. `known`: it is believed to be armed already. FB_WAS_ARMED if
     * it was (else what was believed was about an earlier file of that number), FB_TRY_AGAIN if something has happened
     * that will not be reported, or -errno. */
    int (*arm)(int poller, int fd, uint64_t id, uint32_t bits, int known);
    /* 0, or -ENOENT or -EBADF: not armed any more. */
    int (*disarm)(int poller, int fd);
    /* Report as id 0 while the pipe has something to read: by level, not by edge. */
    int (*watch_pipe)(int poller, int fd);
    /* How many events, or -errno. < 0 ns: no limit. 0 on a signal. */
    int (*wait)(int poller, struct fb_event *events, int64_t timeout_ns);
    void (*close)(int poller);
    /* In the child of a fork: let go of the parent's, if it is there at all. */
    void (*abandon)(int poller);
};

extern const struct fb_poller fb_epoll, fb_kqueue;

#endif
