/* The simulated network: connections between hosts, what is on its way in them, what goes wrong, and the trace.
 *
 *  1. Every choice is drawn from the seed, in the order of events.
 *  2. What was sent arrives in order and once, later by the latency; a cut link or a host that is down holds it back.
 *  3. Within a host nothing takes time and no network fault strikes.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "simnet.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Chance. */

static uint64_t draw(struct sim *s)
{
    uint64_t x = s->random += UINT64_C(0x9E3779B97F4A7C15); /* splitmix64 */
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

/* 0 to n - 1. */
uint64_t fb_net_below(struct sim *s, uint64_t n) { return n > 1 ? draw(s) % n : 0; }

int fb_net_happens(struct sim *s, enum fb_fault fault)
{
    double chance = s->config.chance[fault];
    if (chance <= 0 || (double)(draw(s) >> 11) * 0x1p-53 >= chance)
        return 0;
    s->info.fired[fault]++;
    return 1;
}

int64_t fb_net_latency(struct sim *s)
{
    return s->config.latency + (s->config.spread > 0 ? (int64_t)fb_net_below(s, (uint64_t)s->config.spread + 1) : 0);
}

void fb_net_arm(struct sim *s, struct fb_timer *t, int64_t after)
{
    if (fb_timer_arm(&s->timers, t, after > INT64_MAX - s->base.time ? INT64_MAX : s->base.time + after) < 0)
        s->broken = -ENOMEM;
}

void fb_net_disarm(struct sim *s, struct fb_timer *t)
{
    if (t->slot)
        fb_timer_disarm(&s->timers, t);
}

/* The trace. */

void fb_net_add(struct sim *s, const char *text, size_t size)
{
    if (s->trace_size + size > TRACE_LIMIT)
        return;
    if (s->trace_size + size > s->trace_cap) {
        size_t cap = s->trace_cap ? 2 * s->trace_cap : 4096;
        char *grown;
        while (cap < s->trace_size + size)
            cap *= 2;
        if (!(grown = realloc(s->trace, cap)))
            return;
        s->trace = grown;
        s->trace_cap = cap;
    }
    memcpy(s->trace + s->trace_size, text, size);
    s->trace_size += size;
}

void fb_net_tell_time(struct sim *s)
{
    char text[40];
    int n = snprintf(text, sizeof text, "%lld.%06lld ", (long long)(s->base.time / SECOND),
                     (long long)(s->base.time % SECOND / 1000));
    fb_net_add(s, text, (size_t)n);
}

void fb_net_tell(struct sim *s, const char *format, ...)
{
    char text[256];
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fb_net_tell_time(s);
    fb_net_add(s, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    fb_net_add(s, "\n", 1);
}

const char *fb_net_host_name(struct sim *s, uint16_t host) { return s->hosts[host]->name; }

/* "#3 client -> server", from the end that acts. */
const char *fb_net_route(struct sim *s, const struct conn *c, int from, char *text, size_t size)
{
    snprintf(text, size, "#%u %s -> %s", c->number, fb_net_host_name(s, c->host[from]), fb_net_host_name(s, c->host[!from]));
    return text;
}

/* Up to SHOWN bytes of a message, the unprintable ones as dots. */
const char *fb_net_shown(const char *data, uint32_t n, char text[SHOWN + 4])
{
    uint32_t i;
    for (i = 0; i < n && i < SHOWN; i++)
        text[i] = data[i] >= ' ' && data[i] <= '~' ? data[i] : '.';
    memcpy(text + i, n > SHOWN ? "..." : "", n > SHOWN ? 4 : 1);
    return text;
}

/* Sockets that have changed. */

void fb_net_mark_dirty(struct sim *s, struct sock *k)
{
    if (!k || k->dirty)
        return;
    k->dirty = 1;
    k->dirty_next = NULL;
    if (s->dirty)
        s->dirty_last->dirty_next = k;
    else
        s->dirty = k;
    s->dirty_last = k;
}

/* Connections. */

struct conn *fb_net_new_conn(struct sim *s, int a, int b)
{
    struct conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    for (int end = 0; end < 2; end++) {
        struct pipe *p = &c->pipes[end];
        p->conn = c;
        p->to = (uint8_t)end;
        p->arrival.kind = ARRIVAL;
        p->giving_up.kind = GIVING_UP;
        c->resets[end].kind = end ? RESET_1 : RESET_0;
    }
    c->host[0] = (uint16_t)a;
    c->host[1] = (uint16_t)b;
    c->instant = a == b;
    c->next = s->conns;
    if (s->conns)
        s->conns->prev = c;
    s->conns = c;
    return c;
}

void fb_net_free_conn(struct sim *s, struct conn *c)
{
    for (int end = 0; end < 2; end++) {
        fb_net_disarm(s, &c->pipes[end].arrival);
        fb_net_disarm(s, &c->pipes[end].giving_up);
        fb_net_disarm(s, &c->resets[end]);
        free(c->pipes[end].bytes);
        free(c->pipes[end].segments);
    }
    if (c->prev)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    free(c);
}

int fb_net_reachable(struct sim *s, const struct conn *c)
{
    return c->instant || (!c->vanished && s->hosts[c->host[0]]->up && s->hosts[c->host[1]]->up &&
                          !s->hosts[c->host[0]]->cut[c->host[1]]);
}

uint32_t fb_net_room(struct sim *s, const struct pipe *p) { return s->config.window - p->len; }

static int add_segment(struct pipe *p, uint32_t size, int64_t when, int fin)
{
    if (p->segment_len == p->segment_cap) {
        uint32_t cap = p->segment_cap ? 2 * p->segment_cap : 8;
        struct segment *grown = malloc(cap * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        for (uint32_t i = 0; i < p->segment_len; i++)
            grown[i] = p->segments[(p->segment_start + i) & (p->segment_cap - 1)];
        free(p->segments);
        p->segments = grown;
        p->segment_start = 0;
        p->segment_cap = cap;
    }
    p->segments[(p->segment_start + p->segment_len++) & (p->segment_cap - 1)] =
        (struct segment){.when = when, .size = size, .fin = (uint8_t)fin};
    return 0;
}

void fb_net_drop_segment(struct pipe *p)
{
    p->segment_start = (p->segment_start + 1) & (p->segment_cap - 1);
    p->segment_len--;
}

static int reserve_bytes(struct pipe *p, uint32_t n)
{
    uint32_t cap = p->cap ? p->cap : 1024;
    char *grown;
    if (p->len + n <= p->cap)
        return 0;
    while (cap < p->len + n)
        cap *= 2;
    if (!(grown = malloc(cap)))
        return -ENOMEM;
    for (uint32_t i = 0; i < p->len;) {
        uint32_t at = (p->start + i) & (p->cap - 1), part = p->cap - at < p->len - i ? p->cap - at : p->len - i;
        memcpy(grown + i, p->bytes + at, part);
        i += part;
    }
    free(p->bytes);
    p->bytes = grown;
    p->cap = cap;
    p->start = 0;
    return 0;
}

static void expect(struct sim *s, struct pipe *p)
{
    if (p->segment_len && !p->held && !p->arrival.slot &&
        fb_timer_arm(&s->timers, &p->arrival, p->segments[p->segment_start].when) < 0)
        s->broken = -ENOMEM;
}

/* Put bytes on their way: there is room for them. */
int fb_net_transmit(struct sim *s, struct pipe *p, const char *data, uint32_t n)
{
    struct conn *c = p->conn;
    int r = reserve_bytes(p, n);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n;) {
        uint32_t at = (p->start + p->len) & (p->cap - 1), part = p->cap - at < n - i ? p->cap - at : n - i;
        memcpy(p->bytes + at, data + i, part);
        p->len += part;
        i += part;
    }
    if (c->message && (r = add_segment(p, n, 0, 0)) < 0) {
        p->len -= n;
        return r;
    }
    if (c->instant) {
        p->ready += n;
        fb_net_mark_dirty(s, c->end[p->to]);
        return 0;
    }
    while (n) {
        uint32_t part = c->slow && n > MSS ? MSS : n;
        int64_t when = s->base.time + fb_net_latency(s);
        if (when < p->last)
            when = p->last;
        if (c->slow)
            when += (int64_t)part * SECOND / (int64_t)s->config.rate;
        p->last = when;
        n -= part;
        if (add_segment(p, part, when, 0) < 0)
            s->broken = -ENOMEM;
    }
    expect(s, p);
    return 0;
}

/* Copy out what has arrived. */
void fb_net_copy_out(const struct pipe *p, char *to, uint32_t n)
{
    for (uint32_t i = 0; i < n;) {
        uint32_t at = (p->start + i) & (p->cap - 1), part = p->cap - at < n - i ? p->cap - at : n - i;
        memcpy(to + i, p->bytes + at, part);
        i += part;
    }
}

void fb_net_consume(struct sim *s, struct pipe *p, uint32_t n)
{
    if (!n)
        return;
    p->start = (p->start + n) & (p->cap - 1);
    p->len -= n;
    p->ready -= n;
    fb_net_mark_dirty(s, p->conn->end[!p->to]);
}

/* Nothing that is on its way arrives any more. */
void fb_net_cut_off(struct sim *s, struct pipe *p)
{
    fb_net_disarm(s, &p->arrival);
    fb_net_disarm(s, &p->giving_up);
    if (!p->conn->message) {
        p->segment_len = 0;
        p->len = p->ready;
    }
}

void fb_net_send_fin(struct sim *s, struct pipe *p)
{
    int64_t when = s->base.time + (p->conn->instant ? 0 : fb_net_latency(s));
    if (p->fin)
        return;
    p->fin = 1;
    if (p->conn->instant) {
        p->ended = 1;
        fb_net_mark_dirty(s, p->conn->end[p->to]);
        return;
    }
    if (when < p->last)
        when = p->last;
    p->last = when;
    if (add_segment(p, 0, when, 1) < 0)
        s->broken = -ENOMEM;
    expect(s, p);
}

/* This end is told that the connection is no more. */
void fb_net_break_end(struct sim *s, struct conn *c, int end, int error)
{
    struct sock *k = c->end[end];
    fb_net_cut_off(s, &c->pipes[0]);
    fb_net_cut_off(s, &c->pipes[1]);
    c->pipes[end].ended = c->pipes[!end].fin = 1;
    if (!k)
        return;
    k->error = error;
    k->write_shut = 1;
    fb_net_mark_dirty(s, k);
}

/* Behind what is on its way there already. */
void fb_net_send_reset(struct sim *s, struct conn *c, int to)
{
    int64_t after;
    if (c->gone[to] || c->resets[to].slot)
        return;
    if (c->instant) {
        fb_net_break_end(s, c, to, ECONNRESET);
        return;
    }
    after = fb_net_latency(s);
    if (after < c->pipes[to].last - s->base.time)
        after = c->pipes[to].last - s->base.time;
    fb_net_arm(s, &c->resets[to], after);
}

void fb_net_reset_arrives(struct sim *s, struct conn *c, int end)
{
    if (!fb_net_reachable(s, c))
        return; /* nobody sends it again */
    TELL_CONN(s, c, !end, " resets", ROUTE(s, c, !end));
    fb_net_break_end(s, c, end, ECONNRESET);
}

static void hold(struct sim *s, struct pipe *p)
{
    if (!p->held && !p->giving_up.slot)
        fb_net_arm(s, &p->giving_up, GIVE_UP * SECOND);
    p->held = 1;
}

void fb_net_arrive(struct sim *s, struct pipe *p)
{
    struct conn *c = p->conn;
    uint32_t n = 0;
    if (!fb_net_reachable(s, c)) {
        hold(s, p);
        return;
    }
    fb_net_disarm(s, &p->giving_up);
    if (c->gone[p->to]) {
        int news = 0;
        for (; p->segment_len; fb_net_drop_segment(p))
            news |= p->segments[p->segment_start].size != 0;
        fb_net_cut_off(s, p);
        if (news) /* sent to somebody who has closed, or forgotten */
            fb_net_send_reset(s, c, !p->to);
        return;
    }
    while (p->segment_len && p->segments[p->segment_start].when <= s->base.time) {
        struct segment *g = &p->segments[p->segment_start];
        n += g->size;
        p->ended |= g->fin;
        fb_net_drop_segment(p);
    }
    p->ready += n;
    if (n)
        TELL_CONN(s, c, !p->to, " %u bytes arrive", ROUTE(s, c, !p->to), n);
    if (p->ended)
        TELL_CONN(s, c, !p->to, " the end arrives", ROUTE(s, c, !p->to));
    fb_net_mark_dirty(s, c->end[p->to]);
    expect(s, p);
}

/* Sent again and again in vain. */
void fb_net_give_up(struct sim *s, struct pipe *p)
{
    TELL_CONN(s, p->conn, !p->to, " gives up", ROUTE(s, p->conn, !p->to));
    fb_net_break_end(s, p->conn, !p->to, ETIMEDOUT);
}

/* Links or hosts are back: what was held is sent again. */
void fb_net_release_held(struct sim *s)
{
    struct conn *first = NULL, *c;
    for (c = s->conns; c; c = c->next) /* in order of birth: the list begins with the youngest */
        first = c;
    for (c = first; c; c = c->prev)
        for (int end = 0; end < 2; end++) {
            struct pipe *p = &c->pipes[end];
            if (!p->held || !fb_net_reachable(s, c))
                continue;
            p->held = 0;
            p->last = s->base.time + fb_net_latency(s);
            for (uint32_t i = 0; i < p->segment_len; i++) {
                struct segment *g = &p->segments[(p->segment_start + i) & (p->segment_cap - 1)];
                if (g->when < p->last)
                    g->when = p->last;
            }
            expect(s, p);
        }
}

