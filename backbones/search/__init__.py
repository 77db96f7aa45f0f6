"""Architecture search: over structures without training (`zero_shot`), and over the paths of a trained supernet (`one_shot`)."""

import sys

from tqdm import tqdm


def progress(**kwargs) -> tqdm:
    """A progress bar on a terminal, an occasional line in a log."""
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 15, **kwargs)
