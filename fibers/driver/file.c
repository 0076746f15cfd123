/* The calls that stand for the ops on files and names, for the drivers that have no kernel to give these ops to. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "workers.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static ssize_t read_or_write_parts(const struct fb_op *op)
{
    int count = op->len > IOV_MAX ? IOV_MAX + 1 : (int)op->len;
#ifdef RWF_NOWAIT
    return op->code == FB_READV ? preadv2(op->fd, op->data, count, (off_t)op->off, (int)op->flags)
                                : pwritev2(op->fd, op->data, count, (off_t)op->off, (int)op->flags);
#else
    if (op->flags) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return op->code == FB_READV ? preadv(op->fd, op->data, count, (off_t)op->off)
                                : pwritev(op->fd, op->data, count, (off_t)op->off);
#endif
}

/* What only Linux has. Elsewhere fibers.fs does without. */
static int linux_only(const struct fb_op *op)
{
#ifdef __linux__
    int error;
    if (op->code == FB_STATX)
        return statx(op->fd, op->data, (int)op->flags, (unsigned)op->len, op->extra);
    if (op->code == FB_FALLOCATE)
        return fallocate(op->fd, (int)op->flags, (off_t)op->off, (off_t)op->len);
    if (op->code == FB_FADVISE) {
        if ((error = posix_fadvise(op->fd, (off_t)op->off, (off_t)op->len, (int)op->flags)))
            errno = error;
        return error ? -1 : 0;
    }
    if (op->code == FB_RENAMEAT && op->flags)
        return renameat2(op->fd, op->data, (int)op->len, op->extra, op->flags);
#endif
    if (op->code == FB_RENAMEAT && !op->flags)
        return renameat(op->fd, op->data, (int)op->len, op->extra);
    errno = EOPNOTSUPP;
    return -1;
}

ssize_t fb_file_call(const struct fb_op *op)
{
    switch (op->code) {
    case FB_READV:
    case FB_WRITEV:
        return read_or_write_parts(op);
    case FB_STATX:
    case FB_FALLOCATE:
    case FB_FADVISE:
    case FB_RENAMEAT:
        return linux_only(op);
    case FB_UNLINKAT:
        return unlinkat(op->fd, op->data, (int)op->flags);
    case FB_MKDIRAT:
        return mkdirat(op->fd, op->data, (mode_t)op->len);
    case FB_LINKAT:
        return linkat(op->fd, op->data, (int)op->len, op->extra, (int)op->flags);
    case FB_SYMLINKAT:
        return symlinkat(op->data, op->fd, op->extra);
    case FB_FTRUNCATE:
        return ftruncate(op->fd, (off_t)op->len);
    default:
        errno = EOPNOTSUPP;
        return -1;
    }
}
