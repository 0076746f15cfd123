/* Who looks on: the record behind fibers.trace(), and since when the running fiber has not yielded.
 *
 *  1. Off is the rule: then the scheduler pays one predicted branch for each event (fb_tell in native.h).
 *  2. Recording cannot fail: what finds no memory is counted as lost. It calls Python only at a fiber's end, for its name.
 *  3. Times are those of the real clock, also under a virtual one: a trace shows where the time went.
 *  4. Words are debug.py's: an event here is 32 bytes.
 */
#include "native.h"

#include <stdlib.h>
#include <string.h>

#include "structmember.h"

struct note {
    int64_t at;
    uint64_t fiber;           /* base + its id: a Trace may span several runs */
    union {
        uint64_t other;       /* wake, spawn, cancel: the fiber that did it, or 0; park in join: the fiber joined */
        PyObject *what;       /* owned or NULL: what a primitive's wait said of itself */
    };
    int32_t fd;               /* park in an op */
    uint8_t kind, wait, code, outcome;
};

typedef struct {
    PyObject_HEAD
    struct note *events;     /* owned */
    uint64_t len, cap, lost, base;
    PyObject *names;          /* owned dict: fiber number -> name, of those that have ended */
    Runtime *runtime;         /* borrowed: the run that feeds it, which holds us */
} Trace;

static uint64_t number(Trace *t, Fiber *f) { return f ? t->base + f->id : 0; }

static struct note *append(Trace *t)
{
    if (t->len == t->cap) {
        uint64_t cap = t->cap ? t->cap * 2 : 1024;
        struct note *grown = realloc(t->events, cap * sizeof *grown);
        if (!grown) {
            t->lost++;
            return NULL;
        }
        t->events = grown;
        t->cap = cap;
    }
    return memset(&t->events[t->len++], 0, sizeof(struct note));
}

static void note_name(Trace *t, Fiber *f)
{
    PyObject *error_type, *error, *traceback, *key, *name;
    PyErr_Fetch(&error_type, &error, &traceback);
    key = PyLong_FromUnsignedLongLong(number(t, f));
    name = PyObject_GetAttrString((PyObject *)f, "name");
    if (!key || !name || PyDict_SetItem(t->names, key, name) < 0)
        PyErr_Clear(); /* its track keeps its number */
    Py_XDECREF(key);
    Py_XDECREF(name);
    PyErr_Restore(error_type, error, traceback);
}

static void record(Trace *t, Runtime *rt, int kind, Fiber *f)
{
    struct note *e;
    if (kind == EVENT_END) {
        /* What it calls may be recorded, too, and may end the recording. */
        int on;
        Py_INCREF(t);
        note_name(t, f);
        on = t->runtime == rt;
        Py_DECREF(t);
        if (!on)
            return;
    }
    if (!(e = append(t)))
        return;
    e->at = fb_now();
    e->fiber = number(t, f);
    e->kind = (uint8_t)kind;
    e->fd = -1;
    switch ((enum event)kind) {
    case EVENT_PARK:
        e->wait = f->wait;
        if (f->wait == WAIT_OP) {
            e->code = f->op.code;
            e->fd = f->op.fd;
        } else if (f->wait == WAIT_JOIN && f->line) {
            e->other = number(t, (Fiber *)((char *)f->line - offsetof(Fiber, joiners)));
        } else if (f->wait == WAIT_PARK) {
            e->what = Py_XNewRef(f->what);
        }
        break;
    case EVENT_WAKE:
    case EVENT_SPAWN:
    case EVENT_CANCEL:
        /* Who is parked polls, and did nothing; who is done wakes its joiners. */
        if (rt->current && (rt->current->state == FIBER_RUNNING || (rt->current->state == FIBER_DONE && rt->inside)))
            e->other = number(t, rt->current);
        break;
    case EVENT_END:
        e->outcome = f->outcome;
        break;
    case EVENT_RUN:
        break;
    }
}

void fb_watch(Runtime *rt, int kind, Fiber *f)
{
    if (rt->watched & WATCH_TRACE)
        record((Trace *)rt->trace, rt, kind, f);
    if ((rt->watched & WATCH_STEPS) && kind == EVENT_RUN)
        rt->stepped = fb_now();
}

/* The stall detector. */

PyObject *fb_watch_steps(Runtime *rt, PyObject *on)
{
    int yes = PyObject_IsTrue(on);
    if (yes < 0)
        return NULL;
    rt->watched = (uint8_t)(yes ? rt->watched | WATCH_STEPS : rt->watched & ~WATCH_STEPS);
    rt->stepped = fb_now();
    Py_RETURN_NONE;
}

/* _step(): what runs now, as (when it was resumed in real ns, for how many seconds it has run), or None. Any thread. */
PyObject *fb_step(Runtime *rt, PyObject *ignored)
{
    (void)ignored;
    if (!(rt->watched & WATCH_STEPS) || !rt->current || rt->current->state != FIBER_RUNNING)
        Py_RETURN_NONE;
    return Py_BuildValue("Ld", (long long)rt->stepped, (double)(fb_now() - rt->stepped) / 1e9);
}

/* The Trace object. */

static PyObject *trace_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Trace *t;
    if (PyTuple_GET_SIZE(args) || kwargs)
        return PyErr_Format(PyExc_TypeError, "Trace takes no arguments");
    t = (Trace *)type->tp_alloc(type, 0);
    if (t && !(t->names = PyDict_New()))
        Py_CLEAR(t);
    return (PyObject *)t;
}

static void trace_dealloc(Trace *t)
{
    PyTypeObject *type = Py_TYPE(t);
    for (uint64_t i = 0; i < t->len; i++)
        if (t->events[i].kind == EVENT_PARK && t->events[i].wait == WAIT_PARK)
            Py_XDECREF(t->events[i].what);
    free(t->events);
    Py_XDECREF(t->names);
    type->tp_free((PyObject *)t);
}

/* start(runtime): record what happens there from now on. */
static PyObject *trace_start(Trace *t, PyObject *o)
{
    Runtime *rt;
    if (!PyObject_HasAttrString(o, "_watch_steps"))
        return PyErr_Format(PyExc_TypeError, "start needs a Runtime, got %R", o);
    rt = (Runtime *)o;
    if (rt->trace || t->runtime)
        return PyErr_Format(PyExc_RuntimeError, "can't trace: this run is being traced already");
    rt->trace = Py_NewRef((PyObject *)t);
    rt->watched |= WATCH_TRACE;
    t->runtime = rt;
    if (rt->current && rt->current->state == FIBER_RUNNING)
        record(t, rt, EVENT_RUN, rt->current);
    Py_RETURN_NONE;
}

void fb_stop_trace(Runtime *rt)
{
    Trace *t = (Trace *)rt->trace;
    if (!t)
        return;
    t->runtime = NULL;
    t->base += rt->spawned;
    rt->watched &= (uint8_t)~WATCH_TRACE;
    Py_CLEAR(rt->trace);
}

/* stop(): the run goes on unrecorded. What a later run adds gets numbers of its own. */
static PyObject *trace_stop(Trace *t, PyObject *ignored)
{
    (void)ignored;
    if (t->runtime)
        fb_stop_trace(t->runtime);
    Py_RETURN_NONE;
}

/* event(i): (ns, kind, fiber number, what it waits for or None, the other fiber's number or 0, fd or -1, outcome). */
static PyObject *trace_event(Trace *t, PyObject *index)
{
    static const char *const WAITS[] = {
        [WAIT_NONE] = "nothing", [WAIT_OP] = "op",     [WAIT_SLEEP] = "sleep", [WAIT_YIELD] = "checkpoint",
        [WAIT_JOIN] = "join",    [WAIT_PARK] = "park", [WAIT_SEND] = "sendall behind another",
        [WAIT_CHILDREN] = "the exit of a scope", [WAIT_CLOSE] = "close", [WAIT_BLOCKED] = "wait_all_blocked"};
    unsigned long long i = PyLong_AsUnsignedLongLong(index);
    const struct note *e;
    PyObject *what;
    if (PyErr_Occurred())
        return NULL;
    if (i >= t->len)
        return PyErr_Format(PyExc_IndexError, "no event %llu", i);
    e = &t->events[i];
    if (e->kind != EVENT_PARK)
        what = Py_NewRef(Py_None);
    else if (e->wait == WAIT_PARK && e->what)
        what = PyObject_Str(e->what);
    else
        what = PyUnicode_FromString(e->wait == WAIT_OP ? fb_op_name(e->code) : WAITS[e->wait]);
    if (!what)
        return NULL;
    return Py_BuildValue("LBKNKiB", (long long)e->at, e->kind, (unsigned long long)e->fiber, what,
                         e->kind == EVENT_PARK && e->wait == WAIT_PARK ? 0ull : (unsigned long long)e->other,
                         (int)e->fd, e->outcome);
}

static PyObject *trace_field(Trace *t, void *which)
{
    if ((intptr_t)which == 0)
        return PyLong_FromUnsignedLongLong(t->lost);
    if ((intptr_t)which == 1)
        return PyLong_FromUnsignedLongLong(t->base);
    return Py_NewRef(t->runtime ? (PyObject *)t->runtime : Py_None);
}

static Py_ssize_t trace_length(Trace *t) { return (Py_ssize_t)t->len; }

static PyMethodDef TRACE_METHODS[] = {
    {"start", (PyCFunction)trace_start, METH_O, NULL},
    {"stop", (PyCFunction)trace_stop, METH_NOARGS, NULL},
    {"event", (PyCFunction)trace_event, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef TRACE_FIELDS[] = {
    {"lost", (getter)trace_field, NULL, NULL, (void *)0},
    {"base", (getter)trace_field, NULL, NULL, (void *)1},
    {"runtime", (getter)trace_field, NULL, NULL, (void *)2},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef TRACE_MEMBERS[] = {
    {"names", T_OBJECT_EX, offsetof(Trace, names), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PySequenceMethods TRACE_SEQUENCE = {.sq_length = (lenfunc)trace_length};

static PyTypeObject TraceType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fibers.driver.native.Trace",
    .tp_basicsize = sizeof(Trace),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = trace_new,
    .tp_dealloc = (destructor)trace_dealloc,
    .tp_as_sequence = &TRACE_SEQUENCE,
    .tp_methods = TRACE_METHODS,
    .tp_getset = TRACE_FIELDS,
    .tp_members = TRACE_MEMBERS,
};

int fb_add_watch(PyObject *module) { return PyModule_AddType(module, &TraceType); }
