/* The scheduler: fibers on greenlets, park and unpark, completions and timers.
 *
 *  1. A carrier is a pooled greenlet that runs one fiber function after another. Carriers are started from the hub (the
 *     greenlet that called run) only: a greenlet started inside another inherits its stack depth.
 *  2. A parking fiber picks the next ready one and switches straight to it; if none is ready it polls in its own frame.
 *     The hub is in the path only for births of carriers, signals, calls from other threads, and the end.
 *  3. A fiber is in the ready queue at most once, in one line at most, and has at most one op in flight.
 *  4. Between a submit and the park that follows nothing may fail, allocate or call Python.
 *  5. A parked op's fiber goes on only after the op's own completion, whatever happens to it meanwhile.
 *  6. Policy (what a failure means, what a timeout raises) is Python's: scope.py and runtime.py, reached through fb_hooks.
 */
#include "native.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "greenlet/greenlet.h"

enum { PASS_LIMIT = 1024, POOL_LIMIT = 1024 };

struct hooks fb_hooks;
__thread Runtime *fb_runtime;

int64_t fb_clock(Runtime *rt) { return rt->virtual ? rt->clock : fb_now(); }

/* Exceptions as objects, on every Python. */

PyObject *fb_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (!type)
        return NULL;
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback)
        PyException_SetTraceback(value, traceback);
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

void fb_raise(PyObject *e) /* takes the reference */
{
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(e);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(e)), e, PyException_GetTraceback(e));
#endif
}

/* Lines. */

void fb_line_push(struct line *l, Fiber *f)
{
    f->line = l;
    f->line_next = NULL;
    f->line_prev = l->tail;
    if (l->tail)
        l->tail->line_next = f;
    else
        l->head = f;
    l->tail = f;
}

static void line_remove(Fiber *f)
{
    struct line *l = f->line;
    if (!l)
        return;
    if (f->line_prev)
        f->line_prev->line_next = f->line_next;
    else
        l->head = f->line_next;
    if (f->line_next)
        f->line_next->line_prev = f->line_prev;
    else
        l->tail = f->line_prev;
    f->line = NULL;
}

Fiber *fb_line_pop(struct line *l)
{
    Fiber *f = l->head;
    if (f)
        line_remove(f);
    return f;
}

/* Making ready. Cannot fail: room was reserved at the fiber's birth. */

void fb_enqueue(Runtime *rt, Fiber *f)
{
    f->state = FIBER_READY;
    fb_queue_push(&rt->ready, f);
}

void fb_make_ready(Fiber *f, int wake)
{
    assert(f->state == FIBER_PARKED);
    f->wake = (uint8_t)wake;
    fb_tell(f->runtime, EVENT_WAKE, f);
    if (f->timer.slot)
        fb_timer_disarm(&f->runtime->timers, &f->timer);
    line_remove(f);
    fb_enqueue(f->runtime, f);
}

/* A wait ends from outside: cancellation, a deadline of its own, an exception for main. An op in flight is asked to end
 * and stays; the other waits end at once. What completed already (the fiber is queued) keeps its result: rule F9. */
void fb_interrupt_wait(Fiber *f, int wake)
{
    Runtime *rt = f->runtime;
    static const uint8_t WHY[] = {[WAKE_OK] = FB_NOT, [WAKE_TIMEOUT] = FB_BY_TIMEOUT, [WAKE_CANCELLED] = FB_BY_SCOPE,
                                  [WAKE_RAISE] = FB_BY_THROW};
    if (f->state != FIBER_PARKED)
        return;
    switch ((enum wait_kind)f->wait) {
    case WAIT_OP:
        if (!f->op.why)
            f->op.why = WHY[wake];
        fb_cancel(rt->driver, &f->op);
        break;
    case WAIT_SLEEP:
        fb_make_ready(f, wake == WAKE_TIMEOUT ? WAKE_OK : wake);
        break;
    case WAIT_JOIN:
    case WAIT_SEND:
    case WAIT_BLOCKED:
        fb_make_ready(f, wake);
        break;
    case WAIT_PARK:
        if (f->on_cancel == Py_None)
            break; /* it said that an unpark will come */
        if (f->on_cancel && wake != WAKE_TIMEOUT) {
            /* It calls Python, which may change the tree: the hub does it, not the middle of a walk. */
            if (!f->line)
                fb_line_push(&rt->hooked, f);
            rt->attention |= LOOK_HOOK;
        } else {
            fb_make_ready(f, wake);
        }
        break;
    case WAIT_CHILDREN:
        if (wake == WAKE_RAISE)
            fb_make_ready(f, wake);
        break;
    case WAIT_CLOSE:
    case WAIT_YIELD:
    case WAIT_NONE:
        break;
    }
}

/* Completions, timers, and the start of a pass. */

static void fire(Runtime *rt, struct fb_timer *t)
{
    switch ((enum timer_kind)t->kind) {
    case TIMER_WAIT:
        fb_interrupt_wait((Fiber *)((char *)t - offsetof(Fiber, timer)), WAKE_TIMEOUT);
        break;
    case TIMER_DEADLINE: {
        struct scope *s = (struct scope *)((char *)t - offsetof(struct scope, timer));
        if (!s->cancel_called) {
            s->expired = 1;
            fb_scope_cancel(rt, s);
        }
        break;
    }
    case TIMER_GRACE:
        fb_grace_over((Fiber *)((char *)t - offsetof(Fiber, grace)));
        break;
    }
}

static void fire_due(Runtime *rt)
{
    struct fb_timer *t;
    int64_t now = fb_clock(rt);
    while ((t = fb_timer_due(&rt->timers, now)))
        fire(rt, t);
}

static void poll_driver(Runtime *rt, int64_t timeout_ns)
{
    struct fb_driver *d = rt->driver;
    struct fb_op *op;
    int r;
    if (timeout_ns == 0) {
        r = fb_poll(d, 0);
    } else {
        Py_BEGIN_ALLOW_THREADS
        r = fb_poll(d, timeout_ns);
        Py_END_ALLOW_THREADS
        if (d->time < 0 && !d->done && !d->woken && !(rt->timers.len && rt->timers.slots[0].when <= fb_now()))
            rt->attention |= LOOK_SIGNALS;
    }
    if (d->time >= 0)
        rt->clock = d->time;
    rt->seen = fb_clock(rt);
    if (r < 0) {
        rt->poll_error = r;
        rt->attention |= LOOK_BROKEN;
    }
    if (d->woken) {
        d->woken = 0;
        rt->attention |= LOOK_WOKEN;
    }
    while ((op = fb_reap(d)))
        fb_make_ready(op->owner, WAKE_OK);
}

/* Nothing is ready, and somebody waits for just that (testing.wait_all_blocked): those who asked for the shortest quiet are
 * woken, unless a completion or a timer comes before. The quiet is real time also under a virtual clock: what it waits
 * out are the kernel and other threads. */
static void wake_blocked(Runtime *rt)
{
    int64_t cushion = INT64_MAX, due = INT64_MAX;
    Fiber *f, *next;
    for (f = rt->blocked.head; f; f = f->line_next)
        if (f->timer.when < cushion)
            cushion = f->timer.when;
    if (rt->timers.len)
        due = rt->timers.slots[0].when - fb_clock(rt);
    if (due > 0 && rt->virtual)
        due = INT64_MAX; /* that time stands still until all are blocked */
    poll_driver(rt, due <= 0 ? 0 : due < cushion ? due : cushion);
    rt->attention &= ~(uint32_t)LOOK_SIGNALS;
    if (rt->ready.len || rt->attention || due <= 0 || due < cushion)
        return;
    for (f = rt->blocked.head; f; f = next) {
        next = f->line_next;
        if (f->timer.when <= cushion)
            fb_make_ready(f, WAKE_OK);
    }
}

/* The driver keeps the time, and nothing waits in earnest: when neither a timer nor the driver has anything to come, and
 * no thread is busy, nothing will ever come. */
static int wait_in_simulation(Runtime *rt)
{
    int64_t due = rt->timers.len ? rt->timers.slots[0].when : INT64_MAX, next = rt->driver->verbs->next(rt->driver);
    Fiber *f;
    if (rt->blocked.head && next > rt->clock && due > rt->clock) {
        while ((f = rt->blocked.head))
            fb_make_ready(f, WAKE_OK);
        return 1;
    }
    if (due == INT64_MAX && next == INT64_MAX && !rt->external && !rt->held) {
        rt->attention |= LOOK_IDLE;
        return 0;
    }
    poll_driver(rt, due == INT64_MAX ? -1 : due > rt->clock ? due - rt->clock : 0);
    return 1;
}

/* Nothing is ready: how long may the driver wait? Returns 0 if the hub must decide first. */
static int wait_for_work(Runtime *rt)
{
    int64_t timeout = -1;
    if (rt->virtual == CLOCK_DRIVER)
        return wait_in_simulation(rt);
    if (rt->blocked.head) {
        wake_blocked(rt);
        return 1;
    }
    if (rt->virtual == CLOCK_AUTO && !rt->external) {
        /* Operations in flight may complete at any moment; 5 ms of real time is their chance (rule N1). */
        if (rt->driver->flying) {
            poll_driver(rt, 5000000);
            rt->attention &= ~(uint32_t)LOOK_SIGNALS;
            if (rt->ready.len || rt->attention)
                return 1;
        }
        if (rt->timers.len) {
            if (rt->timers.slots[0].when == INT64_MAX && !rt->driver->flying) {
                rt->attention |= LOOK_IDLE;
                return 0;
            }
            if (rt->timers.slots[0].when != INT64_MAX) {
                if (rt->timers.slots[0].when > rt->clock)
                    rt->seen = rt->clock = rt->timers.slots[0].when;
                return 1;
            }
        }
    } else if (rt->virtual == CLOCK_MANUAL) {
        if (rt->timers.len && rt->timers.slots[0].when <= rt->clock)
            return 1;
    } else if (rt->timers.len) {
        timeout = rt->timers.slots[0].when - fb_clock(rt);
        if (timeout < 0)
            timeout = 0;
    }
    if (timeout < 0 && !rt->driver->flying && !rt->external && !rt->held) {
        rt->attention |= LOOK_IDLE;
        return 0;
    }
    poll_driver(rt, timeout);
    return 1;
}

/* A pass is what is ready when it begins, 1,024 fibers at most; between passes one enter submits what they asked for
 * and reaps what is done, so that a busy set of fibers starves neither I/O nor timers. */
static void begin_pass(Runtime *rt)
{
    if (rt->ready.len) {
        if (rt->driver->verbs->ready(rt->driver))
            poll_driver(rt, 0);
    } else if (!wait_for_work(rt)) {
        return;
    }
    if (rt->timers.len)
        fire_due(rt);
    rt->pass_left = rt->ready.len < PASS_LIMIT ? rt->ready.len : PASS_LIMIT;
}

/* Who is next. */

static void set_running(Runtime *rt, Fiber *f)
{
    f->state = FIBER_RUNNING;
    rt->current = f;
    fb_tell(rt, EVENT_RUN, f);
}

/* The greenlet to switch to; NULL when it is the caller's own turn: `self` was resumed, or `idle` was given a job. */
static PyObject *choose(Runtime *rt, Fiber *self, struct carrier *idle)
{
    for (;;) {
        Fiber *f;
        if (rt->attention || rt->forked)
            break;
        if (!rt->pass_left || !rt->ready.len) {
            begin_pass(rt);
            continue;
        }
        if (rt->shuffle && rt->ready.len > 1) {
            rt->random = rt->random * 6364136223846793005ull + 1442695040888963407ull;
            fb_queue_swap(&rt->ready, (uint32_t)((rt->random >> 33) % rt->ready.len));
        }
        f = fb_queue_pop(&rt->ready);
        rt->pass_left--;
        if (f->greenlet) {
            set_running(rt, f);
            if (f == self)
                return NULL;
            rt->switches++;
            return f->greenlet;
        }
        if (idle) {
            idle->job = f;
            f->carrier = idle;
            set_running(rt, f);
            return NULL;
        }
        if (rt->pool) {
            struct carrier *c = rt->pool;
            rt->pool = c->next;
            rt->pooled--;
            c->job = f;
            f->carrier = c;
            set_running(rt, f);
            rt->switches++;
            return c->greenlet;
        }
        rt->to_start = f;
        break;
    }
    rt->current = NULL;
    return rt->hub;
}

/* Parking. */

static int park_spurious(Runtime *rt, Fiber *f);

int fb_park(Fiber *f, int wait)
{
    Runtime *rt = f->runtime;
    PyObject *target, *r, *loop = NULL;
    rt->unparked = 0;
    f->state = FIBER_PARKED;
    f->wait = (uint8_t)wait;
    f->wake = WAKE_OK;
    f->since = rt->seen;
    f->parks++;
    fb_tell(rt, EVENT_PARK, f);
    if (wait == WAIT_YIELD)
        fb_enqueue(rt, f);
    Py_XSETREF(f->greenlet, (PyObject *)PyGreenlet_GetCurrent());
    if (__builtin_expect(f->loop, 0))
        loop = fb_take_loop(f);
    target = choose(rt, f, NULL);
    if (target) {
        r = PyGreenlet_Switch((PyGreenlet *)target, NULL, NULL);
        if (__builtin_expect(loop != NULL, 0))
            fb_put_loop(loop);
        if (r && f->state == FIBER_RUNNING)
            Py_DECREF(r);
        else {
            Py_XDECREF(r);
            return park_spurious(rt, f);
        }
    } else if (loop) {
        fb_put_loop(loop);
    }
    Py_CLEAR(f->greenlet);
    f->wait = WAIT_NONE;
    return f->wake;
}

/* Something that is not the scheduler resumed us (greenlet.throw, GreenletExit from a dropped greenlet). An op must end
 * first: it is cancelled and polled for right here, without a switch, then the exception goes on. */
static int park_spurious(Runtime *rt, Fiber *f)
{
    PyObject *error = fb_take_exception();
    Fiber *interrupted = rt->current;
    if (f->state == FIBER_PARKED && f->wait == WAIT_OP) {
        if (!f->op.why)
            f->op.why = FB_BY_THROW;
        fb_cancel(rt->driver, &f->op);
        while (f->state == FIBER_PARKED && !(rt->attention & LOOK_BROKEN))
            poll_driver(rt, -1);
    }
    if (f->state == FIBER_READY)
        fb_queue_remove(&rt->ready, f);
    line_remove(f);
    fb_timer_disarm(&rt->timers, &f->timer);
    if (interrupted && interrupted != f && interrupted->state == FIBER_RUNNING && !interrupted->greenlet) {
        /* The thrower is stuck in its throw(): it goes on there when its turn comes. */
        interrupted->greenlet = Py_NewRef(interrupted->carrier->greenlet);
        interrupted->wait = WAIT_YIELD;
        fb_enqueue(rt, interrupted);
    }
    set_running(rt, f);
    Py_CLEAR(f->greenlet);
    f->wait = WAIT_NONE;
    if (error)
        fb_raise(error);
    else
        PyErr_SetString(PyExc_RuntimeError, "a parked fiber's greenlet was switched to by something else");
    return -1;
}

static void raise_pending(Fiber *f)
{
    Runtime *rt = f->runtime;
    PyObject *e = rt->pending;
    rt->pending = NULL;
    f->interrupt = 0;
    if (e)
        fb_raise(e);
    else
        PyErr_SetString(PyExc_SystemError, "interrupted without a reason");
}

int fb_woken(Fiber *f, int wake)
{
    switch (wake) {
    case WAKE_OK:
        return 0;
    case WAKE_TIMEOUT:
        return 1;
    case WAKE_RAISE:
        raise_pending(f);
        return -1;
    case WAKE_CANCELLED:
        fb_raise_cancelled(f);
        return -1;
    default:
        return -1;
    }
}

Fiber *fb_here(const char *what)
{
    Runtime *rt = fb_runtime;
    if (rt && rt->current)
        return rt->current;
    if (!rt)
        PyErr_Format(PyExc_RuntimeError, "can't %s outside a fiber: this thread is not inside fibers.run()", what);
    else
        PyErr_Format(PyExc_RuntimeError,
                     "can't %s here: this is a signal handler or a callback of the scheduler, not a fiber", what);
    return NULL;
}

int fb_may_park(Fiber *f, const char *what)
{
    Runtime *rt = f->runtime;
    if (rt->inside | rt->forked) {
        if (rt->forked)
            PyErr_Format(PyExc_RuntimeError, "can't %s in the child of a fork: start a new fibers.run()", what);
        else
            PyErr_Format(PyExc_RuntimeError, "can't %s here: a finished fiber is being torn down", what);
        return -1;
    }
    return 0;
}

int fb_check(Fiber *f)
{
    if (!(f->scope->cancelled | f->interrupt))
        return 0;
    if (f->interrupt)
        raise_pending(f);
    else if (fb_in_grace(f))
        return 0;
    else
        fb_raise_cancelled(f);
    return -1;
}

/* Ops. */

int fb_arm(Fiber *f, int64_t timeout_ns)
{
    int64_t now;
    if (timeout_ns < 0)
        return 0;
    now = fb_clock(f->runtime);
    if (fb_timer_arm(&f->runtime->timers, &f->timer, timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

void fb_disarm(Fiber *f)
{
    if (f->timer.slot)
        fb_timer_disarm(&f->runtime->timers, &f->timer);
}

/* Sends at once, or together.
 *
 * Facts: an answer nearly always fits into the socket's buffer. At once it costs a system call of its own; through a ring
 * that the pass submits as a whole it costs a switch to the next fiber and back. With others ready to run the ring made
 * a request an eighth cheaper, at 100 connections and at 10,000 (Linux 6.18, 1 KiB).
 * Of 64 KiB it made one dearer by an eighth (TLS, 256 KiB there and back, 4 connections): up to 32 KiB there was no difference.
 * Choice: at once only if nobody else is ready, or it is long, or on a driver that makes a call for each op anyway.
 * Cost: one look at the ready queue. */
enum { SHORT_SEND = 32768 }; /* bytes */

static int waits_for_company(const Runtime *rt, const struct fb_op *op)
{
    return rt->ready.len && op->len <= SHORT_SEND && rt->driver->verbs->gathers &&
           (op->code == FB_SEND || op->code == FB_SENDALL || op->code == FB_SENDMSG);
}

int fb_perform(Fiber *f, struct file *file, int64_t timeout_ns)
{
    struct fb_op *op = &f->op;
    int r;
    op->file = file ? &file->kept : NULL;
    /* Not for ever: a fiber whose operations never block parks after so many, and the others run (rule F8). */
    if (f->runtime->unparked < FB_UNPARKED_LIMIT && !waits_for_company(f->runtime, op) &&
        fb_attempt(f->runtime->driver, op)) {
        f->runtime->unparked++;
        return 0;
    }
    if (fb_arm(f, timeout_ns) < 0) {
        op->res = -ENOMEM;
        return -1;
    }
    op->owner = f;
    if (file) {
        op->file_prev = NULL;
        op->file_next = file->ops;
        if (file->ops)
            file->ops->file_prev = op;
        file->ops = op;
    }
    fb_submit(f->runtime->driver, op);
    r = fb_park(f, WAIT_OP);
    if (file) {
        if (op->file_prev)
            op->file_prev->file_next = op->file_next;
        else
            file->ops = op->file_next;
        if (op->file_next)
            op->file_next->file_prev = op->file_prev;
        if (!file->ops && file->closer && file->closer->state == FIBER_PARKED)
            fb_make_ready(file->closer, WAKE_OK);
    }
    return r < 0 ? -1 : 0;
}

PyObject *fb_op_error(Fiber *f)
{
    struct fb_op *op = &f->op;
    assert(op->res < 0);
    if (fb_check(f) < 0)
        return NULL;
    if (op->why == FB_BY_CLOSE) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
    } else if (op->why == FB_BY_TIMEOUT && op->res == -ECANCELED) {
        PyErr_SetString(PyExc_TimeoutError, "timed out");
    } else {
        errno = -op->res;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return NULL;
}

int fb_duration(PyObject *o, const char *what, int negative_ok, int64_t *ns)
{
    double s;
    *ns = -1;
    if (!o || o == Py_None)
        return 0;
    s = PyFloat_AsDouble(o);
    if (s == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(s)) {
        PyErr_Format(PyExc_ValueError, "%s can't be NaN", what);
        return -1;
    }
    if (s < 0) {
        if (!negative_ok) {
            PyErr_Format(PyExc_ValueError, "%s can't be negative: %R", what, o);
            return -1;
        }
        s = 0;
    }
    if (s < 4e9)
        *ns = (int64_t)(s * 1e9 + 0.5);
    return 0;
}

/* Scopes as seen from their fibers. */

PyObject *fb_scope_object(struct scope *s)
{
    Scope *o;
    if (s->object)
        return Py_NewRef(s->object);
    assert(s->is_root);
    o = (Scope *)((PyTypeObject *)fb_hooks.scope_type)->tp_alloc((PyTypeObject *)fb_hooks.scope_type, 0);
    if (!o)
        return NULL;
    o->scope = s;
    o->fiber = (Fiber *)Py_NewRef((PyObject *)s->owner);
    o->seconds = o->at = -1;
    o->strict = -1;
    s->object = (PyObject *)o;
    return Py_NewRef((PyObject *)o);
}

int fb_children_done(struct scope *s, int need)
{
    return need == 1 ? s->live == 0 : s->live + s->daemons == 0;
}

/* Fibers: birth, life, end. */

Fiber *fb_fiber_new(Runtime *rt, struct scope *nursery, PyObject *fn, PyObject *args, PyObject *kwnames)
{
    PyTypeObject *type = (PyTypeObject *)fb_hooks.fiber_type;
    Fiber *f;
    if (fb_queue_reserve(&rt->ready, (uint32_t)rt->fibers + 2) < 0)
        return (Fiber *)PyErr_NoMemory();
    f = (Fiber *)type->tp_alloc(type, 0);
    if (!f)
        return NULL;
    f->context = PyContext_CopyCurrent();
    if (!f->context) {
        Py_DECREF(f);
        return NULL;
    }
    f->runtime = (Runtime *)Py_NewRef((PyObject *)rt);
    f->fn = Py_NewRef(fn);
    f->args = Py_NewRef(args);
    f->kwnames = Py_XNewRef(kwnames);
    f->id = ++rt->spawned;
    f->spawner = Py_XNewRef((PyObject *)rt->current);
    f->scope = &f->root;
    f->root.owner = f;
    f->root.is_root = 1;
    f->root.state = SCOPE_OPEN;
    f->root.timer.kind = TIMER_DEADLINE;
    f->grace.kind = TIMER_GRACE;
    f->root.parent = nursery;
    f->root.cancelled = nursery ? nursery->cancelled : 0;
    rt->fibers++;
    fb_tell(rt, EVENT_SPAWN, f);
    return f;
}

static Scope *limited(struct scope *s) { return s && s->limited ? (Scope *)s->object : NULL; }

static void start(Runtime *rt, Fiber *f)
{
    Scope *o = limited(f->root.parent);
    if (o && o->running >= o->limit) {
        f->state = FIBER_DEFERRED;
        fb_line_push(&o->deferred, f);
        return;
    }
    if (o)
        o->running++;
    fb_enqueue(rt, f);
}

PyObject *fb_spawn(struct scope *s, Runtime *rt, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames,
                            int daemon)
{
    Py_ssize_t kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    PyObject *args;
    Fiber *f;
    if (n < 1)
        return PyErr_Format(PyExc_TypeError, "spawn needs a function to call");
    if (!PyCallable_Check(argv[0]))
        return PyErr_Format(PyExc_TypeError, "spawn needs a callable, got %R", argv[0]);
    if (s->state == SCOPE_NEW)
        return PyErr_Format(PyExc_RuntimeError, "can't spawn into a scope before it is entered: use it in a with block");
    if (s->state == SCOPE_CLOSED || (s->state == SCOPE_CLOSING && !s->live))
        return PyErr_Format(PyExc_RuntimeError, "can't spawn %R: the scope is closed", argv[0]);
    if (rt->forked)
        return PyErr_Format(PyExc_RuntimeError, "can't spawn in the child of a fork: start a new fibers.run()");
    args = PyTuple_New(n - 1 + kw);
    if (!args)
        return NULL;
    for (Py_ssize_t i = 1; i < n + kw; i++)
        PyTuple_SET_ITEM(args, i - 1, Py_NewRef(argv[i]));
    f = fb_fiber_new(rt, s, argv[0], args, kwnames);
    Py_DECREF(args);
    if (!f)
        return NULL;
    f->daemon = (uint8_t)daemon;
    if (s->children) {
        f->prev = s->children->prev;
        f->prev->next = f;
    } else {
        f->prev = s->children = f;
    }
    s->children->prev = f;
    if (daemon)
        s->daemons++;
    else
        s->live++;
    start(rt, f);
    return Py_NewRef((PyObject *)f); /* one reference is the scope's, one the caller's */
}

/* Its own mistakes end the run: no fiber is resumed after one (rule A6). */
static void broken(Runtime *rt)
{
    PyObject *e = fb_take_exception();
    if (rt->trouble)
        Py_XDECREF(e);
    else
        rt->trouble = e;
    rt->attention |= LOOK_BROKEN;
}

static void leave_nursery(Runtime *rt, Fiber *f)
{
    struct scope *s = f->root.parent;
    Scope *o = limited(s);
    if (!s)
        return;
    if (f->outcome == OUTCOME_FAILED) {
        PyObject *scope = fb_scope_object(s);
        PyObject *args[] = {scope, (PyObject *)f, f->value};
        PyObject *r = scope ? PyObject_Vectorcall(fb_hooks.child_failed, args, 3, NULL) : NULL;
        Py_XDECREF(scope);
        if (r)
            Py_DECREF(r);
        else
            broken(rt);
    } else if (f->outcome == OUTCOME_CANCELLED && f->propagates) {
        s->saw_cancelled = 1;
    }
    if (f->next)
        f->next->prev = f->prev;
    else
        s->children->prev = f->prev;
    if (f == s->children)
        s->children = f->next;
    else
        f->prev->next = f->next;
    f->prev = f->next = NULL;
    f->root.parent = NULL;
    if (f->daemon)
        s->daemons--;
    else
        s->live--;
    if (o && o->deferred.head)
        fb_enqueue(rt, fb_line_pop(&o->deferred)); /* into our place */
    else if (o)
        o->running--;
    if (s->awaited && fb_children_done(s, s->awaited) && s->owner->state == FIBER_PARKED &&
        s->owner->wait == WAIT_CHILDREN)
        fb_make_ready(s->owner, WAKE_OK);
}

/* Whoever asked to be told that a fiber is done: they may make fibers ready, never park. */
static void tell_watchers(Runtime *rt, Fiber *f)
{
    PyObject *watchers = f->watchers;
    f->watchers = NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(watchers); i++) {
        PyObject *r = PyObject_CallOneArg(PyList_GET_ITEM(watchers, i), (PyObject *)f);
        Py_XDECREF(r);
        if (!r)
            broken(rt);
    }
    Py_DECREF(watchers);
}

static void finish(Runtime *rt, Fiber *f)
{
    Fiber *joiner;
    f->state = FIBER_DONE;
    fb_grace_disarm(f);
    rt->inside++;
    fb_tell(rt, EVENT_END, f);
    fb_scope_close(&f->root);
    if (f->locals)
        fb_end_locals(f);
    /* Joiners first, then the scope hears of it: h.result() raises h's own error, not Cancelled (rule B6). */
    while ((joiner = f->joiners.head))
        fb_make_ready(joiner, WAKE_OK);
    if (f->watchers)
        tell_watchers(rt, f);
    leave_nursery(rt, f);
    rt->fibers--;
    Py_CLEAR(f->args);
    Py_CLEAR(f->kwnames);
    Py_CLEAR(f->fn);
    Py_CLEAR(f->context);
    Py_CLEAR(f->spawner);
    Py_CLEAR(f->root.object);
    Py_CLEAR(f->greenlet);
    rt->deadlocks = 0;
    rt->inside--;
    rt->current = NULL; /* it may be gone after this, and what it leaves behind must not park in its name */
    if (f == rt->main)
        rt->attention |= LOOK_END;
    else
        Py_DECREF(f); /* the scope's reference; main's is the runtime's */
}

static void run_job(Runtime *rt, Fiber *f)
{
    PyObject *value, *error = NULL, *settled;
    Py_ssize_t kw = f->kwnames ? PyTuple_GET_SIZE(f->kwnames) : 0;
    if (PyContext_Enter(f->context) < 0) {
        broken(rt);
        return;
    }
    value = PyObject_Vectorcall(f->fn, &PyTuple_GET_ITEM(f->args, 0), (size_t)(PyTuple_GET_SIZE(f->args) - kw),
                                f->kwnames);
    if (!value)
        error = fb_take_exception();
    if (error || f->scope != &f->root || f->root.children || f->root.object || f->root.saw_cancelled ||
        (f == rt->main && rt->pending)) {
        PyObject *args[] = {(PyObject *)f, value ? value : Py_None, error ? error : Py_None};
        settled = PyObject_Vectorcall(fb_hooks.settle, args, 3, NULL);
        Py_CLEAR(value);
        Py_CLEAR(error);
        if (settled && PyTuple_Check(settled) && PyTuple_GET_SIZE(settled) == 2) {
            f->outcome = (uint8_t)PyLong_AsLong(PyTuple_GET_ITEM(settled, 0));
            f->value = Py_NewRef(PyTuple_GET_ITEM(settled, 1));
            Py_DECREF(settled);
        } else {
            Py_XDECREF(settled);
            f->outcome = OUTCOME_FAILED;
            f->value = fb_take_exception();
            if (!f->value)
                f->value = PyObject_CallNoArgs(PyExc_SystemError);
            if (f->root.children)
                broken(rt); /* it would leave children behind */
        }
    } else {
        f->outcome = OUTCOME_VALUE;
        f->value = value;
    }
    if (PyContext_Exit(f->context) < 0)
        PyErr_Clear(); /* the function left a context entered: it is dropped with the fiber */
    finish(rt, f);
}

/* Carriers. */

static void carrier_free(PyObject *capsule)
{
    struct carrier *c = PyCapsule_GetPointer(capsule, "fibers.carrier");
    free(c);
}

static PyObject *carrier_main(PyObject *capsule, PyObject *ignored)
{
    struct carrier *c = PyCapsule_GetPointer(capsule, "fibers.carrier");
    Runtime *rt = c->runtime;
    (void)ignored;
    while (c->job) {
        Fiber *job = c->job;
        PyObject *target, *r;
        c->job = NULL;
        run_job(rt, job);
        target = choose(rt, NULL, c);
        if (!target)
            continue;
        if (rt->pooled >= POOL_LIMIT) {
            /* Enough of them: this one ends, which switches to the hub, which goes on with the target. */
            if (target != rt->hub)
                rt->hand_over = target;
            rt->dead = c->greenlet;
            break;
        }
        c->next = rt->pool;
        rt->pool = c;
        rt->pooled++;
        r = PyGreenlet_Switch((PyGreenlet *)target, NULL, NULL);
        if (!r)
            return NULL;
        Py_DECREF(r);
    }
    c->job = NULL;
    Py_RETURN_NONE;
}

static PyMethodDef CARRIER_MAIN = {"carrier", carrier_main, METH_NOARGS, NULL};

static int start_carrier(Runtime *rt, Fiber *f)
{
    struct carrier *c = calloc(1, sizeof *c);
    PyObject *capsule, *call = NULL, *r;
    if (!c)
        return PyErr_NoMemory() ? 0 : -1;
    capsule = PyCapsule_New(c, "fibers.carrier", carrier_free);
    if (!capsule) {
        free(c);
        return -1;
    }
    c->runtime = rt;
    call = PyCFunction_New(&CARRIER_MAIN, capsule);
    Py_DECREF(capsule);
    if (!call)
        return -1;
    c->greenlet = (PyObject *)PyGreenlet_New(call, (PyGreenlet *)rt->hub);
    Py_DECREF(call);
    if (!c->greenlet)
        return -1;
    c->job = f;
    f->carrier = c;
    set_running(rt, f);
    rt->switches++;
    r = PyGreenlet_Switch((PyGreenlet *)c->greenlet, NULL, NULL);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

int fb_end_carriers(Runtime *rt)
{
    while (rt->pool) {
        struct carrier *c = rt->pool;
        PyObject *greenlet = c->greenlet, *r;
        rt->pool = c->next;
        rt->pooled--;
        c->job = NULL;
        r = PyGreenlet_Switch((PyGreenlet *)greenlet, NULL, NULL);
        Py_DECREF(greenlet);
        if (!r)
            return -1;
        Py_DECREF(r);
    }
    return 0;
}

/* The hub. */

/* park()'s callbacks: True, the waiter is gone and the exception is raised; False, an unpark will come. */
static void call_hooked(Runtime *rt)
{
    Fiber *f;
    while ((f = fb_line_pop(&rt->hooked))) {
        PyObject *call = f->on_cancel, *r;
        int gone;
        Py_INCREF(f);
        f->on_cancel = Py_NewRef(Py_None);
        r = PyObject_CallNoArgs(call);
        gone = r ? PyObject_IsTrue(r) : -1;
        Py_XDECREF(r);
        Py_DECREF(call);
        int parked = f->state == FIBER_PARKED && f->wait == WAIT_PARK;
        if (gone < 0 && parked && !f->what) {
            Py_XSETREF(f->on, fb_take_exception());
            fb_make_ready(f, WAKE_FAILED);
        } else if (gone < 0) {
            broken(rt); /* one of ours */
        } else if (gone && parked) {
            fb_make_ready(f, f->interrupt ? WAKE_RAISE : WAKE_CANCELLED);
        }
        Py_DECREF(f);
    }
}

/* For main: raised at its current or next cancel point (rule M1). Takes the reference. A second one ends also a wait that
 * said it can't be cancelled: whoever presses ^C twice does not want to wait for a thread. */
void fb_interrupt_main(Runtime *rt, PyObject *e)
{
    if (rt->pending && rt->main && rt->main->state == FIBER_PARKED && rt->main->wait == WAIT_PARK)
        fb_make_ready(rt->main, WAKE_RAISE);
    if (rt->pending || !rt->main || rt->main->state == FIBER_DONE) {
        Py_DECREF(e);
        return;
    }
    rt->pending = e;
    rt->main->interrupt = 1;
    fb_interrupt_wait(rt->main, WAKE_RAISE);
}

static int call_method(Runtime *rt, const char *name)
{
    PyObject *r = PyObject_CallMethod((PyObject *)rt, name, NULL);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

static int look(Runtime *rt)
{
    uint32_t why = rt->attention;
    rt->attention = 0;
    if (why & LOOK_BROKEN) {
        if (rt->trouble) {
            fb_raise(rt->trouble);
            rt->trouble = NULL;
        } else {
            errno = -rt->poll_error;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        return -1;
    }
    if (why & (LOOK_WOKEN | LOOK_SIGNALS)) {
        if (PyErr_CheckSignals() < 0)
            fb_interrupt_main(rt, fb_take_exception());
    }
    if ((why & LOOK_WOKEN) && call_method(rt, "_on_wake") < 0)
        fb_interrupt_main(rt, fb_take_exception());
    if (why & LOOK_HOOK)
        call_hooked(rt);
    if ((why & LOOK_IDLE) && !rt->ready.len) {
        PyObject *e = PyObject_CallMethod((PyObject *)rt, "_on_idle", NULL);
        if (!e)
            return -1;
        if (e == Py_None) {
            /* Something outside may wake us yet: wait for it. */
            Py_DECREF(e);
            rt->held = 1;
            begin_pass(rt);
            rt->held = 0;
        } else if (rt->pending || rt->deadlocks++ > 1) {
            /* It was told, its tree was cancelled, and nothing has ended since. */
            Py_DECREF(e);
            PyErr_SetString(PyExc_RuntimeError, "a deadlock that cancellation can't end");
            return -1;
        } else {
            fb_interrupt_main(rt, e);
        }
    }
    return 0;
}

/* The child of a fork (rule M4): only the forking fiber exists. It becomes main, so that the run ends with it. Its scopes
 * lose their children, its ancestors lose it, nothing is waited for. The others are leaked on purpose, with their carriers
 * and all they hold: dropping them would run their `finally` blocks here. */
void fb_forget(Runtime *rt)
{
    Fiber *f = rt->current;
    if (rt->forked)
        return;
    rt->forked = 1;
    if (rt->driver)
        fb_abandon(rt->driver);
    fb_heap_fini(&rt->timers);
    rt->ready.len = rt->pass_left = 0;
    rt->to_start = NULL;
    rt->hand_over = NULL;
    rt->hooked.head = rt->hooked.tail = NULL;
    rt->blocked.head = rt->blocked.tail = NULL;
    rt->watched = 0;
    rt->trace = NULL; /* its file is the parent's */
    rt->attention = rt->external = rt->graces = 0;
    Py_CLEAR(rt->pending); /* as CPython forgets signals that it has not handled yet */
    if (f && f != rt->main) {
        /* The reference that its scope held is the runtime's now. */
        f->prev = f->next = NULL;
    }
    rt->main = f;
    if (!f)
        return;
    f->interrupt = 0;
    f->joiners.head = f->joiners.tail = NULL;
    for (struct scope *s = f->scope;; s = s->parent) {
        Scope *o = limited(s);
        s->children = NULL;
        s->live = s->daemons = 0;
        if (o) {
            o->running = 0;
            o->deferred.head = o->deferred.tail = NULL;
        }
        if (s->is_root)
            break;
    }
    f->root.cancel_called |= f->root.cancelled; /* what it saw of its ancestors' is its own now */
    f->root.parent = NULL;
}

/* Run until main is done. 0, or -1 with an exception that ends the run. */
int fb_hub(Runtime *rt)
{
    rt->hub = (PyObject *)PyGreenlet_GetCurrent();
    rt->seen = fb_clock(rt);
    while (!rt->main || rt->main->state != FIBER_DONE) {
        PyObject *target, *r;
        if (rt->forked) {
            PyErr_SetString(PyExc_RuntimeError, "forked outside a fiber: in the child the run ends without an outcome");
            return -1;
        }
        Py_CLEAR(rt->dead);
        target = rt->hand_over;
        rt->hand_over = NULL;
        if (!target) {
            rt->current = NULL;
            if (rt->attention && look(rt) < 0)
                return -1;
            if (rt->to_start) {
                Fiber *f = rt->to_start;
                rt->to_start = NULL;
                if (start_carrier(rt, f) < 0)
                    return -1;
                continue;
            }
            target = choose(rt, NULL, NULL);
            if (target == rt->hub)
                continue;
        }
        r = PyGreenlet_Switch((PyGreenlet *)target, NULL, NULL);
        if (!r)
            return -1;
        Py_DECREF(r);
    }
    rt->current = NULL;
    return 0;
}


/* greenlet's C API is reached through a pointer of this file's own: 0 or -1. */
int fb_import_greenlet(void)
{
    PyGreenlet_Import();
    return _PyGreenlet_API ? 0 : -1;
}
