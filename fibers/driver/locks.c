/* threading's Lock, RLock and local as they are under monkey.py: the same object serves fibers of any run and plain threads
 * (semantics.md L1, L6, K2).
 *
 *  1. First come, first served, across fibers and threads: whoever releases hands the lock to the first waiter.
 *  2. Acquiring a Lock or RLock keeps the thread contract: while another live fiber or thread holds it a cancellation is
 *     held back, until a time after it was first delivered (L1). If the owner is dead or the caller it is a cancel point.
 *  3. A Waiter, which threading.Condition and its like block on, is cancelled at once.
 *  4. Taking what is free, and every call that does not block, never parks: it may be made anywhere (L5).
 *  5. All state changes are single steps under the GIL.
 *  6. A fiber's identity is its own, but main's is that of its thread.
 */
#include "native.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

enum { PATIENCE = 1000000000 }; /* ns: a mutex is waited for so long after a cancellation, if the grace is not longer */

/* In place of a timeout: the end of a Condition.wait, which must come back with the lock whatever happens meanwhile; what
 * was raised stays for the next cancel point. */
enum { AGAIN = -2 };

/* Who waits: on the heap, never on a stack that greenlet moves. */
struct sleeper {
    struct sleeper *next, *prev;
    Fiber *fiber;             /* borrowed: it is parked; NULL: a thread */
    PyThread_type_lock signal; /* owned: what the thread sleeps on */
    unsigned long ident;
    uint32_t generation;
    uint8_t granted;          /* the lock is its own */
};

typedef struct {
    PyObject_HEAD
    struct sleeper *head, *tail;
    Fiber *owner;             /* owned or NULL: the fiber that took it, unless it is the main one */
    unsigned long ident;      /* who took it; 0: it is free */
    unsigned long count;      /* of an RLock */
    PyObject *weakrefs;
} Lock;

static PyTypeObject LockType, WaiterType, RLockType, LocalType;
static uint32_t generation; /* of the process: one more in each child of a fork */

/* Who asks. */

static Fiber *fiber_here(void) { return fb_runtime ? fb_runtime->current : NULL; }

static unsigned long ident_of(Fiber *f)
{
    return f && f != f->runtime->main ? (unsigned long)(uintptr_t)f : PyThread_get_thread_ident();
}

static PyObject *m_get_ident(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return PyLong_FromUnsignedLong(ident_of(fiber_here()));
}

/* ident(fiber): its identity as get_ident() tells it inside. */
static PyObject *m_ident(PyObject *module, PyObject *fiber)
{
    (void)module;
    return PyLong_FromUnsignedLong((unsigned long)(uintptr_t)fiber);
}

/* The queue. */

static void take(Lock *l, Fiber *f, unsigned long ident)
{
    Fiber *before = l->owner;
    l->owner = f && f != f->runtime->main ? (Fiber *)Py_NewRef((PyObject *)f) : NULL;
    l->ident = ident;
    l->count = 1;
    Py_XDECREF((PyObject *)before);
}

static void push(Lock *l, struct sleeper *s)
{
    s->next = NULL;
    s->prev = l->tail;
    if (l->tail)
        l->tail->next = s;
    else
        l->head = s;
    l->tail = s;
}

static void drop(Lock *l, struct sleeper *s)
{
    if (s->prev)
        s->prev->next = s->next;
    else
        l->head = s->next;
    if (s->next)
        s->next->prev = s->prev;
    else
        l->tail = s->prev;
    s->next = s->prev = NULL;
}

/* The fiber of another run is woken by that run: 0, or -1 with an exception. */
static int wake_elsewhere(Fiber *f)
{
    PyObject *module = PyImport_ImportModule("fibers.driver.native");
    PyObject *wake = module ? PyObject_GetAttrString(module, "wake") : NULL;
    PyObject *r = wake ? PyObject_CallMethod((PyObject *)f->runtime, "_soon", "OO", wake, (PyObject *)f) : NULL;
    Py_XDECREF(r);
    Py_XDECREF(wake);
    Py_XDECREF(module);
    return r ? 0 : -1;
}

/* Hand the lock to the first waiter, or free it. */
static int hand_on(Lock *l)
{
    struct sleeper *s;
    while ((s = l->head)) {
        drop(l, s);
        if (s->generation != generation || (s->fiber && s->fiber->runtime->forked))
            continue; /* it does not exist in this child of a fork */
        take(l, s->fiber, s->ident);
        s->granted = 1;
        if (!s->fiber) {
            PyThread_release_lock(s->signal);
            return 0;
        }
        if (s->fiber->runtime != fb_runtime)
            return wake_elsewhere(s->fiber);
        if (s->fiber->state == FIBER_PARKED)
            fb_make_ready(s->fiber, WAKE_OK);
        return 0;
    }
    l->ident = 0;
    l->count = 0;
    Py_CLEAR(l->owner);
    return 0;
}

/* Waiting. */

static int owner_lives(Lock *l, unsigned long me)
{
    return l->ident != me && (!l->owner || l->owner->state != FIBER_DONE);
}

/* 1: it is ours; 0: too late; -1: an exception. */
static int sleep_as_thread(Lock *l, struct sleeper *s, int64_t ns)
{
    int64_t end = ns < 0 ? 0 : fb_now() + ns;
    s->signal = PyThread_allocate_lock();
    if (!s->signal) {
        PyErr_NoMemory();
        return -1;
    }
    PyThread_acquire_lock(s->signal, 1);
    push(l, s);
    for (;;) {
        int64_t us = ns < 0 ? -1 : (end - fb_now()) / 1000;
        PyLockStatus status = PY_LOCK_FAILURE;
        if (ns < 0 || us > 0) {
            Py_BEGIN_ALLOW_THREADS
            status = PyThread_acquire_lock_timed(s->signal, us, 1);
            Py_END_ALLOW_THREADS
        }
        if (s->granted)
            return 1;
        if (status == PY_LOCK_INTR) {
            if (ns != AGAIN && PyErr_CheckSignals() < 0) {
                if (!s->granted)
                    drop(l, s);
                else
                    hand_on(l);
                return -1;
            }
            if (s->granted)
                return 1;
            continue;
        }
        if (status == PY_LOCK_FAILURE || ns >= 0) {
            drop(l, s);
            return 0;
        }
    }
}

static int sleep_as_fiber(Lock *l, struct sleeper *s, int64_t ns)
{
    Fiber *f = s->fiber;
    Runtime *rt = f->runtime;
    int again = ns == AGAIN, mutex = Py_TYPE(l) != &WaiterType, wake, result;
    int64_t end = ns < 0 ? INT64_MAX : fb_clock(rt) + ns, limit = INT64_MAX;
    if (!again && (f->scope->cancelled | f->interrupt)) {
        if (f->interrupt || !mutex || !owner_lives(l, s->ident)) {
            if (fb_check(f) < 0)
                return -1;
        } else {
            limit = fb_hear(f, PATIENCE);
            if (limit <= fb_clock(rt)) {
                if (fb_check(f) < 0)
                    return -1;
                limit = INT64_MAX;
            }
        }
    }
    push(l, s);
    for (;;) {
        int64_t until = end < limit ? end : limit;
        int foreign = !l->owner && l->ident != PyThread_get_thread_ident();
        if (until != INT64_MAX && fb_arm(f, until > fb_clock(rt) ? until - fb_clock(rt) : 0) < 0) {
            drop(l, s);
            return -1;
        }
        f->what = PyUnicode_InternFromString("acquire");
        f->on = Py_NewRef((PyObject *)l);
        if (!f->what) {
            fb_disarm(f);
            drop(l, s);
            return -1;
        }
        rt->external += (uint32_t)foreign; /* a thread will release it: no deadlock */
        wake = fb_park(f, WAIT_PARK);
        if (rt->external)
            rt->external -= (uint32_t)foreign;
        Py_CLEAR(f->what);
        Py_CLEAR(f->on);
        fb_disarm(f);
        if (s->granted && wake >= 0 && (wake != WAKE_RAISE || again))
            return 1;
        if (wake == WAKE_OK || (again && wake >= 0))
            continue;
        if (wake == WAKE_CANCELLED && mutex && owner_lives(l, s->ident)) {
            if (limit == INT64_MAX)
                limit = fb_hear(f, PATIENCE);
            if (limit > fb_clock(rt))
                continue;
        }
        break;
    }
    if (s->granted)
        hand_on(l);
    else
        drop(l, s);
    if (wake == WAKE_TIMEOUT) {
        if (end <= fb_clock(rt))
            return 0;
        wake = WAKE_CANCELLED;
    }
    result = wake < 0 ? -1 : fb_woken(f, wake);
    return result < 0 ? -1 : 0;
}

static int wait_for(Lock *l, Fiber *f, unsigned long me, int64_t ns)
{
    struct sleeper *s;
    int got;
    if (fb_may_block(NULL, &f) < 0)
        return -1;
    s = calloc(1, sizeof *s);
    if (!s) {
        PyErr_NoMemory();
        return -1;
    }
    s->fiber = f;
    s->ident = me;
    s->generation = generation;
    Py_INCREF(l);
    got = f ? sleep_as_fiber(l, s, ns) : sleep_as_thread(l, s, ns);
    Py_DECREF(l);
    if (s->signal)
        PyThread_free_lock(s->signal);
    free(s);
    return got;
}

/* As CPython's lock_acquire_parse_args: -1 for any time. */
static int parse_acquire(PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, int64_t *ns)
{
    PyObject *given[2] = {NULL, NULL};
    Py_ssize_t kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    int blocking = 1;
    double seconds = -1;
    *ns = -1;
    if (!(n + kw))
        return 0;
    if (n > 2) {
        PyErr_Format(PyExc_TypeError, "acquire() takes at most 2 arguments (%zd given)", n + kw);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        given[i] = argv[i];
    for (Py_ssize_t i = 0; i < kw; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        int at = !PyUnicode_CompareWithASCIIString(name, "blocking")  ? 0
                 : !PyUnicode_CompareWithASCIIString(name, "timeout") ? 1
                                                                      : -1;
        if (at < 0 || given[at]) {
            PyErr_Format(PyExc_TypeError, "acquire() got an unexpected keyword argument %R", name);
            return -1;
        }
        given[at] = argv[n + i];
    }
    if (given[0] && (blocking = PyObject_IsTrue(given[0])) < 0)
        return -1;
    if (given[1]) {
        seconds = PyFloat_AsDouble(given[1]);
        if (seconds == -1 && PyErr_Occurred())
            return -1;
    }
    if (!blocking && seconds != -1) {
        PyErr_SetString(PyExc_ValueError, "can't specify a timeout for a non-blocking call");
        return -1;
    }
    if (isnan(seconds) || (seconds < 0 && seconds != -1)) {
        PyErr_SetString(PyExc_ValueError, isnan(seconds) ? "Invalid value NaN (not a number)"
                                                         : "timeout value must be a non-negative number");
        return -1;
    }
    if (seconds * 1e6 > (double)PY_TIMEOUT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "timeout value is too large");
        return -1;
    }
    if (!blocking)
        *ns = 0;
    else if (seconds != -1)
        *ns = seconds > 9e9 ? -1 : (int64_t)ceil(seconds * 1e9);
    return 0;
}

/* Lock. */

static PyObject *lock_acquire(Lock *l, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    Fiber *f = fiber_here();
    unsigned long me = ident_of(f);
    int64_t ns;
    int got;
    if (parse_acquire(argv, n, kwnames, &ns) < 0)
        return NULL;
    if (f && f->interrupt && ns && fb_may_block(NULL, &f) == 0 && f && fb_check(f) < 0)
        return NULL; /* a KeyboardInterrupt for main: what blocks raises it, even if it need not wait */
    if (!l->ident) {
        take(l, f, me);
        Py_RETURN_TRUE;
    }
    if (!ns)
        Py_RETURN_FALSE;
    got = wait_for(l, f, me, ns);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *lock_enter(Lock *l, PyObject *ignored)
{
    (void)ignored;
    return lock_acquire(l, NULL, 0, NULL);
}

static PyObject *lock_release(Lock *l, PyObject *ignored)
{
    (void)ignored;
    if (!l->ident)
        return PyErr_Format(PyExc_RuntimeError, "release unlocked lock");
    if (hand_on(l) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *lock_exit(Lock *l, PyObject *const *argv, Py_ssize_t n)
{
    (void)argv;
    (void)n;
    return lock_release(l, NULL);
}

static PyObject *lock_locked(Lock *l, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(l->ident != 0);
}

static PyObject *lock_reinit(Lock *l, PyObject *ignored)
{
    (void)ignored;
    l->head = l->tail = NULL;
    l->ident = l->count = 0;
    Py_CLEAR(l->owner);
    Py_RETURN_NONE;
}

/* For threading.Condition, which takes these two from its lock if that has them. */
static PyObject *lock_release_save(Lock *l, PyObject *ignored) { return lock_release(l, ignored); }

static PyObject *lock_acquire_restore(Lock *l, PyObject *ignored)
{
    Fiber *f = fiber_here();
    unsigned long me = ident_of(f);
    (void)ignored;
    if (!l->ident)
        take(l, f, me);
    else if (wait_for(l, f, me, AGAIN) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *lock_repr(Lock *l)
{
    return PyUnicode_FromFormat("<%s %s object at %p>", l->ident ? "locked" : "unlocked", Py_TYPE(l)->tp_name, l);
}

/* As CPython's: before 3.13 only allocate_lock() makes locks. */
#if PY_VERSION_HEX >= 0x030d0000
static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) || (kwargs && PyDict_GET_SIZE(kwargs)))
        return PyErr_Format(PyExc_TypeError, "lock() takes no arguments");
    return type->tp_alloc(type, 0);
}
#define NEW_LOCK .tp_new = lock_new,
#define LOCK_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC)
#else
#define NEW_LOCK
#define LOCK_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION)
#endif

static int lock_traverse(Lock *l, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)l->owner);
    return 0;
}

static int lock_clear(Lock *l)
{
    Py_CLEAR(l->owner);
    return 0;
}

static void lock_dealloc(Lock *l)
{
    PyObject_GC_UnTrack(l);
    if (l->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)l);
    Py_CLEAR(l->owner);
    Py_TYPE(l)->tp_free((PyObject *)l);
}

/* RLock. */

static PyObject *rlock_acquire(Lock *l, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames)
{
    Fiber *f = fiber_here();
    unsigned long me = ident_of(f);
    int64_t ns;
    int got;
    if (parse_acquire(argv, n, kwnames, &ns) < 0)
        return NULL;
    if (!l->ident) {
        take(l, f, me);
        Py_RETURN_TRUE;
    }
    if (l->ident == me) {
        l->count++;
        Py_RETURN_TRUE;
    }
    if (!ns)
        Py_RETURN_FALSE;
    got = wait_for(l, f, me, ns);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *rlock_enter(Lock *l, PyObject *ignored)
{
    (void)ignored;
    return rlock_acquire(l, NULL, 0, NULL);
}

static int rlock_own(Lock *l)
{
    if (l->ident && l->ident == ident_of(fiber_here()))
        return 1;
    PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
    return 0;
}

static PyObject *rlock_release(Lock *l, PyObject *ignored)
{
    (void)ignored;
    if (!rlock_own(l))
        return NULL;
    if (--l->count == 0 && hand_on(l) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *rlock_exit(Lock *l, PyObject *const *argv, Py_ssize_t n)
{
    (void)argv;
    (void)n;
    return rlock_release(l, NULL);
}

static PyObject *rlock_is_owned(Lock *l, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(l->ident && l->ident == ident_of(fiber_here()));
}

static PyObject *rlock_count(Lock *l, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLong(l->ident && l->ident == ident_of(fiber_here()) ? l->count : 0);
}

static PyObject *rlock_release_save(Lock *l, PyObject *ignored)
{
    PyObject *saved;
    (void)ignored;
    if (!rlock_own(l))
        return NULL;
    saved = Py_BuildValue("(kk)", l->count, l->ident);
    if (saved && hand_on(l) < 0)
        Py_CLEAR(saved);
    return saved;
}

static PyObject *rlock_acquire_restore(Lock *l, PyObject *saved)
{
    unsigned long count, ident;
    PyObject *r;
    if (!PyArg_ParseTuple(saved, "kk", &count, &ident))
        return NULL;
    r = lock_acquire_restore(l, NULL);
    if (!r)
        return NULL;
    Py_DECREF(r);
    l->count = count;
    Py_RETURN_NONE;
}

static PyObject *rlock_repr(Lock *l)
{
    return PyUnicode_FromFormat("<%s %s object owner=%lu count=%lu at %p>", l->ident ? "locked" : "unlocked",
                                Py_TYPE(l)->tp_name, l->ident, l->count, l);
}

static PyObject *rlock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    return type->tp_alloc(type, 0);
}

#define ACQUIRE_DOC "acquire($self, /, blocking=True, timeout=-1)\n--\n\nAs threading's; parks a fiber."

static PyMethodDef LOCK_METHODS[] = {
    {"acquire", METHOD(lock_acquire), METH_FASTCALL | METH_KEYWORDS, ACQUIRE_DOC},
    {"acquire_lock", METHOD(lock_acquire), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"release", METHOD(lock_release), METH_NOARGS, NULL},
    {"release_lock", METHOD(lock_release), METH_NOARGS, NULL},
    {"locked", METHOD(lock_locked), METH_NOARGS, NULL},
    {"locked_lock", METHOD(lock_locked), METH_NOARGS, NULL},
    {"__enter__", METHOD(lock_enter), METH_NOARGS, NULL},
    {"__exit__", METHOD(lock_exit), METH_FASTCALL, NULL},
    {"_release_save", METHOD(lock_release_save), METH_NOARGS, NULL},
    {"_acquire_restore", METHOD(lock_acquire_restore), METH_O, NULL},
    {"_at_fork_reinit", METHOD(lock_reinit), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef RLOCK_METHODS[] = {
    {"acquire", METHOD(rlock_acquire), METH_FASTCALL | METH_KEYWORDS, ACQUIRE_DOC},
    {"release", METHOD(rlock_release), METH_NOARGS, NULL},
    {"__enter__", METHOD(rlock_enter), METH_NOARGS, NULL},
    {"__exit__", METHOD(rlock_exit), METH_FASTCALL, NULL},
    {"_is_owned", METHOD(rlock_is_owned), METH_NOARGS, NULL},
    {"_recursion_count", METHOD(rlock_count), METH_NOARGS, NULL},
    {"_release_save", METHOD(rlock_release_save), METH_NOARGS, NULL},
    {"_acquire_restore", METHOD(rlock_acquire_restore), METH_O, NULL},
    {"_at_fork_reinit", METHOD(lock_reinit), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject LockType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "_thread.lock",
    .tp_basicsize = sizeof(Lock),
    .tp_flags = LOCK_FLAGS,
    NEW_LOCK
    .tp_dealloc = (destructor)lock_dealloc,
    .tp_traverse = (traverseproc)lock_traverse,
    .tp_clear = (inquiry)lock_clear,
    .tp_repr = (reprfunc)lock_repr,
    .tp_weaklistoffset = offsetof(Lock, weakrefs),
    .tp_methods = LOCK_METHODS,
};

/* A lock but for its type, which wait_for() looks at. */
static PyTypeObject WaiterType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "_thread.lock",
    .tp_basicsize = sizeof(Lock),
    .tp_flags = LOCK_FLAGS & ~Py_TPFLAGS_HAVE_GC, /* inherited, with what the collector calls */
    .tp_base = &LockType,     /* for isinstance, too; nothing else may derive from it */
    NEW_LOCK
};

static PyTypeObject RLockType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "_thread.RLock",
    .tp_basicsize = sizeof(Lock),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = rlock_new,
    .tp_dealloc = (destructor)lock_dealloc,
    .tp_traverse = (traverseproc)lock_traverse,
    .tp_clear = (inquiry)lock_clear,
    .tp_repr = (reprfunc)rlock_repr,
    .tp_weaklistoffset = offsetof(Lock, weakrefs),
    .tp_methods = RLOCK_METHODS,
};

/* local: a dictionary for each fiber, and for each thread; main has its thread's. */

typedef struct local Local;

struct fb_slot_of_local {
    struct fb_slot_of_local *next_here, *prev_here;   /* of the fiber */
    struct fb_slot_of_local *next_there, *prev_there; /* of the local */
    Fiber *fiber;             /* borrowed: its end ends the slot */
    Local *local;             /* borrowed: likewise */
    PyObject *dict;           /* owned */
};

struct local {
    PyObject_HEAD
    PyObject *args, *kwargs;  /* owned or NULL: for __init__ in every fiber and thread */
    PyObject *threads;        /* owned: a _thread._local, whose `d` is the dictionary of each thread */
    struct fb_slot_of_local *slots;
    PyObject *weakrefs;
};

static PyObject *plain_local; /* owned: _thread._local */

static void end_slot(struct fb_slot_of_local *s)
{
    PyObject *dict = s->dict;
    if (s->prev_here)
        s->prev_here->next_here = s->next_here;
    else
        s->fiber->locals = s->next_here;
    if (s->next_here)
        s->next_here->prev_here = s->prev_here;
    if (s->prev_there)
        s->prev_there->next_there = s->next_there;
    else
        s->local->slots = s->next_there;
    if (s->next_there)
        s->next_there->prev_there = s->prev_there;
    free(s);
    Py_DECREF(dict);
}

/* The fiber has ended: its values go. */
void fb_end_locals(Fiber *f)
{
    while (f->locals)
        end_slot(f->locals);
}

static int init_here(Local *l)
{
    if (Py_TYPE(l)->tp_init == PyBaseObject_Type.tp_init)
        return 0;
    return Py_TYPE(l)->tp_init((PyObject *)l, l->args, l->kwargs);
}

static PyObject *dict_of_fiber(Local *l, Fiber *f, int init)
{
    struct fb_slot_of_local *s;
    for (s = f->locals; s; s = s->next_here)
        if (s->local == l)
            return Py_NewRef(s->dict);
    s = calloc(1, sizeof *s);
    if (!s)
        return PyErr_NoMemory();
    s->dict = PyDict_New();
    if (!s->dict) {
        free(s);
        return NULL;
    }
    s->fiber = f;
    s->local = l;
    s->next_here = f->locals;
    if (f->locals)
        f->locals->prev_here = s;
    f->locals = s;
    s->next_there = l->slots;
    if (l->slots)
        l->slots->prev_there = s;
    l->slots = s;
    if (init && init_here(l) < 0) {
        end_slot(s);
        return NULL;
    }
    return Py_NewRef(s->dict);
}

static PyObject *dict_of_thread(Local *l, int init)
{
    PyObject *dict = PyObject_GetAttrString(l->threads, "d");
    if (dict || !PyErr_ExceptionMatches(PyExc_AttributeError))
        return dict;
    PyErr_Clear();
    dict = PyDict_New();
    if (!dict || PyObject_SetAttrString(l->threads, "d", dict) < 0 || (init && init_here(l) < 0)) {
        if (dict && init) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            if (PyObject_DelAttrString(l->threads, "d") < 0)
                PyErr_Clear();
            PyErr_Restore(type, value, traceback);
        }
        Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *dict_here(Local *l, int init)
{
    Fiber *f = fiber_here();
    return f && f != f->runtime->main ? dict_of_fiber(l, f, init) : dict_of_thread(l, init);
}

static PyObject *local_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Local *l;
    PyObject *dict;
    if (type->tp_init == PyBaseObject_Type.tp_init &&
        (PyTuple_GET_SIZE(args) || (kwargs && PyDict_GET_SIZE(kwargs))))
        return PyErr_Format(PyExc_TypeError, "Initialization arguments are not supported");
    l = (Local *)type->tp_alloc(type, 0);
    if (!l)
        return NULL;
    l->args = Py_NewRef(args);
    l->kwargs = Py_XNewRef(kwargs);
    l->threads = PyObject_CallNoArgs(plain_local);
    dict = l->threads ? dict_here(l, 0) : NULL; /* type() calls __init__ here */
    if (!dict) {
        Py_DECREF(l);
        return NULL;
    }
    Py_DECREF(dict);
    return (PyObject *)l;
}

static int is_dict(PyObject *name)
{
    return PyUnicode_Check(name) && !PyUnicode_CompareWithASCIIString(name, "__dict__");
}

static PyObject *local_getattro(Local *l, PyObject *name)
{
    PyObject *dict = dict_here(l, 1), *found;
    if (!dict || is_dict(name))
        return dict;
    found = _PyObject_GenericGetAttrWithDict((PyObject *)l, name, dict, 0);
    Py_DECREF(dict);
    return found;
}

static int local_setattro(Local *l, PyObject *name, PyObject *value)
{
    PyObject *dict;
    int r;
    if (is_dict(name)) {
        PyErr_Format(PyExc_AttributeError, "'%.100s' object attribute '%U' is read-only", Py_TYPE(l)->tp_name, name);
        return -1;
    }
    dict = dict_here(l, 1);
    if (!dict)
        return -1;
    r = _PyObject_GenericSetAttrWithDict((PyObject *)l, name, value, dict);
    Py_DECREF(dict);
    return r;
}

static int local_traverse(Local *l, visitproc visit, void *arg)
{
    Py_VISIT(l->args);
    Py_VISIT(l->kwargs);
    Py_VISIT(l->threads);
    for (struct fb_slot_of_local *s = l->slots; s; s = s->next_there)
        Py_VISIT(s->dict);
    return 0;
}

static int local_clear(Local *l)
{
    while (l->slots)
        end_slot(l->slots);
    Py_CLEAR(l->args);
    Py_CLEAR(l->kwargs);
    Py_CLEAR(l->threads);
    return 0;
}

static void local_dealloc(Local *l)
{
    PyObject_GC_UnTrack(l);
    if (l->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)l);
    local_clear(l);
    Py_TYPE(l)->tp_free((PyObject *)l);
}

static PyTypeObject LocalType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "_thread._local",
    .tp_doc = "Data of its own for each fiber and each thread.",
    .tp_basicsize = sizeof(Local),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = local_new,
    .tp_dealloc = (destructor)local_dealloc,
    .tp_traverse = (traverseproc)local_traverse,
    .tp_clear = (inquiry)local_clear,
    .tp_getattro = (getattrofunc)local_getattro,
    .tp_setattro = (setattrofunc)local_setattro,
    .tp_weaklistoffset = offsetof(Local, weakrefs),
};

/* _locks_after_fork(): nobody of the parent waits here. */
static PyObject *m_after_fork(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    generation++;
    Py_RETURN_NONE;
}

static PyObject *m_allocate_lock(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return LockType.tp_alloc(&LockType, 0);
}

static PyObject *m_allocate_waiter(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return WaiterType.tp_alloc(&WaiterType, 0);
}

/* These say that they are _thread's, whose place they take. */
static PyMethodDef OF_THREAD[] = {
    {"get_ident", m_get_ident, METH_NOARGS,
     "get_ident()\n--\n\nA number that no other fiber and no other thread has; main has its thread's."},
    {"allocate_lock", m_allocate_lock, METH_NOARGS, "allocate_lock()\n--\n\nMake a lock, of fibers and threads."},
    {"allocate_waiter", m_allocate_waiter, METH_NOARGS, "allocate_lock()\n--\n\nMake a lock that a cancellation ends at once."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef FUNCTIONS[] = {
    {"ident", m_ident, METH_O, NULL},
    {"_locks_after_fork", m_after_fork, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int add(PyObject *module, const char *name, PyTypeObject *type)
{
    return PyType_Ready(type) < 0 ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)type);
}

int fb_add_locks(PyObject *module)
{
    PyObject *thread = PyImport_ImportModule("_thread");
    plain_local = thread ? PyObject_GetAttrString(thread, "_local") : NULL;
    Py_XDECREF(thread);
    LockType.tp_flags |= Py_TPFLAGS_BASETYPE;
    if (!plain_local || add(module, "Lock", &LockType) < 0 || add(module, "Waiter", &WaiterType) < 0 ||
        add(module, "RLock", &RLockType) < 0 || add(module, "Local", &LocalType) < 0)
        return -1;
    LockType.tp_flags &= ~Py_TPFLAGS_BASETYPE;
    for (PyMethodDef *m = OF_THREAD; m->ml_name; m++) {
        PyObject *name = PyUnicode_FromString("_thread"), *function = name ? PyCFunction_NewEx(m, NULL, name) : NULL;
        Py_XDECREF(name);
        if (!function || PyModule_AddObject(module, m->ml_name, function) < 0)
            return -1;
    }
    return PyModule_AddFunctions(module, FUNCTIONS);
}
