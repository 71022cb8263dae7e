"""Signals that end a run at the next step, its state saved."""
import signal
from contextlib import contextmanager

from bookkeeping.errors import Stopped

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

requested = []  # the signals that asked the run to stop


def hold():
    """Have SIGUSR1 wait until release(): a cluster may send it while torch is being imported, when
    nobody is there yet to take it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def release():
    """Take what hold() let wait, by the handler that is there now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


@contextmanager
def stopping_on_signals():
    """SIGTERM, SIGINT and SIGUSR1 (which SLURM can send before a time limit) end the run at the next step,
    state saved. A second Ctrl-C (SIGINT) ends it at once. The others do not, however often they come: a
    cluster sends several on the way to SIGKILL, to a whole tree of processes that hand them on besides."""
    def ask(signum, frame):
        if signum == signal.SIGINT:
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
