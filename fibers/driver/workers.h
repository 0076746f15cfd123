/* Threads for the ops that may block and that a driver has no other way to perform: files, what a driver lacks.
 *
 *  1. The pool is one driver's: bounded, started as work comes, gone when the driver is closed.
 *  2. An op that has begun is never abandoned: it ends with its own result, and close waits for it (semantics.md F4).
 *     One that still queues is cancelled at once.
 *  3. Everything but the op's work itself happens on the loop's thread: fb_workers_collect() completes.
 */
#ifndef FIBERS_WORKERS_H
#define FIBERS_WORKERS_H

#include "core.h"

#include <sys/types.h>

enum { FB_WORKERS = 8 };      /* by default; io_uring's own workers are capped, too (uring.c) */

/* The byte that says "an op is done" in the wake pipe: no wake, no signal number. */
#define FB_WORKED '\377'

/* Perform an op from FB_READV on by its system call (file.c): a count or 0, or -1 and errno. It may block. */
ssize_t fb_file_call(const struct fb_op *op);

struct fb_workers;

/* NULL: no memory. */
struct fb_workers *fb_workers_new(struct fb_driver *d, uint32_t limit);
/* 1 if workers can do this op. */
int fb_workers_can(int code);
/* 0, or -errno: no thread could be started, and there is none. */
int fb_workers_submit(struct fb_workers *w, struct fb_op *op);
/* 1: it had not begun, and is the caller's again; 0: it goes on. */
int fb_workers_cancel(struct fb_workers *w, struct fb_op *op);
/* Is there anything to collect? Cheap: no lock, no system call. */
int fb_workers_ready(struct fb_workers *w);
/* The next op that is done, with its res; NULL: none. */
struct fb_op *fb_workers_collect(struct fb_workers *w);
/* Ends the threads, and waits for what has begun; what has not ends with -ECANCELED. All that was not collected, linked
 * by `next`. */
struct fb_op *fb_workers_close(struct fb_workers *w);

#endif
