"""Writes files so that a killed run leaves none half-written, and identifies contents."""

import contextlib
import difflib
import errno
import hashlib
import os
from typing import Any, Iterable, Iterator

from .errors import UserError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """The name of a temporary file that replaces ``path`` once it is written; if that fails, it is removed. Makes its folder.

    Where ``path`` is a link, the file that it leads to is replaced. A device or pipe is not: that is an OSError.
    """
    if is_stream(path):
        raise OSError(errno.EINVAL, "it is not a file")
    path = os.path.realpath(path)
    partial = path + ".partial"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        yield partial
        with open(partial, "r+b") as f:  # Windows flushes only files that are open for writing
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def is_stream(path: str) -> bool:
    """Whether a path is something to write to that is no file, such as /dev/stdout, even if that leads to a file just now."""
    place = os.path.abspath(path)
    device = place.startswith("/dev/") and not f"{place}/".startswith("/dev/shm/")  # which is a folder in memory
    return os.path.exists(path) and (device or not (os.path.isfile(path) or os.path.isdir(path)))


def write_whole(path: str, content: str | bytes) -> None:
    """Writes a file completely, or leaves it as it was; writes to a device or pipe. Raises UserError if it cannot be written."""
    try:
        with contextlib.nullcontext(path) if is_stream(path) else replacing(path) as target, open(target, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"{path!r} cannot be written: {error.strerror}", "cannot-write") from error


def save_figure(figure: Any, path: str) -> None:
    """Writes a picture of matplotlib's, complete or not at all. Raises UserError if it cannot be written."""
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=110, format=os.path.splitext(path)[1][1:].lower())
    except OSError as error:
        raise UserError(f"{path!r} cannot be written: {error.strerror}", "cannot-write") from error


def overwritten(outputs: Iterable[str], inputs: Iterable[str]) -> str:
    """The first of the ``outputs`` that is one of the ``inputs``, also by another name; "" if none is."""
    own = {os.path.realpath(path) for path in inputs}
    return next((path for path in outputs if os.path.realpath(path) in own), "")


def sha256(path: str) -> str:
    """The hash of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def nearest(path: str, endings: tuple[str, ...] = ("",)) -> str:
    """The file or folder, with one of the ``endings``, whose name is nearest to that of the missing ``path``, beside it; "" if none is near."""
    folder, name = os.path.split(path)
    beside = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    by_stem: dict[str, str] = {}
    for file in sorted((file for file in beside if file.endswith(endings)), key=lambda file: _ending(file) != _ending(name)):
        by_stem.setdefault(os.path.splitext(file)[0], file)
    close = difflib.get_close_matches(os.path.splitext(name)[0], by_stem, 1)
    return os.path.join(folder, by_stem[close[0]]) if close else ""


def _ending(path: str) -> str:
    return os.path.splitext(path)[1]


def not_there(what: str, path: str, key: str = "") -> UserError:
    """The error for a file or folder that is not there, with the nearest name beside it. ``what`` is its kind, or the flag that names it."""
    near = nearest(path.rstrip("/\\"))
    hint = f". Did you mean {near!r}?" if near else ""
    return UserError(f"{what} {path!r} does not exist{hint}", "missing-file", key, near or None)
