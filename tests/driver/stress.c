/* Stress: random submits, cancels and peers on a driver, without Python, for the sanitizers and for long soaks.
 *
 *     stress DRIVER SEED [STEPS]
 *
 * The seed decides the driver's set-up, whether descriptors have file records, the traffic and the cancels; a failure prints it. What is checked:
 *
 *  1. rule 2: an op is handed out once, and only if it was submitted;
 *  2. rule 3: the memory of an op that was completed, or that ended in close, is never written again: it lies in
 *     quarantine, filled with poison, for a while;
 *  3. rule 4: -ECANCELED comes only after a cancel;
 *  4. every byte of every stream arrives in order and once, whoever sends and receives it: ops or plain calls;
 *  5. every datagram arrives whole and once, though many ops wait on its socket.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core.h"
#include "sim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { STREAMS = 12, READERS = 12, LARGE = 200000, SMALL = 6000, QUARANTINE = 512, MESSAGE = 32, MESSAGES = 1 << 20 };
enum { POISON = 0x5a, FRESH = 0x25 };
enum role { SENDER, RECEIVER, READER, OTHER };

static uint64_t seed, random_state;
static const char *step_name = "start";

#define CHECK(what, ...)                                                                                               \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "stress: seed %llu, %s, line %d: %s: ", (unsigned long long)seed, step_name, __LINE__,     \
                    #what);                                                                                            \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint32_t below(uint32_t n) { return (uint32_t)(mix(random_state += 0x9e3779b97f4a7c15ull) % n); }

/* One direction of a socket pair. At most one op or plain call sends at a time, and one receives: so the order of the
 * bytes is the program's, and each byte follows from its position. */
struct stream {
    uint32_t number;
    int in, out;
    uint64_t sent, received;
    struct job *sender, *receiver;
    struct fb_interest *interest;   /* owned or NULL */
    struct fb_file *in_file, *out_file; /* of the pair's two ends, or NULL */
};

struct job {
    struct fb_op op;
    enum role role;
    int live, asked;
    struct stream *stream;
    char *memory;             /* owned: `size` bytes, or NULL */
    size_t size;
    struct msghdr header;
    struct iovec parts[2];
    struct job *next, *prev;  /* among the live ones */
};

static struct fb_driver *driver;
static struct fb_file files[STREAMS + 1]; /* of the streams' ends, and of the datagram socket */
static int keep_files, simulated;
static struct stream streams[STREAMS];
static struct job *live, *quarantine[QUARANTINE];
static unsigned quarantined, live_count;
static int datagrams[2];
static uint32_t messages_sent, messages_received;
static uint8_t seen[MESSAGES / 8];
static uint64_t totals[4], cancelled;

static char byte_at(const struct stream *s, uint64_t position)
{
    return (char)(mix(position / 8 + ((uint64_t)s->number << 48)) >> (position % 8 * 8));
}

static void arrived(struct stream *s, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        CHECK(bytes[i] == byte_at(s, s->received + i), "stream %u: wrong byte at %llu", s->number,
              (unsigned long long)(s->received + i));
    s->received += n;
    CHECK(s->received <= s->sent || s->sender, "stream %u: more came than was sent", s->number);
}

/* Jobs. */

static void check_poison(const struct job *j)
{
    for (size_t i = 0; i < j->size; i++)
        CHECK(j->memory[i] == POISON, "memory of an op of code %d written after its end", j->op.code);
    CHECK(!j->live && j->op.state == FB_IDLE, "an op changed after its end");
}

static void bury(struct job *j)
{
    unsigned slot = quarantined++ % QUARANTINE;
    if (j->memory)
        memset(j->memory, POISON, j->size);
    if (quarantine[slot]) {
        check_poison(quarantine[slot]);
        free(quarantine[slot]->memory);
        free(quarantine[slot]);
    }
    quarantine[slot] = j;
}

static struct job *job_new(enum role role, int code, int fd, size_t size)
{
    struct job *j = calloc(1, sizeof *j);
    CHECK(j, "memory");
    fb_prepare(&j->op, code, fd);
    j->op.owner = j;
    j->role = role;
    j->size = size;
    if (size) {
        j->memory = malloc(size);
        CHECK(j->memory, "memory");
        memset(j->memory, FRESH, size);
    }
    j->op.data = j->memory;
    j->op.len = size;
    return j;
}

static void as_message(struct job *j)
{
    size_t half = below((uint32_t)j->size + 1);
    j->parts[0] = (struct iovec){j->memory, half};
    j->parts[1] = (struct iovec){j->memory + half, j->size - half};
    j->header = (struct msghdr){.msg_iov = j->parts, .msg_iovlen = 2};
    j->op.data = &j->header;
}

static void start(struct job *j)
{
    j->live = 1;
    j->next = live;
    j->prev = NULL;
    if (live)
        live->prev = j;
    live = j;
    live_count++;
    fb_submit(driver, &j->op);
    CHECK(j->op.state != FB_IDLE, "rule 1: submit gave the op back");
}

static void unlink_job(struct job *j)
{
    CHECK(j->live == 1, "rule 2: an op was completed twice, or never submitted");
    j->live = 0;
    live_count--;
    if (j->prev)
        j->prev->next = j->next;
    else
        live = j->next;
    if (j->next)
        j->next->prev = j->prev;
}

static void message_arrived(const char *bytes, int n)
{
    uint32_t number;
    CHECK(n == MESSAGE, "a datagram of %d bytes", n);
    memcpy(&number, bytes, sizeof number);
    CHECK(number < messages_sent && !(seen[number / 8] >> number % 8 & 1), "datagram %u is not due", number);
    for (int i = sizeof number; i < MESSAGE; i++)
        CHECK(bytes[i] == (char)mix(number + (uint64_t)i), "datagram %u is not whole", number);
    seen[number / 8] |= (uint8_t)(1 << number % 8);
    messages_received++;
}

static void done(struct job *j)
{
    struct fb_op *op = &j->op;
    int res = op->res;
    unlink_job(j);
    totals[j->role]++;
    if (res == -ECANCELED) {
        cancelled++;
        CHECK(j->asked, "rule 4: nobody cancelled it");
    } else {
        CHECK(res >= 0 || (op->extra && res == -EAGAIN), "code %d failed: %s", op->code, strerror(-res));
    }
    switch (j->role) {
    case SENDER:
        j->stream->sender = NULL;
        for (size_t i = 0; i < j->size; i++)
            CHECK(j->memory[i] == byte_at(j->stream, j->stream->sent + i), "the driver wrote to what it sends");
        if (res > 0)
            j->stream->sent += (uint64_t)res;
        CHECK(res == (int)j->size || op->code != FB_SENDALL || j->asked, "sendall ended after %d of %zu", res, j->size);
        break;
    case RECEIVER:
    case READER: {
        const char *bytes = op->code == FB_RECV ? op->data : j->memory;
        if (res > 0 && j->role == RECEIVER)
            arrived(j->stream, bytes, (size_t)res);
        else if (res > 0)
            message_arrived(bytes, res);
        for (size_t i = res > 0 ? (size_t)res : 0; i < j->size && op->code != FB_RECV; i++)
            CHECK(j->memory[i] == FRESH, "code %d, result %d: written beyond it", op->code, res);
        if (j->role == RECEIVER)
            j->stream->receiver = NULL;
        break;
    }
    case OTHER:
        break;
    }
    fb_release(driver, op);
    fb_release(driver, op);
    CHECK(op->buffer == -1, "released");
    bury(j);
}

static void poll_driver(int64_t timeout_ns)
{
    struct fb_op *op;
    int r = fb_poll(driver, timeout_ns);
    CHECK(r == 0, "the driver failed: %s", strerror(-r));
    while ((op = fb_reap(driver)))
        done(op->owner);
    driver->woken = 0;
    CHECK(driver->flying == live_count, "%u in flight, should be %u", driver->flying, live_count);
}

/* What happens. */

static size_t some_size(void) { return 1 + below(below(8) ? SMALL : LARGE); }

static void send_by_op(struct stream *s)
{
    static const int CODES[] = {FB_SEND, FB_SENDALL, FB_SENDALL, FB_SENDMSG};
    int code = CODES[below(4)];
    struct job *j = job_new(SENDER, code, s->out, some_size());
    for (size_t i = 0; i < j->size; i++)
        j->memory[i] = byte_at(s, s->sent + i);
    if (code == FB_SENDMSG)
        as_message(j);
    j->stream = s;
    j->op.file = s->out_file;
    if (below(2) && fb_attempt(driver, &j->op)) {
        CHECK(j->op.res > 0 && j->op.res <= (int)j->size && (code != FB_SENDALL || j->op.res == (int)j->size),
              "code %d, attempted: %d of %zu", code, j->op.res, j->size);
        s->sent += (uint64_t)j->op.res;
        totals[SENDER]++;
        bury(j);
        return;
    }
    s->sender = j;
    start(j);
}

/* send(2) or recv(2), of the kernel that the driver is on. */
static ssize_t call(int code, int fd, void *bytes, size_t n)
{
    struct fb_op op;
    int r;
    if (!simulated)
        return code == FB_SEND ? send(fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(fd, bytes, n, MSG_DONTWAIT);
    fb_prepare(&op, code, fd);
    op.data = bytes;
    op.len = n;
    r = fb_sim_call(driver, &op);
    errno = r < 0 ? -r : 0;
    return r < 0 ? -1 : r;
}

static void send_by_call(struct stream *s)
{
    char bytes[SMALL];
    size_t n = 1 + below(SMALL);
    ssize_t r;
    for (size_t i = 0; i < n; i++)
        bytes[i] = byte_at(s, s->sent + i);
    r = call(FB_SEND, s->out, bytes, n);
    CHECK(r >= 0 || errno == EAGAIN, "send: %s", strerror(errno));
    s->sent += r > 0 ? (uint64_t)r : 0;
}

static void start_receive(struct stream *s, struct job *j)
{
    const struct fb_op *op = &j->op;
    j->stream = s;
    j->op.file = s->in_file;
    if (below(4) && fb_attempt(driver, &j->op)) {
        CHECK(op->res > 0 && (op->code == FB_RECVMSG || (uint64_t)op->res <= op->len), "an attempt: %d", op->res);
        arrived(s, op->code == FB_RECVMSG ? j->memory : op->data, (size_t)op->res);
        for (size_t i = (size_t)op->res; i < j->size; i++)
            CHECK(j->memory[i] == FRESH, "an attempted receive wrote beyond its result");
        totals[RECEIVER]++;
        bury(j);
        return;
    }
    s->receiver = j;
    start(j);
}

static void receive_by_op(struct stream *s)
{
    static const int CODES[] = {FB_RECV, FB_RECV, FB_RECV_INTO, FB_RECVMSG};
    int code = CODES[below(4)];
    struct job *j = job_new(RECEIVER, code, s->in, code == FB_RECV ? 0 : some_size());
    if (code == FB_RECV)
        j->op.len = some_size();
    if (code == FB_RECVMSG)
        as_message(j);
    start_receive(s, j);
}

static void receive_by_interest(struct stream *s)
{
    int code = below(2) ? FB_RECV : FB_RECV_INTO;
    struct job *j = job_new(RECEIVER, code, s->in, code == FB_RECV ? 0 : some_size());
    if (code == FB_RECV)
        j->op.len = some_size();
    if (!s->interest)
        s->interest = fb_follow(driver, s->in);
    CHECK(s->interest || strcmp(driver->verbs->name, "uring"), "memory");
    j->op.extra = s->interest;
    start_receive(s, j);
}

static void end_interest(struct stream *s)
{
    if (!s->interest || (s->receiver && s->receiver->op.extra))
        return;
    if (below(2))
        fb_unfollow(s->interest);
    else
        fb_orphan(s->interest);
    s->interest = NULL;
}

static int receive_by_call(struct stream *s)
{
    static char bytes[LARGE];
    ssize_t r = call(FB_RECV_INTO, s->in, bytes, some_size());
    CHECK(r >= 0 || errno == EAGAIN, "recv: %s", strerror(errno));
    if (r > 0)
        arrived(s, bytes, (size_t)r);
    return r > 0;
}

static void read_datagram(void)
{
    static const int CODES[] = {FB_RECV, FB_RECV, FB_RECV_INTO, FB_RECVMSG};
    int code = CODES[below(4)];
    struct job *j = job_new(READER, code, datagrams[0], code == FB_RECV ? 0 : 2 * MESSAGE);
    if (code == FB_RECV)
        j->op.len = MESSAGE + below(1000);
    if (code == FB_RECVMSG)
        as_message(j);
    j->op.file = keep_files ? &files[STREAMS] : NULL;
    start(j);
}

static void send_datagram(void)
{
    char bytes[MESSAGE];
    if (messages_sent == MESSAGES)
        return;
    memcpy(bytes, &messages_sent, sizeof messages_sent);
    for (int i = sizeof messages_sent; i < MESSAGE; i++)
        bytes[i] = (char)mix(messages_sent + (uint64_t)i);
    messages_sent++; /* it may be received before the call is over */
    if (call(FB_SEND, datagrams[1], bytes, sizeof bytes) < 0)
        messages_sent--;
}

static void cancel_one(void)
{
    unsigned skip = live_count ? below(live_count < 30 ? live_count : 30) : 0;
    struct job *j = live;
    while (j && skip--)
        j = j->next;
    if (!j)
        return;
    j->asked = 1;
    fb_cancel(driver, &j->op);
    if (!below(4))
        fb_cancel(driver, &j->op);
    CHECK(j->live, "cancel handed the op out");
}

static void cancel_all(void)
{
    for (struct job *j = live; j; j = j->next) {
        j->asked = 1;
        fb_cancel(driver, &j->op);
    }
}

static unsigned readers(void)
{
    unsigned n = 0;
    for (struct job *j = live; j; j = j->next)
        n += j->role == READER;
    return n;
}

static void step(void)
{
    struct stream *s = &streams[below(STREAMS)];
    switch (below(16)) {
    case 0: case 1: case 2:
        if (!s->sender)
            send_by_op(s);
        break;
    case 3:
        if (!s->sender)
            send_by_call(s);
        break;
    case 4: case 5: case 6: case 7:
        if (!s->receiver && below(2))
            receive_by_op(s);
        else if (!s->receiver)
            receive_by_interest(s);
        break;
    case 8:
        if (!s->receiver)
            receive_by_call(s);
        if (!below(8))
            end_interest(s);
        break;
    case 9:
        if (readers() < READERS)
            read_datagram();
        break;
    case 10:
        send_datagram();
        break;
    case 11:
        cancel_one();
        break;
    case 12:
        if (!below(200))
            cancel_all();
        for (unsigned n = below(100) ? 1 : 600; n; n--)
            start(job_new(OTHER, FB_NOP, -1, 0));
        break;
    case 13:
        if (below(2)) {
            fb_wake(driver);
        } else {
            struct job *j = job_new(OTHER, FB_POLL, s->in, 0);
            j->op.flags = POLLIN;
            j->op.file = below(2) ? s->in_file : NULL;
            start(j);
        }
        break;
    default:
        poll_driver(below(3) ? 0 : 20000);
        break;
    }
}

/* Are there bytes on their way? TCP delivers in its own time. */
static int under_way(const struct stream *s) { return s->received < s->sent; }

/* The end: what is in flight is cancelled, and what was sent is received. */
static void settle(void)
{
    int64_t limit = fb_now() + 30000000000;
    step_name = "cancelling everything";
    cancel_all();
    while (live) {
        CHECK(fb_now() < limit, "%u ops are lost, the first of code %d in state %d", live_count, live->op.code,
              live->op.state);
        poll_driver(10000000);
    }
    step_name = "draining";
    for (int i = 0; i < STREAMS; i++) {
        while (receive_by_call(&streams[i]) || (under_way(&streams[i]) && fb_now() < limit))
            if (simulated)
                poll_driver(1000000);
        CHECK(streams[i].received == streams[i].sent, "stream %d: sent %llu, received %llu", i,
              (unsigned long long)streams[i].sent, (unsigned long long)streams[i].received);
    }
    for (;;) {
        char bytes[2 * MESSAGE];
        ssize_t r = call(FB_RECV_INTO, datagrams[0], bytes, sizeof bytes);
        if (r < 0)
            break;
        message_arrived(bytes, (int)r);
    }
    CHECK(messages_received == messages_sent, "%u datagrams sent, %u received", messages_sent, messages_received);
}

/* Close with ops in flight: their memory is ours again, and stays as we leave it. */
static void close_in_flight(void)
{
    int64_t begin;
    step_name = "closing with ops in flight";
    for (int i = 0; i < STREAMS; i++) {
        if (!streams[i].receiver && below(2))
            receive_by_op(&streams[i]);
        else if (!streams[i].receiver)
            receive_by_interest(&streams[i]);
        if (!streams[i].sender)
            send_by_op(&streams[i]);
    }
    for (int n = 0; n < READERS; n++)
        read_datagram();
    if (below(2))
        poll_driver(0);
    begin = fb_now();
    fb_close(driver);
    CHECK(fb_now() - begin < 500000000, "close took %lld ms", (long long)((fb_now() - begin) / 1000000));
    for (int i = 0; i < STREAMS; i++)
        if (streams[i].interest)
            fb_unfollow(streams[i].interest);
    while (live) {
        struct job *j = live;
        unlink_job(j);
        j->op.state = FB_IDLE;
        bury(j);
    }
    for (int i = 0; i < STREAMS; i++)
        (void)!send(streams[i].out, "late", 4, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)!send(datagrams[1], "late", 4, MSG_DONTWAIT | MSG_NOSIGNAL);
    usleep(2000);
}

/* A simulated kernel in which all goes wrong that loses nothing. */
static struct fb_driver *make_simulated(char *words, size_t size, int *error, const char **why)
{
    static const enum fb_fault FAULTS[] = {FB_SHORT_READ, FB_SHORT_WRITE, FB_DELAY, FB_LATE_CANCEL, FB_NO_BUFFER, FB_SLOW};
    struct fb_sim_config config = {.seed = seed, .shuffled = below(2), .latency = below(2) * 1000, .spread = below(5000),
                                   .late = 1 + below(20000), .rate = 100000000, .window = 1u << (10 + below(8))};
    for (unsigned i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++)
        config.chance[FAULTS[i]] = below(2) ? 0 : below(100) / 200.0;
    if (!below(2)) {
        config.buffers = 1u << below(4);
        config.buffer_size = 4096;
    }
    snprintf(words, size, "sim, %u x %u, window %u", config.buffers, config.buffer_size, config.window);
    simulated = 1;
    return fb_sim_new(&config, error, why);
}

/* A driver in a set-up that the seed decides, and the set-up in words. */
static struct fb_driver *make(const char *name, char *words, size_t size, int *error, const char **why)
{
    static const uint32_t FORBID[] = {0, 0, 0, 1u << 13, 1u << 13 | 1u << 8, 1u << 7};
    struct fb_uring_config ring = {.forbid = FORBID[below(6)]};
    struct fb_readiness_config config = {0};
    struct fb_uring_info info;
    struct fb_driver *d;
    if (!below(3)) {
        ring.sq_entries = 4;
        ring.cq_entries = 8;
    }
    if (!below(2)) {
        ring.buffers = config.buffers = 1u << below(4);
        ring.buffer_size = config.buffer_size = 4096;
    }
    keep_files = (int)below(2);
    snprintf(words, size, "%s%s, %u x %u", name, keep_files ? ", files kept" : "", config.buffers, config.buffer_size);
    if (!strcmp(name, "sim"))
        return make_simulated(words, size, error, why);
    if (strcmp(name, "uring"))
        return fb_readiness_new(name, &config, error, why);
    d = fb_uring_new(&ring, error, why);
    if (d) {
        fb_uring_info(d, &info);
        snprintf(words, size, "%s, flags %#x, sq %u, cq %u, %u x %u", name, info.setup_flags, info.sq_entries,
                 info.cq_entries, info.buffers, info.buffer_size);
    }
    return d;
}

/* The same between two simulated hosts, or within one. */
static void connect_simulated(int tcp, int ends[2])
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(80)};
    struct fb_op to, from;
    int host, listener;
    if (!tcp) {
        CHECK(fb_sim_pair(driver, 0, SOCK_STREAM, ends) == 0, "a simulated pair");
        return;
    }
    host = fb_sim_host(driver, "server");
    listener = fb_sim_socket(driver, host, SOCK_STREAM);
    ends[0] = fb_sim_socket(driver, 0, SOCK_STREAM);
    CHECK(fb_sim_bind(driver, listener, &there) == 0 && fb_sim_listen(driver, listener, 1) == 0 &&
          fb_sim_name(driver, listener, 0, &there) == 0, "a simulated listener");
    fb_prepare(&to, FB_CONNECT, ends[0]);
    to.data = &there;
    to.len = sizeof there;
    fb_prepare(&from, FB_ACCEPT, listener);
    fb_submit(driver, &to);
    fb_submit(driver, &from);
    for (int n = 0; n < 2;) {
        CHECK(fb_poll(driver, -1) == 0, "the driver failed");
        while (fb_reap(driver))
            n++;
    }
    CHECK(to.res == 0 && from.res >= 0, "a simulated connection: %d, %d", to.res, from.res);
    ends[1] = from.res;
    CHECK(fb_close_fd(driver, listener) == 0, "close");
}

/* Two streams on one socket, over Unix or TCP. */
static void connect_pair(int tcp, int ends[2])
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int listener;
    if (simulated) {
        connect_simulated(tcp, ends);
        return;
    }
    if (!tcp) {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
        return;
    }
    listener = socket(AF_INET, SOCK_STREAM, 0);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 1) == 0 &&
              getsockname(listener, (struct sockaddr *)&here, &size) == 0 &&
              connect(ends[0], (struct sockaddr *)&here, sizeof here) == 0 &&
              (ends[1] = accept(listener, NULL, NULL)) >= 0, "a TCP connection: %s", strerror(errno));
    close(listener);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "uring", *why;
    long steps = argc > 3 ? atol(argv[3]) : 20000;
    char words[200];
    int error;
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    random_state = mix(seed + 1);
    driver = make(name, words, sizeof words, &error, &why);
    if (!driver) {
        fprintf(stderr, "stress: %s is not available: %s: %s\n", name, why, strerror(-error));
        return 77; /* automake's "skipped" */
    }
    for (uint32_t i = 0; i < STREAMS; i += 2) {
        struct fb_file *a = keep_files ? &files[i] : NULL, *b = keep_files ? &files[i + 1] : NULL;
        int ends[2];
        connect_pair(i % 4 == 0, ends);
        streams[i] = (struct stream){.number = i, .in = ends[0], .out = ends[1], .in_file = a, .out_file = b};
        streams[i + 1] = (struct stream){.number = i + 1, .in = ends[1], .out = ends[0], .in_file = b, .out_file = a};
    }
    CHECK((simulated ? fb_sim_pair(driver, 0, SOCK_DGRAM, datagrams) : socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams)) == 0,
          "a pair of datagram sockets");
    step_name = "running";
    for (long n = 0; n < steps; n++)
        step();
    settle();
    printf("seed %llu: %s: %llu sends, %llu receives, %llu datagram reads, %llu others,"
           " %llu cancelled, %llu starved, %u datagrams\n",
           (unsigned long long)seed, words, (unsigned long long)totals[SENDER], (unsigned long long)totals[RECEIVER], (unsigned long long)totals[READER], (unsigned long long)totals[OTHER],
           (unsigned long long)cancelled, (unsigned long long)driver->count.starved, messages_sent);
    CHECK(steps < 1000 || (totals[SENDER] && totals[RECEIVER] && totals[READER] && cancelled), "nothing was tested");
    close_in_flight();
    for (int i = 0; i < QUARANTINE; i++) {
        if (quarantine[i]) {
            check_poison(quarantine[i]);
            free(quarantine[i]->memory);
            free(quarantine[i]);
        }
    }
    for (int i = 0; i < STREAMS; i++)
        close(streams[i].in);
    close(datagrams[0]);
    close(datagrams[1]);
    return 0;
}
