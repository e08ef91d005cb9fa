"""The errors that a command turns into a message and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


class InputError(ValueError):
    """Something the user wrote or supplied is wrong; the message names the place, the value and the way out.

    `faults` are what is wrong one by one, where a message lists several; else the message alone.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults) or [message]


def joined(faults: Sequence[str]) -> InputError:
    """Make one error of what is wrong one by one, a line each."""
    return InputError("\n".join(faults), faults)


@contextlib.contextmanager
def collecting(faults: list[str]) -> Iterator[None]:
    """Add to `faults` what an InputError says, and go on after the block."""
    try:
        yield
    except InputError as error:
        faults += error.faults


class TrainingError(RuntimeError):
    """Work on Ray stopped; the message says why in the words of the worker that failed."""


class RegistryError(RuntimeError):
    """MLflow does not answer, or refuses what should go; the message is one line."""


class ServingError(RuntimeError):
    """A server did not do what it was asked to; the message says what holds now."""
