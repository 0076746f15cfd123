/* The cancel tree: which scopes see a cancellation, what that interrupts, and how long a cleanup may go on after it.
 *
 *  1. `cancelled` of every scope is kept true to D1 by walks over the subtree, once and without recursion: a tree may be
 *     a list 10,000 deep. A shield hides its subtree. Walks call no Python.
 *  2. A cancellation is known by its cancel_id. What a scope sees is the outermost one that no shield hides.
 *  3. Cleanup grace (D10). A cancel point of a fiber that is handling the Cancelled of just the cancellation it sees does
 *     not raise until grace_ns after that was first delivered to it. Handling is what CPython knows as the handled
 *     exception: true in finally, except, __exit__ and what they call, false once the handler is left.
 *  4. A scope entered during a cleanup is a soft shield: it hides that cancellation until the grace ends. Another
 *     cancellation further out goes through it, and through every fiber's grace, at once.
 *
 * The grace is a timer of the fiber (`grace`), armed at the first cancel point that it lets pass. When it fires, soft
 * shields are lifted and the wait in progress is interrupted like by any cancellation. While any is armed (`graces`), a walk
 * also enters what is cancelled already: in there somebody may be cleaning up whom the new cancellation concerns.
 */
#include "native.h"

#include <assert.h>

enum { CHAIN_LIMIT = 100 }; /* of contexts looked at: a longer one is a loop that keeps failing in its handlers */

static uint64_t last_cancel_id; /* under the GIL */

/* The walk. */

static void deliver(Fiber *f)
{
    if (f->state == FIBER_PARKED)
        fb_interrupt_wait(f, WAKE_CANCELLED);
}

static struct scope *first_below(struct scope *s)
{
    return s->inner ? s->inner : s->children ? &s->children->root : NULL;
}

static struct scope *next_beside(struct scope *s)
{
    if (!s->is_root)
        return s->parent->children ? &s->parent->children->root : NULL;
    return s->owner->next ? &s->owner->next->root : NULL;
}

/* `s` itself or the next one beside it that the walk must enter. */
static struct scope *open_from(Runtime *rt, struct scope *s)
{
    while (s && (s->shield || s->state == SCOPE_CLOSED || (s->cancelled && !rt->graces)))
        s = next_beside(s);
    return s;
}

static void mark_cancelled(Runtime *rt, struct scope *top)
{
    struct scope *s = top;
    for (;;) {
        struct scope *next;
        s->cancelled = 1;
        s->soft = 0;
        if (s->owner && s->owner->scope == s)
            deliver(s->owner);
        next = open_from(rt, first_below(s));
        while (!next) {
            if (s == top)
                return;
            next = open_from(rt, next_beside(s));
            s = s->parent;
        }
        s = next;
    }
}

void fb_scope_cancel(Runtime *rt, struct scope *s)
{
    if (s->cancel_called || s->state == SCOPE_CLOSED)
        return;
    s->cancel_called = 1;
    s->cancel_id = ++last_cancel_id;
    if (s->owner)
        fb_tell(s->owner->runtime, EVENT_CANCEL, s->owner);
    if (s->timer.slot && rt)
        fb_timer_disarm(&rt->timers, &s->timer);
    if (s->state == SCOPE_NEW) {
        s->cancelled = 1;
        return;
    }
    if (!s->cancelled) {
        uint8_t soft = s->soft;
        mark_cancelled(rt, s);
        s->soft = soft; /* what is outside it stays hidden */
    }
}

/* Is there a cancellation further out that its fiber may be cleaning up after? */
static int cleans_up_around(struct scope *s)
{
    for (; !s->is_root; s = s->parent)
        if (s->soft || s->cancelled)
            return 1;
    return s->cancelled;
}

void fb_scope_close(struct scope *s)
{
    Fiber *f = s->owner;
    if (s->timer.slot)
        fb_timer_disarm(&f->runtime->timers, &s->timer);
    s->state = SCOPE_CLOSED;
    if (!s->is_root) {
        f->scope = s->parent;
        s->parent->inner = NULL;
        if (s->shield && f->parks != s->parks)
            fb_grace_restart(s->parent); /* what waited behind the shield could not be cancelled */
        if (!s->parent->cancelled) {
            f->redelivered = 0;
            if (f->grace.slot && !cleans_up_around(s->parent))
                fb_grace_disarm(f);
        }
    }
    if (!s->is_root) {
        s->parent = NULL;
        Py_DECREF(s->object); /* taken by enter: an open scope lives, whoever dropped it */
    }
}

/* What is seen. */

/* The scope whose cancellation is visible in `s`; NULL if none is. */
static struct scope *source_of(struct scope *s)
{
    struct scope *source = NULL;
    for (; s && s->cancelled; s = s->parent) {
        if (s->cancel_called)
            source = s;
        if (s->shield || s->soft)
            break;
    }
    return source;
}

/* Where fiber `f` notes what it heard of that cancellation. */
static struct scope *notes_on(Fiber *f, struct scope *source) { return source->owner == f ? source : &f->root; }

static int64_t later(Runtime *rt)
{
    int64_t now = fb_clock(rt);
    return rt->grace_ns > INT64_MAX - now ? INT64_MAX : now + rt->grace_ns;
}

PyObject *fb_make_cancelled(Fiber *f)
{
    struct scope *source = source_of(f->scope);
    struct scope *notes;
    PyObject *scope, *id, *e = NULL;
    if (!source)
        return PyErr_Format(PyExc_SystemError, "no cancellation is visible here");
    notes = notes_on(f, source);
    if (notes->heard != source->cancel_id) {
        notes->heard = source->cancel_id;
        notes->grace_until = later(f->runtime);
    }
    scope = fb_scope_object(source);
    id = PyLong_FromUnsignedLongLong(source->cancel_id);
    if (scope && id) {
        PyObject *args[] = {scope, id};
        e = PyObject_Vectorcall(fb_hooks.cancelled, args, 2, NULL);
    }
    Py_XDECREF(scope);
    Py_XDECREF(id);
    return e;
}

/* Not before `patience` ns, or the grace if that is longer, after the first delivery: which is now, if it was not before. */
int64_t fb_hear(Fiber *f, int64_t patience)
{
    struct scope *source = source_of(f->scope), *notes;
    int64_t grace = f->runtime->grace_ns, first;
    if (!source)
        return INT64_MAX;
    notes = notes_on(f, source);
    if (notes->heard != source->cancel_id) {
        notes->heard = source->cancel_id;
        notes->grace_until = later(f->runtime);
    }
    first = notes->grace_until - grace;
    if (grace > patience)
        patience = grace;
    return patience > INT64_MAX - first ? INT64_MAX : first + patience;
}

/* Level-triggered: raised at every cancel point. From the second time on through the scheduler, so that a fiber that
 * swallows it in a loop cannot starve the others (rule D11). */
void fb_raise_cancelled(Fiber *f)
{
    PyObject *e;
    if (f->redelivered++ && !fb_may_park(f, "go on")) {
        if (fb_park(f, WAIT_YIELD) < 0)
            return;
    }
    PyErr_Clear();
    if (f->redelivered == 1000) {
        PyObject *r = PyObject_CallOneArg(fb_hooks.redelivered, (PyObject *)f);
        if (!r)
            return;
        Py_DECREF(r);
    }
    e = fb_make_cancelled(f);
    if (e)
        fb_raise(e);
}

/* The grace. */

static PyObject *handled_exception(void)
{
#if PY_VERSION_HEX >= 0x030b0000
    return PyErr_GetHandledException();
#else
    PyObject *type, *value, *traceback;
    PyErr_GetExcInfo(&type, &value, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    if (value == Py_None)
        Py_CLEAR(value);
    return value;
#endif
}

static int delivers(PyObject *e, uint64_t id)
{
    PyObject *source = PyObject_GetAttrString(e, "_source");
    uint64_t its = source ? PyLong_AsUnsignedLongLong(source) : 0;
    Py_XDECREF(source);
    PyErr_Clear();
    return its == id;
}

/* Is the running code a handler of the Cancelled of that cancellation, or called by one? */
static int handles(uint64_t id)
{
    PyObject *e = handled_exception();
    int found = 0;
    for (int i = 0; e && !found && i < CHAIN_LIMIT; i++) {
        PyObject *context;
        found = (PyObject *)Py_TYPE(e) == fb_hooks.cancelled_type && delivers(e, id);
        context = PyException_GetContext(e);
        Py_DECREF(e);
        e = context;
    }
    Py_XDECREF(e);
    return found;
}

static int arm(Fiber *f, int64_t until)
{
    Runtime *rt = f->runtime;
    if (f->grace.slot && f->grace.when <= until)
        return 0; /* it looks again when it fires */
    rt->graces += !f->grace.slot;
    if (fb_timer_arm(&rt->timers, &f->grace, until) == 0)
        return 0;
    rt->graces--;
    return -1;
}

void fb_grace_disarm(Fiber *f)
{
    if (f->grace.slot) {
        fb_timer_disarm(&f->runtime->timers, &f->grace);
        f->runtime->graces--;
    }
}

int fb_in_grace(Fiber *f)
{
    Runtime *rt = f->runtime;
    struct scope *source, *notes;
    if (!rt->grace_ns || !(source = source_of(f->scope)))
        return 0;
    notes = notes_on(f, source);
    return notes->heard == source->cancel_id && notes->grace_until > fb_clock(rt) && handles(source->cancel_id) &&
           arm(f, notes->grace_until) == 0;
}

void fb_grace_restart(struct scope *s)
{
    struct scope *source = s->cancelled ? source_of(s) : NULL;
    struct scope *notes;
    if (!source)
        return;
    notes = notes_on(s->owner, source);
    if (notes->heard == source->cancel_id)
        notes->grace_until = later(s->owner->runtime);
}

/* The timer has fired: end what is over now, and look again when the next is. */
void fb_grace_over(Fiber *f)
{
    Runtime *rt = f->runtime;
    int64_t now = fb_clock(rt), next = INT64_MAX;
    rt->graces--;
    for (struct scope *s = &f->root; s; s = s->inner) {
        struct scope *hidden = s->soft ? s->parent : s == f->scope ? s : NULL;
        struct scope *source = hidden ? source_of(hidden) : NULL;
        int64_t until;
        if (!source)
            continue;
        until = notes_on(f, source)->grace_until;
        if (until > now) {
            if (until < next)
                next = until;
        } else if (s->soft) {
            mark_cancelled(rt, s);
        } else {
            deliver(f);
        }
    }
    if (next < INT64_MAX && arm(f, next) < 0)
        rt->attention |= LOOK_BROKEN;
}
