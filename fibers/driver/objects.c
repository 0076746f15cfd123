/* The Python faces of the scheduler: the base types Fiber, Scope and Runtime, and the functions of the native module.
 *
 * What is here turns Python arguments into calls on native.c and states into attributes. The subclasses in fiber.py,
 * scope.py and runtime.py add meaning; names with an underscore are theirs.
 */
#include "native.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "structmember.h"

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

static const char *const OP_NAMES[FB_CODES] = {
    [FB_NOP] = "nop",     [FB_ACCEPT] = "accept",   [FB_CONNECT] = "connect", [FB_RECV] = "recv",
    [FB_RECV_INTO] = "recv_into", [FB_RECVMSG] = "recvmsg", [FB_SEND] = "send", [FB_SENDALL] = "sendall",
    [FB_SENDMSG] = "sendmsg", [FB_POLL] = "poll",   [FB_SHUTDOWN] = "shutdown", [FB_CLOSE] = "close",
    [FB_READ] = "read",   [FB_WRITE] = "write",     [FB_FSYNC] = "fsync",     [FB_OPENAT] = "openat",
    [FB_READV] = "readv", [FB_WRITEV] = "writev",   [FB_STATX] = "statx",     [FB_RENAMEAT] = "renameat",
    [FB_UNLINKAT] = "unlinkat", [FB_MKDIRAT] = "mkdirat", [FB_LINKAT] = "linkat", [FB_SYMLINKAT] = "symlinkat",
    [FB_FALLOCATE] = "fallocate", [FB_FADVISE] = "fadvise", [FB_FTRUNCATE] = "ftruncate",
};

const char *fb_op_name(int code) { return OP_NAMES[code]; }

/* Foreign threads may look, not touch. */
static int own_thread(Runtime *rt, const char *what)
{
    if (rt == fb_runtime)
        return 1;
    PyErr_Format(PyExc_RuntimeError,
                 "can't %s from another thread or run: hand it over with runtime().call_soon(...)", what);
    return 0;
}

static PyObject *seconds(int64_t ns) { return ns < 0 ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)ns / 1e9); }

/* Fiber */

static int fiber_traverse(Fiber *f, visitproc visit, void *arg)
{
    Py_VISIT(f->runtime);
    Py_VISIT(f->root.object);
    Py_VISIT(f->greenlet);
    Py_VISIT(f->fn);
    Py_VISIT(f->args);
    Py_VISIT(f->context);
    Py_VISIT(f->value);
    Py_VISIT(f->spawner);
    Py_VISIT(f->on_cancel);
    Py_VISIT(f->what);
    Py_VISIT(f->on);
    Py_VISIT(f->watchers);
    return 0;
}

static int fiber_clear(Fiber *f)
{
    Py_CLEAR(f->root.object);
    Py_CLEAR(f->root.reason);
    Py_CLEAR(f->fn);
    Py_CLEAR(f->args);
    Py_CLEAR(f->kwnames);
    Py_CLEAR(f->context);
    Py_CLEAR(f->value);
    Py_CLEAR(f->name);
    Py_CLEAR(f->spawner);
    Py_CLEAR(f->on_cancel);
    Py_CLEAR(f->what);
    Py_CLEAR(f->on);
    Py_CLEAR(f->watchers);
    return 0;
}

static void fiber_dealloc(Fiber *f)
{
    PyTypeObject *type = Py_TYPE(f);
    PyObject_GC_UnTrack(f);
    if (f->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)f);
    assert(!f->op.state);
    fiber_clear(f);
    Py_CLEAR(f->greenlet);
    Py_CLEAR(f->runtime);
    type->tp_free((PyObject *)f);
}

/* Wait until it is done. 1 done, 0 timed out, -1 exception. */
static int join(Fiber *f, PyObject *timeout)
{
    int64_t ns;
    Fiber *me;
    int wake;
    if (f->state == FIBER_DONE)
        return 1;
    if (fb_duration(timeout, "a timeout", 1, &ns) < 0)
        return -1;
    if (!(me = fb_here("join")))
        return -1;
    if (!own_thread(f->runtime, "join a fiber"))
        return -1;
    if (me == f) {
        PyErr_SetString(PyExc_RuntimeError, "a fiber can't join itself");
        return -1;
    }
    if (fb_may_park(me, "join") < 0 || fb_check(me) < 0)
        return -1;
    if (f->state == FIBER_DONE)
        return 1;
    if (ns == 0)
        return 0;
    if (fb_arm(me, ns) < 0)
        return -1;
    fb_line_push(&f->joiners, me);
    wake = fb_park(me, WAIT_JOIN);
    wake = fb_woken(me, wake);
    return wake < 0 ? -1 : !wake;
}

static int parse_timeout(PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, const char *name, PyObject **out)
{
    Py_ssize_t kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    *out = Py_None;
    if (n + kw > 1 || (kw && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout"))) {
        PyErr_Format(PyExc_TypeError, "%s() takes one argument, timeout", name);
        return -1;
    }
    if (n + kw)
        *out = argv[0];
    return 0;
}

static PyObject *fiber_join(Fiber *f, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *timeout;
    int r;
    if (parse_timeout(argv, n, kwnames, "join", &timeout) < 0 || (r = join(f, timeout)) < 0)
        return NULL;
    return PyBool_FromLong(r);
}

static int join_or_raise(Fiber *f, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, const char *name)
{
    PyObject *timeout;
    int r;
    if (parse_timeout(argv, n, kwnames, name, &timeout) < 0 || (r = join(f, timeout)) < 0)
        return -1;
    if (!r) {
        PyErr_Format(PyExc_TimeoutError, "%R is not done after %S s", (PyObject *)f, timeout);
        return -1;
    }
    f->observed = 1;
    return 0;
}

static PyObject *fiber_result(Fiber *f, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *e;
    if (join_or_raise(f, argv, n, kwnames, "result") < 0)
        return NULL;
    if (f->outcome == OUTCOME_VALUE)
        return Py_NewRef(f->value);
    e = f->outcome == OUTCOME_FAILED ? Py_NewRef(f->value) : PyObject_CallOneArg(fb_hooks.fiber_cancelled, (PyObject *)f);
    if (e)
        fb_raise(e);
    return NULL;
}

static PyObject *fiber_exception(Fiber *f, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    if (join_or_raise(f, argv, n, kwnames, "exception") < 0)
        return NULL;
    if (f->outcome == OUTCOME_VALUE)
        Py_RETURN_NONE;
    if (f->outcome == OUTCOME_FAILED)
        return Py_NewRef(f->value);
    return PyObject_CallOneArg(fb_hooks.fiber_cancelled, (PyObject *)f);
}

static PyObject *fiber_done(Fiber *f, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(f->state == FIBER_DONE);
}

static PyObject *cancel(Runtime *rt, struct scope *s, PyObject *reason)
{
    if (s->cancel_called || s->state == SCOPE_CLOSED)
        Py_RETURN_NONE;
    if (rt && !own_thread(rt, "cancel"))
        return NULL;
    if (reason != Py_None)
        Py_XSETREF(s->reason, Py_NewRef(reason));
    fb_scope_cancel(rt, s);
    Py_RETURN_NONE;
}

static int parse_reason(PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, PyObject **out)
{
    Py_ssize_t kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    *out = Py_None;
    if (n + kw > 1 || (kw && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "reason"))) {
        PyErr_SetString(PyExc_TypeError, "cancel() takes one argument, reason");
        return -1;
    }
    if (n + kw)
        *out = argv[0];
    if (*out != Py_None && !PyUnicode_Check(*out)) {
        PyErr_Format(PyExc_TypeError, "a reason is a str, got %R", *out);
        return -1;
    }
    return 0;
}

static PyObject *fiber_cancel(Fiber *f, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *reason;
    if (parse_reason(argv, n, kwnames, &reason) < 0)
        return NULL;
    return cancel(f->runtime, &f->root, reason);
}

static PyObject *fiber_name(Fiber *f, void *ignored)
{
    (void)ignored;
    if (!f->name && f->fn) {
        f->name = PyObject_GetAttrString(f->fn, "__name__");
        if (!f->name) {
            PyErr_Clear();
            f->name = PyUnicode_FromFormat("%s", Py_TYPE(f->fn)->tp_name);
        }
    }
    return f->name ? Py_NewRef(f->name) : PyUnicode_FromFormat("fiber-%llu", (unsigned long long)f->id);
}

static int fiber_set_name(Fiber *f, PyObject *name, void *ignored)
{
    (void)ignored;
    if (!name || !PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "a fiber's name is a str");
        return -1;
    }
    Py_XSETREF(f->name, Py_NewRef(name));
    return 0;
}

static PyObject *fiber_status(Fiber *f, void *ignored)
{
    static const char *const DONE[] = {
        [OUTCOME_NONE] = "failed", [OUTCOME_VALUE] = "finished", [OUTCOME_FAILED] = "failed",
        [OUTCOME_CANCELLED] = "cancelled"};
    (void)ignored;
    if (f->state == FIBER_DONE)
        return PyUnicode_FromString(DONE[f->outcome]);
    return PyUnicode_FromString(f->root.cancelled ? "cancelling" : "running");
}

static PyObject *fiber_scope(Fiber *f, void *ignored)
{
    (void)ignored;
    if (f->state == FIBER_DONE)
        Py_RETURN_NONE;
    return fb_scope_object(f->scope);
}

static PyObject *fiber_root(Fiber *f, void *ignored)
{
    (void)ignored;
    return fb_scope_object(&f->root);
}

static PyObject *fiber_spawner(Fiber *f, void *ignored)
{
    (void)ignored;
    return Py_NewRef(f->spawner ? f->spawner : Py_None);
}

static PyObject *fiber_runtime(Fiber *f, void *ignored)
{
    (void)ignored;
    return Py_NewRef((PyObject *)f->runtime);
}

/* What it does now, in words: "parked in recv fd=7". */
static PyObject *fiber_activity(Fiber *f, void *ignored)
{
    (void)ignored;
    switch ((enum fiber_state)f->state) {
    case FIBER_NEW:
    case FIBER_READY:
        return PyUnicode_FromString(f->greenlet ? "ready" : "not started");
    case FIBER_DEFERRED:
        return PyUnicode_FromString("waiting for a place in its scope");
    case FIBER_RUNNING:
        return PyUnicode_FromString("running");
    case FIBER_DONE:
        return fiber_status(f, NULL);
    case FIBER_PARKED:
        break;
    }
    switch ((enum wait_kind)f->wait) {
    case WAIT_OP:
        if (f->op.fd >= 0)
            return PyUnicode_FromFormat("parked in %s fd=%d", OP_NAMES[f->op.code], (int)f->op.fd);
        return PyUnicode_FromFormat("parked in %s", OP_NAMES[f->op.code]);
    case WAIT_SLEEP:
        return PyUnicode_FromString("parked in sleep");
    case WAIT_JOIN: {
        Fiber *other = (Fiber *)((char *)f->line - offsetof(Fiber, joiners));
        PyObject *name = f->line ? fiber_name(other, NULL) : NULL, *text;
        if (!name)
            return PyUnicode_FromString("parked in join");
        text = PyUnicode_FromFormat("parked in join of %R", name);
        Py_DECREF(name);
        return text;
    }
    case WAIT_SEND:
        return PyUnicode_FromString("parked in sendall behind another");
    case WAIT_CHILDREN:
        return PyUnicode_FromFormat("parked in the exit of a scope with %u children",
                                    f->scope->live + f->scope->daemons);
    case WAIT_CLOSE:
        return PyUnicode_FromString("parked in close");
    case WAIT_BLOCKED:
        return PyUnicode_FromString("parked in wait_all_blocked");
    case WAIT_PARK:
        if (f->what && f->on && f->on != Py_None)
            return PyUnicode_FromFormat("parked in %S of %R", f->what, f->on);
        if (f->what)
            return PyUnicode_FromFormat("parked in %S", f->what);
        return PyUnicode_FromString("parked in park");
    default:
        return PyUnicode_FromString("parked");
    }
}

/* When it began to wait, in seconds of now(); None unless parked. */
static PyObject *fiber_since(Fiber *f, void *ignored)
{
    (void)ignored;
    if (f->state != FIBER_PARKED)
        Py_RETURN_NONE;
    return PyFloat_FromDouble((double)f->since / 1e9);
}

/* The greenlet that goes on when it is resumed; None while it runs and before it has started. */
static PyObject *fiber_greenlet(Fiber *f, void *ignored)
{
    (void)ignored;
    return Py_NewRef(f->greenlet ? f->greenlet : Py_None);
}

/* _watch(fn): fn(fiber) is called when it is done, at once if it is; it may not park. */
static PyObject *fiber_watch(Fiber *f, PyObject *fn)
{
    if (f->state == FIBER_DONE)
        return PyObject_CallOneArg(fn, (PyObject *)f);
    if (!f->watchers && !(f->watchers = PyList_New(0)))
        return NULL;
    if (PyList_Append(f->watchers, fn) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* _unwatch(fn): no effect if it was told already. */
static PyObject *fiber_unwatch(Fiber *f, PyObject *fn)
{
    for (Py_ssize_t i = 0; f->watchers && i < PyList_GET_SIZE(f->watchers); i++) {
        int same = PyObject_RichCompareBool(PyList_GET_ITEM(f->watchers, i), fn, Py_EQ);
        if (same < 0 || (same && PySequence_DelItem(f->watchers, i) < 0))
            return NULL;
        if (same)
            break;
    }
    Py_RETURN_NONE;
}

static PyMethodDef FIBER_METHODS[] = {
    {"join", METHOD(fiber_join), METH_FASTCALL | METH_KEYWORDS,
     "join($self, timeout=None)\n--\n\nWait until the fiber is done; False if it is not after `timeout` seconds.\n\n"
     "Never raises the fiber's error. Parks only if it must wait; then a cancel point."},
    {"result", METHOD(fiber_result), METH_FASTCALL | METH_KEYWORDS,
     "result($self, timeout=None)\n--\n\nWait for the fiber's value, or raise its exception, or FiberCancelled.\n\n"
     "TimeoutError after `timeout` seconds. Parks only if it must wait; then a cancel point."},
    {"exception", METHOD(fiber_exception), METH_FASTCALL | METH_KEYWORDS,
     "exception($self, timeout=None)\n--\n\nWait for the fiber's exception: None, the object, or a FiberCancelled.\n\n"
     "TimeoutError after `timeout` seconds. Parks only if it must wait; then a cancel point."},
    {"done", METHOD(fiber_done), METH_NOARGS,
     "done($self)\n--\n\nTell whether its function has returned and all its descendants are done."},
    {"cancel", METHOD(fiber_cancel), METH_FASTCALL | METH_KEYWORDS,
     "cancel($self, reason=None)\n--\n\nCancel the fiber and everything it spawned; no effect when done. Returns at once."},
    {"_watch", METHOD(fiber_watch), METH_O, NULL},
    {"_unwatch", METHOD(fiber_unwatch), METH_O, NULL},
    {"__class_getitem__", (PyCFunction)Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef FIBER_FIELDS[] = {
    {"name", (getter)fiber_name, (setter)fiber_set_name, "Its name: the function's, unless set.", NULL},
    {"status", (getter)fiber_status, NULL, "running, cancelling, finished, failed or cancelled.", NULL},
    {"scope", (getter)fiber_scope, NULL, "The innermost open scope of the fiber; None when done.", NULL},
    {"spawned_by", (getter)fiber_spawner, NULL, "The fiber that spawned it; None for main and when done.", NULL},
    {"_root", (getter)fiber_root, NULL, NULL, NULL},
    {"_runtime", (getter)fiber_runtime, NULL, NULL, NULL},
    {"_activity", (getter)fiber_activity, NULL, NULL, NULL},
    {"_since", (getter)fiber_since, NULL, NULL, NULL},
    {"_greenlet", (getter)fiber_greenlet, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef FIBER_MEMBERS[] = {
    {"_id", T_ULONGLONG, offsetof(Fiber, id), READONLY, NULL},
    {"_parks", T_UINT, offsetof(Fiber, parks), READONLY, NULL},
    {"_outcome", T_UBYTE, offsetof(Fiber, outcome), READONLY, NULL},
    {"_value", T_OBJECT, offsetof(Fiber, value), READONLY, NULL},
    {"_observed", T_BOOL, offsetof(Fiber, observed), 0, NULL},
    {"_propagates", T_BOOL, offsetof(Fiber, propagates), 0, NULL},
    {"_daemon", T_BOOL, offsetof(Fiber, daemon), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Fiber, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject FiberType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fibers.driver.native.Fiber",
    .tp_basicsize = sizeof(Fiber),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)fiber_dealloc,
    .tp_traverse = (traverseproc)fiber_traverse,
    .tp_clear = (inquiry)fiber_clear,
    .tp_weaklistoffset = offsetof(Fiber, weakrefs),
    .tp_methods = FIBER_METHODS,
    .tp_getset = FIBER_FIELDS,
    .tp_members = FIBER_MEMBERS,
};

static PyObject *runtime_take_pending(Runtime *rt, PyObject *ignored)
{
    PyObject *e = rt->pending;
    (void)ignored;
    rt->pending = NULL;
    if (rt->main)
        rt->main->interrupt = 0;
    return e ? e : Py_NewRef(Py_None);
}

/* Scope */

static int scope_traverse(Scope *o, visitproc visit, void *arg)
{
    Py_VISIT(o->fiber);
    Py_VISIT(o->failures);
    Py_VISIT(o->on_error);
    return 0;
}

static int scope_clear(Scope *o)
{
    Py_CLEAR(o->failures);
    Py_CLEAR(o->on_error);
    return 0;
}

static void scope_dealloc(Scope *o)
{
    PyTypeObject *type = Py_TYPE(o);
    PyObject_GC_UnTrack(o);
    if (o->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)o);
    scope_clear(o);
    Py_CLEAR(o->own.reason);
    Py_CLEAR(o->fiber);
    type->tp_free((PyObject *)o);
}

/* make_scope(kind, seconds, deadline, shield, limit, strict, on_error): every spelling is this one. */
static PyObject *make_scope(PyObject *module, PyObject *const *argv, Py_ssize_t n)
{
    PyTypeObject *type = (PyTypeObject *)fb_hooks.scope_type;
    Scope *o;
    (void)module;
    if (n != 7)
        return PyErr_Format(PyExc_TypeError, "make_scope takes 7 arguments");
    if (argv[1] != Py_None && argv[2] != Py_None)
        return PyErr_Format(PyExc_TypeError, "give seconds or deadline, not both");
    o = (Scope *)type->tp_alloc(type, 0);
    if (!o)
        return NULL;
    o->scope = &o->own;
    o->own.object = (PyObject *)o;
    o->own.timer.kind = TIMER_DEADLINE;
    o->at = o->seconds = -1;
    o->kind = (uint8_t)PyLong_AsLong(argv[0]);
    if (argv[1] != Py_None) {
        if (fb_duration(argv[1], "a timeout", 1, &o->seconds) < 0)
            goto bad;
    } else if (argv[2] != Py_None) {
        if (fb_duration(argv[2], "a deadline", 1, &o->at) < 0)
            goto bad;
    }
    o->own.shield = argv[3] == Py_True;
    if (argv[4] != Py_None) {
        long limit = PyLong_AsLong(argv[4]);
        if (limit == -1 && PyErr_Occurred())
            goto bad;
        if (limit < 1) {
            PyErr_Format(PyExc_ValueError, "limit must be at least 1, got %ld", limit);
            goto bad;
        }
        o->limit = (uint32_t)limit;
        o->own.limited = 1;
    }
    o->strict = argv[5] == Py_None ? -1 : (int8_t)PyObject_IsTrue(argv[5]);
    if (argv[6] != Py_None)
        o->on_error = Py_NewRef(argv[6]);
    return (PyObject *)o;
bad:
    Py_DECREF(o);
    return NULL;
}

static int arm_deadline(Runtime *rt, Scope *o)
{
    struct scope *s = o->scope;
    if (o->at < 0 || s->cancel_called)
        return 0;
    if (o->at <= fb_clock(rt)) {
        /* Due already: the first cancel point must see it, also one that completes at once (rule G1). */
        s->expired = 1;
        fb_scope_cancel(rt, s);
        return 0;
    }
    if (fb_timer_arm(&rt->timers, &s->timer, o->at) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static PyObject *scope_enter(Scope *o, PyObject *ignored)
{
    struct scope *s = o->scope;
    Fiber *f = fb_here("enter a scope");
    (void)ignored;
    if (!f)
        return NULL;
    if (s->state != SCOPE_NEW)
        return PyErr_Format(PyExc_RuntimeError, "a scope can be entered only once: make a new one");
    s->owner = f;
    s->parent = f->scope;
    s->soft = !s->shield && f->scope->cancelled && fb_in_grace(f);
    s->cancelled = s->cancel_called || (!s->shield && !s->soft && f->scope->cancelled);
    s->state = SCOPE_OPEN;
    s->parks = f->parks;
    f->scope->inner = s;
    f->scope = s;
    Py_INCREF(o); /* given back by fb_scope_close */
    if (o->seconds >= 0) {
        int64_t now = fb_clock(f->runtime);
        o->at = o->seconds > INT64_MAX - now ? -1 : now + o->seconds;
    }
    if (o->at >= 0 && arm_deadline(f->runtime, o) < 0) {
        fb_scope_close(s);
        return NULL;
    }
    return Py_NewRef((PyObject *)o);
}

static PyObject *scope_exit(Scope *o, PyObject *const *argv, Py_ssize_t n)
{
    struct scope *s = o->scope;
    Runtime *rt = fb_runtime;
    PyObject *leave;
    PyObject *args[2];
    if (n == 3 && argv[0] == Py_None && s->state == SCOPE_OPEN && rt && s->owner == rt->current && !s->is_root &&
        s->owner->scope == s && !s->children && !o->failures && !s->saw_cancelled) {
        fb_scope_close(s);
        Py_RETURN_FALSE;
    }
    if (n != 3)
        return PyErr_Format(PyExc_TypeError, "__exit__ takes 3 arguments");
    leave = PyUnicode_InternFromString("_leave");
    if (!leave)
        return NULL;
    args[0] = (PyObject *)o;
    args[1] = argv[1];
    PyObject *r = PyObject_VectorcallMethod(leave, args, 2, NULL);
    Py_DECREF(leave);
    return r;
}

/* The run it is open in, or NULL. */
static Runtime *scope_runtime(Scope *o)
{
    return o->scope->owner && o->scope->state != SCOPE_CLOSED ? o->scope->owner->runtime : NULL;
}

static PyObject *scope_spawn_kind(Scope *o, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, int daemon)
{
    Runtime *rt = scope_runtime(o);
    if (!rt && o->scope->state == SCOPE_NEW)
        return fb_spawn(o->scope, NULL, argv, n, kwnames, daemon); /* says why not */
    if (!rt)
        return PyErr_Format(PyExc_RuntimeError, "can't spawn %R: the scope is closed", n ? argv[0] : Py_None);
    if (!own_thread(rt, "spawn"))
        return NULL;
    return fb_spawn(o->scope, rt, argv, n, kwnames, daemon);
}

static PyObject *scope_spawn(Scope *o, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    return scope_spawn_kind(o, argv, n, kwnames, 0);
}

static PyObject *scope_daemon(Scope *o, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    return scope_spawn_kind(o, argv, n, kwnames, 1);
}

static PyObject *scope_cancel(Scope *o, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *reason;
    if (parse_reason(argv, n, kwnames, &reason) < 0)
        return NULL;
    return cancel(scope_runtime(o), o->scope, reason);
}

static PyObject *scope_deadline(Scope *o, void *ignored)
{
    (void)ignored;
    return seconds(o->at);
}

static int scope_set_deadline(Scope *o, PyObject *value, void *ignored)
{
    struct scope *s = o->scope;
    int64_t at;
    Runtime *rt = scope_runtime(o);
    (void)ignored;
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "a deadline can't be deleted: set it to None");
        return -1;
    }
    if (fb_duration(value, "a deadline", 1, &at) < 0 || (rt && !own_thread(rt, "set a deadline")))
        return -1;
    o->at = at;
    o->seconds = -1;
    if (!rt)
        return 0;
    if (s->timer.slot)
        fb_timer_disarm(&rt->timers, &s->timer);
    return arm_deadline(rt, o);
}

static PyObject *scope_children(Scope *o, void *ignored)
{
    PyObject *list = PyList_New(0);
    (void)ignored;
    for (Fiber *f = list ? o->scope->children : NULL; f; f = f->next)
        if (PyList_Append(list, (PyObject *)f) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    return list;
}

static PyObject *scope_reason(Scope *o, void *ignored)
{
    struct scope *s = o->scope;
    (void)ignored;
    if (s->reason)
        return Py_NewRef(s->reason);
    if (s->expired)
        return PyUnicode_FromString("deadline");
    Py_RETURN_NONE;
}

static PyObject *scope_cancel_called(Scope *o, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(o->scope->cancel_called);
}

static PyObject *scope_flag(Scope *o, void *which)
{
    struct scope *s = o->scope;
    switch ((int)(intptr_t)which) {
    case 0:
        return PyBool_FromLong(s->cancelled);
    case 1:
        return PyBool_FromLong(s->parent && !s->shield && !s->soft && s->parent->cancelled);
    case 2:
        return PyBool_FromLong(s->expired);
    case 3:
        return PyBool_FromLong(s->saw_cancelled);
    case 4:
        return PyBool_FromLong(s->shield);
    case 5:
        return PyBool_FromLong(s->is_root);
    case 6: {
        static const char *const STATES[] = {"new", "open", "closing", "closed"};
        return PyUnicode_FromString(STATES[s->state]);
    }
    case 7:
        return s->parent ? fb_scope_object(s->parent) : Py_NewRef(Py_None);
    case 9:
        return PyBool_FromLong(s->soft);
    case 10:
        return PyLong_FromUnsignedLongLong(s->cancel_id);
    default:
        return Py_NewRef(s->owner && s->state != SCOPE_CLOSED ? (PyObject *)s->owner : Py_None);
    }
}

/* How an exit finds the stack of scopes: 0 in order; 1 there are scopes inside it; 2 it is not this fiber's. */
static PyObject *scope_nesting(Scope *o, PyObject *ignored)
{
    Fiber *f = fb_here("leave a scope");
    (void)ignored;
    if (!f)
        return NULL;
    if (o->scope->state == SCOPE_OPEN && o->scope->owner == f) {
        if (f->scope == o->scope)
            return PyLong_FromLong(0);
        for (struct scope *s = f->scope; s && !s->is_root; s = s->parent)
            if (s == o->scope)
                return PyLong_FromLong(1);
    }
    return PyLong_FromLong(2);
}

/* Park until its children (need 1: the daemons not counted) are done: None; or an exception for main that came first. */
static PyObject *scope_wait(Scope *o, PyObject *arg)
{
    struct scope *s = o->scope;
    int need = (int)PyLong_AsLong(arg), wake;
    Fiber *f = fb_here("wait for children");
    if (!f || (need == -1 && PyErr_Occurred()))
        return NULL;
    s->state = SCOPE_CLOSING;
    while (!fb_children_done(s, need)) {
        if (f->interrupt)
            return runtime_take_pending(f->runtime, NULL);
        if (fb_may_park(f, "wait for children") < 0)
            return NULL;
        s->awaited = (uint8_t)need;
        wake = fb_park(f, WAIT_CHILDREN);
        s->awaited = 0;
        if (wake < 0) /* something was thrown in: as an exception for main, unless the run is over */
            return fb_runtime == f->runtime ? fb_take_exception() : NULL;
        if (!s->is_root)
            fb_grace_restart(s->parent); /* a root's parent is another fiber's */
    }
    Py_RETURN_NONE;
}

static PyObject *scope_close(Scope *o, PyObject *ignored)
{
    (void)ignored;
    if (o->scope->state != SCOPE_CLOSED && o->scope->owner)
        fb_scope_close(o->scope);
    Py_RETURN_NONE;
}

static PyMethodDef SCOPE_METHODS[] = {
    {"__enter__", METHOD(scope_enter), METH_NOARGS, NULL},
    {"__exit__", METHOD(scope_exit), METH_FASTCALL,
     "Leave: wait for the children, then raise what went wrong. May park; never a cancel point."},
    {"spawn", METHOD(scope_spawn), METH_FASTCALL | METH_KEYWORDS,
     "spawn($self, fn, /, *args, **kwargs)\n--\n\nStart a fiber as a child of this scope; does not switch."},
    {"daemon", METHOD(scope_daemon), METH_FASTCALL | METH_KEYWORDS,
     "daemon($self, fn, /, *args, **kwargs)\n--\n\nStart a child that is cancelled when the others are done; does not switch."},
    {"cancel", METHOD(scope_cancel), METH_FASTCALL | METH_KEYWORDS,
     "cancel($self, reason=None)\n--\n\nCancel everything in the scope; idempotent, the first reason wins. Returns at once."},
    {"_nesting", METHOD(scope_nesting), METH_NOARGS, NULL},
    {"_wait", METHOD(scope_wait), METH_O, NULL},
    {"_close", METHOD(scope_close), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef SCOPE_FIELDS[] = {
    {"deadline", (getter)scope_deadline, (setter)scope_set_deadline,
     "When it will be cancelled, in seconds of now(), or None; settable.", NULL},
    {"children", (getter)scope_children, NULL, "Its unfinished fibers in order of spawning.", NULL},
    {"reason", (getter)scope_reason, NULL, "Why it was cancelled, or None.", NULL},
    {"cancel_called", (getter)scope_cancel_called, NULL, "Whether it was cancelled itself.", NULL},
    {"_cancelled", (getter)scope_flag, NULL, NULL, (void *)0},
    {"_outer_cancelled", (getter)scope_flag, NULL, NULL, (void *)1},
    {"_expired", (getter)scope_flag, NULL, NULL, (void *)2},
    {"_saw_cancelled", (getter)scope_flag, NULL, NULL, (void *)3},
    {"_shield", (getter)scope_flag, NULL, NULL, (void *)4},
    {"_is_root", (getter)scope_flag, NULL, NULL, (void *)5},
    {"_state", (getter)scope_flag, NULL, NULL, (void *)6},
    {"_parent", (getter)scope_flag, NULL, NULL, (void *)7},
    {"_owner", (getter)scope_flag, NULL, NULL, (void *)8},
    {"_soft", (getter)scope_flag, NULL, NULL, (void *)9},
    {"_cancel_id", (getter)scope_flag, NULL, NULL, (void *)10},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef SCOPE_MEMBERS[] = {
    {"_failures", T_OBJECT, offsetof(Scope, failures), 0, NULL},
    {"_on_error", T_OBJECT, offsetof(Scope, on_error), READONLY, NULL},
    {"_kind", T_UBYTE, offsetof(Scope, kind), READONLY, NULL},
    {"_strict", T_BYTE, offsetof(Scope, strict), READONLY, NULL},
    {"cancelled_caught", T_BOOL, offsetof(Scope, caught), 0, "Whether its exit absorbed a Cancelled."},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Scope, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject ScopeType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fibers.driver.native.Scope",
    .tp_basicsize = sizeof(Scope),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)scope_dealloc,
    .tp_traverse = (traverseproc)scope_traverse,
    .tp_clear = (inquiry)scope_clear,
    .tp_weaklistoffset = offsetof(Scope, weakrefs),
    .tp_methods = SCOPE_METHODS,
    .tp_getset = SCOPE_FIELDS,
    .tp_members = SCOPE_MEMBERS,
};

/* Runtime */

static PyObject *runtime_run(Runtime *rt, PyObject *const *argv, Py_ssize_t n)
{
    PyObject *args, *main;
    Runtime *outer = fb_runtime;
    int r;
    if (outer && !outer->forked)
        return PyErr_Format(PyExc_RuntimeError, "can't run inside fibers.run(): this thread is in one already; use spawn");
    if (rt->main || !rt->driver)
        return PyErr_Format(PyExc_RuntimeError, "a Runtime runs once");
    args = PyTuple_New(n - 1);
    if (!args)
        return NULL;
    for (Py_ssize_t i = 1; i < n; i++)
        PyTuple_SET_ITEM(args, i - 1, Py_NewRef(argv[i]));
    rt->main = fb_fiber_new(rt, NULL, argv[0], args, NULL);
    Py_DECREF(args);
    if (!rt->main)
        return NULL;
    fb_runtime = rt;
    fb_enqueue(rt, rt->main);
    r = fb_hub(rt);
    rt->current = NULL;
    main = (PyObject *)rt->main;
    if (r == 0)
        rt->main = NULL; /* ours now: no cycle is left between the fiber and its run */
    if (r == 0 && !rt->forked)
        r = fb_end_carriers(rt);
    fb_runtime = outer;
    return r < 0 ? NULL : main;
}

/* Apart from _run: the wake pipe must outlive the signal.set_wakeup_fd that names it. */
static PyObject *runtime_close(Runtime *rt, PyObject *ignored)
{
    struct fb_driver *driver = rt->driver;
    (void)ignored;
    rt->driver = NULL;
    fb_stop_trace(rt);
    fb_heap_fini(&rt->timers); /* a run that failed has some, of fibers that may be gone before it */
    if (driver)
        fb_close(driver);
    Py_RETURN_NONE;
}

static PyObject *runtime_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    /* The driver is handed over as an integer, its address: cffi's face made it, the Runtime owns it from here. */
    static char *names[] = {"driver", "clock", "seed", "grace", NULL};
    PyObject *driver, *seed = Py_None, *grace = Py_None;
    int clock = CLOCK_REAL;
    Runtime *rt;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|iOO", names, &driver, &clock, &seed, &grace))
        return NULL;
    rt = (Runtime *)type->tp_alloc(type, 0);
    if (!rt)
        return NULL;
    rt->driver = PyLong_AsVoidPtr(driver);
    rt->virtual = (uint8_t)(rt->driver && rt->driver->time >= 0 ? CLOCK_DRIVER : clock);
    if (seed != Py_None) {
        rt->shuffle = 1;
        rt->random = (uint64_t)PyLong_AsUnsignedLongLongMask(seed) * 2654435769u + 1;
    }
    if (grace != Py_None && fb_duration(grace, "cleanup_grace", 0, &rt->grace_ns) == 0 && rt->grace_ns < 0)
        rt->grace_ns = INT64_MAX;
    if (PyErr_Occurred() || fb_queue_reserve(&rt->ready, 64) < 0) {
        Py_DECREF(rt);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    return (PyObject *)rt;
}

static int runtime_traverse(Runtime *rt, visitproc visit, void *arg)
{
    Py_VISIT(rt->hub);
    Py_VISIT(rt->main);
    Py_VISIT(rt->pending);
    Py_VISIT(rt->trouble);
    return 0;
}

static int runtime_clear(Runtime *rt)
{
    Py_CLEAR(rt->hub);
    fb_stop_trace(rt);
    Py_CLEAR(rt->main);
    Py_CLEAR(rt->pending);
    Py_CLEAR(rt->trouble);
    Py_CLEAR(rt->dead);
    return 0;
}

static void runtime_dealloc(Runtime *rt)
{
    PyTypeObject *type = Py_TYPE(rt);
    PyObject_GC_UnTrack(rt);
    runtime_clear(rt);
    if (rt->driver)
        fb_close(rt->driver);
    fb_heap_fini(&rt->timers);
    fb_queue_fini(&rt->ready);
    type->tp_free((PyObject *)rt);
}

static PyObject *runtime_wake(Runtime *rt, PyObject *ignored)
{
    (void)ignored;
    if (rt->driver)
        fb_wake(rt->driver);
    Py_RETURN_NONE;
}

static PyObject *runtime_wake_fd(Runtime *rt, void *ignored)
{
    (void)ignored;
    return PyLong_FromLong(rt->driver ? rt->driver->wake_fd : -1);
}

static PyObject *runtime_stats(Runtime *rt, PyObject *ignored)
{
    static const struct fb_counters NONE;
    const struct fb_counters *c = rt->driver ? &rt->driver->count : &NONE;
    (void)ignored;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:I}", "fibers", (unsigned long long)rt->fibers,
                         "spawned", (unsigned long long)rt->spawned, "switches", (unsigned long long)rt->switches,
                         "operations", (unsigned long long)(c->submits + c->attempts), "completions",
                         (unsigned long long)(c->completions + c->attempts),
                         "cancels", (unsigned long long)c->cancels, "enters", (unsigned long long)c->enters, "waits",
                         (unsigned long long)c->waits, "wakes", (unsigned long long)c->wakes, "timers", rt->timers.len,
                         "carriers", rt->pooled);
}

static PyObject *runtime_external(Runtime *rt, PyObject *by)
{
    long n = PyLong_AsLong(by);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    rt->external = (uint32_t)((long)rt->external + n);
    Py_RETURN_NONE;
}

/* _clock(kind[, seconds]): how time moves from now on; with seconds, move a virtual clock on by so many. */
static PyObject *runtime_clock(Runtime *rt, PyObject *const *argv, Py_ssize_t n)
{
    long kind;
    int64_t ns = 0;
    if (n < 1 || n > 2 || ((kind = PyLong_AsLong(argv[0])) == -1 && PyErr_Occurred()))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "_clock takes a kind and seconds");
    if ((rt->main && !own_thread(rt, "move the clock")) || (n == 2 && fb_duration(argv[1], "the clock", 0, &ns) < 0))
        return NULL;
    rt->virtual = (uint8_t)kind;
    rt->clock += ns < 0 || ns > INT64_MAX / 2 - rt->clock ? 0 : ns;
    if (rt->virtual)
        rt->seen = rt->clock;
    Py_RETURN_NONE;
}

static PyObject *runtime_interrupt(Runtime *rt, PyObject *e)
{
    fb_interrupt_main(rt, Py_NewRef(e));
    Py_RETURN_NONE;
}

/* _forget(): the child of a fork has none of the run but the forking fiber (rule M4). */
static PyObject *runtime_forget(Runtime *rt, PyObject *ignored)
{
    (void)ignored;
    fb_forget(rt);
    Py_RETURN_NONE;
}

static PyObject *runtime_field(Runtime *rt, void *which)
{
    PyObject *o = (intptr_t)which == 0 ? (PyObject *)rt->main : (intptr_t)which == 1 ? (PyObject *)rt->current : rt->hub;
    return Py_NewRef(o ? o : Py_None);
}

static PyObject *runtime_now(Runtime *rt, void *ignored)
{
    (void)ignored;
    return PyFloat_FromDouble((double)fb_clock(rt) / 1e9);
}

static PyObject *runtime_pending(Runtime *rt, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(rt->pending != NULL);
}

static PyObject *runtime_forked(Runtime *rt, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(rt->forked);
}

static PyMethodDef RUNTIME_METHODS[] = {
    {"_run", METHOD(runtime_run), METH_FASTCALL, NULL},
    {"_close", METHOD(runtime_close), METH_NOARGS, NULL},
    {"_wake", METHOD(runtime_wake), METH_NOARGS, NULL},
    {"_stats", METHOD(runtime_stats), METH_NOARGS, NULL},
    {"_external", METHOD(runtime_external), METH_O, NULL},
    {"_interrupt", METHOD(runtime_interrupt), METH_O, NULL},
    {"_clock", METHOD(runtime_clock), METH_FASTCALL, NULL},
    {"_step", METHOD(fb_step), METH_NOARGS, NULL},
    {"_watch_steps", METHOD(fb_watch_steps), METH_O, NULL},
    {"_take_pending", METHOD(runtime_take_pending), METH_NOARGS, NULL},
    {"_forget", METHOD(runtime_forget), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef RUNTIME_FIELDS[] = {
    {"_wake_fd", (getter)runtime_wake_fd, NULL, NULL, NULL},
    {"_main", (getter)runtime_field, NULL, NULL, (void *)0},
    {"_current", (getter)runtime_field, NULL, NULL, (void *)1},
    {"_hub", (getter)runtime_field, NULL, NULL, (void *)2},
    {"_now", (getter)runtime_now, NULL, NULL, NULL},
    {"_pending", (getter)runtime_pending, NULL, NULL, NULL},
    {"_forked", (getter)runtime_forked, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject RuntimeType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fibers.driver.native.Runtime",
    .tp_basicsize = sizeof(Runtime),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = runtime_new,
    .tp_dealloc = (destructor)runtime_dealloc,
    .tp_traverse = (traverseproc)runtime_traverse,
    .tp_clear = (inquiry)runtime_clear,
    .tp_methods = RUNTIME_METHODS,
    .tp_getset = RUNTIME_FIELDS,
};

/* Functions of the module. */

static PyObject *spawn_here(PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, int daemon)
{
    Fiber *f = fb_here("spawn");
    return f ? fb_spawn(f->scope, f->runtime, argv, n, kwnames, daemon) : NULL;
}

static PyObject *m_spawn(PyObject *module, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    (void)module;
    return spawn_here(argv, n, kwnames, 0);
}

static PyObject *m_daemon(PyObject *module, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    (void)module;
    return spawn_here(argv, n, kwnames, 1);
}

static PyObject *m_current(PyObject *module, PyObject *ignored)
{
    Fiber *f = fb_here("ask for the current fiber");
    (void)module;
    (void)ignored;
    return f ? Py_NewRef((PyObject *)f) : NULL;
}

static PyObject *m_current_scope(PyObject *module, PyObject *ignored)
{
    Fiber *f = fb_here("ask for the current scope");
    (void)module;
    (void)ignored;
    return f ? fb_scope_object(f->scope) : NULL;
}

static PyObject *m_cancelled(PyObject *module, PyObject *ignored)
{
    Fiber *f = fb_here("ask whether it is cancelled");
    (void)module;
    (void)ignored;
    return f ? PyBool_FromLong(f->scope->cancelled) : NULL;
}

static PyObject *m_runtime(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return Py_NewRef(fb_runtime ? (PyObject *)fb_runtime : Py_None);
}

static PyObject *m_now(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    if (!fb_runtime)
        return PyErr_Format(PyExc_RuntimeError, "can't ask for now() outside fibers.run()");
    return PyFloat_FromDouble((double)fb_clock(fb_runtime) / 1e9);
}

static PyObject *m_checkpoint(PyObject *module, PyObject *ignored)
{
    Fiber *f = fb_here("checkpoint");
    (void)module;
    (void)ignored;
    if (!f || fb_may_park(f, "checkpoint") < 0 || fb_check(f) < 0 || fb_park(f, WAIT_YIELD) < 0 || fb_check(f) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *sleep_for(Fiber *f, int64_t ns)
{
    int wake;
    if (fb_may_park(f, "sleep") < 0 || fb_check(f) < 0 || fb_arm(f, ns < 0 ? INT64_MAX : ns) < 0)
        return NULL;
    wake = fb_park(f, WAIT_SLEEP);
    fb_disarm(f);
    if (fb_woken(f, wake) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *m_sleep(PyObject *module, PyObject *arg)
{
    int64_t ns;
    Fiber *f;
    if (arg == Py_None)
        return PyErr_Format(PyExc_TypeError, "sleep needs a number of seconds, got None");
    if (fb_duration(arg, "sleep", 0, &ns) < 0 || !(f = fb_here("sleep")))
        return NULL;
    return ns == 0 ? m_checkpoint(module, NULL) : sleep_for(f, ns);
}

static PyObject *m_sleep_until(PyObject *module, PyObject *arg)
{
    int64_t at, now;
    Fiber *f;
    if (arg == Py_None)
        return PyErr_Format(PyExc_TypeError, "sleep_until needs a time of now(), got None");
    if (fb_duration(arg, "a deadline", 1, &at) < 0 || !(f = fb_here("sleep")))
        return NULL;
    now = fb_clock(f->runtime);
    if (at >= 0 && at <= now)
        return m_checkpoint(module, NULL);
    return sleep_for(f, at < 0 ? -1 : at - now);
}

/* Before a wait that a cancellation ends by asking: 0, or -1 when it is to be raised at once. Py_None: anybody may end it. */
static int set_on_cancel(Fiber *f, PyObject *on_cancel)
{
    PyObject *r;
    int gone;
    if (!(f->scope->cancelled | f->interrupt) || (!f->interrupt && fb_in_grace(f))) {
        if (on_cancel != Py_None)
            f->on_cancel = Py_NewRef(on_cancel);
        return 0;
    }
    if (on_cancel == Py_None)
        return fb_check(f);
    r = PyObject_CallNoArgs(on_cancel);
    gone = r ? PyObject_IsTrue(r) : -1;
    Py_XDECREF(r);
    if (gone > 0)
        return fb_check(f);
    if (gone == 0)
        f->on_cancel = Py_NewRef(Py_None);
    return gone;
}

static PyObject *m_park(PyObject *module, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    Fiber *f = fb_here("park");
    Py_ssize_t kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    PyObject *on_cancel = n + kw ? argv[0] : Py_None, *gift;
    int wake;
    (void)module;
    if (!f || fb_may_park(f, "park") < 0)
        return NULL;
    if (n + kw > 1 || (kw && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "on_cancel")))
        return PyErr_Format(PyExc_TypeError, "park() takes one argument, on_cancel");
    if (on_cancel != Py_None && !PyCallable_Check(on_cancel))
        return PyErr_Format(PyExc_TypeError, "on_cancel must be callable, got %R", on_cancel);
    if (set_on_cancel(f, on_cancel) < 0)
        return NULL;
    wake = fb_park(f, WAIT_PARK);
    if (f->on_cancel == Py_None)
        fb_grace_restart(f->scope);
    gift = f->on;
    f->on = NULL;
    Py_CLEAR(f->on_cancel);
    if (wake == WAKE_FAILED) {
        fb_raise(gift);
        return NULL;
    }
    if (fb_woken(f, wake) < 0) {
        Py_XDECREF(gift);
        return NULL;
    }
    return gift ? gift : Py_NewRef(Py_None);
}

/* wait(what, on=None, timeout=None, on_cancel=None): park() for the primitives: until wake, True, or a timeout, False.
 * `what` and `on` are for whoever asks what the fiber waits for; on_cancel as for park. A waiter that was woken stays so,
 * whatever is cancelled before it runs. */
static PyObject *m_wait(PyObject *module, PyObject *const *argv, Py_ssize_t n)
{
    int64_t ns;
    int wake;
    Fiber *f;
    (void)module;
    if (n < 1 || n > 4)
        return PyErr_Format(PyExc_TypeError, "wait takes what, on, timeout, on_cancel");
    if (fb_duration(n > 2 ? argv[2] : Py_None, "a timeout", 1, &ns) < 0 || !(f = fb_here("wait")) ||
        fb_may_park(f, "wait") < 0 || set_on_cancel(f, n > 3 ? argv[3] : Py_None) < 0)
        return NULL;
    if (ns == 0 || fb_arm(f, ns) < 0) {
        Py_CLEAR(f->on_cancel);
        return ns == 0 ? Py_NewRef(Py_False) : NULL;
    }
    f->what = Py_NewRef(argv[0]);
    f->on = Py_XNewRef(n > 1 ? argv[1] : NULL);
    wake = fb_park(f, WAIT_PARK);
    if (f->on_cancel == Py_None)
        fb_grace_restart(f->scope);
    Py_CLEAR(f->what);
    Py_CLEAR(f->on);
    Py_CLEAR(f->on_cancel);
    wake = fb_woken(f, wake);
    return wake < 0 ? NULL : PyBool_FromLong(!wake);
}

/* wait_blocked(cushion): until every other fiber of the run is blocked, and has been for so many seconds. */
static PyObject *m_wait_blocked(PyObject *module, PyObject *cushion)
{
    Fiber *f;
    int wake;
    (void)module;
    if (!(f = fb_here("wait_all_blocked")) || fb_duration(cushion, "a cushion", 0, &f->timer.when) < 0 ||
        fb_may_park(f, "wait_all_blocked") < 0 || fb_check(f) < 0)
        return NULL;
    if (f->timer.when < 0)
        return PyErr_Format(PyExc_ValueError, "a cushion must be finite: %R", cushion);
    fb_line_push(&f->runtime->blocked, f);
    wake = fb_park(f, WAIT_BLOCKED);
    if (fb_woken(f, wake) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *m_unpark(PyObject *module, PyObject *const *argv, Py_ssize_t n)
{
    Fiber *f;
    (void)module;
    if (n < 1 || n > 2 || !PyObject_TypeCheck(argv[0], &FiberType))
        return PyErr_Format(PyExc_TypeError, "unpark(fiber, value=None) needs a Fiber");
    f = (Fiber *)argv[0];
    if (!own_thread(f->runtime, "unpark a fiber"))
        return NULL;
    if (f->state != FIBER_PARKED || f->wait != WAIT_PARK || f->what || f->runtime->forked)
        Py_RETURN_FALSE;
    Py_XSETREF(f->on, Py_NewRef(n == 2 ? argv[1] : Py_None));
    fb_make_ready(f, WAKE_OK);
    Py_RETURN_TRUE;
}

/* wake(fiber): end a wait(); False if the fiber is not in one (any more). Apart from unpark: that is the user's, who must
 * not make a lock's waiter believe that it has the lock. */
static PyObject *m_wake(PyObject *module, PyObject *fiber)
{
    Fiber *f = (Fiber *)fiber;
    (void)module;
    if (!PyObject_TypeCheck(fiber, &FiberType))
        return PyErr_Format(PyExc_TypeError, "wake needs a Fiber");
    if (!own_thread(f->runtime, "wake a fiber"))
        return NULL;
    if (f->state != FIBER_PARKED || f->wait != WAIT_PARK || !f->what || f->runtime->forked)
        Py_RETURN_FALSE;
    fb_make_ready(f, WAKE_OK);
    Py_RETURN_TRUE;
}

/* make_cancelled(): what a cancel point would raise here. */
static PyObject *m_make_cancelled(PyObject *module, PyObject *ignored)
{
    Fiber *f = fb_here("be cancelled");
    (void)module;
    (void)ignored;
    return f ? fb_make_cancelled(f) : NULL;
}

static int hook(PyObject *d, const char *name, PyObject **slot)
{
    PyObject *o = PyDict_GetItemString(d, name);
    if (!o) {
        PyErr_Format(PyExc_TypeError, "configure needs %s", name);
        return -1;
    }
    Py_XSETREF(*slot, Py_NewRef(o));
    return 0;
}

/* configure(**hooks): any number of times, any subset of groups, before the first run. */
static PyObject *m_configure(PyObject *module, PyObject *d)
{
    (void)module;
    if (!PyDict_Check(d))
        return PyErr_Format(PyExc_TypeError, "configure takes a dict");
    if (hook(d, "fiber_type", &fb_hooks.fiber_type) < 0 || hook(d, "scope_type", &fb_hooks.scope_type) < 0 ||
        hook(d, "cancelled_type", &fb_hooks.cancelled_type) < 0 || hook(d, "cancelled", &fb_hooks.cancelled) < 0 || hook(d, "settle", &fb_hooks.settle) < 0 ||
        hook(d, "child_failed", &fb_hooks.child_failed) < 0 || hook(d, "redelivered", &fb_hooks.redelivered) < 0 ||
        hook(d, "fiber_cancelled", &fb_hooks.fiber_cancelled) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef FUNCTIONS[] = {
    {"spawn", METHOD(m_spawn), METH_FASTCALL | METH_KEYWORDS,
     "spawn(fn, /, *args, **kwargs)\n--\n\nStart fn(*args, **kwargs) as a fiber of the innermost open scope; does not switch.\n\n"
     "RuntimeError outside a run (semantics.md B1)."},
    {"daemon", METHOD(m_daemon), METH_FASTCALL | METH_KEYWORDS,
     "daemon(fn, /, *args, **kwargs)\n--\n\nSpawn a fiber that is cancelled once its scope has only daemons left.\n\n"
     "Its failure is a failure (semantics.md B9)."},
    {"current", METHOD(m_current), METH_NOARGS, "current()\n--\n\nThe fiber that is running."},
    {"current_scope", METHOD(m_current_scope), METH_NOARGS,
     "current_scope()\n--\n\nThe innermost open scope of the running fiber."},
    {"cancelled", METHOD(m_cancelled), METH_NOARGS,
     "cancelled()\n--\n\nTell whether the running fiber's scope is cancelled; never raises Cancelled."},
    {"runtime", METHOD(m_runtime), METH_NOARGS, NULL},
    {"now", METHOD(m_now), METH_NOARGS,
     "now()\n--\n\nThe run's clock in seconds: monotonic, virtual under a test clock (semantics.md F10)."},
    {"checkpoint", METHOD(m_checkpoint), METH_NOARGS,
     "checkpoint()\n--\n\nLet the other ready fibers run. Parks; a cancel point."},
    {"sleep", METHOD(m_sleep), METH_O,
     "sleep(seconds, /)\n--\n\nPark for so many seconds; 0 is checkpoint(). ValueError if negative or NaN.\n\n"
     "Parks; a cancel point."},
    {"sleep_until", METHOD(m_sleep_until), METH_O,
     "sleep_until(deadline, /)\n--\n\nPark until now() is `deadline`; a past one is checkpoint(). Parks; a cancel point."},
    {"park", METHOD(m_park), METH_FASTCALL | METH_KEYWORDS,
     "park(on_cancel=None)\n--\n\nSuspend the running fiber until unpark(fiber, value), and return that value.\n\n"
     "on_cancel() is called when the wait is cancelled: True, it has removed the waiter, Cancelled is raised;\n"
     "False, an unpark will come all the same. It may not park; what it raises, park raises. Parks; a cancel point."},
    {"unpark", METHOD(m_unpark), METH_FASTCALL,
     "unpark(fiber, value=None, /)\n--\n\nResume a fiber that is in park(); False if it is not there (any more)."},
    {"wait", METHOD(m_wait), METH_FASTCALL, NULL},
    {"wake", METHOD(m_wake), METH_O, NULL},
    {"wait_blocked", METHOD(m_wait_blocked), METH_O, NULL},
    {"make_scope", METHOD(make_scope), METH_FASTCALL, NULL},
    {"make_cancelled", METHOD(m_make_cancelled), METH_NOARGS, NULL},
    {"configure", METHOD(m_configure), METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int fb_add_objects(PyObject *module)
{
    for (int code = 0; code < FB_CODES; code++) {
        char name[16];
        int i = 0;
        for (const char *p = OP_NAMES[code]; *p; p++)
            name[i++] = *p >= 'a' && *p <= 'z' ? (char)(*p - 32) : *p;
        name[i] = 0;
        if (PyModule_AddIntConstant(module, name, code) < 0)
            return -1;
    }
    if (PyModule_AddFunctions(module, FUNCTIONS) < 0 || PyModule_AddType(module, &FiberType) < 0 ||
        PyModule_AddType(module, &ScopeType) < 0 || PyModule_AddType(module, &RuntimeType) < 0)
        return -1;
    return 0;
}
