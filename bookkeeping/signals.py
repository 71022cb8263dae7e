"""Signals that end a run at the next step, its state saved."""
import signal
from contextlib import contextmanager

from bookkeeping.errors import Stopped

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

requested = []  # the signal that asked the run to stop, if one did


@contextmanager
def stopping_on_signals():
    """SIGTERM, SIGINT and SIGUSR1 (which SLURM can send before a time limit) end the run at the next step,
    state saved. A second one ends it at once."""
    def ask(signum, frame):
        signal.signal(signum, before[signum])
        requested.append(signum)

    requested.clear()
    before = {}
    try:
        for signum in STOP_SIGNALS:
            before[signum] = signal.signal(signum, ask)
    except ValueError:  # not the main thread: whoever runs this there handles its own signals
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def stop_if_asked():
    """Stopped if a signal came."""
    if requested:
        raise Stopped(requested[0])
