"""SIGTERM and SIGINT end a run after its iteration, with a checkpoint: schedulers send the first, people the second."""

import contextlib
import os
import signal
import threading
from typing import Callable, Iterator

ASKED = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """Raised where a process waits so long that a signal should interrupt it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def exit_code(number: int) -> int:
    """143 for SIGTERM, 130 for SIGINT, as shells report them."""
    return 128 + number


class Signals:
    """A context in which each signal calls ``note(number)``; a second SIGINT raises KeyboardInterrupt, as usual.

    `waiting` makes a signal raise `Interrupted` within it.
    """

    def __init__(self, note: Callable[[int], None]):
        self.note, self.number, self._raise = note, 0, False

    def __enter__(self) -> "Signals":
        self._before, self._process = {}, os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in ASKED}
        return self

    def __exit__(self, *error) -> bool | None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return None

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a fork of this process that inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        again = self.number == signal.SIGINT == number
        self.number = number
        self.note(number)
        if again:
            raise KeyboardInterrupt
        if self._raise:
            raise Interrupted(number)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        self._raise = True
        try:
            if self.number:
                raise Interrupted(self.number)
            yield
        except RuntimeError as error:
            if self.number:  # workers ended by the same signal
                raise Interrupted(self.number) from error
            raise
        finally:
            self._raise = False
