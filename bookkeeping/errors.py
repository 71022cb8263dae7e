"""Errors that end a run with one line; main_superglue.main turns each into an exit code."""
import reprlib
import signal


def one_line(error):
    """What another library raised, short and in one line."""
    if "ignore_mismatched_sizes" in str(error):  # transformers' advice, which would hide what is wrong
        return "weights of other sizes than its configuration gives"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class InputError(Exception):
    """What the user gave cannot be used. The message is one line: flag or file:line, found, expected, the way
    out."""


class TrainingError(Exception):
    """Training cannot go on (a figure or a weight is not finite). The message says where and what to try."""


class Stopped(Exception):
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, signum):
        self.signum = signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; what was reached is saved, the same command "
            "goes on from there")


def shown(value):
    """A value as messages show it: on one line, and not all of it where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    return short.repr(value)
