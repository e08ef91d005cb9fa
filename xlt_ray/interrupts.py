"""Interrupt the main thread from another one, as Ctrl-C does."""

from __future__ import annotations

import signal
import threading


def allow() -> bool:
    """Let this thread be interrupted if it is the main one, and return whether it is.

    Ray starts the driver of a job with SIGINT blocked.
    """
    main = threading.current_thread() is threading.main_thread()
    if main:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return main


def interrupt() -> None:
    """Interrupt the main thread, also where it waits in a system call, from which `_thread` would not wake it."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def interrupt_until(done: threading.Event) -> None:
    """Interrupt the main thread until `done`: Ray asks a controller first, which may not answer, but only twice."""
    for _ in range(3):
        interrupt()
        if done.wait(5):
            return
