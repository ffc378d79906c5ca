"""Runs a Python module that ends when its parent ends, however the parent ends.

Run by its path, as `python -I -S tether.py PARENT_PID MODULE [ARGUMENT ...]`: it imports nothing of Halfreel, asks the
kernel to kill this process with its parent (which an exec keeps), and becomes the module.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Ties this process to its parent, and becomes the module."""
    parent_pid, module, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        # KILL and not TERM: what a server has accepted is stored, and nothing may outlive its supervisor.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent_pid):
            sys.exit("the supervisor ended before its server began")
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - a program of ours, no shell


main()
