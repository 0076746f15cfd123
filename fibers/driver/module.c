/* The native face as a module: put together from objects.c, operate.c, records.c, stream.c, socket.c, locks.c and watch.c, and handed over by fb_install(). */
#include "native.h"

int fb_install(void);

/* The module: called once through cffi, which has dropped the GIL. 0, or -1 with the error printed. */

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "fibers.driver.native", "The native face of the compiled module.", -1, NULL, NULL, NULL, NULL, NULL};

int fb_install(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *module = NULL;
    int r = -1;
    if (fb_import_greenlet() == 0 && (module = PyModule_Create(&MODULE)) && fb_add_objects(module) == 0 &&
        fb_add_operate(module) == 0 && fb_add_records(module) == 0 && fb_add_stream(module) == 0 &&
        fb_add_watch(module) == 0 && fb_add_socket(module) == 0 && fb_add_locks(module) == 0)
        r = PyDict_SetItemString(PyImport_GetModuleDict(), "fibers.driver.native", module);
    Py_XDECREF(module);
    if (r < 0)
        PyErr_Print();
    PyGILState_Release(gil);
    return r;
}
