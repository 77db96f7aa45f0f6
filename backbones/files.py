"""Writing files that a killed run does not leave half-written, and telling contents apart."""

import contextlib
import difflib
import hashlib
import os
from typing import Iterator

from .errors import UserError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """The name of a file beside ``path`` that takes its place when it is written; where that fails, nothing is left of it."""
    partial = path + ".partial"
    try:
        yield partial
        with open(partial, "r+b") as f:  # Windows flushes no file that is open for reading alone
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def write_whole(path: str, text: str) -> None:
    """Writes a file so that it is there whole or as it was before. Raises UserError where it cannot be."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with replacing(path) as partial, open(partial, "w", encoding="utf-8") as f:
            f.write(text)
    except OSError as error:
        raise UserError(f"{path!r} cannot be written: {error.strerror}", "cannot-write") from error


def sha256(path: str) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def nearest(path: str, endings: tuple[str, ...]) -> str:
    """The file of one of the ``endings`` beside a ``path`` that is not there, whose name is nearest to its own; "" where none is near."""
    folder, name = os.path.split(path)
    beside = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    close = difflib.get_close_matches(name, [file for file in beside if file.endswith(endings)], 1)
    return os.path.join(folder, close[0]) if close else ""
