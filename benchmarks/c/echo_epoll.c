/* Echo server on edge-triggered epoll: what a C server costs without io_uring.
 *
 * Usage: echo_epoll HOST PORT [--buffer-size B]
 *
 * Rule 1: every descriptor is registered once, for reading and writing, edge-triggered.
 * Rule 2: a read that did not fill the buffer emptied the socket, and new data brings a new edge, so the
 *         read that would only say EAGAIN is saved (except after a hang-up, which may share its edge with data).
 * Rule 3: what the peer does not take is kept, and nothing more is read from it until that is gone. */
#include "echo.h"

#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS = 512 };

struct connection {
    char *kept; /* owned; NULL unless the peer is slow */
    size_t offset, length;
    bool hangup; /* the end of the stream comes without another edge */
};

static struct connection connections[MAX_FD];
static char *buffer;
static size_t buffer_size = 65536;
static int poller;

static void drop(int fd)
{
    free(connections[fd].kept);
    connections[fd].kept = NULL;
    close(fd);
}

static void watch(int fd, unsigned events)
{
    struct epoll_event event = {.events = events | EPOLLET, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl", errno);
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FD)
            die("accept4", EMFILE);
        connections[fd] = (struct connection){0};
        watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        die("accept4", errno);
}

/* Bytes taken by the socket, possibly fewer than given; -1 if it failed. */
static ssize_t send_some(int fd, const char *bytes, size_t length)
{
    size_t sent = 0;
    while (sent < length) {
        ssize_t n = send(fd, bytes + sent, length - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            return -1;
        sent += (size_t)n;
    }
    return (ssize_t)sent;
}

static void keep(struct connection *connection, const char *bytes, size_t length)
{
    connection->kept = malloc(length);
    if (!connection->kept)
        die("malloc", ENOMEM);
    memcpy(connection->kept, bytes, length);
    connection->offset = 0;
    connection->length = length;
}

/* True when nothing is kept any more. */
static bool flush(int fd, struct connection *connection)
{
    ssize_t sent = send_some(fd, connection->kept + connection->offset, connection->length - connection->offset);
    if (sent < 0) {
        drop(fd);
        return false;
    }
    connection->offset += (size_t)sent;
    if (connection->offset < connection->length)
        return false;
    free(connection->kept);
    connection->kept = NULL;
    return true;
}

static void echo(int fd, unsigned events)
{
    struct connection *connection = &connections[fd];
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        connection->hangup = true;
    if (connection->kept && !flush(fd, connection))
        return;
    for (;;) {
        ssize_t got = recv(fd, buffer, buffer_size, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            drop(fd);
            return;
        }
        ssize_t sent = send_some(fd, buffer, (size_t)got);
        if (sent < 0) {
            drop(fd);
            return;
        }
        if (sent < got) {
            keep(connection, buffer + sent, (size_t)(got - sent));
            return;
        }
        if ((size_t)got < buffer_size && !connection->hangup)
            return;
    }
}

int main(int argc, char **argv)
{
    static struct epoll_event events[EVENTS];
    if (argc != 3 && !(argc == 5 && !strcmp(argv[3], "--buffer-size"))) {
        fprintf(stderr, "usage: %s HOST PORT [--buffer-size B]\n", argv[0]);
        return 2;
    }
    if (argc == 5)
        buffer_size = (size_t)atol(argv[4]);
    buffer = malloc(buffer_size);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!buffer || poller < 0)
        die("start", errno);
    int listener = listen_on(argv[1], argv[2], SOCK_NONBLOCK);
    watch(listener, EPOLLIN);
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait", errno);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                accept_all(listener);
            else
                echo(events[i].data.fd, events[i].events);
        }
    }
}
