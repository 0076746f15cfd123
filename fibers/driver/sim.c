/* A driver with no kernel: sockets, connections and time are simulated, and a seed makes every choice.
 *
 *  1. Nothing depends on anything but the configuration, the ops and the calls: no clock, no address, no fd number.
 *  2. Time stands still while anything can be done. poll() moves it to the next event, or to its timeout, at once.
 *     Only a poll without a limit and without an event to come really waits: for a wake.
 *  3. A stream loses nothing and reorders nothing, whatever the faults; what a reset destroys, a reset destroys.
 *  4. An op is attempted when it is submitted and whenever its socket has changed. Its result is handed out by poll, in
 *     seeded order, and later if a fault says so: until then a cancel comes too late.
 *  5. Sockets are known by number and inode: a number that was closed behind our back is another file's.
 *  6. What is no simulated socket is a file, done at once with real calls, or refused with -EOPNOTSUPP.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "simnet.h"
#include "workers.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#ifdef __APPLE__
#define POLLRDHUP 0
#define fdatasync fsync
#endif

/* Results of an attempt that is not the end. */
enum { WAIT = INT32_MIN, STARVE };
/* op->place of an op that waits: the id of its socket, or one of these. */
enum { NOWHERE = 0, IN_RESULTS = UINT32_MAX };

/* Results. */

static struct late *late_of(struct fb_timer *t) { return (struct late *)((char *)t - offsetof(struct late, timer)); }

/* 0: there was no memory for it, and it is not late. */
static int make_late(struct sim *s, struct fb_op *op, enum timer kind)
{
    struct late *late = calloc(1, sizeof *late);
    int64_t after = 1 + (int64_t)fb_net_below(s, (uint64_t)(s->config.late > 0 ? s->config.late : LATE));
    if (!late)
        return 0;
    late->op = op;
    late->timer.kind = kind;
    if (fb_timer_arm(&s->timers, &late->timer, s->base.time + after) < 0) {
        free(late);
        return 0;
    }
    return 1;
}

/* It ends before its cancel took effect. */
static void drop_late_cancel(struct sim *s, struct fb_op *op)
{
    for (uint32_t i = 0; i < s->timers.len; i++) {
        struct fb_timer *t = s->timers.slots[i].timer;
        if (t->kind == CANCEL && late_of(t)->op == op) {
            fb_timer_disarm(&s->timers, t);
            free(late_of(t));
            return;
        }
    }
}

static void add_result(struct sim *s, struct fb_op *op)
{
    if (s->result_count == s->result_cap) {
        uint32_t cap = s->result_cap ? 2 * s->result_cap : 64;
        struct fb_op **grown = realloc(s->results, cap * sizeof *grown);
        if (!grown) {
            fb_complete(&s->base, op, op->res);
            return;
        }
        s->results = grown;
        s->result_cap = cap;
    }
    s->results[s->result_count++] = op;
}

static void conclude(struct sim *s, struct fb_op *op, int32_t res)
{
    op->res = res;
    op->state = FB_FLYING;
    op->place = IN_RESULTS;
    if (!fb_net_happens(s, FB_DELAY) || !make_late(s, op, RESULT))
        add_result(s, op);
}

static void finish(struct sim *s, struct fb_op *op, int32_t res)
{
    if (op->cancelling) { /* late, and now too late */
        drop_late_cancel(s, op);
        s->info.fired[FB_LOST_CANCEL]++;
    }
    conclude(s, op, res);
}

static int32_t moved(const struct fb_op *op) { return op->moved > INT32_MAX ? INT32_MAX : (int32_t)op->moved; }

static int wants_all(const struct fb_op *op)
{
    return op->code == FB_SENDALL || ((op->code == FB_SEND || op->code == FB_RECV || op->code == FB_RECV_INTO) &&
                                      (op->flags & MSG_WAITALL));
}

static void hand_out(struct sim *s)
{
    for (uint32_t i = 0; i < s->result_count; i++) {
        struct fb_op *op;
        if (s->config.shuffled) {
            uint32_t j = i + (uint32_t)fb_net_below(s, s->result_count - i);
            op = s->results[j];
            s->results[j] = s->results[i];
        } else {
            op = s->results[i];
        }
        fb_complete(&s->base, op, op->res);
    }
    s->result_count = 0;
}

/* Sockets. */

static void closed(struct sim *s, struct sock *k);
static void look_at_dirty(struct sim *s);

/* The simulated socket of this number; NULL: there is none. */
static struct sock *find(struct sim *s, int fd)
{
    struct stat status;
    struct sock *k;
    if (fd < 0 || (uint32_t)fd >= s->by_fd_cap || !s->by_fd[fd])
        return NULL;
    k = s->socks[s->by_fd[fd]];
    if (fstat(fd, &status) == 0 && status.st_ino == k->inode && S_ISSOCK(status.st_mode))
        return k;
    closed(s, k); /* behind our back */
    return NULL;
}

static struct sock *new_sock(struct sim *s, int host, enum type type, int *error)
{
    struct stat status;
    struct sock *k;
    int fd;
    *error = -EMFILE;
    if (fb_net_happens(s, FB_NO_DESCRIPTOR)) {
        fb_net_tell(s, "%s has no descriptor for a socket", fb_net_host_name(s, (uint16_t)host));
        return NULL;
    }
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) {
        *error = -errno;
        return NULL;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    *error = -ENOMEM;
    if ((uint32_t)fd >= s->by_fd_cap) {
        uint32_t cap = s->by_fd_cap ? s->by_fd_cap : 64;
        uint32_t *grown;
        while (cap <= (uint32_t)fd)
            cap *= 2;
        if (!(grown = realloc(s->by_fd, cap * sizeof *grown)))
            goto failed;
        memset(grown + s->by_fd_cap, 0, (cap - s->by_fd_cap) * sizeof *grown);
        s->by_fd = grown;
        s->by_fd_cap = cap;
    }
    if (s->by_fd[fd])
        closed(s, s->socks[s->by_fd[fd]]);
    if (!s->free_id_count && s->sock_count == s->sock_cap) {
        uint32_t cap = s->sock_cap ? 2 * s->sock_cap : 64;
        struct sock **grown = realloc(s->socks, cap * sizeof *grown);
        uint32_t *ids;
        if (!grown)
            goto failed;
        s->socks = grown;
        if (!(ids = realloc(s->free_ids, cap * sizeof *ids)))
            goto failed;
        s->free_ids = ids;
        s->sock_cap = cap;
        if (!s->sock_count)
            grown[s->sock_count++] = NULL;
    }
    if (!(k = calloc(1, sizeof *k)))
        goto failed;
    fstat(fd, &status);
    k->inode = status.st_ino;
    k->fd = fd;
    k->type = type;
    k->host = (uint16_t)host;
    k->timer.kind = CONNECT;
    k->id = s->free_id_count ? s->free_ids[--s->free_id_count] : s->sock_count++;
    s->socks[k->id] = k;
    s->by_fd[fd] = k->id;
    if (!s->hosts[host]->up)
        k->state = DEAD;
    *error = 0;
    return k;
failed:
    close(fd);
    return NULL;
}

/* Leave a connection as close(2) does, or `silently`, as a machine does that loses power. */
static void leave_conn(struct sim *s, struct sock *k, int silently)
{
    struct conn *c = k->conn;
    struct pipe *in, *out;
    if (!c)
        return;
    in = &c->pipes[k->end];
    out = &c->pipes[!k->end];
    k->conn = NULL;
    c->end[k->end] = NULL;
    c->gone[k->end] = 1;
    fb_net_disarm(s, &c->resets[k->end]);
    if (silently) {
        fb_net_cut_off(s, out);
    } else {
        TELL_CONN(s, c, k->end, " closes", ROUTE(s, c, k->end));
        if (in->ready && k->type == STREAM)
            fb_net_send_reset(s, c, !k->end);
        else
            fb_net_send_fin(s, out);
    }
    fb_net_mark_dirty(s, c->end[!k->end]);
    if (c->gone[!k->end])
        fb_net_free_conn(s, c);
}

/* A listener goes: those in its queue are reset. */
static void leave_queue(struct sim *s, struct sock *k, int silently)
{
    while (k->first) {
        struct conn *c = k->first;
        k->first = c->queue_next;
        c->gone[1] = 1;
        if (silently)
            fb_net_cut_off(s, &c->pipes[0]);
        else
            fb_net_send_reset(s, c, 0);
        if (c->gone[0])
            fb_net_free_conn(s, c);
    }
    k->last = NULL;
    k->queued = 0;
}

static void forget(struct sim *s, struct sock *k)
{
    s->socks[k->id] = NULL;
    s->free_ids[s->free_id_count++] = k->id;
    if (k->starving) {
        struct sock **link = &s->starving, *before = NULL;
        while (*link != k) {
            before = *link;
            link = &before->starving_next;
        }
        *link = k->starving_next;
        if (s->starving_last == k)
            s->starving_last = before;
    }
    fb_net_disarm(s, &k->timer);
    free(k);
}

/* The number means nothing any more. As in the kernel, ops that wait keep the socket open. */
static void closed(struct sim *s, struct sock *k)
{
    if (k->fd >= 0)
        s->by_fd[k->fd] = 0;
    k->fd = -1;
    if (k->waiting.head || k->dirty)
        return;
    leave_queue(s, k, 0);
    leave_conn(s, k, 0);
    forget(s, k);
}

static int sim_close_fd(struct fb_driver *d, int fd)
{
    struct sim *s = (struct sim *)d;
    struct sock *k = find(s, fd);
    if (k)
        closed(s, k);
    look_at_dirty(s);
    return close(fd) < 0 && errno != EINTR ? -errno : 0;
}

/* Attempts: >= 0 or -errno is the result, WAIT until something changes. */

static int32_t would_block(const struct fb_op *op) { return op->flags & MSG_DONTWAIT ? -EAGAIN : WAIT; }

static int32_t pending_error(struct sock *k)
{
    int32_t error = -k->error;
    k->error = 0;
    return error;
}

/* The next op on it would not wait to receive; `k` is connected. */
static int receivable(const struct sock *k)
{
    const struct pipe *in = &k->conn->pipes[k->end];
    return in->ready || in->ended || k->read_shut || k->error || (k->conn->message && in->segment_len);
}

/* Take up to n bytes, or a datagram; `k` is connected and receivable. */
static int32_t take(struct sim *s, struct sock *k, const struct fb_op *op, char *to, uint64_t n)
{
    struct pipe *in = &k->conn->pipes[k->end];
    uint32_t size;
    if (k->conn->message && in->segment_len) {
        size = in->segments[in->segment_start].size;
        n = n < size ? n : size;
        fb_net_copy_out(in, to, (uint32_t)n);
        if (!(op->flags & MSG_PEEK)) {
            fb_net_consume(s, in, size);
            fb_net_drop_segment(in);
        }
        return (int32_t)n;
    }
    if (!in->ready)
        return k->error ? pending_error(k) : 0;
    size = in->ready < n ? in->ready : (uint32_t)n;
    if (size > 1 && fb_net_happens(s, FB_SHORT_READ))
        size = 1 + (uint32_t)fb_net_below(s, size - 1);
    fb_net_copy_out(in, to, size);
    if (!(op->flags & MSG_PEEK))
        fb_net_consume(s, in, size);
    return (int32_t)size;
}

static int32_t can_receive(const struct sock *k)
{
    if (k->type == WRITER)
        return -EBADF;
    if (k->state == DEAD)
        return -ENETDOWN;
    return k->state == CONNECTED ? 0 : -ENOTCONN;
}

/* At op->data + op->moved; goes on for MSG_WAITALL. */
static int32_t receive_at(struct sim *s, struct sock *k, struct fb_op *op, uint64_t len)
{
    for (;;) {
        int32_t n;
        if (!receivable(k))
            return would_block(op);
        n = take(s, k, op, op->moved ? (char *)op->data + op->moved : op->data, len - op->moved);
        if (!wants_all(op) || (op->flags & MSG_PEEK))
            return n;
        if (n <= 0)
            return op->moved ? moved(op) : n;
        op->moved += (uint64_t)n;
        if (op->moved == len)
            return moved(op);
    }
}

static int32_t receive_into(struct sim *s, struct sock *k, struct fb_op *op)
{
    int32_t error = can_receive(k);
    if (error < 0)
        return error;
    return op->len == 0 && !k->conn->message ? 0 : receive_at(s, k, op, op->len);
}

static void put_back(struct sim *s, struct fb_op *op)
{
    s->free[s->free_count++] = (uint16_t)op->buffer;
    op->buffer = -1;
    op->data = NULL;
}

static void sim_release(struct fb_driver *d, struct fb_op *op) { put_back((struct sim *)d, op); }

static int32_t receive(struct sim *s, struct sock *k, struct fb_op *op)
{
    uint64_t len = op->len < s->info.buffer_size ? op->len : s->info.buffer_size;
    int32_t res = can_receive(k);
    if (res < 0)
        return res;
    if (op->len == 0) {
        op->code = FB_RECV_INTO; /* nothing to hold */
        return receive_into(s, k, op);
    }
    if (!receivable(k))
        return would_block(op);
    if (op->buffer < 0) {
        if (!s->free_count || (k->conn->pipes[k->end].ready && fb_net_happens(s, FB_NO_BUFFER)))
            return STARVE;
        op->buffer = s->free[--s->free_count];
        op->data = s->memory + (size_t)op->buffer * s->info.buffer_size;
    }
    res = receive_at(s, k, op, len);
    if (res <= 0 && !(res == WAIT && op->moved))
        put_back(s, op);
    return res;
}

static int32_t receive_message(struct sim *s, struct sock *k, struct fb_op *op)
{
    struct msghdr *m = op->data;
    int32_t res = can_receive(k), total = 0;
    uint64_t size = 0, left;
    char *whole;
    if (res < 0)
        return res;
    if (!receivable(k))
        return would_block(op);
    for (size_t i = 0; i < (size_t)m->msg_iovlen; i++)
        size += m->msg_iov[i].iov_len;
    size = size < s->config.window ? size : s->config.window;
    if (!(whole = malloc(size ? size : 1)))
        return -ENOMEM;
    res = take(s, k, op, whole, size);
    left = res > 0 ? (uint64_t)res : 0;
    for (size_t i = 0; i < (size_t)m->msg_iovlen && left; i++) {
        size_t part = m->msg_iov[i].iov_len < left ? m->msg_iov[i].iov_len : (size_t)left;
        memcpy(m->msg_iov[i].iov_base, whole + total, part);
        total += (int32_t)part;
        left -= part;
    }
    free(whole);
    m->msg_flags = 0;
    m->msg_controllen = 0;
    m->msg_namelen = 0;
    return res;
}

static int32_t can_send(const struct sock *k)
{
    if (k->type == READER)
        return -EBADF;
    if (k->state == DEAD)
        return -ENETDOWN;
    return k->state == CONNECTED ? 0 : -ENOTCONN;
}

/* Send what fits: how much, -errno, or WAIT. */
static int32_t give(struct sim *s, struct sock *k, const struct fb_op *op, const char *data, uint64_t n)
{
    struct conn *c = k->conn;
    struct pipe *out = &c->pipes[!k->end];
    char text[SHOWN + 4];
    uint32_t size;
    int r;
    if (k->error)
        return pending_error(k);
    if (k->write_shut || out->fin || (c->instant && c->gone[!k->end]))
        return -EPIPE;
    if (n == 0 && !c->message)
        return 0;
    if (c->message ? n > s->config.window : 0)
        return -EMSGSIZE;
    if (c->message ? fb_net_room(s, out) < n : fb_net_room(s, out) == 0)
        return would_block(op);
    if (!c->instant && fb_net_happens(s, FB_RESET)) {
        TELL_CONN(s, c, k->end, " the connection is lost", ROUTE(s, c, k->end));
        fb_net_break_end(s, c, k->end, 0); /* what is on its way is lost */
        fb_net_send_reset(s, c, !k->end);
        return -ECONNRESET;
    }
    size = fb_net_room(s, out) < n ? fb_net_room(s, out) : (uint32_t)n;
    if (!c->message && size > 1 && fb_net_happens(s, FB_SHORT_WRITE))
        size = 1 + (uint32_t)fb_net_below(s, size - 1);
    if ((r = fb_net_transmit(s, out, data, size)) < 0)
        return r;
    TELL_CONN(s, c, k->end, " sends %u bytes: %s", ROUTE(s, c, k->end), size, fb_net_shown(data, size, text));
    return (int32_t)size;
}

static int32_t send_some(struct sim *s, struct sock *k, struct fb_op *op)
{
    int32_t res = can_send(k);
    if (res < 0)
        return res;
    for (;;) {
        const char *at = op->moved ? (char *)op->data + op->moved : op->data;
        res = give(s, k, op, at, op->len - op->moved);
        if (!wants_all(op) || res == WAIT)
            return res;
        if (res <= 0)
            return op->moved ? moved(op) : res;
        op->moved += (uint64_t)res;
        if (op->moved >= op->len)
            return moved(op);
    }
}

static int32_t send_message(struct sim *s, struct sock *k, struct fb_op *op)
{
    const struct msghdr *m = op->data;
    int32_t res = can_send(k);
    size_t size = 0, at = 0;
    char *whole;
    if (res < 0)
        return res;
    for (size_t i = 0; i < (size_t)m->msg_iovlen; i++)
        size += m->msg_iov[i].iov_len;
    if (!(whole = malloc(size ? size : 1)))
        return -ENOMEM;
    for (size_t i = 0; i < (size_t)m->msg_iovlen; i++) {
        if (m->msg_iov[i].iov_len)
            memcpy(whole + at, m->msg_iov[i].iov_base, m->msg_iov[i].iov_len);
        at += m->msg_iov[i].iov_len;
    }
    res = give(s, k, op, whole, size);
    free(whole);
    return res;
}

static int32_t poll_once(struct sim *s, struct sock *k, struct fb_op *op)
{
    uint32_t events = 0;
    if (k->state == LISTENING) {
        events |= k->queued ? POLLIN : 0;
    } else if (k->state == DEAD || k->state == FRESH) {
        events |= POLLOUT | POLLHUP;
    } else if (k->state == CONNECTED) {
        const struct pipe *in = &k->conn->pipes[k->end], *out = &k->conn->pipes[!k->end];
        int over = in->ended || (k->conn->instant && k->conn->gone[!k->end]);
        if (k->type != WRITER)
            events |= (receivable(k) ? POLLIN : 0) | (over || k->read_shut ? POLLRDHUP : 0);
        if (k->type != READER)
            events |= fb_net_room(s, out) || out->fin ? POLLOUT : 0;
        if (over && (out->fin || k->conn->gone[!k->end]))
            events |= POLLHUP;
        if (k->error)
            events |= POLLERR;
    }
    events &= op->flags | POLLHUP | POLLERR;
    return events ? (int32_t)events : WAIT;
}

static int32_t shut_down(struct sim *s, struct sock *k, struct fb_op *op)
{
    if (k->state != CONNECTED)
        return -ENOTCONN;
    if (op->flags > SHUT_RDWR)
        return -EINVAL;
    if (op->flags != SHUT_RD && !k->write_shut) {
        TELL_CONN(s, k->conn, k->end, " sends its end", ROUTE(s, k->conn, k->end));
        k->write_shut = 1;
        fb_net_send_fin(s, &k->conn->pipes[!k->end]);
    }
    if (op->flags != SHUT_WR)
        k->read_shut = 1;
    fb_net_mark_dirty(s, k);
    return 0;
}

/* Accepting and connecting. */

static void fill_address(struct sockaddr_in *to, int host, uint16_t port)
{
    memset(to, 0, sizeof *to);
    to->sin_family = AF_INET;
    to->sin_port = htons(port);
    to->sin_addr.s_addr = htonl(0x0a000001u + (uint32_t)host);
}

static int32_t accept_one(struct sim *s, struct sock *k, struct fb_op *op)
{
    struct conn *c = k->first;
    struct sockaddr_in from;
    struct sock *made;
    int error;
    if (op->flags & ~(uint32_t)(SOCK_CLOEXEC | SOCK_NONBLOCK))
        return -EINVAL;
    if (k->state == DEAD)
        return -ENETDOWN;
    if (k->state != LISTENING)
        return -EINVAL;
    if (!c)
        return WAIT;
    if (!(made = new_sock(s, k->host, STREAM, &error)))
        return error;
    k->first = c->queue_next;
    k->last = k->first ? k->last : NULL;
    k->queued--;
    made->state = CONNECTED;
    made->port = k->port;
    made->conn = c;
    made->end = 1;
    c->end[1] = made;
    if (!(op->flags & SOCK_CLOEXEC))
        fcntl(made->fd, F_SETFD, 0);
    if (op->data && op->extra) {
        socklen_t *size = op->extra;
        fill_address(&from, c->host[0], c->port[0]);
        memcpy(op->data, &from, *size < sizeof from ? *size : sizeof from);
        *size = sizeof from;
    }
    TELL_CONN(s, c, 1, " accepts", ROUTE(s, c, 1));
    for (uint32_t id = 1; id < s->sock_count; id++) /* who waits for room in the backlog */
        if (s->socks[id] && s->socks[id]->state == CONNECTING && s->socks[id]->host == k->host)
            fb_net_mark_dirty(s, s->socks[id]);
    return made->fd;
}

static struct sock *listener_at(struct sim *s, int host, uint16_t port)
{
    for (uint32_t id = 1; id < s->sock_count; id++) {
        struct sock *k = s->socks[id];
        if (k && k->state == LISTENING && k->host == host && k->port == port && k->fd >= 0)
            return k;
    }
    return NULL;
}

/* The host of this address as seen from another one; -1: nobody's. */
static int host_at(struct sim *s, int from, uint32_t address)
{
    uint32_t n = address - 0x0a000001u;
    if (address == INADDR_ANY || address >> 24 == 127)
        return from;
    return n < s->host_count ? (int)n : -1;
}

static uint16_t free_port(struct sim *s, int host)
{
    struct host *h = s->hosts[host];
    if (h->next_port < FIRST_PORT)
        h->next_port = FIRST_PORT;
    return h->next_port++;
}

/* A SYN has come to its host: 0, -ECONNREFUSED, or WAIT while the backlog is full. */
static int knock(struct sim *s, struct sock *k, int host)
{
    struct sock *listener = listener_at(s, host, k->to_port);
    struct conn *c;
    if (!listener)
        return -ECONNREFUSED;
    if (listener->queued > listener->backlog)
        return WAIT;
    if (!(c = fb_net_new_conn(s, k->host, host)))
        return -ENOMEM;
    c->number = ++s->conn_count;
    c->port[0] = k->port;
    c->port[1] = k->to_port;
    c->end[0] = k;
    k->conn = c;
    k->end = 0;
    if (!c->instant && fb_net_happens(s, FB_SLOW))
        c->slow = 1;
    fb_net_tell(s, "#%u %s:%u connects to %s:%u%s", c->number, fb_net_host_name(s, k->host), k->port, fb_net_host_name(s, (uint16_t)host),
         k->to_port, c->slow ? ", slowly" : "");
    if (!c->instant && fb_net_happens(s, FB_HALF_OPEN)) {
        fb_net_tell(s, "#%u is half open", c->number);
        c->vanished = 1;
        c->gone[1] = 1;
        return 0;
    }
    if (listener->last)
        listener->last->queue_next = c;
    else
        listener->first = c;
    listener->last = c;
    listener->queued++;
    fb_net_mark_dirty(s, listener);
    return 0;
}

static void answer(struct sim *s, struct sock *k, int with)
{
    k->answered = 1;
    k->answer = with;
    fb_net_mark_dirty(s, k);
}

/* The SYN arrives, or what came of it. */
static void connect_step(struct sim *s, struct sock *k)
{
    int host = host_at(s, k->host, k->to), r;
    if (k->asked && (!k->conn || fb_net_reachable(s, k->conn) || k->conn->vanished)) {
        answer(s, k, k->answer);
        return;
    }
    if (k->tries == SYNS) {
        leave_conn(s, k, 1);
        answer(s, k, -ETIMEDOUT);
        return;
    }
    if (!k->asked && host >= 0 && s->hosts[host]->up && s->hosts[k->host]->up && !s->hosts[k->host]->cut[host]) {
        r = -ECONNREFUSED;
        if (!fb_net_happens(s, FB_REFUSED))
            r = knock(s, k, host);
        if (r == -ECONNREFUSED)
            fb_net_tell(s, "%s is refused by %s:%u", fb_net_host_name(s, k->host), fb_net_host_name(s, (uint16_t)host), k->to_port);
        if (r != WAIT) {
            k->asked = 1;
            k->answer = r;
            fb_net_arm(s, &k->timer, fb_net_latency(s));
            return;
        }
    }
    fb_net_arm(s, &k->timer, SECOND << k->tries++); /* nobody has answered: once more */
}

static int32_t connect_it(struct sim *s, struct sock *k, struct fb_op *op)
{
    const struct sockaddr_in *to = op->data;
    int host;
    if (k->state == DEAD)
        return -ENETDOWN;
    if (k->state == CONNECTED)
        return -EISCONN;
    if (k->state == LISTENING || k->type != STREAM)
        return -EINVAL;
    if (k->state == FRESH) {
        if (op->len < sizeof *to)
            return -EINVAL;
        if (to->sin_family != AF_INET)
            return -EAFNOSUPPORT;
        k->to = ntohl(to->sin_addr.s_addr);
        k->to_port = ntohs(to->sin_port);
        if (!k->port)
            k->port = free_port(s, k->host);
        k->state = CONNECTING;
        k->answered = k->asked = k->tries = 0;
        if (host_at(s, k->host, k->to) != k->host)
            fb_net_arm(s, &k->timer, fb_net_latency(s));
    }
    host = host_at(s, k->host, k->to);
    if (host == k->host && !k->answered) {
        int r = knock(s, k, host);
        if (r == WAIT)
            return WAIT;
        k->answered = 1;
        k->answer = r;
    } else if (host < 0) {
        fb_net_disarm(s, &k->timer);
        answer(s, k, -EHOSTUNREACH);
    }
    if (!k->answered)
        return WAIT;
    k->state = k->answer < 0 ? FRESH : CONNECTED;
    k->answered = 0;
    return k->answer;
}

static int32_t close_it(struct sim *s, struct sock *k, struct fb_op *op)
{
    (void)k;
    return sim_close_fd(&s->base, op->fd);
}

static int32_t no_file(struct sim *s, struct sock *k, struct fb_op *op)
{
    (void)s, (void)k, (void)op;
    return -EINVAL;
}

/* What an op does on a simulated socket. NULL: it has none, see elsewhere(). */
static int32_t (*const TABLE[FB_CODES])(struct sim *, struct sock *, struct fb_op *) = {
    [FB_NOP] = NULL,              [FB_ACCEPT] = accept_one,     [FB_CONNECT] = connect_it,
    [FB_RECV] = receive,          [FB_RECV_INTO] = receive_into, [FB_RECVMSG] = receive_message,
    [FB_SEND] = send_some,        [FB_SENDALL] = send_some,     [FB_SENDMSG] = send_message,
    [FB_POLL] = poll_once,        [FB_SHUTDOWN] = shut_down,    [FB_CLOSE] = close_it,
    [FB_READ] = receive_into,     [FB_WRITE] = send_some,       [FB_FSYNC] = no_file,
    [FB_OPENAT] = NULL,
};

static int32_t verdict(ssize_t n) { return n < 0 ? -errno : (int32_t)n; }

/* Files, with real calls: they do not wait, and what they give depends on the program alone. */
static int32_t elsewhere(struct fb_op *op)
{
    struct stat status;
    size_t len = op->len > 0x7ffff000u ? 0x7ffff000u : (size_t)op->len;
    if (op->code == FB_NOP)
        return 0;
    if (op->code == FB_OPENAT)
        return verdict(openat(op->fd, op->data, (int)op->flags, (mode_t)op->len));
    if (op->code >= FB_STATX)
        return verdict(fb_file_call(op));
    if (fstat(op->fd, &status) < 0)
        return -errno;
    switch ((enum fb_code)op->code) {
    case FB_CLOSE:
        return close(op->fd) < 0 && errno != EINTR ? -errno : 0;
    case FB_POLL:
        return S_ISREG(status.st_mode) ? (int32_t)(op->flags & (POLLIN | POLLOUT)) : -EOPNOTSUPP;
    case FB_READ:
    case FB_WRITE:
    case FB_READV:
    case FB_WRITEV:
    case FB_FSYNC:
        if (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode))
            return -EOPNOTSUPP; /* it would wait for somebody outside the simulation */
        if (op->code == FB_READV || op->code == FB_WRITEV)
            return verdict(fb_file_call(op));
        if (op->code == FB_FSYNC)
            return verdict(op->flags ? fdatasync(op->fd) : fsync(op->fd));
        if (op->code == FB_READ)
            return verdict(op->off < 0 ? read(op->fd, op->data, len) : pread(op->fd, op->data, len, op->off));
        return verdict(op->off < 0 ? write(op->fd, op->data, len) : pwrite(op->fd, op->data, len, op->off));
    default:
        return S_ISSOCK(status.st_mode) ? -EOPNOTSUPP : -ENOTSOCK;
    }
}

/* The life of an op: start -> attempt -> settle, and again from look_at. */

static void starve(struct sim *s, struct sock *k, struct fb_op *op)
{
    s->base.count.starved++;
    op->state = FB_WAITING;
    if (s->free_count && !s->feed.slot) /* by chance */
        fb_net_arm(s, &s->feed, 1 + (int64_t)fb_net_below(s, (uint64_t)s->config.late));
    if (k->starving)
        return;
    k->starving = 1;
    k->starving_next = NULL;
    if (s->starving)
        s->starving_last->starving_next = k;
    else
        s->starving = k;
    s->starving_last = k;
}

static void start(struct sim *s, struct fb_op *op)
{
    struct sock *k = find(s, op->fd);
    int32_t res = k && TABLE[op->code] ? TABLE[op->code](s, k, op) : elsewhere(op);
    if (res != WAIT && res != STARVE) {
        finish(s, op, res);
        return;
    }
    op->state = FB_FLYING;
    op->place = k->id;
    fb_row_push(&k->waiting, op);
    if (res == STARVE)
        starve(s, k, op);
}

/* Attempt again what waits on sockets that have changed. */
static void look_at_dirty(struct sim *s)
{
    struct sock *k;
    while ((k = s->dirty)) {
        struct fb_op *op = k->state == DEAD ? NULL : k->waiting.head, *next; /* DEAD: for their owners to cancel */
        s->dirty = k->dirty_next;
        k->dirty = 0;
        for (; op; op = next) {
            int32_t res = TABLE[op->code](s, k, op);
            next = op->next;
            if (res == STARVE)
                starve(s, k, op);
            if (res == WAIT || res == STARVE)
                continue;
            fb_row_remove(&k->waiting, op);
            finish(s, op, res);
        }
        if (k->fd < 0)
            closed(s, k);
    }
}

/* There are buffers again: those who asked first are first. */
static void feed_starving(struct sim *s)
{
    struct sock *k = s->starving;
    s->starving = s->starving_last = NULL;
    for (; k; k = k->starving_next) {
        k->starving = 0;
        fb_net_mark_dirty(s, k);
    }
    look_at_dirty(s);
}

static void sim_submit(struct fb_driver *d, struct fb_op *op)
{
    struct sim *s = (struct sim *)d;
    op->place = NOWHERE;
    if (op->code >= FB_CODES)
        finish(s, op, -EOPNOTSUPP);
    else
        start(s, op);
    look_at_dirty(s);
}

/* Nothing is done at once: a fiber that goes on without a wait would be one choice less for the seed. */
static int sim_attempt(struct fb_driver *d, struct fb_op *op)
{
    (void)d, (void)op;
    return 0;
}

static void take_out(struct sim *s, struct fb_op *op)
{
    struct sock *k = s->socks[op->place];
    int32_t res = wants_all(op) && op->moved ? moved(op) : -ECANCELED;
    fb_row_remove(&k->waiting, op);
    if (op->buffer >= 0 && res < 0)
        put_back(s, op);
    conclude(s, op, res);
    if (k->fd < 0)
        closed(s, k);
    look_at_dirty(s);
}

static void sim_cancel(struct fb_driver *d, struct fb_op *op)
{
    struct sim *s = (struct sim *)d;
    if (op->place == IN_RESULTS)
        s->info.fired[FB_LOST_CANCEL]++;
    else if (!fb_net_happens(s, FB_LATE_CANCEL) || !make_late(s, op, CANCEL))
        take_out(s, op);
}

/* Time. */

#define OWNER(type, field) ((struct type *)((char *)t - offsetof(struct type, field)))

static void fire(struct sim *s, struct fb_timer *t)
{
    enum timer kind = (enum timer)t->kind;
    struct fb_op *op;
    switch (kind) {
    case ARRIVAL:
        fb_net_arrive(s, OWNER(pipe, arrival));
        break;
    case GIVING_UP:
        fb_net_give_up(s, OWNER(pipe, giving_up));
        break;
    case RESET_0:
        fb_net_reset_arrives(s, OWNER(conn, resets[0]), 0);
        break;
    case RESET_1:
        fb_net_reset_arrives(s, OWNER(conn, resets[1]), 1);
        break;
    case CONNECT:
        connect_step(s, OWNER(sock, timer));
        break;
    case RESULT:
    case CANCEL:
        op = late_of(t)->op;
        free(late_of(t));
        if (kind == RESULT)
            add_result(s, op);
        else
            take_out(s, op);
        break;
    case FEED:
        feed_starving(s);
        break;
    }
    look_at_dirty(s);
}

/* Is there a wake, or a signal's byte? Waits for it without end if `really`. */
static int drain_pipe(struct sim *s, int really)
{
    struct pollfd p = {.fd = s->base.wake_reader, .events = POLLIN};
    char bytes[4096];
    int n;
    s->base.waking = 0;
    n = poll(&p, 1, really ? -1 : 0);
    if (n == 0 || (n < 0 && errno == EINTR))
        return 0;
    if (n > 0)
        n = (int)read(s->base.wake_reader, bytes, sizeof bytes);
    if (n <= 0)
        return n ? -errno : -EPIPE;
    s->base.woken = 1;
    s->base.count.wakes++;
    return 0;
}

static int over_limits(const struct sim *s)
{
    return (s->config.steps && s->info.passes > s->config.steps) || (s->config.until && s->base.time > s->config.until);
}

static int hungry(const struct sim *s) { return s->starving && s->free_count && !s->feed.slot; }

static int sim_ready(struct fb_driver *d)
{
    struct sim *s = (struct sim *)d;
    s->info.passes++;
    return d->done || s->result_count || d->waking || hungry(s) || over_limits(s) ||
           (s->timers.len && s->timers.slots[0].when <= d->time);
}

static int64_t sim_next(struct fb_driver *d)
{
    struct sim *s = (struct sim *)d;
    if (d->done || s->result_count || hungry(s))
        return d->time;
    return s->timers.len ? s->timers.slots[0].when : INT64_MAX;
}

/* Move time to the next event, but by `timeout_ns` at most. */
static int advance(struct sim *s, int64_t timeout_ns)
{
    int64_t to = INT64_MAX;
    int r;
    s->base.count.enters++;
    s->base.count.waits++;
    if ((r = drain_pipe(s, !s->timers.len && timeout_ns < 0)) < 0 || s->base.woken)
        return r;
    if (timeout_ns >= 0 && timeout_ns < INT64_MAX - s->base.time)
        to = s->base.time + timeout_ns;
    if (s->timers.len && s->timers.slots[0].when < to)
        to = s->timers.slots[0].when;
    if (to != INT64_MAX && to > s->base.time)
        s->base.time = to;
    return 0;
}

static int sim_poll(struct fb_driver *d, int64_t timeout_ns)
{
    struct sim *s = (struct sim *)d;
    struct fb_timer *t;
    int r = 0;
    s->info.passes++;
    if (hungry(s))
        feed_starving(s);
    if (timeout_ns && !d->done && !s->result_count && !(s->timers.len && s->timers.slots[0].when <= d->time))
        r = advance(s, timeout_ns);
    else if (d->waking)
        r = drain_pipe(s, 0);
    while ((t = fb_timer_due(&s->timers, d->time)))
        fire(s, t);
    hand_out(s);
    if (over_limits(s))
        d->woken = 1;
    return r < 0 ? r : s->broken;
}

/* Set-up and end. */

static void free_all(struct sim *s)
{
    fb_heap_fini(&s->timers); /* while those that they belong to are there */
    while (s->conns)
        fb_net_free_conn(s, s->conns);
    for (uint32_t id = 1; id < s->sock_count; id++)
        free(s->socks[id]);
    for (uint32_t i = 0; i < s->host_count; i++)
        free(s->hosts[i]);
    free(s->socks);
    free(s->free_ids);
    free(s->by_fd);
    free(s->results);
    free(s->memory);
    free(s->free);
    free(s->trace);
    free(s);
}

/* What waits is cancelled. The descriptors are their owners' to close. */
static void sim_close(struct fb_driver *d)
{
    struct sim *s = (struct sim *)d;
    struct fb_op *op;
    memset(s->config.chance, 0, sizeof s->config.chance);
    for (uint32_t i = s->timers.len; i-- > 0;) {
        struct fb_timer *t = s->timers.slots[i].timer;
        if (t->kind != RESULT && t->kind != CANCEL)
            continue;
        fb_timer_disarm(&s->timers, t);
        if (t->kind == RESULT)
            add_result(s, late_of(t)->op);
        free(late_of(t));
        i = s->timers.len; /* the heap has changed: from its end again */
    }
    for (uint32_t id = 1; id < s->sock_count; id++)
        while (s->socks[id] && s->socks[id]->waiting.head)
            take_out(s, s->socks[id]->waiting.head);
    hand_out(s);
    while ((op = fb_reap(d)))
        if ((op->code == FB_ACCEPT || op->code == FB_OPENAT) && op->res >= 0)
            close(op->res); /* nobody can take it (semantics.md F5) */
    fb_driver_fini(d);
    free_all(s);
}

static void sim_abandon(struct fb_driver *d) { (void)d; }

static int sim_shut_down(struct fb_driver *d, int fd, int how)
{
    struct sim *s = (struct sim *)d;
    struct sock *k = find(s, fd);
    struct fb_op op = {.flags = (uint32_t)how};
    int r = k ? shut_down(s, k, &op) : shutdown(fd, how) < 0 ? -errno : 0;
    look_at_dirty(s);
    return r;
}

static const struct fb_verbs SIM = {
    .name = "sim",
    .attempt = sim_attempt,
    .submit = sim_submit,
    .cancel = sim_cancel,
    .poll = sim_poll,
    .ready = sim_ready,
    .next = sim_next,
    .release = sim_release,
    .shut_down = sim_shut_down,
    .close_fd = sim_close_fd,
    .close = sim_close,
    .abandon = sim_abandon,
};

static int set_up_buffers(struct sim *s)
{
    uint32_t n = s->info.buffers = s->config.buffers ? s->config.buffers : BUFFERS;
    uint32_t size = s->info.buffer_size = s->config.buffer_size ? s->config.buffer_size : BUFFER_SIZE;
    if (n > MAX_BUFFERS || (n & (n - 1)))
        return -EINVAL;
    s->memory = malloc((size_t)n * size);
    s->free = calloc(n, sizeof *s->free);
    if (!s->memory || !s->free)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        s->free[i] = (uint16_t)(n - 1 - i);
    s->free_count = n;
    return 0;
}

struct fb_driver *fb_sim_new(const struct fb_sim_config *config, int *error, const char **step)
{
    struct sim *s = calloc(1, sizeof *s);
    *error = -ENOMEM;
    *step = "memory";
    if (!s)
        return NULL;
    if (config)
        s->config = *config;
    s->random = s->config.seed;
    s->config.window = s->config.window ? s->config.window : WINDOW;
    s->config.late = s->config.late > 0 ? s->config.late : LATE;
    s->config.rate = s->config.rate ? s->config.rate : RATE;
    s->info.supported = (1ull << FB_CODES) - 1;
    s->feed.kind = FEED;
    if (fb_sim_host(&s->base, "main") < 0)
        goto failed;
    *step = "provided buffers";
    if ((*error = set_up_buffers(s)) < 0)
        goto failed;
    *step = "pipe2";
    if ((*error = fb_driver_init(&s->base, &SIM)) < 0)
        goto failed;
    s->base.time = 0;
    return &s->base;
failed:
    free_all(s);
    return NULL;
}

void fb_sim_info(struct fb_driver *d, struct fb_sim_info *info)
{
    struct sim *s = (struct sim *)d;
    *info = s->info;
    info->time = d->time;
}

/* Hosts. */

int fb_sim_host(struct fb_driver *d, const char *name)
{
    struct sim *s = (struct sim *)d;
    struct host *h;
    if (s->host_count == HOSTS)
        return -ENOSPC;
    if (!(h = calloc(1, sizeof *h)))
        return -ENOMEM;
    snprintf(h->name, sizeof h->name, "%s", name);
    h->up = 1;
    h->next_port = FIRST_PORT;
    s->hosts[s->host_count] = h;
    return (int)s->host_count++;
}

void fb_sim_link(struct fb_driver *d, int a, int b, int up)
{
    struct sim *s = (struct sim *)d;
    if (s->hosts[a]->cut[b] == !up)
        return;
    s->hosts[a]->cut[b] = s->hosts[b]->cut[a] = !up;
    fb_net_tell(s, "the link between %s and %s is %s", s->hosts[a]->name, s->hosts[b]->name, up ? "mended" : "cut");
    if (up)
        fb_net_release_held(s);
}

/* All sockets of a host stop working: left as by close(2), or silently. */
static void stop_host(struct sim *s, int host, int silently)
{
    for (uint32_t id = 1; id < s->sock_count; id++) {
        struct sock *k = s->socks[id];
        if (!k || k->host != host || k->state == DEAD)
            continue;
        leave_queue(s, k, silently);
        leave_conn(s, k, silently);
        fb_net_disarm(s, &k->timer);
        k->state = DEAD;
    }
    look_at_dirty(s);
}

void fb_sim_power(struct fb_driver *d, int host, int on)
{
    struct sim *s = (struct sim *)d;
    if (s->hosts[host]->up == on)
        return;
    fb_net_tell(s, "%s %s", s->hosts[host]->name, on ? "is up again" : "crashes");
    s->hosts[host]->up = (uint8_t)on;
    if (on)
        fb_net_release_held(s);
    else
        stop_host(s, host, 1);
}

void fb_sim_kill(struct fb_driver *d, int host)
{
    struct sim *s = (struct sim *)d;
    fb_net_tell(s, "the processes of %s are killed", s->hosts[host]->name);
    stop_host(s, host, 0);
}

/* Calls. */

int fb_sim_socket(struct fb_driver *d, int host, int type)
{
    int error;
    struct sock *k = new_sock((struct sim *)d, host, type == SOCK_DGRAM ? DATAGRAM : STREAM, &error);
    return k ? k->fd : error;
}

int fb_sim_pair(struct fb_driver *d, int host, int type, int fds[2])
{
    struct sim *s = (struct sim *)d;
    static const enum type TYPES[3][2] = {{STREAM, STREAM}, {DATAGRAM, DATAGRAM}, {READER, WRITER}};
    const enum type *types = TYPES[type == SOCK_STREAM ? 0 : type == SOCK_DGRAM ? 1 : 2];
    struct sock *k[2];
    struct conn *c = fb_net_new_conn(s, host, host);
    int error = -ENOMEM;
    if (!c)
        return error;
    c->quiet = 1;
    c->message = type == SOCK_DGRAM;
    for (int end = 0; end < 2; end++) {
        if (!(k[end] = new_sock(s, host, types[end], &error))) {
            if (end)
                sim_close_fd(d, fds[0]);
            else
                fb_net_free_conn(s, c);
            look_at_dirty(s);
            return error;
        }
        k[end]->state = CONNECTED;
        k[end]->conn = c;
        k[end]->end = (uint8_t)end;
        c->end[end] = k[end];
        fds[end] = k[end]->fd;
    }
    return 0;
}

int fb_sim_bind(struct fb_driver *d, int fd, const struct sockaddr_in *to)
{
    struct sim *s = (struct sim *)d;
    struct sock *k = find(s, fd);
    uint16_t port = ntohs(to->sin_port);
    if (!k)
        return -ENOTSOCK;
    if (k->port || k->state != FRESH)
        return -EINVAL;
    if (host_at(s, k->host, ntohl(to->sin_addr.s_addr)) != k->host)
        return -EADDRNOTAVAIL;
    for (uint32_t id = 1; port && id < s->sock_count; id++)
        if (s->socks[id] && s->socks[id]->host == k->host && s->socks[id]->port == port &&
            (s->socks[id]->state == LISTENING || s->socks[id]->state == FRESH))
            return -EADDRINUSE;
    k->port = port ? port : free_port(s, k->host);
    return 0;
}

int fb_sim_listen(struct fb_driver *d, int fd, int backlog)
{
    struct sim *s = (struct sim *)d;
    struct sock *k = find(s, fd);
    if (!k)
        return -ENOTSOCK;
    if (k->state == DEAD)
        return -ENETDOWN;
    if (k->type != STREAM || (k->state != FRESH && k->state != LISTENING))
        return -EINVAL;
    if (!k->port)
        k->port = free_port(s, k->host);
    k->backlog = backlog > 0 ? (uint32_t)backlog : 0;
    if (k->state == FRESH)
        fb_net_tell(s, "%s listens on port %u", fb_net_host_name(s, k->host), k->port);
    k->state = LISTENING;
    return 0;
}

int fb_sim_name(struct fb_driver *d, int fd, int peer, struct sockaddr_in *name)
{
    struct sock *k = find((struct sim *)d, fd);
    if (!k)
        return -ENOTSOCK;
    if (peer && (k->state != CONNECTED || !k->conn))
        return -ENOTCONN;
    if (peer)
        fill_address(name, k->conn->host[!k->end], k->conn->port[!k->end]);
    else
        fill_address(name, k->host, k->port);
    return 0;
}

int fb_sim_call(struct fb_driver *d, struct fb_op *op)
{
    struct sim *s = (struct sim *)d;
    struct sock *k = find(s, op->fd);
    int32_t res = k && TABLE[op->code] ? TABLE[op->code](s, k, op) : -EBADF;
    look_at_dirty(s);
    if (res == WAIT && op->moved)
        return moved(op);
    return res == WAIT ? -EAGAIN : res;
}

int fb_sim_open_after(struct fb_driver *d, int fd)
{
    struct sim *s = (struct sim *)d;
    for (fd++; (uint32_t)fd < s->by_fd_cap; fd++) {
        struct sock *k = find(s, fd);
        if (k && k->state != DEAD)
            return fd;
    }
    return -1;
}

void fb_sim_describe(struct fb_driver *d, int fd, char *words, size_t size)
{
    struct sim *s = (struct sim *)d;
    struct sock *k = find(s, fd);
    snprintf(words, size, "no simulated socket");
    if (!k)
        return;
    if (k->state == LISTENING)
        snprintf(words, size, "%s listening on port %u", fb_net_host_name(s, k->host), k->port);
    else if (k->conn && !k->conn->quiet)
        snprintf(words, size, "#%u at %s, to %s:%u", k->conn->number, fb_net_host_name(s, k->host),
                 fb_net_host_name(s, k->conn->host[!k->end]), k->conn->port[!k->end]);
    else
        snprintf(words, size, "a socket of %s", fb_net_host_name(s, k->host));
}

void fb_sim_note(struct fb_driver *d, const char *line)
{
    fb_net_tell_time((struct sim *)d);
    fb_net_add((struct sim *)d, line, strlen(line));
    fb_net_add((struct sim *)d, "\n", 1);
}

const char *fb_sim_trace(struct fb_driver *d, size_t *size)
{
    struct sim *s = (struct sim *)d;
    *size = s->trace_size;
    return s->trace ? s->trace : "";
}
