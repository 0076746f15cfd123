/* The hot calls on sockets: recv, send and their kin as methods of the base type Stream, which owns one fd; its own base
 * File is what a listener is.
 *
 *  1. An op in flight is linked to the stream's file record, never found by fd number: numbers are reused.
 *  2. What the kernel moved is delivered, also to a cancelled fiber (res >= 0 happened).
 *  3. One sender at a time, first come first served: messages never interleave. A sendall that was ended after a part
 *     breaks the sending side, so that nobody appends to half a message (semantics.md F7).
 *  4. From its second receive on a stream waits on its interest (core.h): nothing is read that was not asked for, and
 *     what is received goes straight to the caller.
 *  5. `buffered` holds bytes that a recv_until read too many; every receive drains it first.
 */
#include "native.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

typedef struct {
    PyObject_HEAD
    struct file file;
    int64_t timeout;          /* of each operation, ns; -1: none */
    Fiber *sender;            /* borrowed: whose turn it is; parked or running inside a send */
    struct line senders;      /* who waits for a turn */
    PyObject *buffered;       /* owned bytearray or NULL */
    PyObject *broken;         /* owned str or NULL: why nothing can be sent any more */
    PyObject *weakrefs;
    socklen_t peer_len;       /* what accept filled in */
    char peer[28];            /* a struct sockaddr_in or sockaddr_in6 */
} Stream;

static PyTypeObject FileType, StreamType;

static PyObject *closed_error(void)
{
    errno = EBADF;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* In the child of a fork the fibers that were inside its operations do not exist. */
static void forget_forked(Stream *s)
{
    if (s->file.ops && ((Fiber *)s->file.ops->owner)->runtime->forked)
        s->file.ops = NULL;
    if (s->sender && s->sender->runtime->forked) {
        s->sender = NULL;
        s->senders.head = s->senders.tail = NULL;
    }
}

static void in_use(const char *what)
{
    PyErr_Format(PyExc_RuntimeError, "can't %s: the stream is in use by the run of another thread", what);
}

/* The entry of every operation: a fiber of this run, uncancelled, on an open stream. */
static Fiber *begin(Stream *s, const char *what)
{
    Fiber *f = fb_here(what);
    if (!f || fb_may_park(f, what) < 0)
        return NULL;
    if (s->file.ops && ((Fiber *)s->file.ops->owner)->runtime != f->runtime)
        forget_forked(s);
    if (s->file.ops && ((Fiber *)s->file.ops->owner)->runtime != f->runtime) {
        in_use(what);
        return NULL;
    }
    if (fb_check(f) < 0)
        return NULL;
    if (s->file.fd < 0)
        return (Fiber *)closed_error();
    return f;
}

struct file *fb_file(PyObject *o)
{
    return PyObject_TypeCheck(o, &FileType) ? &((Stream *)o)->file : fb_socket_file(o);
}

/* Receiving. */

static Py_ssize_t buffered_size(Stream *s) { return s->buffered ? PyByteArray_GET_SIZE(s->buffered) : 0; }

static int drain_buffered(Stream *s, Py_ssize_t n) { return PySequence_DelSlice(s->buffered, 0, n); }

static PyObject *take_buffered(Stream *s, Py_ssize_t n)
{
    PyObject *bytes;
    if (n > buffered_size(s))
        n = buffered_size(s);
    bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(s->buffered), n);
    if (bytes && drain_buffered(s, n) < 0)
        Py_CLEAR(bytes);
    return bytes;
}

/* The interest may be that of a run which has ended, or of another thread's, which goes on without us. */
void fb_drop_interest(struct file *file)
{
    struct fb_interest *it = file->interest;
    file->interest = NULL;
    if (!it)
        return;
    if (!it->driver || (fb_runtime && fb_runtime->driver == it->driver))
        fb_unfollow(it);
    else
        fb_orphan(it);
}

/* A file that receives once needs no interest: setting it up and ending it costs more than one receive. */
static struct fb_interest *interest_for(struct file *file, struct fb_driver *d)
{
    if (file->interest && file->interest->driver != d)
        fb_drop_interest(file);
    if (!file->interest && file->received)
        file->interest = fb_follow(d, file->fd);
    file->received = 1;
    return file->interest;
}

static void prepare_receive(struct fb_op *op, int code, int fd, void *data, Py_ssize_t n, struct fb_interest *it)
{
    fb_prepare(op, code, fd);
    op->data = data;
    op->len = (uint64_t)n;
    op->extra = it;
}

int fb_receive(struct file *file, Fiber *f, int code, void *data, Py_ssize_t n, int64_t limit)
{
    Runtime *rt = f->runtime;
    struct fb_op *op = &f->op;
    struct fb_interest *it = interest_for(file, rt->driver);
    int64_t left = limit, begun = limit < 0 ? 0 : fb_clock(rt);
    for (;;) {
        uint8_t why;
        prepare_receive(op, code, file->fd, data, n, it);
        if (fb_perform(f, file, left) < 0)
            return -1;
        if (!it || op->res != -EAGAIN)
            return 0;
        /* There may be something now, unless another fiber took it or closed the file meanwhile. What is there is
         * taken, also by a cancelled fiber: it happened before (rule F9). */
        why = op->why;
        if (file->fd < 0) {
            op->why = FB_BY_CLOSE;
            return 0;
        }
        prepare_receive(op, code, file->fd, data, n, it);
        if (fb_attempt(rt->driver, op))
            return 0;
        if (fb_check(f) < 0)
            return -1;
        if (limit >= 0) {
            left = limit - (fb_clock(rt) - begun);
            if (left < 0)
                left = 0;
        }
        if (why == FB_BY_TIMEOUT) {
            op->why = why;
            op->res = -ECANCELED;
            return 0;
        }
    }
}

PyObject *fb_receive_bytes(struct file *file, Fiber *f, Py_ssize_t n, int64_t limit)
{
    PyObject *bytes;
    if (fb_receive(file, f, FB_RECV, NULL, n, limit) < 0) {
        fb_release(f->runtime->driver, &f->op);
        return NULL;
    }
    if (f->op.res < 0)
        return fb_op_error(f);
    bytes = PyBytes_FromStringAndSize(f->op.data, f->op.res);
    fb_release(f->runtime->driver, &f->op);
    return bytes;
}

static PyObject *stream_recv(Stream *s, PyObject *arg)
{
    Py_ssize_t n = PyLong_AsSsize_t(arg);
    Fiber *f;
    if (n == -1 && PyErr_Occurred())
        return NULL;
    if (n < 0)
        return PyErr_Format(PyExc_ValueError, "can't recv %zd bytes: the number must not be negative", n);
    if (!(f = begin(s, "recv")))
        return NULL;
    if (n == 0)
        return PyBytes_FromStringAndSize(NULL, 0);
    return buffered_size(s) ? take_buffered(s, n) : fb_receive_bytes(&s->file, f, n, s->timeout);
}

/* _receive(n): from the socket, past what is buffered. */
static PyObject *stream_receive(Stream *s, PyObject *arg)
{
    Py_ssize_t n = PyLong_AsSsize_t(arg);
    Fiber *f;
    if ((n == -1 && PyErr_Occurred()) || !(f = begin(s, "recv")))
        return NULL;
    return fb_receive_bytes(&s->file, f, n, s->timeout);
}

enum { CHEAP_COPY = 8192 }; /* bytes: up to here a copy costs less than a view */

/* _receive_to(write, n) -> what write(data) returns, 0 at the end: data received past what is buffered, without a copy of
 * it if it is long. `write` must neither wait, nor keep it, nor run other Python code: ssl.MemoryBIO's. */
static PyObject *stream_receive_to(Stream *s, PyObject *const *argv, Py_ssize_t argc)
{
    PyObject *data, *written = NULL;
    Py_ssize_t n;
    Fiber *f;
    if (argc != 2)
        return PyErr_Format(PyExc_TypeError, "_receive_to(write, n)");
    n = PyLong_AsSsize_t(argv[1]);
    if ((n == -1 && PyErr_Occurred()) || !(f = begin(s, "recv")))
        return NULL;
    if (fb_receive(&s->file, f, FB_RECV, NULL, n, s->timeout) < 0) {
        fb_release(f->runtime->driver, &f->op);
        return NULL;
    }
    if (f->op.res < 0)
        return fb_op_error(f);
    if (f->op.res < CHEAP_COPY) {
        data = PyBytes_FromStringAndSize(f->op.data, f->op.res);
    } else {
        /* No finalizer may run while the data is the driver's: it may receive, too, and to the same place. */
        int collects = PyGC_Disable();
        data = PyMemoryView_FromMemory(f->op.data, f->op.res, PyBUF_READ);
        if (collects)
            PyGC_Enable();
    }
    if (data) {
        written = f->op.res ? PyObject_CallOneArg(argv[0], data) : PyLong_FromLong(0);
        Py_DECREF(data);
    }
    fb_release(f->runtime->driver, &f->op);
    return written;
}

static PyObject *stream_recv_into(Stream *s, PyObject *arg)
{
    Py_buffer view;
    PyObject *result = NULL;
    Fiber *f;
    if (PyObject_GetBuffer(arg, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (!(f = begin(s, "recv_into")))
        goto out;
    if (view.len == 0) {
        result = PyLong_FromLong(0);
        goto out;
    }
    if (buffered_size(s)) {
        Py_ssize_t n = view.len < buffered_size(s) ? view.len : buffered_size(s);
        memcpy(view.buf, PyByteArray_AS_STRING(s->buffered), (size_t)n);
        if (drain_buffered(s, n) == 0)
            result = PyLong_FromSsize_t(n);
        goto out;
    }
    if (fb_receive(&s->file, f, FB_RECV_INTO, view.buf, view.len, s->timeout) < 0)
        goto out;
    result = f->op.res < 0 ? fb_op_error(f) : PyLong_FromLong(f->op.res);
out:
    PyBuffer_Release(&view);
    return result;
}

/* Sending. */

/* 0: it is ours. Else there is an exception, and 1: it was ours and must be passed on; -1: it was not. */
static int take_turn(Stream *s, Fiber *f)
{
    if (s->sender && s->sender->runtime->forked)
        forget_forked(s);
    if (s->sender && s->sender->runtime != f->runtime) {
        in_use("send");
        return -1;
    }
    if (s->sender) {
        int wake;
        if (fb_arm(f, s->timeout) < 0)
            return -1;
        fb_line_push(&s->senders, f);
        wake = fb_park(f, WAIT_SEND);
        if (wake < 0)
            return s->sender == f ? 1 : -1; /* something was thrown in, maybe after it became our turn */
        wake = fb_woken(f, wake);
        if (wake) {
            if (wake > 0)
                PyErr_SetString(PyExc_TimeoutError, "timed out");
            return -1;
        }
        /* It is our turn: the one before us made us `sender`. */
    } else {
        s->sender = f;
    }
    if (s->broken) {
        PyObject *args = Py_BuildValue("(iO)", EPIPE, s->broken);
        if (args)
            PyErr_SetObject(PyExc_BrokenPipeError, args);
        Py_XDECREF(args);
        return 1;
    }
    if (s->file.fd < 0) {
        closed_error();
        return 1;
    }
    if (fb_check(f) < 0)
        return 1;
    return 0;
}

static void pass_turn(Stream *s)
{
    Fiber *next = s->senders.head;
    s->sender = next;
    if (next)
        fb_make_ready(next, WAKE_OK);
}

/* Say why nothing can be sent any more. Keeps the exception that is set. */
static void break_sending(Stream *s, const char *why, uint64_t sent, Py_ssize_t of, Fiber *f)
{
    PyObject *type, *value, *traceback, *reason = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    for (struct scope *scope = f->scope; scope && !reason; scope = scope->shield ? NULL : scope->parent)
        if (scope->cancel_called)
            reason = scope->reason;
    s->broken = PyUnicode_FromFormat(reason ? "can't send: an earlier sendall was %s after %llu of %zd bytes: %S"
                                            : "can't send: an earlier sendall was %s after %llu of %zd bytes",
                                     why, (unsigned long long)sent, of, reason);
    if (!s->broken)
        PyErr_Clear();
    PyErr_Restore(type, value, traceback);
}

static PyObject *send_buffer(Stream *s, PyObject *arg, int code, const char *what)
{
    Py_buffer view;
    PyObject *result = NULL;
    uint64_t sent = 0;
    Fiber *f;
    int turn;
    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (!(f = begin(s, what)))
        goto out;
    if ((turn = take_turn(s, f)) != 0) {
        if (turn > 0)
            pass_turn(s);
        goto out;
    }
    for (;;) {
        struct fb_op *op = &f->op;
        fb_prepare(op, code, s->file.fd);
        op->data = (char *)view.buf + sent;
        op->len = (uint64_t)view.len - sent;
        if (fb_perform(f, &s->file, s->timeout) < 0) {
            sent += op->moved ? op->moved : op->res > 0 ? (uint64_t)op->res : 0;
            if (code == FB_SENDALL && sent && sent < (uint64_t)view.len)
                break_sending(s, "interrupted", sent, view.len, f);
            break;
        }
        if (op->res >= 0) {
            sent += op->moved ? op->moved : (uint64_t)op->res;
            if (code == FB_SEND || sent >= (uint64_t)view.len) {
                result = code == FB_SEND ? PyLong_FromLong(op->res) : Py_NewRef(Py_None);
                break;
            }
            if (!op->why)
                continue; /* the next round meets the error that ended this one */
            op->res = -ECANCELED;
        }
        if (sent && code == FB_SENDALL)
            break_sending(s,
                          f->scope->cancelled            ? "cancelled"
                          : op->why == FB_BY_CLOSE       ? "ended by close"
                          : op->why == FB_BY_TIMEOUT     ? "timed out"
                                                         : "ended by an error",
                          sent, view.len, f);
        fb_op_error(f);
        break;
    }
    pass_turn(s);
out:
    PyBuffer_Release(&view);
    return result;
}

static PyObject *stream_send(Stream *s, PyObject *arg) { return send_buffer(s, arg, FB_SEND, "send"); }

static PyObject *stream_sendall(Stream *s, PyObject *arg) { return send_buffer(s, arg, FB_SENDALL, "sendall"); }

/* Messages: several buffers, ancillary data, an address. A message and all it points to live in one heap block: the
 * kernel reads it while our stack is elsewhere. */

static PyObject *send_message(Stream *s, PyObject *buffers, const char *control, Py_ssize_t control_len,
                              const char *name, Py_ssize_t name_len, int flags)
{
    PyObject *fast = PySequence_Fast(buffers, "sendmsg needs a sequence of buffers"), *result = NULL;
    Py_ssize_t n = fast ? PySequence_Fast_GET_SIZE(fast) : 0, held = 0;
    struct block {
        struct msghdr message;
        struct sockaddr_storage name;
        Py_buffer *views;
        char *control;
        struct iovec parts[];
    } *block = NULL;
    Fiber *f;
    int turn;
    if (!fast)
        return NULL;
    if (n > IOV_MAX) {
        PyErr_Format(PyExc_ValueError, "sendmsg takes at most %d buffers, got %zd", IOV_MAX, n);
        goto out;
    }
    if ((size_t)name_len > sizeof block->name) {
        PyErr_Format(PyExc_ValueError, "an address of %zd bytes is too long", name_len);
        goto out;
    }
    block = calloc(1, sizeof *block + (size_t)n * (sizeof(struct iovec) + sizeof(Py_buffer)) + (size_t)control_len);
    if (!block) {
        PyErr_NoMemory();
        goto out;
    }
    block->views = (Py_buffer *)(void *)(block->parts + n);
    block->control = (char *)(block->views + n);
    for (; held < n; held++) {
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(fast, held), &block->views[held], PyBUF_SIMPLE) < 0)
            goto out;
        block->parts[held].iov_base = block->views[held].buf;
        block->parts[held].iov_len = (size_t)block->views[held].len;
    }
    block->message.msg_iov = block->parts;
    block->message.msg_iovlen = (size_t)n;
    if (control_len) {
        memcpy(block->control, control, (size_t)control_len);
        block->message.msg_control = block->control;
        block->message.msg_controllen = (size_t)control_len;
    }
    if (name_len) {
        memcpy(&block->name, name, (size_t)name_len);
        block->message.msg_name = &block->name;
        block->message.msg_namelen = (socklen_t)name_len;
    }
    if (!(f = begin(s, "sendmsg")))
        goto out;
    if ((turn = take_turn(s, f)) == 0) {
        fb_prepare(&f->op, FB_SENDMSG, s->file.fd);
        f->op.data = &block->message;
        f->op.flags = (uint32_t)flags;
        if (fb_perform(f, &s->file, s->timeout) == 0)
            result = f->op.res < 0 ? fb_op_error(f) : PyLong_FromLong(f->op.res);
    }
    if (turn >= 0)
        pass_turn(s);
out:
    for (Py_ssize_t i = 0; i < held; i++)
        PyBuffer_Release(&block->views[i]);
    free(block);
    Py_DECREF(fast);
    return result;
}

static PyObject *stream_sendmsg(Stream *s, PyObject *buffers) { return send_message(s, buffers, NULL, 0, NULL, 0, 0); }

/* _sendmsg(buffers, control: bytes, flags, sockaddr: bytes) */
static PyObject *file_sendmsg(Stream *s, PyObject *const *argv, Py_ssize_t n)
{
    int flags;
    if (n != 4 || !PyBytes_Check(argv[1]) || !PyBytes_Check(argv[3]))
        return PyErr_Format(PyExc_TypeError, "_sendmsg(buffers, control, flags, sockaddr)");
    flags = (int)PyLong_AsLong(argv[2]);
    if (flags == -1 && PyErr_Occurred())
        return NULL;
    return send_message(s, argv[0], PyBytes_AS_STRING(argv[1]), PyBytes_GET_SIZE(argv[1]), PyBytes_AS_STRING(argv[3]),
                        PyBytes_GET_SIZE(argv[3]), flags);
}

/* Nobody can take the descriptors that came with a message (rule F5). */
static void close_passed(struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
                close(fd);
            }
}

/* _recvmsg(size, control_size, flags) -> (data, control, flags, sockaddr), past what is buffered. */
static PyObject *file_recvmsg(Stream *s, PyObject *const *argv, Py_ssize_t n)
{
    PyObject *data = NULL, *result = NULL;
    Py_ssize_t size, control_size;
    struct block {
        struct msghdr message;
        struct iovec part;
        struct sockaddr_storage name;
        _Alignas(struct cmsghdr) char control[];
    } *block = NULL;
    int flags;
    Fiber *f;
    if (n != 3)
        return PyErr_Format(PyExc_TypeError, "_recvmsg(size, control_size, flags)");
    size = PyLong_AsSsize_t(argv[0]);
    control_size = PyLong_AsSsize_t(argv[1]);
    flags = (int)PyLong_AsLong(argv[2]);
    if (PyErr_Occurred())
        return NULL;
    if (size < 0 || control_size < 0 || control_size > INT_MAX)
        return PyErr_Format(PyExc_ValueError, "can't receive %zd bytes with %zd of ancillary data: both must be sizes",
                            size, control_size);
    block = calloc(1, sizeof *block + (size_t)control_size);
    data = PyBytes_FromStringAndSize(NULL, size);
    if (!block || !data) {
        PyErr_NoMemory();
        goto out;
    }
    if (!(f = begin(s, "recvmsg")))
        goto out;
    block->part.iov_base = PyBytes_AS_STRING(data);
    block->part.iov_len = (size_t)size;
    block->message.msg_iov = &block->part;
    block->message.msg_iovlen = 1;
    block->message.msg_name = &block->name;
    block->message.msg_namelen = sizeof block->name;
    block->message.msg_control = control_size ? block->control : NULL;
    block->message.msg_controllen = (size_t)control_size;
    fb_prepare(&f->op, FB_RECVMSG, s->file.fd);
    f->op.data = &block->message;
    f->op.flags = (uint32_t)(flags | MSG_CMSG_CLOEXEC);
    if (fb_perform(f, &s->file, s->timeout) < 0) {
        if (f->op.res >= 0)
            close_passed(&block->message);
        goto out;
    }
    if (f->op.res < 0) {
        fb_op_error(f);
        goto out;
    }
    if (f->op.res < size && _PyBytes_Resize(&data, f->op.res) < 0) { /* it may be larger with MSG_TRUNC */
        close_passed(&block->message);
        goto out;
    }
    result = Py_BuildValue("(Oy#iy#)", data, block->control, (Py_ssize_t)block->message.msg_controllen,
                           block->message.msg_flags & ~MSG_CMSG_CLOEXEC, (char *)&block->name,
                           (Py_ssize_t)block->message.msg_namelen);
    if (!result)
        close_passed(&block->message);
out:
    free(block);
    Py_XDECREF(data);
    return result;
}

/* Put back what was received and goes nowhere: the next receive gives it. -1 with an exception: no memory. */
static int put_back(Stream *s, const char *data, Py_ssize_t n)
{
    Py_ssize_t before = buffered_size(s);
    char *place;
    if (!s->buffered)
        s->buffered = PyByteArray_FromStringAndSize(NULL, 0);
    if (!s->buffered || PyByteArray_Resize(s->buffered, before + n) < 0)
        return -1;
    place = PyByteArray_AS_STRING(s->buffered);
    memmove(place + n, place, (size_t)before);
    memcpy(place, data, (size_t)n);
    return 0;
}

/* How much of it `to` takes at once, or -errno. Whatever is unusual is left to a send: 0. */
static int32_t pass_on(Fiber *f, Stream *to, void *data, Py_ssize_t n)
{
    struct fb_op op;
    if (to->sender || to->broken || to->file.fd < 0 || f->scope->cancelled || f->runtime->unparked >= FB_UNPARKED_LIMIT ||
        (to->file.ops && ((Fiber *)to->file.ops->owner)->runtime != f->runtime))
        return 0;
    fb_prepare(&op, FB_SEND, to->file.fd);
    op.file = &to->file.kept;
    op.data = data;
    op.len = (uint64_t)n;
    if (!fb_attempt(f->runtime->driver, &op))
        return 0;
    f->runtime->unparked++;
    return op.res;
}

/* _relay(to, n) -> (moved, rest): send what is received, up to n bytes at a time, for as long as it can be sent at once.
 * `rest` is what could not be, or a piece of n bytes: there is more where that came from; b"" at the end. */
static PyObject *stream_relay(Stream *s, PyObject *const *argv, Py_ssize_t argc)
{
    Py_ssize_t n, moved = 0;
    Stream *to;
    if (argc != 2 || !PyObject_TypeCheck(argv[0], &StreamType))
        return PyErr_Format(PyExc_TypeError, "_relay(to: Stream, n)");
    to = (Stream *)argv[0];
    n = PyLong_AsSsize_t(argv[1]);
    if (n <= 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "can't relay %zd bytes at a time", n);
    for (;;) {
        Fiber *f = begin(s, "recv");
        int32_t got, sent = 0;
        if (!f)
            return NULL;
        if (buffered_size(s)) {
            PyObject *buffered = take_buffered(s, n);
            return buffered ? Py_BuildValue("(nN)", moved, buffered) : NULL;
        }
        if (fb_receive(&s->file, f, FB_RECV, NULL, n, s->timeout) < 0) {
            fb_release(f->runtime->driver, &f->op);
            return NULL;
        }
        got = f->op.res;
        if (got < 0)
            return fb_op_error(f);
        if (got > 0 && got < n)
            sent = pass_on(f, to, f->op.data, got);
        if (sent == got && got > 0) {
            moved += sent;
            fb_release(f->runtime->driver, &f->op);
            continue;
        }
        if (sent >= 0) {
            /* First the bytes: a tuple may begin a collection, and a finalizer receive to the same place. */
            PyObject *rest = PyBytes_FromStringAndSize(got ? (char *)f->op.data + sent : "", got - sent);
            fb_release(f->runtime->driver, &f->op);
            return rest ? Py_BuildValue("(nN)", moved + sent, rest) : NULL;
        }
        if (put_back(s, f->op.data, got) == 0) {
            errno = -sent;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        fb_release(f->runtime->driver, &f->op);
        return NULL;
    }
}

/* _offer(data) -> how much of it could be sent at once, without a wait and without a turn: 0 is no error. For the last
 * words of a protocol at close. */
static PyObject *stream_offer(Stream *s, PyObject *arg)
{
    Fiber *f = fb_runtime ? fb_runtime->current : NULL;
    Py_buffer view;
    long sent = 0;
    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (f && s->file.fd >= 0 && !s->sender && !s->broken) {
        fb_prepare(&f->op, FB_SEND, s->file.fd);
        f->op.data = view.buf;
        f->op.len = (uint64_t)view.len;
        if (fb_attempt(f->runtime->driver, &f->op) && f->op.res > 0)
            sent = f->op.res;
    }
    PyBuffer_Release(&view);
    return PyLong_FromLong(sent);
}

/* _begin_sending(), _end_sending(): a turn among the senders, for what sends by other calls. */
static PyObject *stream_begin_sending(Stream *s, PyObject *ignored)
{
    Fiber *f = begin(s, "send");
    int turn;
    (void)ignored;
    if (!f)
        return NULL;
    turn = take_turn(s, f);
    if (turn > 0)
        pass_turn(s);
    if (turn)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *stream_end_sending(Stream *s, PyObject *why)
{
    if (why != Py_None) {
        if (!PyUnicode_Check(why))
            return PyErr_Format(PyExc_TypeError, "_end_sending(why: str or None)");
        Py_XSETREF(s->broken, Py_NewRef(why));
    }
    pass_turn(s);
    Py_RETURN_NONE;
}

/* Accepting and connecting. */

static Stream *new_stream(PyTypeObject *type, int fd)
{
    Stream *s = (Stream *)type->tp_alloc(type, 0);
    if (s) {
        s->file.fd = fd;
        s->timeout = -1;
    }
    return s;
}

/* _accept(type) -> a File of that type. The new object is made first: it is where the kernel writes the address. */
static PyObject *stream_accept(Stream *s, PyObject *type)
{
    Stream *made;
    Fiber *f;
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &FileType))
        return PyErr_Format(PyExc_TypeError, "_accept needs a subclass of File, got %R", type);
    if (!(f = begin(s, "accept")))
        return NULL;
    made = new_stream((PyTypeObject *)type, -1);
    if (!made)
        return NULL;
    made->peer_len = sizeof made->peer;
    fb_prepare(&f->op, FB_ACCEPT, s->file.fd);
    f->op.data = made->peer;
    f->op.extra = &made->peer_len;
    f->op.flags = SOCK_CLOEXEC;
    if (fb_perform(f, &s->file, s->timeout) < 0) {
        if (f->op.res >= 0)
            fb_close_fd(f->runtime->driver, f->op.res); /* nobody can take it (rule F5) */
        Py_DECREF(made);
        return NULL;
    }
    if (f->op.res < 0) {
        Py_DECREF(made);
        return fb_op_error(f);
    }
    made->file.fd = f->op.res;
    return (PyObject *)made;
}

/* _connect(sockaddr: bytes, timeout) */
static PyObject *stream_connect(Stream *s, PyObject *const *argv, Py_ssize_t n)
{
    int64_t ns;
    Fiber *f;
    int r;
    if (n != 2 || !PyBytes_Check(argv[0]))
        return PyErr_Format(PyExc_TypeError, "_connect(sockaddr, timeout)");
    if (fb_duration(argv[1], "a timeout", 1, &ns) < 0 || !(f = begin(s, "connect")))
        return NULL;
    fb_prepare(&f->op, FB_CONNECT, s->file.fd);
    f->op.data = PyBytes_AS_STRING(argv[0]);
    f->op.len = (uint64_t)PyBytes_GET_SIZE(argv[0]);
    Py_INCREF(argv[0]);
    r = fb_perform(f, &s->file, ns);
    Py_DECREF(argv[0]);
    if (r < 0)
        return NULL;
    if (f->op.res < 0)
        return fb_op_error(f);
    Py_RETURN_NONE;
}

/* Ending. */

static PyObject *stream_shutdown(Stream *s, PyObject *how)
{
    long h = PyLong_AsLong(how);
    int r;
    if (h == -1 && PyErr_Occurred())
        return NULL;
    if (s->file.fd < 0)
        return closed_error();
    r = fb_shut_down(fb_runtime ? fb_runtime->driver : NULL, s->file.fd, (int)h);
    if (r < 0) {
        errno = -r;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* Before the fd is closed or given away. */
static void drop_file(Stream *s)
{
    if (fb_runtime && fb_runtime->driver)
        fb_drop_file(fb_runtime->driver, &s->file.kept);
}

/* Waiters get EBADF; the fd is closed only after the kernel let go of every op on it, or an orphaned recv would eat the
 * peer's next byte. */
static int close_stream(Stream *s)
{
    Runtime *rt = fb_runtime;
    int fd = s->file.fd;
    if (fd < 0)
        return 0;
    forget_forked(s);
    if (s->file.ops) {
        Fiber *f = rt ? rt->current : NULL;
        if (!f || ((Fiber *)s->file.ops->owner)->runtime != rt || rt->inside) {
            PyErr_SetString(PyExc_RuntimeError,
                            "can't close a stream that fibers wait on from outside their run: use runtime().call_soon");
            return -1;
        }
        s->file.fd = -1;
        for (struct fb_op *op = s->file.ops; op; op = op->file_next) {
            if (!op->why)
                op->why = FB_BY_CLOSE;
            fb_cancel(rt->driver, op);
        }
        s->file.closer = f;
        Py_INCREF(s);
        while (s->file.ops)
            if (fb_park(f, WAIT_CLOSE) < 0)
                break;
        s->file.closer = NULL;
        fb_drop_interest(&s->file);
        drop_file(s);
        Py_DECREF(s);
        fb_close_fd(rt->driver, fd);
        return PyErr_Occurred() ? -1 : 0;
    }
    drop_file(s);
    s->file.fd = -1;
    fb_drop_interest(&s->file);
    fb_close_fd(rt ? rt->driver : NULL, fd); /* EINTR and EIO: on Linux the fd is gone all the same */
    return 0;
}

static PyObject *stream_close(Stream *s, PyObject *ignored)
{
    (void)ignored;
    if (close_stream(s) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *stream_detach(Stream *s, PyObject *ignored)
{
    int fd = s->file.fd;
    (void)ignored;
    if (s->file.ops)
        return PyErr_Format(PyExc_RuntimeError, "can't detach a stream while fibers wait on it");
    fb_drop_interest(&s->file);
    drop_file(s);
    s->file.fd = -1;
    return PyLong_FromLong(fd);
}

static PyObject *stream_fileno(Stream *s, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromLong(s->file.fd);
}

static PyObject *stream_settimeout(Stream *s, PyObject *timeout)
{
    if (fb_duration(timeout, "a timeout", 0, &s->timeout) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *stream_gettimeout(Stream *s, PyObject *ignored)
{
    (void)ignored;
    return s->timeout < 0 ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)s->timeout / 1e9);
}

static PyObject *stream_peer(Stream *s, void *ignored)
{
    (void)ignored;
    return PyBytes_FromStringAndSize(s->peer, s->peer_len < sizeof s->peer ? s->peer_len : sizeof s->peer);
}

static PyObject *stream_waiters(Stream *s, void *ignored)
{
    long n = 0;
    (void)ignored;
    for (struct fb_op *op = s->file.ops; op; op = op->file_next)
        n++;
    return PyLong_FromLong(n);
}

/* The type. */

static PyObject *stream_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int fd;
    if (kwargs && PyDict_GET_SIZE(kwargs))
        return PyErr_Format(PyExc_TypeError, "%s takes no keyword arguments", type->tp_name);
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    return (PyObject *)new_stream(type, fd);
}

static void stream_finalize(PyObject *o)
{
    Stream *s = (Stream *)o;
    PyObject *type, *value, *traceback;
    if (s->file.fd < 0)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_ResourceWarning(o, 1, "unclosed %R", o) && PyErr_ExceptionMatches(PyExc_Warning))
        PyErr_WriteUnraisable(o);
    if (close_stream(s) < 0)
        PyErr_WriteUnraisable(o);
    PyErr_Restore(type, value, traceback);
}

static void stream_dealloc(Stream *s)
{
    PyTypeObject *type = Py_TYPE(s);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)s) < 0)
        return;
    if (s->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)s);
    Py_CLEAR(s->buffered);
    Py_CLEAR(s->broken);
    type->tp_free((PyObject *)s);
}

static PyMethodDef FILE_METHODS[] = {
    {"close", METHOD(stream_close), METH_NOARGS,
     "close($self)\n--\n\nClose; idempotent. Fibers that wait on it get OSError(EBADF) (semantics.md F6).\n\n"
     "May park; never a cancel point."},
    {"fileno", METHOD(stream_fileno), METH_NOARGS, "fileno($self)\n--\n\nIts file descriptor; -1 when closed."},
    {"settimeout", METHOD(stream_settimeout), METH_O,
     "settimeout($self, timeout, /)\n--\n\nSeconds that each operation may take before TimeoutError; None: any time."},
    {"gettimeout", METHOD(stream_gettimeout), METH_NOARGS, "gettimeout($self)\n--\n\nWhat settimeout set."},
    {"_accept", METHOD(stream_accept), METH_O, NULL},
    {"_connect", METHOD(stream_connect), METH_FASTCALL, NULL},
    {"_recvmsg", METHOD(file_recvmsg), METH_FASTCALL, NULL},
    {"_sendmsg", METHOD(file_sendmsg), METH_FASTCALL, NULL},
    {"_detach", METHOD(stream_detach), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef STREAM_METHODS[] = {
    {"recv", METHOD(stream_recv), METH_O,
     "recv($self, n, /)\n--\n\nReceive up to n bytes; b'' at the end of the stream. Parks; a cancel point."},
    {"recv_into", METHOD(stream_recv_into), METH_O,
     "recv_into($self, buffer, /)\n--\n\nReceive into a writable buffer; the number of bytes, 0 at the end. Parks; a cancel point."},
    {"send", METHOD(stream_send), METH_O,
     "send($self, data, /)\n--\n\nSend some of `data`; the number of bytes. Parks; a cancel point."},
    {"sendall", METHOD(stream_sendall), METH_O,
     "sendall($self, data, /)\n--\n\nSend all of `data`. Cancelled or timed out after a part it breaks the sending side: later\n"
     "sends raise BrokenPipeError (semantics.md F7). Parks; a cancel point."},
    {"sendmsg", METHOD(stream_sendmsg), METH_O,
     "sendmsg($self, buffers, /)\n--\n\nSend from several buffers at once; the number of bytes sent. Parks; a cancel point."},
    {"shutdown", METHOD(stream_shutdown), METH_O,
     "shutdown($self, how, /)\n--\n\nEnd one or both directions: socket.SHUT_RD, SHUT_WR, SHUT_RDWR (shutdown(2))."},
    {"_receive", METHOD(stream_receive), METH_O, NULL},
    {"_receive_to", METHOD(stream_receive_to), METH_FASTCALL, NULL},
    {"_relay", METHOD(stream_relay), METH_FASTCALL, NULL},
    {"_offer", METHOD(stream_offer), METH_O, NULL},
    {"_begin_sending", METHOD(stream_begin_sending), METH_NOARGS, NULL},
    {"_end_sending", METHOD(stream_end_sending), METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef FIELDS[] = {
    {"_peer", (getter)stream_peer, NULL, NULL, NULL},
    {"_waiters", (getter)stream_waiters, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#include "structmember.h"

static PyMemberDef MEMBERS[] = {
    {"_buffered", T_OBJECT, offsetof(Stream, buffered), 0, NULL},
    {"_broken", T_OBJECT, offsetof(Stream, broken), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Stream, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject FileType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fibers.driver.native.File",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = stream_new,
    .tp_dealloc = (destructor)stream_dealloc,
    .tp_finalize = stream_finalize,
    .tp_weaklistoffset = offsetof(Stream, weakrefs),
    .tp_methods = FILE_METHODS,
    .tp_getset = FIELDS,
    .tp_members = MEMBERS,
};

static PyTypeObject StreamType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fibers.driver.native.Stream",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_dealloc = (destructor)stream_dealloc,
    .tp_methods = STREAM_METHODS,
    .tp_base = &FileType,
};

int fb_add_stream(PyObject *module)
{
    return PyModule_AddType(module, &FileType) < 0 ? -1 : PyModule_AddType(module, &StreamType);
}
