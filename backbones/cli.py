"""The console command ``backbones VERB ...``, also as ``python -m backbones VERB ...``."""

import difflib
import importlib
import importlib.metadata
import sys

from .errors import choices

# verb -> (module with a function of the last name, what it does)
VERBS = {
    "train": ("backbones.tools.train:command_line", "train or evaluate a detector, as train_net.py does"),
    "dataset": ("backbones.tools.dataset:main", "convert, split, merge and show annotated images"),
    "doctor": ("backbones.tools.doctor:main", "find everything that would spoil a training"),
    "demo": ("backbones.tools.demo:main", "find objects in images, a video or a camera, and draw them"),
    "export": ("backbones.tools.export:main", "export a detector to ONNX, OpenVINO or TorchScript"),
    "convert": ("backbones.convert.__main__:main", "convert checkpoints of other projects"),
    "visualize": ("backbones.tools.visualize:main", "draw detections next to the ground truth"),
    "recipe": ("backbones.tools.recipe:main", "work out a config for your data, this machine and your time"),
    "errors": ("backbones.tools.errors:main", "show the kinds of errors in an evaluation, and the worst images"),
    "compare": ("backbones.tools.compare:main", "compare two evaluations: is the difference significant?"),
    "plot": ("backbones.tools.plot:main", "plot training curves"),
    "analyze": ("backbones.tools.analyze:main", "count parameters and operations"),
    "benchmark": ("backbones.tools.benchmark:main", "measure speed and memory"),
    "study": ("backbones.tools.study:main", "train many networks alike: what predicts AP, and do searches pay?"),
    "zoo": ("backbones.tools.zoo:main", "list, show, download and check configs and weights"),
    "search": ("backbones.search.zero_shot:main", "search for a network within a budget, without training"),
    "search-paths": ("backbones.search.one_shot:main", "search the paths of a trained supernet"),
}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print("usage: backbones VERB ...\n\nbackbones VERB --help shows the options of a verb, backbones --version the version.\n\nverbs:")
        for name, (_, what) in VERBS.items():
            print(f"  {name:<14}{what}")
        return
    if verb in ("-V", "--version"):
        print(f"backbones {importlib.metadata.version('backbones')}")
        return
    from .tools import run  # heavy, so not needed for --help

    if verb not in VERBS:
        close = difflib.get_close_matches(verb.lower(), VERBS, 1, 0.6)
        said = f"unknown verb: {verb!r}. {choices(VERBS, close, 'backbones --help')}"
        print(f"backbones: error: {said}", file=sys.stderr)
        sys.exit(2)
    module, _, function = VERBS[verb][0].partition(":")
    sys.argv = [f"backbones {verb}", *arguments[1:]]
    run(lambda: getattr(importlib.import_module(module), function)())
