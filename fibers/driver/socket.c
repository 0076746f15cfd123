/* The hot calls of the standard library's socket.socket, as they are in a fiber: descriptors for monkey.py to put on the
 * class itself, so that every socket there is, whoever made it and when, has them.
 *
 *  1. In a fiber a socket that may block parks the fiber; anywhere else, and if it was set not to block, the call is the
 *     original (semantics.md L6). In our own callbacks, where nothing may park, it is a RuntimeError (L5).
 *  2. What is known of an fd, and who waits on it, is a record found by its number: every way to close a socket ends its
 *     record first, and a new socket finds none that is left of an older one of that number.
 *  3. The fd stays in the mode the user gave it: settimeout, setblocking and their kin are the original ones.
 *  4. What is rare goes to Python (stdlib/socket.py), which tries it on a bare socket: the same fd, never waiting.
 */
#include "native.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

/* As in CPython's Modules/socketmodule.h from 3.10 to 3.13; later ones have more at the end. socket_methods() tries it. */
typedef struct {
    PyObject_HEAD
    int fd, family, type, proto;
    PyObject *(*error)(void);
    int64_t timeout;          /* ns; -1: none, 0: not blocking */
} Socket;

struct record {
    struct file file;
    PyObject *bare;           /* owned or NULL: a _socket.socket on the same fd that never waits */
};

enum original { RECV, RECV_INTO, SEND, SENDALL, ACCEPT, ORIGINALS };
static const char *const NAMES[ORIGINALS] = {"recv", "recv_into", "send", "sendall", "_accept"};
static PyObject *originals[ORIGINALS]; /* owned: the methods of _socket.socket */
static PyObject *rare;        /* owned: (name, socket, *args) -> what stdlib/socket.py makes of it */
static PyTypeObject *base;    /* owned: _socket.socket */

static struct record **records; /* owned, by fd */
static int room;

/* Records. */

static struct record *find(int fd) { return fd >= 0 && fd < room ? records[fd] : NULL; }

static int forked(struct record *r) { return r->file.ops && ((Fiber *)r->file.ops->owner)->runtime->forked; }

/* Nobody waits on it: its memory goes, and the fd may be closed. */
static void end(struct record *r)
{
    if (forked(r)) {
        r->file.ops = NULL; /* its fibers do not exist here */
        r->file.interest = NULL;
    }
    fb_drop_interest(&r->file);
    if (fb_runtime && fb_runtime->driver)
        fb_drop_file(fb_runtime->driver, &r->file.kept);
    if (r->bare) {
        ((Socket *)r->bare)->fd = -1;
        Py_DECREF(r->bare);
    }
    if (find(r->file.fd) == r)
        records[r->file.fd] = NULL;
    free(r);
}

static struct record *record_for(int fd)
{
    struct record *r = find(fd);
    if (r && forked(r)) {
        end(r);
        r = NULL;
    }
    if (r)
        return r;
    if (fd >= room) {
        int wanted = fd < 512 ? 1024 : 2 * fd;
        struct record **grown = realloc(records, (size_t)wanted * sizeof *grown);
        if (!grown)
            return (struct record *)PyErr_NoMemory();
        memset(grown + room, 0, (size_t)(wanted - room) * sizeof *grown);
        records = grown;
        room = wanted;
    }
    r = calloc(1, sizeof *r);
    if (!r)
        return (struct record *)PyErr_NoMemory();
    r->file.fd = fd;
    return records[fd] = r;
}

/* Before an fd is closed: who waits on it gets EBADF, and the caller waits until the kernel has let go of it. In a thread
 * without that run it only lets go: they wait on, as threads do. 0, or -1 with an exception that was thrown in. */
static int leave(int fd)
{
    struct record *r = find(fd);
    Runtime *rt = fb_runtime;
    Fiber *f = rt && !rt->inside && !rt->forked ? rt->current : NULL;
    if (!r)
        return 0;
    if (r->file.ops && !forked(r)) {
        records[fd] = NULL;
        r->file.fd = -1;
        if (r->bare)
            ((Socket *)r->bare)->fd = -1;
        if (!f || ((Fiber *)r->file.ops->owner)->runtime != rt || r->file.closer)
            return 0; /* leaked: somebody waits in it, and nothing of his run may be touched here */
        for (struct fb_op *op = r->file.ops; op; op = op->file_next) {
            if (!op->why)
                op->why = FB_BY_CLOSE;
            fb_cancel(rt->driver, op);
        }
        r->file.closer = f;
        while (r->file.ops)
            if (fb_park(f, WAIT_CLOSE) < 0)
                return -1;
        r->file.closer = NULL;
    }
    end(r);
    return 0;
}

/* The file record of a socket for operate(); NULL, without an exception if it is none. */
struct file *fb_socket_file(PyObject *o)
{
    struct record *r;
    if (!base || !PyObject_TypeCheck(o, base))
        return NULL;
    if (((Socket *)o)->fd < 0) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    r = record_for(((Socket *)o)->fd);
    return r ? &r->file : NULL;
}

/* Where we are. */

int fb_may_block(PyObject *module, Fiber **here)
{
    Runtime *rt = fb_runtime;
    (void)module;
    *here = NULL;
    if (!rt || rt->forked)
        return 0;
    if (rt->current && !rt->inside) {
        *here = rt->current;
        return 0;
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "can't block here: this is a signal handler, a destructor or a callback of the scheduler, not a fiber");
    return -1;
}

/* 1: park the fiber; 0: call the original; -1: an exception. */
static int parks(Socket *s, Fiber **f)
{
    if (!s->timeout || s->fd < 0)
        return 0;
    if (fb_may_block(NULL, f) < 0)
        return -1;
    return *f != NULL;
}

static PyObject *call_original(int which, PyObject *self, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *stack[8], *r;
    Py_ssize_t all = n + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    if (all > 7)
        return PyErr_Format(PyExc_TypeError, "%s: too many arguments", NAMES[which]);
    stack[0] = self;
    for (Py_ssize_t i = 0; i < all; i++)
        stack[i + 1] = argv[i];
    r = PyObject_Vectorcall(originals[which], stack, (size_t)n + 1, kwnames);
    return r;
}

static PyObject *call_rare(int which, PyObject *self, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *stack[9], *name = PyUnicode_InternFromString(NAMES[which]), *r;
    Py_ssize_t all = n + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    if (!name)
        return NULL;
    if (all > 7) {
        Py_DECREF(name);
        return PyErr_Format(PyExc_TypeError, "%s: too many arguments", NAMES[which]);
    }
    stack[0] = name;
    stack[1] = self;
    for (Py_ssize_t i = 0; i < all; i++)
        stack[i + 2] = argv[i];
    r = PyObject_Vectorcall(rare, stack, (size_t)n + 2, kwnames);
    Py_DECREF(name);
    return r;
}

static int is_stream(Socket *s) { return (s->type & 0xf) == SOCK_STREAM; }

/* NULL, with an exception. The fiber's op is its own; the record is shared. */
static struct record *enter(Socket *s, Fiber *f)
{
    struct record *r;
    if (fb_check(f) < 0)
        return NULL;
    r = record_for(s->fd);
    if (r && r->file.ops && ((Fiber *)r->file.ops->owner)->runtime != f->runtime) {
        PyErr_SetString(PyExc_RuntimeError, "can't wait on this socket: fibers of another thread's run wait on it");
        return NULL;
    }
    return r;
}

/* Receiving. */

static PyObject *sock_recv(PyObject *self, PyObject *const *argv, Py_ssize_t n)
{
    Socket *s = (Socket *)self;
    struct record *r;
    Py_ssize_t size;
    Fiber *f;
    int here = parks(s, &f);
    if (here <= 0)
        return here < 0 ? NULL : call_original(RECV, self, argv, n, NULL);
    if (n != 1 || !is_stream(s) || !PyLong_CheckExact(argv[0]) || (size = PyLong_AsSsize_t(argv[0])) <= 0) {
        PyErr_Clear();
        return call_rare(RECV, self, argv, n, NULL);
    }
    r = enter(s, f);
    return r ? fb_receive_bytes(&r->file, f, size, s->timeout) : NULL;
}

static PyObject *sock_recv_into(PyObject *self, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    Socket *s = (Socket *)self;
    PyObject *result = NULL;
    struct record *r;
    Py_buffer view;
    Fiber *f;
    int here = parks(s, &f);
    if (here <= 0)
        return here < 0 ? NULL : call_original(RECV_INTO, self, argv, n, kwnames);
    if (n != 1 || kwnames || !is_stream(s))
        return call_rare(RECV_INTO, self, argv, n, kwnames);
    if (PyObject_GetBuffer(argv[0], &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (view.len == 0)
        result = PyLong_FromLong(0);
    else if ((r = enter(s, f)) && fb_receive(&r->file, f, FB_RECV_INTO, view.buf, view.len, s->timeout) == 0)
        result = f->op.res < 0 ? fb_op_error(f) : PyLong_FromLong(f->op.res);
    PyBuffer_Release(&view);
    return result;
}

/* Sending. */

static PyObject *send_buffer(int which, PyObject *self, PyObject *const *argv, Py_ssize_t n)
{
    Socket *s = (Socket *)self;
    PyObject *result = NULL;
    int all = which == SENDALL, code = all && is_stream(s) ? FB_SENDALL : FB_SEND, fd = s->fd;
    Py_ssize_t sent = 0;
    int64_t limit = s->timeout, left = limit, begun;
    long flags = 0;
    struct record *r;
    Py_buffer view;
    Fiber *f;
    int here = parks(s, &f);
    if (here <= 0)
        return here < 0 ? NULL : call_original(which, self, argv, n, NULL);
    if (n < 1 || n > 2)
        return call_original(which, self, argv, n, NULL); /* which says what is wrong */
    if (n == 2 && ((flags = PyLong_AsLong(argv[1])) & ~(long)(MSG_NOSIGNAL | MSG_MORE))) {
        if (flags == -1 && PyErr_Occurred())
            return NULL;
        return call_rare(which, self, argv, n, NULL);
    }
    if (PyObject_GetBuffer(argv[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (!view.len)
        code = FB_SEND;
    begun = limit < 0 ? 0 : fb_clock(f->runtime);
    if (!(r = enter(s, f)))
        goto out;
    for (;;) {
        struct fb_op *op = &f->op;
        fb_prepare(op, code, fd);
        op->data = (char *)view.buf + sent;
        op->len = (uint64_t)(view.len - sent);
        op->flags = (uint32_t)flags;
        if (fb_perform(f, &r->file, left) < 0)
            break;
        if (op->res < 0) {
            fb_op_error(f);
            break;
        }
        sent += op->moved ? (Py_ssize_t)op->moved : op->res;
        if (!all || sent >= view.len) {
            result = all ? Py_NewRef(Py_None) : PyLong_FromSsize_t(sent);
            break;
        }
        if (op->why) {
            op->res = -ECANCELED;
            fb_op_error(f);
            break;
        }
        if (r->file.fd < 0) {
            errno = EBADF;
            PyErr_SetFromErrno(PyExc_OSError);
            break;
        }
        if (limit >= 0 && (left = limit - (fb_clock(f->runtime) - begun)) < 0)
            left = 0;
    }
out:
    PyBuffer_Release(&view);
    return result;
}

static PyObject *sock_send(PyObject *self, PyObject *const *argv, Py_ssize_t n)
{
    return send_buffer(SEND, self, argv, n);
}

static PyObject *sock_sendall(PyObject *self, PyObject *const *argv, Py_ssize_t n)
{
    return send_buffer(SENDALL, self, argv, n);
}

/* Accepting. */

struct address {
    socklen_t len;
    struct sockaddr_storage storage;
};

static PyObject *unpack(const struct address *a)
{
    char text[INET6_ADDRSTRLEN];
    if (a->storage.ss_family == AF_INET && a->len >= sizeof(struct sockaddr_in)) {
        const struct sockaddr_in *in = (const void *)&a->storage;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, ntohs(in->sin_port));
    }
    if (a->storage.ss_family == AF_INET6 && a->len >= sizeof(struct sockaddr_in6)) {
        const struct sockaddr_in6 *in = (const void *)&a->storage;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
        return Py_BuildValue("(siII)", text, ntohs(in->sin6_port), ntohl(in->sin6_flowinfo), in->sin6_scope_id);
    }
    return Py_NewRef(Py_None);
}

/* (fd, address); the address is None for the families that only Python can unpack. */
static PyObject *accept_one(Socket *s, Fiber *f)
{
    struct record *r = enter(s, f);
    struct address *a;
    PyObject *where, *result = NULL;
    int fd;
    if (!r)
        return NULL;
    a = malloc(sizeof *a); /* where the kernel writes: not our stack */
    if (!a)
        return PyErr_NoMemory();
    a->len = sizeof a->storage;
    fb_prepare(&f->op, FB_ACCEPT, s->fd);
    f->op.data = &a->storage;
    f->op.extra = &a->len;
    f->op.flags = SOCK_CLOEXEC;
    if (fb_perform(f, &r->file, s->timeout) < 0) {
        if (f->op.res >= 0)
            close(f->op.res); /* nobody can take it (rule F5) */
        free(a);
        return NULL;
    }
    fd = f->op.res;
    if (fd < 0) {
        free(a);
        return fb_op_error(f);
    }
    where = unpack(a);
    free(a);
    if (where)
        result = Py_BuildValue("(iN)", fd, where);
    if (!result)
        close(fd);
    return result;
}

static PyObject *sock_accept(PyObject *self, PyObject *const *argv, Py_ssize_t n)
{
    Fiber *f;
    PyObject *found;
    int here = parks((Socket *)self, &f);
    if (here <= 0)
        return here < 0 ? NULL : call_original(ACCEPT, self, argv, n, NULL);
    found = accept_one((Socket *)self, f);
    if (found && PyTuple_GET_ITEM(found, 1) == Py_None) {
        PyObject *completed = call_rare(ACCEPT, self, &found, 1, NULL);
        Py_DECREF(found);
        return completed;
    }
    return found;
}

/* Beginning and ending. */

/* fresh(fd): nothing is left of an earlier fd of that number. */
static PyObject *m_fresh(PyObject *module, PyObject *fd)
{
    struct record *r = find((int)PyLong_AsLong(fd));
    (void)module;
    if (PyErr_Occurred())
        return NULL;
    if (r && (!r->file.ops || forked(r)))
        end(r);
    Py_RETURN_NONE;
}

/* leave(fd): it is about to be closed or given away. */
static PyObject *m_leave(PyObject *module, PyObject *fd)
{
    long number = PyLong_AsLong(fd);
    (void)module;
    if ((number == -1 && PyErr_Occurred()) || leave((int)number) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* __del__: the finalizer of _socket.socket closes the fd. */
static PyObject *sock_del(PyObject *self, PyObject *ignored)
{
    struct record *r = find(((Socket *)self)->fd);
    (void)ignored;
    if (r && !(r->bare == self) && (!r->file.ops || forked(r)))
        end(r);
    base->tp_finalize(self);
    Py_RETURN_NONE;
}

/* bare(socket): a _socket.socket on the same fd that never waits: its flags MSG_DONTWAIT, its own timeout 0. */
static PyObject *m_bare(PyObject *module, PyObject *o)
{
    struct record *r;
    PyObject *made;
    (void)module;
    if (!fb_socket_file(o))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "bare needs a socket, got %R", o);
    r = find(((Socket *)o)->fd);
    if (!r->bare) {
        made = base->tp_alloc(base, 0);
        if (!made)
            return NULL;
        memcpy((char *)made + sizeof(PyObject), (char *)o + sizeof(PyObject),
               (size_t)base->tp_basicsize - sizeof(PyObject));
        ((Socket *)made)->timeout = 0;
        r->bare = made;
    }
    return Py_NewRef(r->bare);
}

/* waits(socket): would a blocking call on it park the fiber that runs here? RuntimeError where nothing may block. */
static PyObject *m_waits(PyObject *module, PyObject *o)
{
    Fiber *f;
    int here;
    (void)module;
    if (!base || !PyObject_TypeCheck(o, base))
        return PyErr_Format(PyExc_TypeError, "waits needs a socket, got %R", o);
    here = parks((Socket *)o, &f);
    return here < 0 ? NULL : PyBool_FromLong(here);
}

/* in_fiber(): would a blocking call park a fiber here? RuntimeError where nothing may block. */
static PyObject *m_in_fiber(PyObject *module, PyObject *ignored)
{
    Fiber *f;
    (void)ignored;
    if (fb_may_block(module, &f) < 0)
        return NULL;
    return PyBool_FromLong(f != NULL);
}

/* asyncio keeps the running loop in a slot of the thread; each fiber may run a loop of its own. */
static PyObject *get_loop, *set_loop; /* owned: asyncio.events._get_running_loop, _set_running_loop */

static void call_set_loop(PyObject *loop)
{
    PyObject *r = PyObject_CallOneArg(set_loop, loop);
    if (!r)
        PyErr_WriteUnraisable(set_loop);
    Py_XDECREF(r);
}

PyObject *fb_take_loop(Fiber *f)
{
    PyObject *loop = PyObject_CallNoArgs(get_loop);
    if (!loop)
        PyErr_WriteUnraisable(get_loop);
    if (!loop || loop == Py_None) {
        Py_XDECREF(loop);
        f->loop = 0; /* it has ended */
        return NULL;
    }
    call_set_loop(Py_None);
    return loop;
}

void fb_put_loop(PyObject *loop)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    call_set_loop(loop);
    PyErr_Restore(type, value, traceback);
    Py_DECREF(loop);
}

/* runs_loop(get, set): the fiber that runs here may have a running loop of asyncio's. */
static PyObject *m_runs_loop(PyObject *module, PyObject *args)
{
    PyObject *get, *set;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO", &get, &set))
        return NULL;
    Py_XSETREF(get_loop, Py_NewRef(get));
    Py_XSETREF(set_loop, Py_NewRef(set));
    if (fb_runtime && fb_runtime->current)
        fb_runtime->current->loop = 1;
    Py_RETURN_NONE;
}

/* turn(what): the entry of a call that looks at descriptors and may find something at once: a cancel point, and one of the
 * operations after so many of which a fiber lets the others run (rule F8). */
static PyObject *m_turn(PyObject *module, PyObject *what)
{
    Fiber *f = fb_here("wait");
    (void)module;
    (void)what;
    if (!f || fb_may_park(f, "wait") < 0 || fb_check(f) < 0)
        return NULL;
    if (f->runtime->unparked++ >= FB_UNPARKED_LIMIT && (fb_park(f, WAIT_YIELD) < 0 || fb_check(f) < 0))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"recv", METHOD(sock_recv), METH_FASTCALL, "recv(bufsize[, flags]) -> data: as socket.socket.recv; parks a fiber."},
    {"recv_into", METHOD(sock_recv_into), METH_FASTCALL | METH_KEYWORDS,
     "recv_into(buffer, [nbytes[, flags]]) -> number of bytes: as socket.socket.recv_into; parks a fiber."},
    {"send", METHOD(sock_send), METH_FASTCALL, "send(data[, flags]) -> count: as socket.socket.send; parks a fiber."},
    {"sendall", METHOD(sock_sendall), METH_FASTCALL, "sendall(data[, flags]): as socket.socket.sendall; parks a fiber."},
    {"_accept", METHOD(sock_accept), METH_FASTCALL, "_accept() -> (fd, address): as socket.socket's; parks a fiber."},
    {"__del__", METHOD(sock_del), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int layout_is_known(void)
{
    PyObject *s = PyObject_CallFunction((PyObject *)base, "ii", AF_INET, SOCK_STREAM);
    PyObject *fd = s ? PyObject_CallMethod(s, "fileno", NULL) : NULL;
    PyObject *none = s ? PyObject_CallMethod(s, "settimeout", "d", 12.5) : NULL;
    Socket *view = (Socket *)s;
    int known = fd && none && base->tp_basicsize >= (Py_ssize_t)sizeof(Socket) && base->tp_finalize &&
                view->fd == PyLong_AsLong(fd) && view->family == AF_INET && view->timeout == 12500000000;
    Py_XDECREF(none);
    Py_XDECREF(fd);
    if (s)
        Py_XDECREF(PyObject_CallMethod(s, "close", NULL));
    Py_XDECREF(s);
    return known;
}

/* socket_methods(_socket.socket, rare) -> {name: descriptor} */
static PyObject *m_socket_methods(PyObject *module, PyObject *args)
{
    PyObject *type, *call, *found = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!O", &PyType_Type, &type, &call))
        return NULL;
    Py_XSETREF(base, (PyTypeObject *)Py_NewRef(type));
    Py_XSETREF(rare, Py_NewRef(call));
    if (!layout_is_known()) {
        Py_CLEAR(base);
        return PyErr_Occurred() ? NULL
                                : PyErr_Format(PyExc_RuntimeError, "can't patch sockets: _socket.socket of this Python is "
                                                                   "laid out in a way that fibers does not know");
    }
    for (int i = 0; i < ORIGINALS; i++) {
        PyObject *original = PyObject_GetAttrString(type, NAMES[i]);
        if (!original)
            return NULL;
        Py_XSETREF(originals[i], original);
    }
    found = PyDict_New();
    for (PyMethodDef *m = METHODS; found && m->ml_name; m++) {
        PyObject *descriptor = PyDescr_NewMethod(base, m);
        if (!descriptor || PyDict_SetItemString(found, m->ml_name, descriptor) < 0)
            Py_CLEAR(found);
        Py_XDECREF(descriptor);
    }
    return found;
}

/* poll_events(poll object) -> {fd: events}: what it watches. It is the first thing in it, on all Pythons from 3.10 to 3.13. */
static PyObject *m_poll_events(PyObject *module, PyObject *o)
{
    PyObject *events = Py_TYPE(o)->tp_basicsize > (Py_ssize_t)sizeof(PyObject) + (Py_ssize_t)sizeof events
                           ? *(PyObject **)(void *)((char *)o + sizeof(PyObject))
                           : NULL;
    (void)module;
    if (strcmp(Py_TYPE(o)->tp_name, "select.poll") || !events || !PyDict_CheckExact(events))
        return PyErr_Format(PyExc_TypeError, "poll_events needs a poll object, got %R", o);
    return PyDict_Copy(events);
}

/* force(type, name, value or NULL): set or delete an attribute of a type that does not let itself be changed: the methods
 * of select.epoll and its kin, so that those made before are reached, too. */
static PyObject *m_force(PyObject *module, PyObject *const *argv, Py_ssize_t n)
{
    int r;
    (void)module;
    if (n < 2 || n > 3 || !PyType_Check(argv[0]) || !PyUnicode_Check(argv[1]))
        return PyErr_Format(PyExc_TypeError, "force(type, name[, value])");
    r = n == 3 ? PyDict_SetItem(((PyTypeObject *)argv[0])->tp_dict, argv[1], argv[2])
               : PyDict_DelItem(((PyTypeObject *)argv[0])->tp_dict, argv[1]);
    PyType_Modified((PyTypeObject *)argv[0]);
    if (r < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef FUNCTIONS[] = {
    {"socket_methods", m_socket_methods, METH_VARARGS, NULL},
    {"bare", m_bare, METH_O, NULL},
    {"waits", m_waits, METH_O, NULL},
    {"in_fiber", m_in_fiber, METH_NOARGS, NULL},
    {"poll_events", m_poll_events, METH_O, NULL},
    {"runs_loop", m_runs_loop, METH_VARARGS, NULL},
    {"turn", m_turn, METH_O, NULL},
    {"fresh", m_fresh, METH_O, NULL},
    {"leave", m_leave, METH_O, NULL},
    {"force", METHOD(m_force), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int fb_add_socket(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS); }
