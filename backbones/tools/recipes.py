"""Compares recipes on four small data sets with COCO's 3x recipe scaled by hand, and with configs tuned by hand for such data.

backbones benchmark trains one config; this makes the data sets from real handwriting, works the recipes out, and trains every way for the same
minutes: the number of iterations follows from a few measured steps. A recipe's minutes hold its evaluations, those of the other ways do not.
Each run's row goes to the file (`make recipes`). A second start continues: it skips runs of the same config that have a row, and works out
configs again only if the rules have changed.
"""

import glob
import hashlib
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import cv2
import numpy as np

from .. import zoo
from ..benchmark import speed
from ..config import check_output_file
from ..data import digits
from ..errors import UserError
from ..files import write_whole
from ..recipe.measuring import iterations_of
from . import parser_of, program, recipe, run
from .benchmark import machine, record, train, words

NETWORK = "timm/tf_efficientnet_lite0.in1k"
# name -> images to train on, those to evaluate on, side of the images, sides of the digits, digits an image, classes
SETS: dict[str, dict[str, Any]] = {
    "sixty scenes": {"task": "boxes", "train": 60, "val": 60},
    "digits of 10 to 20 pixels": {"task": "boxes", "train": 60, "val": 40, "size": 640, "sides": (14, 28), "count": (8, 25)},
    "masks, a rare class": {"task": "masks", "train": 120, "val": 60, "classes": {0: 1.0, 1: 1.0, 2: 0.03}},
    "keypoints": {"task": "keypoints", "train": 120, "val": 40, "one": True},
}
WAYS = ("recipe", "3x by hand", "tuned by hand")
_KIND = {"boxes": "faster", "masks": "mask", "keypoints": "keypoint"}


def make(name: str, folder: str) -> dict[str, tuple[str, str]]:
    """Writes a data set, the same every time; returns (annotations, images) of its parts."""
    about = SETS[name]
    ink, labels = digits.handwriting()
    held = len(labels) - digits.HELD_OUT
    found = {}
    for seed, (split, part) in enumerate((("train", slice(0, held)), ("val", slice(held, None)))):
        own, kinds = ink[part], labels[part]
        rng = np.random.default_rng((7, seed))
        if "classes" in about:  # as often as their weights tell
            weights = np.array([about["classes"].get(int(kind), 0.0) for kind in kinds])
            chosen = rng.choice(len(kinds), 3000, p=weights / weights.sum())
            own, kinds = own[chosen], kinds[chosen]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        root = os.path.join(folder, split)
        os.makedirs(root, exist_ok=True)
        for number in range(1, about[split] + 1):
            options = {key: about[key] for key in ("size", "sides", "count") if key in about}
            scene = digits.Scene(np.random.default_rng((7, seed, number)), own, kinds, **options)
            cv2.imwrite(os.path.join(root, f"{number:04d}.jpg"), scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            height, width = scene.image.shape[:2]
            images.append({"id": number, "file_name": f"{number:04d}.jpg", "height": height, "width": width})
            for a in scene.annotations:
                kept = {key: a[key] for key in _FIELDS[about["task"]]}
                category = 1 if about.get("one") else a["category_id"]
                annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **kept, "category_id": category})
        names = ["digit"] if about.get("one") else [str(kind) for kind in sorted(about.get("classes", range(10)))]
        more = {"keypoints": digits.KEYPOINTS, "skeleton": []} if about["task"] == "keypoints" else {}
        categories = [{"id": i + 1, "name": each, **more} for i, each in enumerate(names)]
        path = os.path.join(folder, f"{split}.json")
        with open(path, "w") as f:
            json.dump({"images": images, "annotations": annotations, "categories": categories}, f)
        found[split] = (path, root)
    return found


_FIGURES = {"boxes": ("ap", "ap50"), "masks": ("ap", "ap50", "mask_ap"), "keypoints": ("ap", "ap50", "keypoint_ap")}
_FIELDS = {
    "boxes": ("bbox", "area"),
    "masks": ("bbox", "area", "segmentation"),
    "keypoints": ("bbox", "area", "keypoints", "num_keypoints"),
}


class Way(NamedTuple):
    """One way to train on a data set: a config, the flags and overrides that go with it, and another backbone."""

    name: str
    config: str
    opts: list[str]
    backbone: str = ""
    data: Sequence[str] = ()


def ways(name: str, folder: str, data: list[str], wanted: Sequence[str], minutes: float) -> Iterator[Way]:
    """The requested ways to train on a data set, each as long as allowed; reuses those of an earlier start if nothing has changed."""
    path, source = os.path.join(folder, "ways.json"), {"minutes": minutes, "machine": machine(), "rules": _rules()}
    known = json.load(open(path)) if os.path.isfile(path) else {}
    for way in wanted:
        if known.get(way, {}).get("source") != source:
            known[way] = {"source": source, "way": _in_a_process(_worked_out, way, name, folder, data, minutes)}
            write_whole(path, json.dumps(known, indent=1) + "\n")
        yield Way(*known[way]["way"])


def _in_a_process(call: Callable[..., Any], *args: Any) -> Any:
    """Runs in a process of its own, which frees the memory used for measuring before training starts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


def _worked_out(way: str, name: str, folder: str, data: list[str], minutes: float) -> Way:
    """A recipe, or a config with as many iterations as a few measured steps allow."""
    if way == "recipe":
        found = Way(way, os.path.join(folder, "recipe.yaml"), [])
        args = recipe.argument_parser().parse_args([*data, "--minutes", str(minutes), "--device", "cpu", "--output", found.config])
        args.output_dir = os.path.join(folder, "out")
        recipe.design(args, found.config, say=lambda line: None)
        return found
    kind = SETS[name]["task"]
    if way == "3x by hand":  # as in detectron2's documentation: a learning rate proportional to the batch, and steps at 7/9 and 8/9
        own = {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.BASE_LR": 0.0025, "MODEL.MASK_ON": kind == "masks", "MODEL.KEYPOINT_ON": kind == "keypoints"}
        found = Way(way, "COCO-Detection/faster_rcnn_V_39_FPN_3x.yaml", words(own), NETWORK, data)
    else:
        sigmas = {"TEST.KEYPOINT_OKS_SIGMAS": [0.25] * len(digits.KEYPOINTS)} if kind == "keypoints" else {}  # as all own data are evaluated
        found = Way(way, f"digits/{_KIND[kind]}_rcnn_digits.yaml", words(sigmas), "", data)
    count = iterations_of(found.config, found.opts, found.backbone, data, minutes)
    steps = {"SOLVER.MAX_ITER": count, "SOLVER.STEPS": (count * 7 // 9, count * 8 // 9), "SOLVER.WARMUP_ITERS": min(1000, count // 5)}
    return found._replace(opts=[*found.opts, *words(steps)])


def _minutes_of_steps(output: str) -> float:
    """Minutes of a run without evaluations, from its log."""
    with open(os.path.join(output, "log.txt"), encoding="utf-8") as f:
        hours, minutes, seconds = re.findall(r"Overall training speed: \d+ iterations in (?:.* )?(\d+):(\d+):(\d+)", f.read())[-1]
    return round(60 * int(hours) + int(minutes) + int(seconds) / 60, 2)


def _diverged(output: str) -> bool:
    """Whether a run ended because its weights or losses were no longer finite."""
    with open(os.path.join(output, "log.txt"), encoding="utf-8") as f:
        return "diverged" in f.read()


def _processor() -> float:
    """Processor seconds of the commands that have ended: comparable even if the machine is busy."""
    times = os.times()
    return times.children_user + times.children_system


def _rules() -> str:
    """What ways depend on besides data, machine and time: changed rules give different ones."""
    folder = os.path.dirname(os.path.dirname(__file__))
    files = sorted(glob.glob(os.path.join(folder, "recipe", "*.py"))) + [__file__]
    return _digest(*(open(file, encoding="utf-8").read() for file in files))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def main() -> None:
    parser = parser_of(program("recipes"), __doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="(default: all)")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3), help="(default: 1 2 3)")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of each training (default: %(default)g)")
    parser.add_argument("--output", default="output/recipes", metavar="DIR", help="where the runs go (default: %(default)s)")
    default = os.path.join(os.path.dirname(zoo.__file__), "recipes.json")
    parser.add_argument("--json", default=default, metavar="FILE", help="where the rows go (default: recipes.json of backbones/zoo)")
    args = parser.parse_args()
    check_output_file(args.json, "--json")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}: it must be positive", "value", "--minutes")
    for name in args.sets:
        folder = os.path.abspath(os.path.join(args.output, name.replace(" ", "_").replace(",", "")))
        data = [item for split, (file, root) in make(name, folder).items() for item in (f"--{split}", file, f"--{split}-images", root)]
        for way in ways(name, folder, data, args.ways, args.minutes):
            with open(zoo.get_config_file(way.config) if way.config in zoo.list_configs() else way.config, encoding="utf-8") as f:
                contents = _digest(f.read(), *way.opts)
            for seed in args.seeds:
                own = {"set": name, "way": way.name, "asked_minutes": args.minutes, "contents": contents, "seed": seed, "machine": machine()}
                done = speed.read(args.json) if os.path.isfile(args.json) else []
                if any(all(row.get(key) == value for key, value in own.items()) for row in done):
                    print(f"{name}, {way.name}, seed {seed}: in {args.json} already, skipped", flush=True)
                    continue
                output = os.path.join(folder, f"{way.name.replace(' ', '_')}_{seed}")
                begun = _processor()
                try:
                    row = train(way.config, output, [*way.opts, "SEED", str(seed), "MODEL.DEVICE", "cpu"], way.backbone, way.data)
                    row["training_minutes"] = _minutes_of_steps(output)
                except UserError:
                    if not _diverged(output):
                        raise
                    row = {**dict.fromkeys(_FIGURES[SETS[name]["task"]], 0.0), "diverged": True}
                row = {
                    **own,
                    **row,
                    "processor_minutes": round((_processor() - begun) / 60, 2),
                    "config": os.path.basename(way.config),
                    "data": name,
                    "command": "make recipes",
                }
                record(row, args.json, ("set", "way", "machine", "seed"))


if __name__ == "__main__":
    run(main)
