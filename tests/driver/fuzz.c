/* A fuzzer for drivers: its input is a program of submits, cancels, polls, calls and closes, and every program must end well.
 *
 * Built with clang -fsanitize=fuzzer,address,undefined; FUZZ_DRIVER names the driver, "sim" by default. What is checked is
 * the contract of core.h, as in stress.c: an op is handed out once and only if it was submitted, its memory is not
 * touched when it is its owner's, -ECANCELED is for those who asked, a stream's bytes come in order and once, and when all
 * is cancelled all comes back.
 *
 * With FUZZ_STANDALONE it is a program that runs each file it is given, and without one inputs made up from seeds, so that
 * any compiler can build it: fuzz SECONDS [SEED].
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core.h"
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OPS = 64, FDS = 24, SIZE = 512, FRESH = 0xA5 };

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "fuzz: %s: ", #condition);                                                                 \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct job {
    struct fb_op op;
    int live, asked;
    unsigned char memory[SIZE];
    struct msghdr header;
    struct iovec part;
    struct sockaddr_in address;
    socklen_t size;
};

/* The bytes of one direction of a pair count up, so that each tells its place. */
struct flow {
    uint32_t sent, received;
    uint8_t sending, receiving, blurred;
};

struct end {
    int fd, flow_in, flow_out;
};

static struct fb_driver *driver;
static int simulated, hosts;
static struct job *jobs;
static struct end ends[FDS];
static struct flow flows[FDS];
static int end_count, flow_count;
static const uint8_t *input;
static size_t left;

static uint32_t take(uint32_t below)
{
    uint32_t value = 0;
    if (left) {
        value = *input++;
        left--;
    }
    return below ? value % below : value;
}

static void fill(struct job *j, struct flow *f, uint32_t n)
{
    memset(j->memory, FRESH, sizeof j->memory);
    for (uint32_t i = 0; f && i < n; i++)
        j->memory[i] = (unsigned char)((f->sent + i) * 7);
}

static void arrived(struct flow *f, const unsigned char *bytes, int n)
{
    for (int i = 0; i < n && !f->blurred; i++)
        CHECK(bytes[i] == (unsigned char)((f->received + (uint32_t)i) * 7), "byte %u of a stream", f->received + (uint32_t)i);
    f->received += (uint32_t)n;
}

static struct end *end_of(int fd)
{
    for (int i = 0; i < end_count; i++)
        if (ends[i].fd == fd)
            return &ends[i];
    return NULL;
}

/* With a real kernel an owner does not close what its ops wait on (core.h, fb_drop_file); the simulated one must bear it. */
static int may_close(int fd)
{
    for (int i = 0; i < OPS && !simulated; i++)
        if (jobs[i].live && jobs[i].op.fd == fd)
            return 0;
    return 1;
}

static void close_it(int fd, int behind)
{
    struct end *e = end_of(fd);
    if (!may_close(fd))
        return;
    if (behind) { /* a call that the driver does not hear of */
        close(fd);
        fd = -1;
    }
    if (e)
        *e = ends[--end_count];
    if (fd >= 0)
        fb_close_fd(driver, fd);
}

static void add_end(int fd, int in, int out)
{
    if (fd < 0)
        return;
    if (end_count == FDS) {
        fb_close_fd(driver, fd);
        return;
    }
    ends[end_count++] = (struct end){fd, in, out};
}

static void done(struct fb_op *op)
{
    struct job *j = op->owner;
    int receives = op->code == FB_RECV || op->code == FB_RECV_INTO || op->code == FB_READ || op->code == FB_RECVMSG;
    int sends = op->code == FB_SEND || op->code == FB_SENDALL || op->code == FB_WRITE || op->code == FB_SENDMSG;
    struct flow *f = op->off >= 0 && (receives || sends) ? &flows[op->off] : NULL;
    CHECK(j->live, "code %d was completed twice, or never submitted", op->code);
    CHECK(op->res != -ECANCELED || j->asked, "code %d was cancelled by nobody", op->code);
    CHECK(op->res >= -4095, "code %d ended with %d", op->code, op->res);
    j->live = 0;
    if (f && sends) {
        f->sending = 0;
        f->sent += op->res > 0 ? (uint32_t)op->res : 0;
    }
    if (receives) {
        const unsigned char *bytes = op->code == FB_RECV ? op->data : j->memory;
        int n = op->res > 0 ? op->res : 0;
        CHECK(n <= SIZE, "code %d received %d", op->code, n);
        if (f) {
            f->receiving = 0;
            arrived(f, bytes, n);
        }
        for (int i = op->code == FB_RECV ? 0 : n; i < SIZE; i++)
            CHECK(j->memory[i] == FRESH, "code %d wrote beyond its %d bytes", op->code, n);
    }
    fb_release(driver, op);
    if (op->code == FB_ACCEPT)
        add_end(op->res, -1, -1);
}

static void poll_driver(int64_t timeout)
{
    struct fb_op *op;
    uint32_t live = 0;
    CHECK(fb_poll(driver, timeout) == 0, "the driver failed");
    while ((op = fb_reap(driver)))
        done(op);
    for (int i = 0; i < OPS; i++)
        live += (uint32_t)jobs[i].live;
    CHECK(driver->flying == live, "%u in flight, %u submitted", driver->flying, live);
    driver->woken = 0;
}

static struct job *free_job(void)
{
    for (int i = 0; i < OPS; i++)
        if (!jobs[i].live)
            return &jobs[i];
    return NULL;
}

static struct job *begin(int code, int fd)
{
    struct job *j = free_job();
    memset(&j->op, 0, sizeof j->op);
    fb_prepare(&j->op, code, fd);
    j->op.owner = j;
    j->op.data = &j->address;
    j->op.len = sizeof j->address;
    j->asked = 0;
    j->live = 1;
    return j;
}

static void submit(void)
{
    static const uint8_t CODES[] = {FB_NOP, FB_ACCEPT, FB_CONNECT, FB_RECV, FB_RECV_INTO, FB_RECVMSG, FB_SEND, FB_SENDALL,
                                    FB_SENDMSG, FB_POLL, FB_SHUTDOWN, FB_CLOSE, FB_READ, FB_WRITE, FB_FSYNC, FB_FTRUNCATE, FB_CODES};
    int code = CODES[take(sizeof CODES)];
    struct end *e = end_count ? &ends[take((uint32_t)end_count)] : NULL;
    uint32_t n = take(0) * (SIZE / 256);
    struct flow *f = NULL;
    struct job *j = free_job();
    if (!j)
        return;
    memset(&j->op, 0, sizeof j->op);
    fb_prepare(&j->op, code, e ? e->fd : -1);
    j->asked = 0;
    j->op.owner = j;
    j->op.data = j->memory;
    j->op.len = n;
    switch (code) {
    case FB_RECV: case FB_RECV_INTO: case FB_RECVMSG: case FB_READ:
        if (e && e->flow_in >= 0) {
            f = &flows[e->flow_in];
            f->blurred |= f->receiving; /* whose bytes come first is not promised */
            f->receiving = 1;
            j->op.off = e->flow_in;
        }
        fill(j, NULL, 0);
        j->op.flags = code == FB_READ || take(4) ? 0 : take(2) ? MSG_WAITALL : MSG_DONTWAIT;
        break;
    case FB_SEND: case FB_SENDALL: case FB_SENDMSG: case FB_WRITE:
        if (e && e->flow_out >= 0) {
            f = &flows[e->flow_out];
            f->blurred |= f->sending;
            f->sending = 1;
            j->op.off = e->flow_out;
        }
        fill(j, f, n);
        break;
    case FB_ACCEPT:
        j->size = sizeof j->address;
        j->op.data = &j->address;
        j->op.extra = &j->size;
        j->op.flags = take(8) ? SOCK_CLOEXEC : 0xffff;
        break;
    case FB_CONNECT:
        j->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)(1 + take(3)))};
        j->address.sin_addr.s_addr = htonl(simulated ? 0x0a000001 + take((uint32_t)hosts + 1) : INADDR_LOOPBACK);
        j->op.data = &j->address;
        j->op.len = take(8) ? sizeof j->address : 3;
        break;
    case FB_POLL:
        j->op.flags = (uint32_t)(POLLIN | (take(2) ? POLLOUT : 0));
        break;
    case FB_SHUTDOWN:
        j->op.flags = take(4);
        break;
    case FB_CLOSE:
        if (e && !may_close(e->fd))
            return;
        if (e)
            *e = ends[--end_count];
        break;
    default:
        break;
    }
    if (code == FB_RECV)
        j->op.data = NULL;
    if (code == FB_RECVMSG || code == FB_SENDMSG) {
        j->part = (struct iovec){j->memory, n};
        j->header = (struct msghdr){.msg_iov = &j->part, .msg_iovlen = 1};
        j->op.data = &j->header;
    }
    j->live = 1;
    if (take(4) == 0 && code != FB_CLOSE && code != FB_CONNECT && fb_attempt(driver, &j->op)) {
        done(&j->op);
        return;
    }
    fb_submit(driver, &j->op);
    CHECK(j->op.state != FB_IDLE, "submit gave code %d back", code);
}

static void make_pair(void)
{
    static const int TYPES[] = {SOCK_STREAM, SOCK_DGRAM, 0};
    int type = TYPES[take(3)], fds[2], in = -1, out = -1;
    if (end_count + 2 > FDS)
        return;
    if (simulated ? fb_sim_pair(driver, (int)take((uint32_t)hosts), type, fds) < 0
                  : (type ? socketpair(AF_UNIX, type, 0, fds) : pipe(fds)) < 0)
        return;
    if (type != SOCK_DGRAM && flow_count + 2 <= FDS) { /* a datagram that is cut is no stream */
        in = flow_count++;
        out = flow_count++;
        flows[in] = flows[out] = (struct flow){0};
    }
    add_end(fds[0], in, out);
    add_end(fds[1], out, in);
}

/* A connection between two simulated hosts, if all goes well. */
static void make_connection(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(100)};
    int a = (int)take((uint32_t)hosts), b = (int)take((uint32_t)hosts), listener, client, accepted = -1, connected;
    struct job *to, *from;
    if (end_count + 2 > FDS || flow_count + 2 > FDS || driver->flying + 2 > OPS)
        return;
    listener = fb_sim_socket(driver, b, SOCK_STREAM);
    client = fb_sim_socket(driver, a, SOCK_STREAM);
    if (listener >= 0 && client >= 0 && fb_sim_bind(driver, listener, &at) == 0 && fb_sim_listen(driver, listener, 1) == 0 &&
        fb_sim_name(driver, listener, 0, &at) == 0) {
        to = begin(FB_CONNECT, client);
        to->address = at;
        from = begin(FB_ACCEPT, listener);
        from->op.data = NULL;
        fb_submit(driver, &to->op);
        fb_submit(driver, &from->op);
        for (int i = 0; (to->live || from->live) && i < 100; i++) {
            if (i == 50) {
                to->asked = from->asked = 1;
                fb_cancel(driver, &to->op);
                fb_cancel(driver, &from->op);
            }
            poll_driver(100000000);
        }
        CHECK(!to->live && !from->live, "a connection is lost");
        accepted = from->op.res;
        connected = to->op.res == 0;
        if (accepted >= 0 && connected && end_of(accepted)) {
            *end_of(accepted) = (struct end){accepted, flow_count, flow_count + 1};
            add_end(client, flow_count + 1, flow_count);
            flows[flow_count] = flows[flow_count + 1] = (struct flow){0};
            flow_count += 2;
            client = -1;
        }
    }
    if (client >= 0)
        fb_close_fd(driver, client);
    if (listener >= 0)
        fb_close_fd(driver, listener);
}

static void make_socket(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(1 + take(3)))};
    int listens = (int)take(2), fd;
    if (simulated) {
        fd = fb_sim_socket(driver, (int)take((uint32_t)hosts), SOCK_STREAM);
        if (fd >= 0 && listens && fb_sim_bind(driver, fd, &at) == 0)
            fb_sim_listen(driver, fd, (int)take(3));
    } else {
        at.sin_port = 0;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd >= 0 && listens && bind(fd, (struct sockaddr *)&at, sizeof at) == 0)
            listen(fd, (int)take(3));
    }
    add_end(fd, -1, -1);
}

static void disturb(void)
{
    char words[200];
    int a = (int)take((uint32_t)hosts), b = (int)take((uint32_t)hosts);
    if (!simulated)
        return;
    switch (take(7)) {
    case 0: case 1:
        if (a != b)
            fb_sim_link(driver, a, b, (int)take(2));
        break;
    case 2:
        fb_sim_power(driver, a, (int)take(2));
        break;
    case 3:
        fb_sim_kill(driver, a);
        break;
    case 4:
        if (hosts < 4 && fb_sim_host(driver, "host") >= 0)
            hosts++;
        break;
    case 5:
        for (int fd = -1; (fd = fb_sim_open_after(driver, fd)) >= 0;)
            fb_sim_describe(driver, fd, words, sizeof words);
        break;
    default:
        fb_sim_note(driver, "a note");
    }
}

static void step(void)
{
    struct job *j = &jobs[take(OPS)];
    switch (take(12)) {
    case 0:
        if (simulated && take(2))
            make_connection();
        else
            make_pair();
        break;
    case 1:
        make_socket();
        break;
    case 2:
        if (j->live) {
            j->asked = 1;
            fb_cancel(driver, &j->op);
        }
        break;
    case 3:
        if (end_count)
            close_it(ends[take((uint32_t)end_count)].fd, simulated && !take(8));
        break;
    case 4:
        fb_wake(driver);
        break;
    case 5: case 6:
        if (driver->verbs->ready(driver) && simulated)
            CHECK(driver->verbs->next(driver) <= driver->time || driver->waking, "ready, but not now");
        poll_driver(simulated ? (int64_t)take(0) * (take(16) ? 1000000 : INT64_C(10000000000)) : 0);
        break;
    case 7:
        disturb();
        break;
    case 8:
        if (end_count)
            fb_shut_down(driver, ends[take((uint32_t)end_count)].fd, (int)take(3));
        break;
    default:
        submit();
    }
}

static int make_driver(void)
{
    const char *name = getenv("FUZZ_DRIVER"), *step;
    struct fb_sim_config config = {.seed = take(0), .shuffled = take(2), .latency = take(0) * 10000, .spread = take(0) * 10000,
                                   .late = 1 + take(0) * 10000, .rate = 1 + take(0) * 100, .window = 1u << take(12)};
    struct fb_readiness_config readiness = {.buffers = 1u << take(4), .buffer_size = 256};
    struct fb_uring_config ring = {.buffers = readiness.buffers, .buffer_size = 256};
    int error;
    config.buffers = readiness.buffers;
    config.buffer_size = 256;
    for (int i = 0; i < FB_FAULTS; i++)
        config.chance[i] = take(4) ? 0 : take(128) / 255.0;
    simulated = !name || !strcmp(name, "sim");
    hosts = 1;
    driver = simulated                 ? fb_sim_new(&config, &error, &step)
             : !strcmp(name, "uring") ? fb_uring_new(&ring, &error, &step)
                                       : fb_readiness_new(name, &readiness, &error, &step);
    for (; driver && simulated && hosts < 3; hosts++)
        CHECK(fb_sim_host(driver, "host") == hosts, "a host");
    return driver != NULL;
}

static void settle(void)
{
    int64_t limit = fb_now() + INT64_C(10000000000);
    for (int i = 0; i < OPS; i++)
        if (jobs[i].live) {
            jobs[i].asked = 1;
            fb_cancel(driver, &jobs[i].op);
        }
    while (driver->flying) {
        CHECK(fb_now() < limit, "%u ops are lost", driver->flying);
        poll_driver(10000000);
    }
}

static void run_one(const uint8_t *data, size_t size)
{
    signal(SIGPIPE, SIG_IGN); /* as Python does */
    input = data;
    left = size;
    if (!make_driver())
        return;
    jobs = calloc(OPS, sizeof *jobs);
    end_count = flow_count = 0;
    while (left)
        step();
    if (size & 1)
        settle();
    for (int i = 0; i < end_count; i++)
        fb_close_fd(driver, ends[i].fd);
    fb_close(driver);
    free(jobs); /* what was in flight at the close is its owner's again */
}

#ifdef FUZZ_STANDALONE

int main(int argc, char **argv)
{
    int64_t until = fb_now() + (int64_t)(argc > 1 ? atof(argv[1]) * 1e9 : 1e9);
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, runs = 0;
    for (; fb_now() < until; runs++, seed++) {
        uint8_t data[600];
        uint64_t x = seed;
        size_t size = 20 + seed % 580;
        for (size_t i = 0; i < size; i++) {
            x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            data[i] = (uint8_t)(x >> 56);
        }
        run_one(data, size);
    }
    printf("%llu programs\n", (unsigned long long)runs);
    return 0;
}

#else

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    run_one(data, size);
    return 0;
}

#endif
