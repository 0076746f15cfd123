/* What sim.c (the driver: ops and time) and simnet.c (the network: connections, links, chance, the trace) share.
 *
 * Internal to the simulated kernel; plain C like all drivers.
 */
#ifndef FIBERS_SIMNET_H
#define FIBERS_SIMNET_H

#include "sim.h"

#include <sys/types.h>

#define MS INT64_C(1000000)
#define SECOND (1000 * MS)

enum { BUFFERS = 128, BUFFER_SIZE = 16384, MAX_BUFFERS = 1024, WINDOW = 65536, HOSTS = 256, MSS = 1460, SHOWN = 32,
       FIRST_PORT = 49152, RATE = 10000, TRACE_LIMIT = 64 << 20 };
/* As Linux by default: six more SYNs in 127 seconds; unacknowledged data is given up after some 15 minutes. */
enum { SYNS = 7, GIVE_UP = 924 };
static const int64_t LATE = 10 * MS;

enum type { STREAM = 0, DATAGRAM, READER, WRITER };
enum state { FRESH = 0, LISTENING, CONNECTING, CONNECTED, DEAD };
enum timer { ARRIVAL = 0, GIVING_UP, RESET_0, RESET_1, CONNECT, RESULT, CANCEL, FEED };

struct segment {
    int64_t when;             /* it arrives */
    uint32_t size;
    uint8_t fin;
};

/* One direction of a connection. Bytes: those that arrived, then those on their way. Datagrams keep their segments until
 * they are received. */
struct pipe {
    struct fb_timer arrival, giving_up;
    struct conn *conn;        /* borrowed: what it is part of */
    char *bytes;              /* owned, a ring */
    struct segment *segments; /* owned, a ring */
    uint32_t cap, start, len, ready;
    uint32_t segment_cap, segment_start, segment_len;
    int64_t last;             /* when the last segment arrives: none overtakes another */
    uint8_t to;               /* the end that receives */
    uint8_t fin, ended;       /* the end was sent, has arrived */
    uint8_t held;             /* nothing gets through now */
};

struct conn {
    struct conn *next, *prev; /* all of them */
    struct conn *queue_next;  /* in a listener's queue */
    struct pipe pipes[2];     /* by receiving end */
    struct fb_timer resets[2];
    struct sock *end[2];      /* borrowed; NULL: not accepted yet, or gone */
    uint32_t number;
    uint16_t host[2], port[2];
    uint8_t gone[2];          /* that end is closed */
    uint8_t message;          /* datagrams */
    uint8_t instant;          /* within a host */
    uint8_t quiet;            /* not in the trace */
    uint8_t slow, vanished;
};

struct sock {
    struct fb_timer timer;    /* CONNECTING: the next step */
    struct sock *dirty_next;  /* in the list of those to look at */
    struct sock *starving_next; /* in the list of those that want a buffer */
    struct fb_row waiting;    /* borrowed: their owners' */
    struct conn *conn;        /* borrowed: lives as long as one of its ends */
    struct conn *first, *last; /* a listener's queue */
    ino_t inode;
    int fd;                   /* -1: closed, but ops still wait on it */
    int error;                /* for the next op, then it is over */
    int answer;               /* CONNECTING: what came back, once `answered` */
    uint32_t id, queued, backlog, to;
    uint16_t host, port, to_port;
    uint8_t type, state, end, dirty, starving, answered, asked, tries, read_shut, write_shut;
};

struct host {
    char name[64];
    uint16_t next_port;
    uint8_t up;
    uint8_t cut[HOSTS];       /* no link to that host */
};

/* An op whose result or cancel waits for its time. */
struct late {
    struct fb_timer timer;
    struct fb_op *op;         /* borrowed: its owner's, until it is reaped */
};

struct sim {
    struct fb_driver base;    /* first: an fb_driver * is a struct sim * */
    struct fb_sim_config config;
    struct fb_sim_info info;
    uint64_t random;
    struct fb_heap timers;
    struct host *hosts[HOSTS]; /* owned */
    struct sock **socks;      /* owned, by id; NULL: free. [0] is not used */
    uint32_t *free_ids;       /* owned: a stack */
    uint32_t *by_fd;          /* owned: id, or 0 */
    struct conn *conns;       /* owned */
    struct sock *dirty, *dirty_last;
    struct fb_op **results;   /* owned; what is in it is its owners' */
    uint32_t host_count, sock_count, sock_cap, free_id_count, by_fd_cap, result_count, result_cap, conn_count;
    struct sock *starving, *starving_last;
    struct fb_timer feed;     /* those that starve by chance are fed then */
    char *memory;             /* owned: buffers x buffer_size */
    uint16_t *free;           /* owned: a stack of buffers */
    uint32_t free_count;
    char *trace;              /* owned */
    size_t trace_size, trace_cap;
    int broken;               /* -errno: our own state could not be kept */
};

/* simnet.c */
uint64_t fb_net_below(struct sim *s, uint64_t n);
int fb_net_happens(struct sim *s, enum fb_fault fault);
int64_t fb_net_latency(struct sim *s);
void fb_net_arm(struct sim *s, struct fb_timer *t, int64_t after);
void fb_net_disarm(struct sim *s, struct fb_timer *t);
void fb_net_add(struct sim *s, const char *text, size_t size);
void fb_net_tell_time(struct sim *s);
__attribute__((format(printf, 2, 3))) void fb_net_tell(struct sim *s, const char *format, ...);
const char *fb_net_host_name(struct sim *s, uint16_t host);
const char *fb_net_route(struct sim *s, const struct conn *c, int from, char *text, size_t size);
const char *fb_net_shown(const char *data, uint32_t n, char text[SHOWN + 4]);
void fb_net_mark_dirty(struct sim *s, struct sock *k);
struct conn *fb_net_new_conn(struct sim *s, int a, int b);
void fb_net_free_conn(struct sim *s, struct conn *c);
int fb_net_reachable(struct sim *s, const struct conn *c);
uint32_t fb_net_room(struct sim *s, const struct pipe *p);
void fb_net_drop_segment(struct pipe *p);
int fb_net_transmit(struct sim *s, struct pipe *p, const char *data, uint32_t n);
void fb_net_copy_out(const struct pipe *p, char *to, uint32_t n);
void fb_net_consume(struct sim *s, struct pipe *p, uint32_t n);
void fb_net_cut_off(struct sim *s, struct pipe *p);
void fb_net_send_fin(struct sim *s, struct pipe *p);
void fb_net_break_end(struct sim *s, struct conn *c, int end, int error);
void fb_net_send_reset(struct sim *s, struct conn *c, int to);
void fb_net_reset_arrives(struct sim *s, struct conn *c, int end);
void fb_net_arrive(struct sim *s, struct pipe *p);
void fb_net_give_up(struct sim *s, struct pipe *p);
void fb_net_release_held(struct sim *s);

#define TELL_CONN(s, c, from, ...)                                                                                     \
    do {                                                                                                               \
        char words[160];                                                                                               \
        if (!(c)->quiet)                                                                                               \
            fb_net_tell(s, "%s" __VA_ARGS__);                                                                                 \
    } while (0)
#define ROUTE(s, c, from) fb_net_route(s, c, from, words, sizeof words)

#endif
