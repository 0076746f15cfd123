/* Echo server on io_uring (liburing 2.3 or newer): the reference every other server is compared with.
 *
 * Usage: echo_uring HOST PORT [--oneshot] [--buffers N] [--buffer-size B]
 *
 * Rule 1: receives take their buffer from a provided buffer ring; the same buffer is sent back, and goes
 *         home to the ring when its send has completed.
 * Rule 2: one send per connection is in flight; what arrives meanwhile queues in order.
 * Rule 3: a receive that found no buffer is armed again only after a buffer came home, or it would spin.
 * Rule 4: a socket is closed when its receive has ended and its sends are done, never before.
 *
 * Default: one multishot receive per connection. --oneshot: one receive per message, armed together with
 * the send that answers the one before. */
#include "echo.h"

#include <liburing.h>
#include <stdbool.h>
#include <unistd.h>

enum { SQ_ENTRIES = 2048, CQ_ENTRIES = 32768, GROUP = 0, NONE = -1 };
enum op { ACCEPT, RECV, SEND };

struct connection {
    int first, last; /* queue of filled buffers, NONE when empty; the first one is being sent */
    bool receiving;
    bool ended;
};

static struct io_uring ring;
static struct io_uring_buf_ring *home;
static char *memory;
static unsigned buffers = 1024, buffer_size = 4096;
static int *next_buffer; /* the link of the per-connection queues */
static unsigned *filled; /* bytes in each buffer */
static struct connection connections[MAX_FD];
static int *starved; /* connections whose receive found no buffer */
static int starved_count;
static int came_home; /* buffers put back since the ring's tail was last published */
static bool oneshot;

static struct io_uring_sqe *get_sqe(void)
{
    struct io_uring_sqe *sqe;
    while ((sqe = io_uring_get_sqe(&ring)) == NULL) {
        int submitted = io_uring_submit(&ring);
        if (submitted < 0 && submitted != -EBUSY && submitted != -EINTR)
            die("io_uring_submit", submitted);
    }
    return sqe;
}

/* After the prep function: some versions of liburing clear the user data there. */
static void tag(struct io_uring_sqe *sqe, enum op op, int fd)
{
    io_uring_sqe_set_data64(sqe, (__u64)op << 32 | (unsigned)fd);
}

static void arm_accept(int listener)
{
    struct io_uring_sqe *sqe = get_sqe();
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    tag(sqe, ACCEPT, listener);
}

static void arm_recv(int fd)
{
    struct io_uring_sqe *sqe = get_sqe();
    if (oneshot) {
        io_uring_prep_recv(sqe, fd, NULL, 0, 0);
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST; /* armed before the answer has left: a first try would fail */
    } else {
        io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    }
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    tag(sqe, RECV, fd);
    connections[fd].receiving = true;
}

static void send_first(int fd)
{
    int buffer = connections[fd].first;
    struct io_uring_sqe *sqe = get_sqe();
    io_uring_prep_send(sqe, fd, memory + (size_t)buffer * buffer_size, filled[buffer], MSG_WAITALL | MSG_NOSIGNAL);
    tag(sqe, SEND, fd);
}

static void recycle(int buffer)
{
    io_uring_buf_ring_add(home, memory + (size_t)buffer * buffer_size, buffer_size, (unsigned short)buffer,
                          io_uring_buf_ring_mask(buffers), came_home++);
}

static void close_if_done(int fd)
{
    struct connection *connection = &connections[fd];
    if (connection->ended && !connection->receiving && connection->first == NONE)
        close(fd);
}

static void on_accept(const struct io_uring_cqe *cqe, int listener)
{
    if (!(cqe->flags & IORING_CQE_F_MORE))
        arm_accept(listener);
    if (cqe->res < 0)
        die("accept", cqe->res);
    if (cqe->res >= MAX_FD)
        die("accept", EMFILE);
    connections[cqe->res] = (struct connection){.first = NONE, .last = NONE};
    arm_recv(cqe->res);
}

static void take(int fd, int buffer, int length)
{
    struct connection *connection = &connections[fd];
    if (connection->ended) { /* a send failed: nobody is left to answer */
        recycle(buffer);
        return;
    }
    filled[buffer] = (unsigned)length;
    next_buffer[buffer] = NONE;
    if (connection->first == NONE) {
        connection->first = connection->last = buffer;
        send_first(fd);
    } else {
        next_buffer[connection->last] = buffer;
        connection->last = buffer;
    }
}

static void on_recv(const struct io_uring_cqe *cqe, int fd)
{
    struct connection *connection = &connections[fd];
    if (cqe->res == -ENOBUFS) { /* it counts as receiving until it is armed again */
        starved[starved_count++] = fd;
        return;
    }
    if (cqe->res > 0)
        take(fd, (int)(cqe->flags >> IORING_CQE_BUFFER_SHIFT), cqe->res);
    else
        connection->ended = true;
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    connection->receiving = false;
    if (connection->ended)
        close_if_done(fd);
    else
        arm_recv(fd);
}

static int pop(struct connection *connection)
{
    int buffer = connection->first;
    connection->first = next_buffer[buffer];
    recycle(buffer);
    return (int)filled[buffer];
}

static void on_send(const struct io_uring_cqe *cqe, int fd)
{
    struct connection *connection = &connections[fd];
    if (cqe->res != pop(connection)) {
        while (connection->first != NONE)
            pop(connection);
        connection->ended = true;
        shutdown(fd, SHUT_RDWR); /* ends an armed receive */
    }
    if (connection->first != NONE)
        send_first(fd);
    else
        close_if_done(fd);
}

static void set_up(void)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
                 IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
        .cq_entries = CQ_ENTRIES,
    };
    int error = io_uring_queue_init_params(SQ_ENTRIES, &ring, &params);
    if (error < 0)
        die("io_uring_queue_init", error);
    error = io_uring_register_ring_fd(&ring);
    if (error < 0)
        die("io_uring_register_ring_fd", error);

    if (posix_memalign((void **)&home, 4096, buffers * sizeof(struct io_uring_buf)) ||
        posix_memalign((void **)&memory, 4096, (size_t)buffers * buffer_size))
        die("buffers", ENOMEM);
    next_buffer = calloc(buffers, sizeof *next_buffer);
    filled = calloc(buffers, sizeof *filled);
    starved = calloc(MAX_FD, sizeof *starved);
    if (!next_buffer || !filled || !starved)
        die("tables", ENOMEM);
    struct io_uring_buf_reg reg = {.ring_addr = (unsigned long)home, .ring_entries = buffers, .bgid = GROUP};
    io_uring_buf_ring_init(home);
    error = io_uring_register_buf_ring(&ring, &reg, 0);
    if (error)
        die("io_uring_register_buf_ring", error);
    for (unsigned buffer = 0; buffer < buffers; buffer++)
        recycle((int)buffer);
    io_uring_buf_ring_advance(home, came_home);
    came_home = 0;
}

static void serve(int listener)
{
    arm_accept(listener);
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        int error = io_uring_submit_and_wait(&ring, 1);
        if (error < 0 && error != -EINTR && error != -EBUSY)
            die("io_uring_submit_and_wait", error);
        io_uring_for_each_cqe(&ring, head, cqe)
        {
            int fd = (int)(unsigned)cqe->user_data;
            seen++;
            switch ((enum op)(cqe->user_data >> 32)) {
            case ACCEPT:
                on_accept(cqe, fd);
                break;
            case RECV:
                on_recv(cqe, fd);
                break;
            case SEND:
                on_send(cqe, fd);
                break;
            }
        }
        io_uring_cq_advance(&ring, seen);
        if (came_home) {
            io_uring_buf_ring_advance(home, came_home);
            came_home = 0;
            while (starved_count)
                arm_recv(starved[--starved_count]);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s HOST PORT [--oneshot] [--buffers N] [--buffer-size B]\n", argv[0]);
        return 2;
    }
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--oneshot"))
            oneshot = true;
        else if (!strcmp(argv[i], "--buffers") && i + 1 < argc)
            buffers = (unsigned)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--buffer-size") && i + 1 < argc)
            buffer_size = (unsigned)atoi(argv[++i]);
        else
            die(argv[i], EINVAL);
    }
    if (buffers == 0 || buffers > 32768 || (buffers & (buffers - 1)) || buffer_size == 0)
        die("--buffers must be a power of two up to 32768, --buffer-size positive", EINVAL);
    set_up();
    serve(listen_on(argv[1], argv[2], 0));
}
