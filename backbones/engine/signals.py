"""SIGTERM and SIGINT end a run after its iteration, with a checkpoint: schedulers send the one, people the other."""

import contextlib
import os
import signal
import threading
from typing import Callable, Iterator

# exit codes are what shells report of a process that a signal ended
ASKED = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """Raised where a process waits that long that a signal is not to wait for its end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def exit_code(number: int) -> int:
    """143 of SIGTERM, 130 of SIGINT."""
    return 128 + number


class Signals:
    """While it is entered, ``note(number)`` is called for each signal; the second SIGINT raises KeyboardInterrupt, as it would without.

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
        if os.getpid() != self._process:  # forked from this one, with its handler
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
            if self.number:  # workers that the same signal has ended
                raise Interrupted(self.number) from error
            raise
        finally:
            self._raise = False
