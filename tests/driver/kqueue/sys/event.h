/* A stand-in for <sys/event.h>, so that kqueue.c can be built and tested on Linux: just what it uses, with the names of
 * kqueue(2) and the behaviour of its manual pages on FreeBSD and macOS. See kqueue_over_epoll.c. */
#ifndef FIBERS_STAND_IN_EVENT_H
#define FIBERS_STAND_IN_EVENT_H

#include <stdint.h>
#include <time.h>
#include <unistd.h>

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    intptr_t data;
    void *udata;
};

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)

#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_RECEIPT 0x0040
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

#define EV_SET(event, i, filter_, flags_, fflags_, data_, udata_)                                                      \
    (*(event) = (struct kevent){.ident = (i), .filter = (filter_), .flags = (unsigned short)(flags_),                  \
                                .fflags = (fflags_), .data = (data_), .udata = (udata_)})

int kqueue(void);
int kevent(int kq, const struct kevent *changes, int change_count, struct kevent *events, int event_count,
           const struct timespec *timeout);

/* A kqueue is one descriptor, the stand-in's are three: whoever closes one says so to us. */
int fibers_stand_in_close(int fd);
#define close(fd) fibers_stand_in_close(fd)

#endif
