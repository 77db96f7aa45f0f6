#!/usr/bin/env python
"""Trains or evaluates a detector: `train_net.py --help`. The same as `backbones train`."""

from backbones.tools.train import argument_parser, command_line  # noqa: F401  for user scripts

if __name__ == "__main__":
    command_line()
