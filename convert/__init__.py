"""Checkpoints of other projects as ours, with a proof: ``python -m convert <source> SRC DST``, see ``python -m convert --help``."""
