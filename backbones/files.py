"""Writing files that a killed run does not leave half-written, and telling contents apart."""

import hashlib
import os

from .errors import UserError


def write_whole(path: str, text: str) -> None:
    """Writes a file so that it is there whole or as it was before. Raises UserError where it cannot be."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path + ".partial", "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + ".partial", path)
    except OSError as error:
        raise UserError(f"{path!r} cannot be written: {error.strerror}") from error


def sha256(path: str) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
