"""Ctrl-C and SIGTERM end a run after its current step, when its state has been saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from unmask.training.parallel import Place, follows, launched

_SAID = b"\nfinishing this step, then saving; press Ctrl-C again to stop at once\n"


class Stopped(KeyboardInterrupt):
    """A signal ended the run early; its state is saved, and the message says at which step."""


@contextmanager
def stop_after_step(*, quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only set a flag, which the given function reads. A second Ctrl-C raises KeyboardInterrupt, and so does
    SIGTERM after Ctrl-C, which is how torchrun passes on a second Ctrl-C. A second SIGTERM does nothing: schedulers may send several.

    A process that has received SIGTERM ends by it where its step cannot be finished because another process has ended. Outside the main
    thread, where Python delivers no signals, nothing changes. ``quiet``: print nothing.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and signal.SIGINT in (number, received[0]):
            raise KeyboardInterrupt
        if not received and not quiet:
            os.write(2, _SAID)  # print is not safe here: the signal may have interrupted one
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    except Exception as error:
        if signal.SIGTERM in received and follows(error):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def leaving(place: Place) -> Iterator[None]:
    """Leave the group of processes after the work inside: also where it was stopped, for which all stop after the same step, and so that of
    several errors the one that caused the others is printed.
    """
    try:
        yield
    except Stopped:
        place.leave()
        raise
    except Exception as error:
        place.let_others_speak(error)
        raise
    place.leave()


def prints_result(place: Place) -> bool:
    """Whether this process prints the result of a run: it is alone, or the first of those that torchrun started."""
    return place.world == 1 or (place.rank == 0 and not launched())
