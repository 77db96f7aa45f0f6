"""Architecture search: of structures without training (`zero_shot`), and of a trained supernet's paths (`one_shot`)."""

import sys

from tqdm import tqdm


def progress(**kwargs) -> tqdm:
    """A progress bar on a terminal, a line now and then in a log."""
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 15, **kwargs)
