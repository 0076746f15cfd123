"""The test files, and the single methods that are not run, each with its reason; at most 30 for a version of Python.

A test that fails unpatched on the same machine is not listed: the report says "unpatched, too".
"""

from __future__ import annotations

import sys

FILES = [
    "test_socket",
    "test_ssl",
    "test_select",
    "test_selectors",
    "test_poll",
    "test_epoll",
    "test_timeout",
    "test_queue",
    "test_threading",
    "test_threading_local",
    "test_thread",
    "test_subprocess",
    "test_httplib",
    "test_ftplib",
    "test_wsgiref",
    "test_signal",
    "test_context",
    *(["test_asyncore"] if sys.version_info < (3, 12) else []),
    "test_socketserver",
    "test_smtplib",
    "test_urllib2_localnet",
]

# test id -> (reason, first version, first version for which it no longer holds)
ALWAYS = ((3, 10), (3, 99))
ONE_THREAD = "counts the native ids of threads: fibers share the one of their thread"
NO_WAIT = "threads take without waiting, again and again, until another one stops them: fibers are not preempted"
DISABLED: dict[str, tuple[str, tuple[int, int], tuple[int, int]]] = {
    "test_threading.ThreadTests.test_various_ops": (ONE_THREAD, *ALWAYS),
    "test_threading.ThreadTests.test_various_ops_large_stack": (ONE_THREAD, *ALWAYS),
    "test_threading.ThreadTests.test_various_ops_small_stack": (ONE_THREAD, *ALWAYS),
    "test_threading.ThreadTests.test_PyThreadState_SetAsyncExc": (
        "raises in a thread by its identity from C, which knows no fibers",
        *ALWAYS,
    ),
    "test_socket.GeneralModuleTests.testRefCountGetNameInfo": (
        "counts the references to an argument while the traceback of a TypeError holds the frame of our function",
        *ALWAYS,
    ),
    "test_socket.ThreadedVSOCKSocketStreamTest.testStream": (
        "fails or waits for ever unpatched, too, in a guest whose vsock does not lead to itself",
        *ALWAYS,
    ),
    "test_signal.StressTest.test_stress_modifying_handlers": (
        "a thread sends signals without a wait until another one stops it: fibers are not preempted",
        *ALWAYS,
    ),
    "test_subprocess.POSIXProcessTestCase.test_stopped": (
        "waits for a child that a debugger holds: a pidfd tells of its end only",
        *ALWAYS,
    ),
    "test_threading.InterruptMainTests.test_can_interrupt_tight_loops": (
        "a thread computes without a wait until another one interrupts it: fibers are not preempted",
        *ALWAYS,
    ),
    **{
        f"test_queue.{made}{kind}QueueTest.test_shutdown_{how}all_methods_in_many_threads": (NO_WAIT, (3, 13), (3, 99))
        for made in ("C", "Py")
        for kind in ("", "Lifo", "Priority")
        for how in ("", "immediate_")
    },
}


def disabled() -> dict[str, str]:
    """Return those for this Python, with their reasons."""
    return {test: reason for test, (reason, since, until) in DISABLED.items() if since <= sys.version_info[:2] < until}
