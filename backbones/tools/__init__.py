"""Thin command lines over the package: ``backbones VERB --help``, also ``python -m backbones.tools.VERB --help``."""

import argparse
import contextlib
import io
import os
import re
import sys
from typing import Any, Callable, Iterable, NoReturn, Sequence

from detectron2.data import DatasetCatalog

from ..config import check_output_file
from ..data.sources import unknown_data_set
from ..engine import open_config
from ..engine.logs import hush
from ..errors import UserError, either, unknown
from ..evaluation.results import config_of, folder_of, results_file
from ..files import not_there


def run(main: Callable[[], None], prefix: str = "") -> None:
    """Runs a tool's ``main``; a user's mistake becomes one line that starts with ``prefix``, and exit code 2."""
    hush()
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a name shows its code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # such as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at its end fails too
        sys.exit(141)
    except UserError as error:
        print(f"{prefix}error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def program(verb: str) -> str:
    """The command that the user typed to start a tool, for its help."""
    return f"backbones {verb}" if sys.argv[0].startswith("backbones ") else f"python -m backbones.tools.{verb}"


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line. It names a misspelt flag before the flag that is missing because of it."""

    _flags: Sequence[str] = ()  # that were given

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(self._words(args), namespace)
        for word in rest:  # the others may be config overrides
            if re.match("-[^0-9.]", word):
                self._refuse(word.partition("=")[0])
        return found, rest

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_intermixed_args(self._words(args), namespace)  # whose errors are of `error`, in newer Pythons alone

    def _words(self, args: Any) -> list[str]:
        words = sys.argv[1:] if args is None else list(args)
        self._flags = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        return words

    def error(self, message: str) -> NoReturn:
        if not any(action.nargs == argparse.PARSER for action in self._actions):  # else they may be its verb's
            for flag in self._flags:
                if not any(known.startswith(flag) for known in self._known()):
                    self._refuse(flag)
        self._end(message if "Allowed: " in message else f"{message}. To see all flags: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, str(unknown("value", value, action.choices)))

    def _known(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def _refuse(self, flag: str) -> NoReturn:
        self._end(str(unknown("flag", flag, self._known(), listed=f"{self.prog} --help")))

    def _end(self, said: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {said}\n")


def parser_of(prog: str, text: str) -> Parser:
    """Makes a tool's parser; its help shows the first line of ``text`` above the flags and the rest below."""
    summary, _, details = text.partition("\n")
    return Parser(prog=prog, description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)


def check_needed(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str], other: str, there: Any) -> None:
    """Raises UserError if flags have other values than their defaults although the flag that they belong to is not given."""
    for name in () if there else names:
        if getattr(args, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} needs {other}: alone it changes nothing", "missing-argument", flag)


def _score(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} must be from 0 to 1, such as 0.5")


def add_threshold(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds ``--confidence-threshold``, named as in detectron2's demo, with the names of other tools as aliases."""
    flags = ("--confidence-threshold", "--conf-threshold", "--threshold")
    parser.add_argument(*flags, type=_score, default=0.5, metavar="SCORE", help=f"{text} (default: %(default)s)")


def nothing_shown(scores: Any, threshold: float) -> str:
    """The message if there are ``scores`` and none of them reaches the threshold; else ""."""
    highest = max((float(score) for score in scores), default=1.0)
    return f"no objects with a score of {threshold:g} (--confidence-threshold), the highest is {highest:.2f}" if highest < threshold else ""


def check_results_exist(path: str) -> None:
    """Raises UserError, with the nearest, for results or the folder of a run that are not there."""
    if not os.path.exists(path):
        raise not_there("result file" if os.path.splitext(path)[1] else "the folder of a run", path)


def evaluated(path: str, config: str = "", name: str | None = None) -> tuple[Any, str | None, str]:
    """What results are of, where ``path`` is a run's folder or the results in it: (their config, opened; the data set; the file).

    The config is ``config`` or the run's own, or None. The data set is ``name``, else that of the results' folder, else the first of the
    config's DATASETS.TEST, or None. Raises UserError for a config that cannot be opened.
    """
    check_results_exist(path)
    if path.endswith((".pth", ".pkl", ".safetensors")):
        raise UserError(f"{path!r} is a checkpoint: name the folder of its run, or the results in it", "value")
    config = config or config_of(path)
    front = open_config(config) if config else None
    tested = list(front.settings.DATASETS.TEST) if front else []
    of_folder = [each for each in tested if os.path.isfile(path) and folder_of(each) == os.path.basename(os.path.dirname(path))]
    name = name or next(iter([*of_folder, *tested]), None)
    return front, name, results_file(path, name, tested)


def dataset_of(front: Any, name: str | None, other: str = "") -> str:
    """The name of the data that were evaluated, which are registered if they come from a config, and whose oddities are printed.

    Raises UserError for a name that nothing knows; ``other``: what may be given instead of it.
    """
    if not name:
        raise UserError(f"the evaluated data are unknown: name them with --dataset{other}", "missing-argument", "--dataset")
    if front:
        front.register(names=[name])
        for line in front.said:
            print(line)
    if name not in DatasetCatalog:
        if front:
            front.register()  # among all, the error finds the nearest
        elif name.startswith("own_"):  # as --train and --val name them
            said = f"data set {name!r} belongs to a run: name its config.yaml with --config-file{other}"
            raise UserError(said, "unknown-name", "--dataset")
        raise unknown_data_set("data set", name, "--dataset")
    return name


def task_named(text: str) -> str:
    """COCO's name of ``--task``, which may also be given as a recipe names it."""
    return {"boxes": "bbox", "masks": "segm"}.get(text, text)


def as_is(text: str) -> str:
    """What makes matplotlib show a text: one with $ is a formula to it, and a label that begins with _ is none."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def picture(path: str, kinds: Sequence[str] = (".png", ".jpg", ".jpeg"), flag: str = "--output") -> None:
    """Raises UserError if no picture of one of these ``kinds`` can be written to ``path``."""
    kind = os.path.splitext(path)[1].lower()
    if kind not in kinds:
        raise UserError(f"{flag} {path!r} must end in {either(kinds)}", "value", flag)
    check_output_file(path, "the picture")
