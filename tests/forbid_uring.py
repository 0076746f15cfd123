"""Run a program in which io_uring is forbidden, as in a container with a seccomp profile.

    python tests/forbid_uring.py EPERM python examples/echo_server.py 127.0.0.1 7000

The filter makes io_uring_setup(2) fail with the errno named. It needs no privilege and outlives execve(2);
every other system call is as before. x86-64 and aarch64 only: both number the call 425.
"""

import ctypes
import errno
import os
import platform
import sys

NR_IO_URING_SETUP = 425
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2  # linux/prctl.h, linux/seccomp.h
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, RET|K
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
OFFSET_OF_NR = 0  # struct seccomp_data


class Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def forbid(errno_value: int) -> None:
    """Make io_uring_setup(2) fail with `errno_value` in this thread and whatever it starts, for good."""
    instructions = (Instruction * 4)(
        Instruction(LOAD_WORD, 0, 0, OFFSET_OF_NR),
        Instruction(JUMP_IF_EQUAL, 0, 1, NR_IO_URING_SETUP),
        Instruction(RETURN, 0, 0, RET_ERRNO | errno_value),
        Instruction(RETURN, 0, 0, RET_ALLOW),
    )
    program = Program(len(instructions), instructions)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    for option, value, address in (
        (PR_SET_NO_NEW_PRIVS, 1, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ):
        if prctl(option, value, address, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({option}): {os.strerror(number)}")


if __name__ == "__main__":
    if platform.machine() not in ("x86_64", "aarch64"):
        sys.exit(f"the number of io_uring_setup is not known for {platform.machine()}")
    forbid(getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
