/* Any op of the driver as one Python call, for what is not hot: operate(); and pread(), which makes its own bytes.
 *
 *  1. The memory that an op names is held until it has ended, whatever happens to the fiber (semantics.md F4).
 *  2. A File in place of the descriptor knows of the op: closing it ends the op (F6).
 *  3. A descriptor that nobody can take any more is closed, not leaked.
 */
#include "native.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

/* A descriptor, or a File, whose record is *file. -1 with an exception. */
static int descriptor(PyObject *o, struct file **file, int *fd)
{
    long number;
    *file = fb_file(o);
    if (*file) {
        *fd = (*file)->fd;
        return 0;
    }
    if (PyErr_Occurred())
        return -1;
    number = PyLong_AsLong(o);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number < INT_MIN || number > INT_MAX) {
        PyErr_Format(PyExc_OverflowError, "a file descriptor is an int of C, got %ld", number);
        return -1;
    }
    *fd = (int)number;
    return 0;
}

/* The entry of an operation: a fiber that may park, uncancelled, and an open file. */
static Fiber *begin(const char *what, const struct file *file)
{
    Fiber *f = fb_here(what);
    if (!f || fb_may_park(f, what) < 0 || fb_check(f) < 0)
        return NULL;
    if (file && file->fd < 0) {
        errno = EBADF;
        return (Fiber *)PyErr_SetFromErrno(PyExc_OSError);
    }
    return f;
}

static int not_here(long code)
{
    return code < 0 || code >= FB_CODES || code == FB_RECV || code == FB_RECVMSG || code == FB_SENDMSG ||
           code == FB_ACCEPT;
}

/* What else would be taken for an interest (core.h), or for nothing. */
static int takes_extra(long code)
{
    return code == FB_STATX || code == FB_RENAMEAT || code == FB_LINKAT || code == FB_SYMLINKAT;
}

/* operate(code, fd, data=None, flags=0, offset=-1, timeout=None, length=-1, extra=None): res; raises as semantics.md F3
 * says. `data` and `extra` are buffers; writable for ops that fill them. A negative length is that of `data`. */
static PyObject *m_operate(PyObject *module, PyObject *const *argv, Py_ssize_t n)
{
    Py_buffer data = {0}, extra = {0};
    PyObject *result = NULL;
    long code, flags, length = -1;
    int64_t ns, off;
    struct file *file;
    struct fb_op *op;
    Fiber *f;
    int fd;
    (void)module;
    if (n < 6 || n > 8)
        return PyErr_Format(PyExc_TypeError, "operate takes code, fd, data, flags, offset, timeout[, length[, extra]]");
    code = PyLong_AsLong(argv[0]);
    flags = PyLong_AsLong(argv[3]);
    off = PyLong_AsLongLong(argv[4]);
    if (n > 6)
        length = PyLong_AsLong(argv[6]);
    if (PyErr_Occurred() || descriptor(argv[1], &file, &fd) < 0 || fb_duration(argv[5], "a timeout", 0, &ns) < 0)
        return NULL;
    if (not_here(code))
        return PyErr_Format(PyExc_ValueError, "no such operation here: %ld", code);
    if (n > 7 && argv[7] != Py_None && !takes_extra(code))
        return PyErr_Format(PyExc_ValueError, "%s takes nothing extra", fb_op_name((int)code));
    if (!(f = begin(fb_op_name((int)code), file)))
        return NULL;
    if (argv[2] != Py_None &&
        PyObject_GetBuffer(argv[2], &data,
                           code == FB_READ || code == FB_RECV_INTO ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        return NULL;
    if (n > 7 && argv[7] != Py_None &&
        PyObject_GetBuffer(argv[7], &extra, code == FB_STATX ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        goto out;
    op = &f->op;
    fb_prepare(op, (int)code, fd);
    op->data = data.buf;
    op->extra = extra.buf;
    op->len = length >= 0 || code == FB_RENAMEAT || code == FB_LINKAT ? (uint64_t)length : (uint64_t)data.len;
    op->flags = (uint32_t)flags;
    op->off = off;
    if (fb_perform(f, file, ns) < 0) {
        if (code == FB_OPENAT && op->res >= 0)
            close(op->res);
    } else {
        result = op->res < 0 ? fb_op_error(f) : PyLong_FromLong(op->res);
    }
out:
    if (extra.obj)
        PyBuffer_Release(&extra);
    if (data.obj)
        PyBuffer_Release(&data);
    return result;
}

/* pread(fd, size, offset): bytes. An offset of -1 is the file's own position. */
static PyObject *m_pread(PyObject *module, PyObject *const *argv, Py_ssize_t n)
{
    PyObject *bytes;
    Py_ssize_t size;
    struct file *file;
    int64_t off;
    Fiber *f;
    int fd;
    (void)module;
    if (n != 3)
        return PyErr_Format(PyExc_TypeError, "pread takes fd, size, offset");
    size = PyLong_AsSsize_t(argv[1]);
    off = PyLong_AsLongLong(argv[2]);
    if (PyErr_Occurred() || descriptor(argv[0], &file, &fd) < 0)
        return NULL;
    if (size < 0)
        return PyErr_Format(PyExc_ValueError, "can't read %zd bytes: the number must not be negative", size);
    if (!(f = begin("read", file)) || !(bytes = PyBytes_FromStringAndSize(NULL, size)))
        return NULL;
    fb_prepare(&f->op, FB_READ, fd);
    f->op.data = PyBytes_AS_STRING(bytes);
    f->op.len = (uint64_t)size;
    f->op.off = off;
    if (fb_perform(f, file, -1) < 0) {
        Py_DECREF(bytes);
        return NULL;
    }
    if (f->op.res < 0) {
        Py_DECREF(bytes);
        return fb_op_error(f);
    }
    if (f->op.res < size)
        _PyBytes_Resize(&bytes, f->op.res);
    return bytes;
}

static PyMethodDef FUNCTIONS[] = {
    {"operate", METHOD(m_operate), METH_FASTCALL, NULL},
    {"pread", METHOD(m_pread), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int fb_add_operate(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS); }
