/* What the C echo servers share: the listening socket and the complaint that ends a program.
 *
 * The listener carries TCP_NODELAY; on Linux every accepted socket inherits it. */
#define _GNU_SOURCE
#ifndef ECHO_H
#define ECHO_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BACKLOG = 4096, MAX_FD = 1 << 16 };

/* Takes a negative errno, as liburing returns it, or a positive one. */
static inline void die(const char *what, int error)
{
    fprintf(stderr, "%s: %s\n", what, strerror(error < 0 ? -error : error));
    exit(1);
}

static inline struct sockaddr_in address(const char *host, const char *port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    if (inet_pton(AF_INET, host, &addr.sin_addr) != 1)
        die(host, EINVAL);
    return addr;
}

static inline int listen_on(const char *host, const char *port, int flags)
{
    struct sockaddr_in addr = address(host, port);
    int yes = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0)
        die("socket", errno);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes))
        die("setsockopt", errno);
    if (bind(fd, (struct sockaddr *)&addr, sizeof addr) || listen(fd, BACKLOG))
        die("bind or listen", errno);
    return fd;
}

#endif
