/* What native.c (scheduler) and stream.c (the hot calls on sockets) share. The only Python-aware header. */
#ifndef FIBERS_NATIVE_H
#define FIBERS_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

typedef struct fiber Fiber;
typedef struct runtime Runtime;

/* Fibers in a row: a join's waiters, a stream's senders, a scope's deferred starts. A fiber is in one at most. */
struct line {
    Fiber *head, *tail;       /* borrowed: a fiber in a line is alive, its scope holds it */
};

enum scope_state { SCOPE_NEW = 0, SCOPE_OPEN, SCOPE_CLOSING, SCOPE_CLOSED };

/* A node of the cancel tree. Every fiber has one for its whole function (`root`), every Scope object has one. */
struct scope {
    struct scope *parent;     /* borrowed: encloses us, so it outlives us; of a root: what its fiber was spawned into.
                               * NULL for main's and when closed */
    struct scope *inner;      /* borrowed: the scope the same fiber entered directly inside this one */
    Fiber *owner;             /* borrowed: the fiber on whose stack it is */
    Fiber *children;          /* owned: first of the unfinished fibers spawned into it, in order of spawning */
    PyObject *object;         /* the Scope object: borrowed from itself, or owned by a root until its fiber is done */
    PyObject *reason;         /* owned or NULL */
    struct fb_timer timer;    /* the deadline */
    uint64_t cancel_id;       /* which cancellation this is, of all there were; 0: none */
    uint64_t heard;           /* the cancellation last delivered to its owner here, and until when a cleanup may take: */
    int64_t grace_until;      /* of a fiber's own scope: its own cancellation; of a root: the visible one from outside */
    uint32_t parks;           /* of a shield: how often its owner had parked when it entered */
    uint32_t live, daemons;   /* how many children of each kind */
    uint8_t state;            /* enum scope_state */
    uint8_t shield;           /* cancellation from outside is not visible here */
    uint8_t cancel_called;
    uint8_t cancelled;        /* cached: cancel_called, or visible from outside. All that a cancel point reads */
    uint8_t soft;             /* entered during a cleanup: as a shield, until the grace ends */
    uint8_t expired;          /* its deadline did it */
    uint8_t saw_cancelled;    /* a child was stopped by a cancellation from outside (rule D5) */
    uint8_t awaited;          /* its owner is parked until: 1 live children, 2 all children are done */
    uint8_t is_root;
    uint8_t limited;          /* no more children at once than the Scope object says */
};

enum fiber_state { FIBER_NEW = 0, FIBER_DEFERRED, FIBER_READY, FIBER_RUNNING, FIBER_PARKED, FIBER_DONE };
enum wait_kind { WAIT_NONE = 0, WAIT_OP, WAIT_SLEEP, WAIT_YIELD, WAIT_JOIN, WAIT_PARK, WAIT_SEND, WAIT_CHILDREN, WAIT_CLOSE,
            WAIT_BLOCKED };
enum wake { WAKE_OK = 0, WAKE_TIMEOUT, WAKE_CANCELLED, WAKE_RAISE, WAKE_FAILED };
enum outcome { OUTCOME_NONE = 0, OUTCOME_VALUE, OUTCOME_FAILED, OUTCOME_CANCELLED };

struct fiber {
    PyObject_HEAD
    Runtime *runtime;         /* owned */
    struct scope root;        /* its implicit scope */
    struct scope *scope;      /* borrowed: the innermost open one */
    Fiber *prev, *next;       /* siblings; the first one's prev is the last one */
    Fiber *line_prev, *line_next;
    struct line *line;        /* borrowed: where it waits */
    struct line joiners;
    struct fb_op op;
    struct fb_timer timer;    /* of the wait in progress; `when`, of wait_blocked: its cushion, in real ns (it is not armed) */
    struct fb_timer grace;    /* armed while it cleans up: when that must end */
    struct carrier *carrier;  /* borrowed: what runs it, from its start to its end */
    PyObject *greenlet;       /* owned: what to switch to; NULL before its first start and while it runs */
    PyObject *fn, *args, *kwnames; /* owned until it has run */
    PyObject *context;        /* owned until it is done */
    PyObject *value;          /* owned: value or exception */
    PyObject *name;           /* owned or NULL: derived from fn at birth */
    PyObject *spawner;        /* owned until it is done */
    PyObject *on_cancel;      /* owned: park's callback */
    PyObject *what;           /* owned: what wait() waits for, in words; NULL in park() */
    PyObject *on;             /* owned: the object that wait() waits on, or what unpark() brought */
    PyObject *watchers;       /* owned list or NULL: whom to tell when it is done */
    struct fb_slot_of_local *locals; /* owned: its values of each threading.local (locks.c) */
    int64_t since;            /* when it parked, as far as rt->seen knew */
    PyObject *weakrefs;
    uint64_t id;
    uint32_t redelivered;     /* Cancelled raised again in the same cancelled scope */
    uint32_t parks;           /* how often it parked */
    uint8_t state, wait, wake, outcome;
    uint8_t daemon, observed, propagates;
    uint8_t interrupt : 1, loop : 1; /* loop: asyncio's running loop is its own, no other fiber may find it (rule L7) */
};

/* With the collector's header 512 bytes, the most that CPython's own allocator serves: malloc costs a spawn 20 % more. */
_Static_assert(sizeof(void *) != 8 || sizeof(Fiber) <= 512 - 16, "a Fiber is allocated by malloc");

enum timer_kind { TIMER_WAIT = 0, TIMER_DEADLINE, TIMER_GRACE };

struct carrier {
    PyObject *greenlet;       /* owned by the pool while parked there */
    Fiber *job;               /* borrowed */
    Runtime *runtime;         /* borrowed: carriers end before their run */
    struct carrier *next;
};

/* How `now` moves: with the real clock; by jumps when nothing is runnable; by advance() only; as the driver says. */
enum clock { CLOCK_REAL = 0, CLOCK_AUTO, CLOCK_MANUAL, CLOCK_DRIVER };

/* Who looks on (watch.c). */
enum watcher { WATCH_TRACE = 1, WATCH_STEPS = 2 };

enum attention { LOOK_WOKEN = 1, LOOK_IDLE = 2, LOOK_BROKEN = 4, LOOK_END = 8, LOOK_SIGNALS = 16, LOOK_HOOK = 32 };

struct runtime {
    PyObject_HEAD
    struct fb_driver *driver; /* owned */
    struct fb_heap timers;
    struct fb_queue ready;
    struct carrier *pool;
    PyObject *hub;            /* owned: the greenlet that called run */
    Fiber *current;           /* borrowed: whose code runs; NULL on the hub */
    Fiber *main;              /* owned */
    Fiber *to_start;          /* borrowed: needs a new carrier, which only the hub starts */
    PyObject *hand_over;      /* borrowed: whom a carrier that ends wants resumed */
    PyObject *dead;           /* owned: a carrier that ended, dropped by the hub */
    struct line hooked;       /* fibers whose on_cancel the hub must call */
    struct line blocked;      /* fibers in wait_blocked: woken when nothing else can run */
    PyObject *trace;          /* owned: the Trace that WATCH_TRACE feeds */
    int64_t stepped;          /* WATCH_STEPS: when the running fiber was resumed, by the real clock */
    PyObject *pending;        /* owned: exception for main's next cancel point */
    PyObject *trouble;        /* owned: an error of our own; ends the run */
    int64_t clock;            /* the virtual time */
    int64_t grace_ns;         /* how long a cleanup may take; 0: cancel points raise at once */
    int64_t seen;             /* the time at the last poll: what a parking fiber notes without a look at the clock */
    uint64_t fibers, spawned, switches, random;
    uint32_t graces;          /* fibers whose grace timer is armed */
    uint32_t pooled, pass_left, attention, inside, external, deadlocks;
    uint32_t unparked;        /* operations since the last park that did not have to wait */
    int poll_error;
    uint8_t virtual;          /* enum clock */
    uint8_t watched;          /* enum watcher, a set */
    uint8_t shuffle, forked, running, held;
};

/* Filled by configure(): the Python side of the rules. */
struct hooks {
    PyObject *fiber_type, *scope_type;  /* subclasses of our Fiber and Scope */
    PyObject *cancelled_type;           /* Cancelled */
    PyObject *cancelled;                /* (scope that was cancelled, its cancel_id) -> a Cancelled */
    PyObject *settle;                   /* (fiber, value, exception or None) -> (outcome, object) */
    PyObject *child_failed;             /* (scope, fiber, exception) */
    PyObject *redelivered;              /* (fiber): it keeps swallowing Cancelled */
    PyObject *fiber_cancelled;          /* (fiber) -> a FiberCancelled */
};
extern struct hooks fb_hooks;

enum scope_kind { KIND_SCOPE = 0, KIND_TIMEOUT, KIND_MOVE_ON, KIND_SHIELD, KIND_SUPERVISOR };

typedef struct {
    PyObject_HEAD
    struct scope own;
    struct scope *scope;      /* &own, or the root of `fiber` */
    Fiber *fiber;             /* owned: set if scope is its root */
    int64_t seconds;          /* relative deadline in ns, resolved on enter; -1: none */
    int64_t at;               /* absolute deadline; -1: none */
    struct line deferred;     /* fibers that wait for a place under `limit` */
    uint32_t running, limit;  /* if it is limited: started children, and how many may be */
    PyObject *failures;       /* owned list or NULL: what went wrong in it, in order */
    PyObject *on_error;       /* owned or NULL: supervisor's */
    PyObject *weakrefs;
    uint8_t kind;             /* enum scope_kind */
    int8_t strict;            /* -1: the run's default */
    uint8_t caught;
} Scope;

/* A file: what stream.c and socket.c keep for each fd, with the ops in flight on it. */
struct file {
    struct fb_op *ops;        /* borrowed: each lives in its parked fiber */
    Fiber *closer;            /* borrowed: parked until `ops` is empty */
    struct fb_file kept;      /* the driver's notes on it */
    struct fb_interest *interest; /* owned or NULL: what receives wait on, from the second one on */
    uint8_t received;         /* there was a first */
    int fd;                   /* -1 once it is being closed, though its ops are still there */
};

extern __thread Runtime *fb_runtime;

/* So many operations that do not wait may a fiber do before it parks, and the others run (semantics.md F8). */
enum { FB_UNPARKED_LIMIT = 128 };

/* The fiber that runs here, or NULL with RuntimeError. */
Fiber *fb_here(const char *what);
/* The file record of a File or of a socket.socket; NULL if it is none, or with an exception. */
struct file *fb_file(PyObject *o);
struct file *fb_socket_file(PyObject *o);
/* stream.c: receive with FB_RECV or FB_RECV_INTO. 0, and the op's res says how it went; or -1 with an exception. */
int fb_receive(struct file *file, Fiber *f, int code, void *data, Py_ssize_t n, int64_t limit);
PyObject *fb_receive_bytes(struct file *file, Fiber *f, Py_ssize_t n, int64_t limit);
void fb_drop_interest(struct file *file);
/* Where may a patched call block: 0, and the fiber to park, or NULL where the original blocks; -1 where nothing may. */
int fb_may_block(PyObject *module, Fiber **here);
/* The entry of a cancel point: 0, or -1 with the exception set. */
int fb_check(Fiber *f);
/* May this code park at all? Called before anything is submitted: after submit nothing may fail. */
int fb_may_park(Fiber *f, const char *what);
/* Park until woken; enum wake, or -1 with an exception that something threw in. */
int fb_park(Fiber *f, int wait);
/* 0 for WAKE_OK, 1 for WAKE_TIMEOUT, -1 with the exception set. */
int fb_woken(Fiber *f, int wake);
void fb_make_ready(Fiber *f, int wake);
/* Perform f->op; timeout_ns < 0: none. 0, or -1 with an exception that something threw in (the op has ended). */
int fb_perform(Fiber *f, struct file *file, int64_t timeout_ns);
/* Set the exception for a failed op (semantics.md F3). Always returns NULL. */
PyObject *fb_op_error(Fiber *f);
int fb_arm(Fiber *f, int64_t timeout_ns);
void fb_disarm(Fiber *f);
void fb_line_push(struct line *l, Fiber *f);
Fiber *fb_line_pop(struct line *l);
/* Seconds (float, None) to nanoseconds: -1 for None and infinity. Returns -1 with ValueError or TypeError. */
int fb_duration(PyObject *o, const char *what, int negative_ok, int64_t *ns);

/* tree.c: the cancel tree and the cleanup grace. */
void fb_scope_cancel(Runtime *rt, struct scope *s);
void fb_scope_close(struct scope *s);
/* Make the Cancelled for a cancel point of the fiber, and start its grace: NULL with an exception if that fails. */
PyObject *fb_make_cancelled(Fiber *f);
void fb_raise_cancelled(Fiber *f);
/* May this cancelled fiber go on, because it is cleaning up? */
int fb_in_grace(Fiber *f);
/* A wait that could not be cancelled has ended: what sees the cancellation from `s` on gets its time anew. */
void fb_grace_restart(struct scope *s);
void fb_grace_over(Fiber *f);
void fb_grace_disarm(Fiber *f);

/* A visible cancellation has reached a wait that holds it back: until when, `patience` ns after it was first delivered. */
int64_t fb_hear(Fiber *f, int64_t patience);

/* socket.c: asyncio's running loop leaves its slot while the fiber that runs it is parked. NULL: there is none. */
PyObject *fb_take_loop(Fiber *f);
void fb_put_loop(PyObject *loop); /* takes the reference */

/* locks.c: the fiber's values of each threading.local go. */
void fb_end_locals(Fiber *f);

/* native.c for objects.c and tree.c. */
void fb_interrupt_wait(Fiber *f, int wake);
int64_t fb_clock(Runtime *rt);
PyObject *fb_take_exception(void);
void fb_raise(PyObject *e); /* takes the reference */
void fb_enqueue(Runtime *rt, Fiber *f);
PyObject *fb_scope_object(struct scope *s);
int fb_children_done(struct scope *s, int need);
Fiber *fb_fiber_new(Runtime *rt, struct scope *nursery, PyObject *fn, PyObject *args, PyObject *kwnames);
PyObject *fb_spawn(struct scope *s, Runtime *rt, PyObject *const *argv, Py_ssize_t n, PyObject *kwnames, int daemon);
void fb_interrupt_main(Runtime *rt, PyObject *e); /* takes the reference */
int fb_hub(Runtime *rt);
void fb_forget(Runtime *rt);
int fb_end_carriers(Runtime *rt);
int fb_import_greenlet(void);

const char *fb_op_name(int code);

/* watch.c: what the scheduler tells whoever looks on. One predicted branch while nobody does. */
enum event { EVENT_RUN = 0, EVENT_PARK, EVENT_WAKE, EVENT_SPAWN, EVENT_CANCEL, EVENT_END };
void fb_watch(Runtime *rt, int event, Fiber *f); /* cannot fail; calls Python for EVENT_END only */
static inline void fb_tell(Runtime *rt, int event, Fiber *f)
{
    if (__builtin_expect(rt->watched, 0))
        fb_watch(rt, event, f);
}
void fb_stop_trace(Runtime *rt);
PyObject *fb_step(Runtime *rt, PyObject *ignored);
PyObject *fb_watch_steps(Runtime *rt, PyObject *on);

/* Each adds its types to the module: 0 or -1. */
int fb_add_objects(PyObject *module);
int fb_add_operate(PyObject *module);
int fb_add_records(PyObject *module);
int fb_add_stream(PyObject *module);
int fb_add_watch(PyObject *module);
int fb_add_socket(PyObject *module);
int fb_add_locks(PyObject *module);

#endif
