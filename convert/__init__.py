"""Checkpoints of other projects as ours, with a proof: ``backbones convert SOURCE SRC DST``, see ``backbones convert --help``."""
