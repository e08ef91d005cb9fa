"""The two errors that a command turns into a message and an exit code."""


class InputError(ValueError):
    """Something the user wrote or supplied is wrong; the message names the place, the value and the way out."""


class TrainingError(RuntimeError):
    """Work on Ray stopped; the message says why in the words of the worker that failed."""
