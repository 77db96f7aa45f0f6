"""Opens a config, YAML or Python, by its path or name; and the command-line flags that name it."""

import argparse
import logging
import os
from typing import Sequence

from .. import zoo
from ..errors import UserError
from .front import Front, named
from .lazy import PythonFront, is_python
from .trainer import YamlFront


def open_config(name: str, opts: Sequence[str] = (), backbone: str = "", weights: str = "", accepted: Sequence[str] = ()) -> Front:
    """Opens the config at a path, or of that name in a zoo, with command-line overrides and another ``backbone`` or ``weights``.

    ``accepted``: restrictive licences that the user accepts for weights.

    Raises UserError for a config that cannot be read.
    """
    path = zoo.get_config_file(name) if name else ""
    kind = PythonFront if is_python(path) else YamlFront
    licences = zoo.weights.known_licences(accepted)
    front = kind.read(path, list(opts), backbone, weights, licences)
    front.accepted = licences
    return front


def open_named(args: argparse.Namespace, opts: Sequence[str] | None = None) -> Front:
    """The config that the flags of `add_config_arguments` name; ``opts`` replaces their overrides. Raises UserError."""
    words = [named(item) for item in getattr(args, "opts", ())]
    for key in ("MODEL.WEIGHTS", "train.init_checkpoint"):
        if args.weights and key in words:
            raise UserError(f"--weights and {key} name weights: leave one out", "conflict", "--weights")
    return open_config(args.config_file, args.opts if opts is None else opts, args.backbone, args.weights, args.accept_licence)


def stay_in_moved_folder(front: Front, opts: Sequence[str], does: str = "the run continues") -> None:
    """If a run's folder was moved, what it ``does`` is done next to its config.yaml, unless the command line names a folder."""
    folder, key = os.path.dirname(front.path), front.name("OUTPUT_DIR")
    given = key in map(named, opts)
    left = os.path.basename(front.path) == "config.yaml" and os.path.isfile(os.path.join(folder, "last_checkpoint"))
    if left and not given and os.path.realpath(front.settings.OUTPUT_DIR) != os.path.realpath(folder):
        logging.getLogger(__name__).warning(f"{key} {front.settings.OUTPUT_DIR!r} of {front.path!r} was moved: {does} in {folder!r}")
        front.set("OUTPUT_DIR", folder)


def add_config_arguments(parser: argparse.ArgumentParser, required: bool = False, overrides: bool = True) -> None:
    """Adds ``--config-file``, the flags that change it, and the ``overrides`` after all flags."""
    parser.add_argument("--config-file", default="", required=required, metavar="FILE", help="a config's path or name, YAML or Python")
    parser.add_argument("--backbone", default="", metavar="NAME", help="use this network, from backbones.list_backbones(), in the config")
    text = "start from these weights, which also set the image format: a path, an address, or a source (timm, torchvision, pycls)"
    parser.add_argument("--weights", default="", metavar="SOURCE", help=text)
    text = "accept weights under this restrictive licence, such as CC-BY-NC-4.0, if a network has no others"
    parser.add_argument("--accept-licence", action="append", default=[], metavar="NAME", help=text)
    if overrides:
        parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE each, or key=value of a Python config")
