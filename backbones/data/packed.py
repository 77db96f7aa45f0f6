"""Records of a data set in one file that processes of a machine map into memory: together they take the room of one."""

import mmap
import os
import pickle
import tempfile
from typing import Any, Iterable, Sequence


class Packed(Sequence):
    """A list of pickled items, each read where it is asked for.

    ``about`` goes with them. `forget` removes the file; who has it open keeps it.
    """

    def __init__(self, items: Iterable[Any], about: Any = None):
        self.about = about
        self.places = [0]
        with tempfile.NamedTemporaryFile(prefix="backbones-", delete=False) as f:
            for item in items:
                f.write(pickle.dumps(item, protocol=-1))
                self.places.append(f.tell())
        self.path = f.name
        self._open()

    def _open(self) -> None:
        with open(self.path, "rb") as f:
            self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if self.places[-1] else b""

    def __len__(self) -> int:
        return len(self.places) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self.places[index] : self.places[index + 1]])

    def forget(self) -> None:
        """Removes the file's name, when all who are to read it have it open."""
        if os.path.isfile(self.path):
            os.remove(self.path)

    def __getstate__(self) -> dict[str, Any]:
        if os.path.isfile(self.path):
            return {key: value for key, value in self.__dict__.items() if key != "_bytes"}
        return {**self.__dict__, "_bytes": bytes(self._bytes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_bytes" not in state:
            self._open()
