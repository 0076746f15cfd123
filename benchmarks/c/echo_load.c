/* Load generator: N connections, each sending a message and waiting for its echo, over and over.
 *
 * Usage: echo_load HOST PORT [--connections N] [--size B] [--warmup S] [--secs S] [--wait S] [--pid PID]
 * tls_load is the same program, compiled with TLS defined: it speaks TLS, and checks no certificate.
 *
 * Rule 1: every byte that comes back is compared with what was sent.
 * Rule 2: measuring starts when every connection has had one echo and the warm-up is over; no more than
 *         WINDOW connections wait for their first echo, so that no server's backlog overflows.
 * Rule 3: the CPU clock of process PID (the server) is read in the same instant as the requests are
 *         counted, at both ends of the window.
 * Rule 4: it keeps its connections open until standard input ends, so that the server can be killed first
 *         and never sees a reset; then it resets them, so that none lingers in TIME_WAIT.
 *
 * Prints one line of JSON. Its status is 1 if not every connection could be made and echoed. */
#include "echo.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/ssl.h>
#endif

enum { WINDOW = 64, EVENTS = 512, CHUNK = 65536, SUB_BITS = 6, BUCKETS = 64 << SUB_BITS, PATTERNS = 251 };
enum state { CONNECTING, FIRST, READY, RUNNING, LOST };

struct connection {
    int fd;
    enum state state;
    size_t sent, got;
    int64_t started;
#ifdef TLS
    SSL *tls;
#endif
};

static const char *host = "127.0.0.1", *port;
static size_t count = 100, size = 1024;
static double warmup = 0.5, secs = 2, patience = 30;
static pid_t server;

static struct connection *connections;
static char *payload; /* connection i sends payload + i % PATTERNS */
static int poller;
static size_t made, waiting, ready, lost;
static uint64_t requests, errors;
static uint64_t latency[BUCKETS];
static bool counting;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* CPU time in ns of the server with all its threads; 0 without --pid. */
static int64_t server_cpu(void)
{
    clockid_t clock;
    struct timespec t;
    if (!server)
        return 0;
    int error = clock_getcpuclockid(server, &clock);
    if (error || clock_gettime(clock, &t))
        die("CPU clock of the server", error ? error : errno);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t own_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Buckets grow with the value: 64 to every power of two, so a figure is right to 1.6 %. */
static unsigned bucket_of(uint64_t ns)
{
    if (ns < 1 << SUB_BITS)
        return (unsigned)ns;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(ns);
    unsigned shift = exponent - SUB_BITS;
    return ((shift + 1) << SUB_BITS) + (unsigned)((ns >> shift) & ((1 << SUB_BITS) - 1));
}

static double percentile_us(double share)
{
    uint64_t seen = 0, wanted = (uint64_t)((double)requests * share);
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += latency[i];
        if (latency[i] && seen >= wanted) {
            if (i < 1 << SUB_BITS)
                return i / 1e3;
            unsigned shift = (i >> SUB_BITS) - 1;
            return (double)((uint64_t)((1 << SUB_BITS) + (i & ((1 << SUB_BITS) - 1))) << shift) / 1e3;
        }
    }
    return 0;
}

/* How bytes are sent and received: as send(2) and recv(2) do. */
#ifdef TLS
static ssize_t failed(const struct connection *connection, int result)
{
    int why = SSL_get_error(connection->tls, result);
    if (why == SSL_ERROR_ZERO_RETURN)
        return 0;
    errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
}

static ssize_t give(const struct connection *connection, const char *data, size_t n)
{
    int result = SSL_write(connection->tls, data, (int)n);
    return result > 0 ? result : failed(connection, result);
}

static ssize_t take(const struct connection *connection, char *buffer, size_t n)
{
    int result = SSL_read(connection->tls, buffer, (int)n);
    return result > 0 ? result : failed(connection, result);
}

/* The handshake is done within the first write, or the read that follows. */
static void secure(struct connection *connection)
{
    static SSL_CTX *context;
    if (!context && (context = SSL_CTX_new(TLS_client_method()))) {
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_default_read_buffer_len(context, CHUNK);
    }
    connection->tls = context ? SSL_new(context) : NULL;
    if (!connection->tls || !SSL_set_fd(connection->tls, connection->fd))
        die("TLS", ENOMEM);
    SSL_set_connect_state(connection->tls);
}

static bool emptied(ssize_t n, size_t asked)
{
    (void)n;
    (void)asked;
    return false; /* there may be another record */
}
#else
static ssize_t give(const struct connection *connection, const char *data, size_t n)
{
    return send(connection->fd, data, n, MSG_NOSIGNAL);
}

static ssize_t take(const struct connection *connection, char *buffer, size_t n)
{
    return recv(connection->fd, buffer, n, 0);
}

static void secure(struct connection *connection)
{
    (void)connection;
}

static bool emptied(ssize_t n, size_t asked)
{
    return (size_t)n < asked; /* new data brings a new edge */
}
#endif

static void lose(struct connection *connection)
{
    errors++;
    lost++;
    if (connection->state == CONNECTING || connection->state == FIRST)
        waiting--;
    else if (connection->state == READY)
        ready--;
    connection->state = LOST;
    close(connection->fd);
}

/* A connection's bytes; the pattern differs from its neighbours' so that a mixed-up echo shows. */
static const char *message(const struct connection *connection)
{
    return payload + (connection - connections) % PATTERNS;
}

static void send_rest(struct connection *connection)
{
    while (connection->sent < size) {
        ssize_t n = give(connection, message(connection) + connection->sent, size - connection->sent);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            lose(connection);
            return;
        }
        connection->sent += (size_t)n;
    }
}

static void send_next(struct connection *connection)
{
    connection->sent = connection->got = 0;
    connection->started = now();
    send_rest(connection);
}

/* The whole echo is here. */
static void answered(struct connection *connection)
{
    if (connection->state == FIRST) {
        connection->state = READY;
        waiting--;
        ready++;
        return;
    }
    if (counting) {
        requests++;
        latency[bucket_of((uint64_t)(now() - connection->started))]++;
    }
    send_next(connection);
}

static void receive(struct connection *connection)
{
    static char buffer[CHUNK];
    while (connection->state != LOST) {
        ssize_t n = take(connection, buffer, sizeof buffer);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0 || connection->got + (size_t)n > connection->sent || connection->state == READY ||
            memcmp(buffer, message(connection) + connection->got, (size_t)n)) {
            lose(connection);
            return;
        }
        connection->got += (size_t)n;
        if (connection->got == size)
            answered(connection);
        if (emptied(n, sizeof buffer))
            return;
    }
}

/* One local address has too few ports for many connections: 127.0.0.1 is followed by .2, .3 and so on. */
static bool bind_local(int fd, unsigned skipped)
{
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + skipped)};
    int yes = 1;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    return bind(fd, (struct sockaddr *)&local, sizeof local) == 0;
}

/* True when the connection is under way. */
static bool start_connect(struct connection *connection)
{
    static unsigned skipped;
    struct sockaddr_in remote = address(host, port);
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    int yes = 1;
    for (;; skipped++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
            die("socket (open files: ulimit -n)", errno);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        if ((ntohl(remote.sin_addr.s_addr) >> 24) == IN_LOOPBACKNET && !bind_local(fd, skipped))
            die("bind to a loopback address", errno);
        if (connect(fd, (struct sockaddr *)&remote, sizeof remote) == 0 || errno == EINPROGRESS) {
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
            *connection = (struct connection){.fd = fd, .state = CONNECTING};
            if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
                die("epoll_ctl", errno);
            return true;
        }
        int error = errno;
        close(fd);
        if (error == ECONNREFUSED && !ready)
            return false;
        if (error != EADDRNOTAVAIL || skipped > 200)
            die("connect", error);
    }
}

/* False if the server is not listening yet. */
static bool connected(struct connection *connection)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        if (error != ECONNREFUSED || ready)
            die("connect", error);
        close(connection->fd);
        return false;
    }
    connection->state = FIRST;
    secure(connection);
    send_next(connection);
    return true;
}

/* Handles what is ready; false if a connection was refused. */
static bool step(int timeout_ms)
{
    static struct epoll_event events[EVENTS];
    bool accepted = true;
    int n = epoll_wait(poller, events, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct connection *connection = events[i].data.ptr;
        if (connection->state == CONNECTING) {
            if (connected(connection))
                continue;
            accepted = false;
            made--;
            waiting--;
            continue;
        }
        if (connection->state == LOST)
            continue;
        if (connection->sent < size && (events[i].events & EPOLLOUT))
            send_rest(connection);
        if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            receive(connection);
#ifdef TLS
        if (connection->state != LOST && connection->sent < size)
            send_rest(connection); /* the handshake took reads */
#endif
    }
    return accepted;
}

/* Only the first connection may be refused, while the server starts: the others come after its echo. */
static void connect_all(void)
{
    int64_t deadline = now() + (int64_t)(patience * 1e9);
    while (ready < count) {
        bool accepted = true;
        while (accepted && made < count && waiting < (ready ? WINDOW : 1)) {
            accepted = start_connect(&connections[made]);
            made += accepted;
            waiting += accepted;
        }
        if (!step(20) || !accepted)
            usleep(20000);
        if (lost || now() > deadline) {
            fprintf(stderr, "after %.1f s: %zu of %zu connections echoed, %zu lost\n", patience, ready, count, lost);
            exit(1);
        }
    }
}

static void run_until(int64_t end)
{
    int64_t left;
    while ((left = end - now()) > 0 && lost < count)
        step((int)(left / 1000000) + 1);
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"connections", required_argument, NULL, 'c'}, {"size", required_argument, NULL, 'b'},
        {"warmup", required_argument, NULL, 'u'},      {"secs", required_argument, NULL, 's'},
        {"wait", required_argument, NULL, 'w'},        {"pid", required_argument, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'c': count = (size_t)atol(optarg); break;
        case 'b': size = (size_t)atol(optarg); break;
        case 'u': warmup = atof(optarg); break;
        case 's': secs = atof(optarg); break;
        case 'w': patience = atof(optarg); break;
        case 'p': server = atoi(optarg); break;
        default: exit(2);
        }
    }
    if (argc - optind != 2 || !count || !size || secs <= 0) {
        fprintf(stderr, "usage: %s HOST PORT [--connections N] [--size B] [--warmup S] [--secs S] [--wait S] [--pid PID]\n",
                argv[0]);
        exit(2);
    }
    host = argv[optind];
    port = argv[optind + 1];
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    connections = calloc(count, sizeof *connections);
    payload = malloc(size + PATTERNS);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !payload || poller < 0)
        die("start", errno);
    for (size_t i = 0; i < size + PATTERNS; i++)
        payload[i] = (char)(i % PATTERNS);

    int64_t begin = now();
    connect_all();
    double connecting = (double)(now() - begin) / 1e9;
    for (size_t i = 0; i < count; i++) {
        connections[i].state = RUNNING;
        send_next(&connections[i]);
    }
    run_until(now() + (int64_t)(warmup * 1e9));

    int64_t server_before = server_cpu(), own_before = own_cpu(), started = now();
    counting = true;
    run_until(started + (int64_t)(secs * 1e9));
    int64_t server_used = server_cpu() - server_before;
    double elapsed = (double)(now() - started) / 1e9;
    double own_used = (double)(own_cpu() - own_before) / 1e9;

    printf("{\"connections\": %zu, \"size\": %zu, \"requests\": %llu, \"seconds\": %.4f, \"requests_per_second\": %.1f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %llu, \"connect_seconds\": %.3f, \"client_share\": %.3f, "
           "\"server_share\": %.3f, \"server_cpu_ns\": %lld, \"cpu_ns_per_request\": %.1f}\n",
           count, size, (unsigned long long)requests, elapsed, (double)requests / elapsed, percentile_us(0.50),
           percentile_us(0.99), (unsigned long long)errors, connecting, own_used / elapsed,
           (double)server_used / 1e9 / elapsed, (long long)server_used,
           requests ? (double)server_used / (double)requests : 0.0);
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}
