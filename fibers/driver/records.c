/* What comes in records as one bytes object, without a copy: for TLS, whose ssl.SSLObject reads a record at a time.
 *
 *  1. The memory is given out for the length of one call: its view is released, whoever keeps it.
 *  2. What was read is returned. An error behind it is left to the next call, which meets it again.
 */
#include "native.h"

/* How many bytes read(n, view) has put at `to`; -1 with an exception. */
static Py_ssize_t one(PyObject *read, char *to, Py_ssize_t n)
{
    PyObject *view = PyMemoryView_FromMemory(to, n, PyBUF_WRITE), *result, *released, *error, *type, *traceback;
    Py_ssize_t got = -1;
    if (!view)
        return -1;
    result = PyObject_CallFunction(read, "nO", n, view);
    if (result)
        got = PyLong_AsSsize_t(result);
    Py_XDECREF(result);
    PyErr_Fetch(&type, &error, &traceback);
    released = PyObject_CallMethod(view, "release", NULL);
    Py_DECREF(view);
    if (!released) {
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
        return -1;
    }
    Py_DECREF(released);
    PyErr_Restore(type, error, traceback);
    return got;
}

/* read_records(read, memory, n, size, whole) -> bytes: up to n of them. read(n, view) is called for `size` bytes at most,
 * at first, and again while that many may be missing and memory.pending is at least `whole`: there is a record more. */
static PyObject *m_read_records(PyObject *module, PyObject *args)
{
    Py_ssize_t n, size, whole, pending, part, got = 0;
    PyObject *read, *memory, *bytes, *left;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOnnn", &read, &memory, &n, &size, &whole))
        return NULL;
    bytes = PyBytes_FromStringAndSize(NULL, n);
    if (!bytes)
        return NULL;
    do {
        part = one(read, PyBytes_AS_STRING(bytes) + got, n - got < size ? n - got : size);
        if (part <= 0)
            break;
        got += part;
        left = PyObject_GetAttrString(memory, "pending");
        pending = left ? PyLong_AsSsize_t(left) : -1;
        Py_XDECREF(left);
    } while (pending >= whole && n - got >= size);
    if (PyErr_Occurred()) {
        if (!got || !PyErr_ExceptionMatches(PyExc_OSError)) {
            Py_DECREF(bytes);
            return NULL;
        }
        PyErr_Clear();
    }
    _PyBytes_Resize(&bytes, got);
    return bytes;
}

static PyMethodDef FUNCTIONS[] = {
    {"read_records", m_read_records, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int fb_add_records(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS); }
