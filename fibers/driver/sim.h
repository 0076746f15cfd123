/* The simulated kernel: a driver without one, whose every choice comes from a seed. See sim.c.
 *
 * Besides the verbs of core.h it has what a program would ask of the kernel by other calls (sockets, names, addresses)
 * and what only a simulation has: hosts, links between them, faults, and a trace.
 */
#ifndef FIBERS_SIM_H
#define FIBERS_SIM_H

#include <netinet/in.h>

#include "core.h"

/* What can go wrong, each with a chance of its own and counted when it does. */
enum fb_fault {
    FB_SHORT_READ = 0,        /* a receive takes less than there is */
    FB_SHORT_WRITE,           /* a send takes less than there is room for */
    FB_DELAY,                 /* a result is handed out late */
    FB_LATE_CANCEL,           /* a cancel takes effect late */
    FB_LOST_CANCEL,           /* an op that was asked to end had its real result: follows from the two before */
    FB_NO_BUFFER,             /* a receive finds no buffer (-ENOBUFS inside the driver) and waits for one */
    FB_NO_DESCRIPTOR,         /* -EMFILE for a new socket, accepted or made */
    FB_RESET,                 /* a connection is lost at a send: -ECONNRESET at both ends */
    FB_REFUSED,               /* a connection is refused */
    FB_HALF_OPEN,             /* a connection is made that the listener never hears of */
    FB_SLOW,                  /* a connection is slow */
    FB_FAULTS
};

struct fb_sim_config {
    uint64_t seed;
    uint32_t buffers, buffer_size;    /* 0: the defaults */
    uint32_t window;                  /* bytes sent and not yet received that a connection holds; 0: the default */
    uint32_t shuffled;                /* results in random order */
    int64_t latency, spread;          /* ns between hosts; + up to `spread` at random */
    int64_t late;                     /* ns: how late a delayed result or cancel is at most; 0: the default */
    uint64_t rate;                    /* bytes a second on a slow connection; 0: the default */
    uint64_t steps;                   /* passes, and */
    int64_t until;                    /* ns: the time, after which poll() says "woken" for ever; 0: no limit */
    double chance[FB_FAULTS];
};

struct fb_sim_info {
    uint32_t buffers, buffer_size;
    uint64_t supported;               /* bit per enum fb_code */
    uint64_t passes;
    int64_t time;
    uint64_t fired[FB_FAULTS];
};

/* A driver, or NULL and *error = -errno and *step = what failed (static text). Host 0 is there: "main". */
struct fb_driver *fb_sim_new(const struct fb_sim_config *config, int *error, const char **step);
void fb_sim_info(struct fb_driver *d, struct fb_sim_info *info);

/* Hosts have the addresses 10.0.0.1, 10.0.0.2 ... in order of birth. The id, or -errno. */
int fb_sim_host(struct fb_driver *d, const char *name);
/* Cut the link between two hosts, or mend it: what was sent meanwhile is sent again. */
void fb_sim_link(struct fb_driver *d, int a, int b, int up);
/* The machine is gone, and nobody is told; or it is back, without a memory of what was. */
void fb_sim_power(struct fb_driver *d, int host, int on);
/* The processes of a host die: its kernel closes all their sockets. */
void fb_sim_kill(struct fb_driver *d, int host);

/* Calls that a program makes besides ops: 0, the fd, or -errno. Descriptors are real ones of sockets that never are
 * connected to anything, so that numbers, options and leaks are real. */
int fb_sim_socket(struct fb_driver *d, int host, int type);
/* SOCK_STREAM, SOCK_DGRAM, or 0 for a pipe (read end first). */
int fb_sim_pair(struct fb_driver *d, int host, int type, int fds[2]);
int fb_sim_bind(struct fb_driver *d, int fd, const struct sockaddr_in *to);
int fb_sim_listen(struct fb_driver *d, int fd, int backlog);
int fb_sim_name(struct fb_driver *d, int fd, int peer, struct sockaddr_in *name);
/* An op performed at once, as another process's call would be: its result, or -EAGAIN. Not FB_RECV. */
int fb_sim_call(struct fb_driver *d, struct fb_op *op);
/* The next descriptor after `fd` (-1: the first) that is an open simulated socket of a host that was not crashed. */
int fb_sim_open_after(struct fb_driver *d, int fd);
/* What it is, in words. */
void fb_sim_describe(struct fb_driver *d, int fd, char *words, size_t size);

/* The trace: a line for each event, with its time. `note` adds one. */
void fb_sim_note(struct fb_driver *d, const char *line);
const char *fb_sim_trace(struct fb_driver *d, size_t *size);

#endif
