"""Records of a data set in one file that all processes of a machine map into memory, so that they share one copy."""

import contextlib
import mmap
import os
import pickle
import tempfile
from typing import Any, Iterable, Sequence

import numpy as np


class Packed(Sequence):
    """A list of pickled items, each read when it is accessed.

    ``about`` is stored with them. `forget` removes the file, but processes that have it open keep it. The file ends with the offsets: a process
    that gets a pickle of this list gets no more than the file's name, and can start while the next one is started.
    """

    def __init__(self, items: Iterable[Any], about: Any = None):
        self.about = about
        places = [0]
        with tempfile.NamedTemporaryFile(prefix="backbones-", delete=False) as f:
            for item in items:
                f.write(pickle.dumps(item, protocol=-1))
                places.append(f.tell())
            f.write(np.array(places, np.int64).tobytes())
        self.path, self.length = f.name, len(places) - 1
        self._open()

    def _open(self) -> None:
        with open(self.path, "rb") as f:
            self._look_up(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))

    def _look_up(self, content: bytes | mmap.mmap) -> None:
        self._bytes, self._places = content, np.frombuffer(content, np.int64, offset=len(content) - 8 * (self.length + 1))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self._places[index] : self._places[index + 1]])

    def forget(self) -> None:
        """Removes the file's name, once all its readers have it open."""
        with contextlib.suppress(FileNotFoundError, PermissionError):  # Windows keeps a file while it is open
            os.remove(self.path)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("_bytes", "_places")}
        return state if os.path.isfile(self.path) else {**state, "content": bytes(self._bytes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        content = state.pop("content", None)
        self.__dict__.update(state)
        if content is None:
            self._open()
        else:
            self._look_up(content)
