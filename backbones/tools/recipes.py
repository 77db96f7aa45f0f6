"""What recipes are worth: on four small data sets, beside COCO's 3x recipe scaled by hand, and beside configs tuned by hand for such data.

backbones benchmark trains one config; this makes the data sets from real handwriting, works the recipes out, and trains every way for the same
minutes: the number of iterations follows from a few measured steps. Rows go to the file and from there into model_zoo.md (`make recipes`).
"""

import argparse
import json
import os
from typing import Any, Iterator

import cv2
import numpy as np

from .. import zoo
from ..config import check_output_file
from ..data import digits
from ..errors import UserError
from ..recipe.design import EVALUATION, seconds_a_step
from . import parser_of, program, run
from .benchmark import record, train
from .recipe import design

NETWORK = "timm/tf_efficientnet_lite0.in1k"
# name -> images to train on, those to evaluate on, side of the images, sides of the digits, digits an image, classes
SETS: dict[str, dict[str, Any]] = {
    "sixty scenes": {"task": "boxes", "train": 60, "val": 100},
    "digits of 10 to 20 pixels": {"task": "boxes", "train": 60, "val": 40, "size": 640, "sides": (14, 28), "count": (8, 25)},
    "masks, a rare class": {"task": "masks", "train": 120, "val": 100, "classes": {0: 1.0, 1: 1.0, 2: 0.03}},
    "keypoints": {"task": "keypoints", "train": 120, "val": 100, "one": True},
}
_KIND = {"boxes": "faster", "masks": "mask", "keypoints": "keypoint"}


def make(name: str, folder: str) -> dict[str, tuple[str, str]]:
    """Writes a data set, the same every time; gives (annotations, images) of its parts."""
    about = SETS[name]
    ink, labels = digits.handwriting()
    held = len(labels) - digits.HELD_OUT
    found = {}
    for seed, (split, part) in enumerate((("train", slice(0, held)), ("val", slice(held, None)))):
        own, kinds = ink[part], labels[part]
        rng = np.random.default_rng((7, seed))
        if "classes" in about:  # as often as their weights say
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


_FIELDS = {
    "boxes": ("bbox", "area"),
    "masks": ("bbox", "area", "segmentation"),
    "keypoints": ("bbox", "area", "keypoints", "num_keypoints"),
}


def by_hand(kind: str) -> dict[str, Any]:
    """COCO's 3x for a batch of 2, as detectron2's documentation says: a rate in proportion; steps at 7/9 and 8/9."""
    return {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.BASE_LR": 0.0025, "MODEL.MASK_ON": kind == "masks", "MODEL.KEYPOINT_ON": kind == "keypoints"}


def ways(name: str, folder: str, args: argparse.Namespace) -> Iterator[tuple[str, str, list[str], str]]:
    """(way, config, overrides, backbone)"""
    kind = SETS[name]["task"]
    yield "3x by hand", "COCO-Detection/faster_rcnn_V_39_FPN_3x.yaml", _words(by_hand(kind)), NETWORK
    yield "tuned by hand", f"digits/{_KIND[kind]}_rcnn_digits.yaml", [], ""
    yield "recipe", os.path.join(folder, "recipe.yaml"), [], ""


def _words(options: dict[str, Any]) -> list[str]:
    return [str(part) for pair in options.items() for part in pair]


def main() -> None:
    parser = parser_of(program("recipes"), __doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="(default: all)")
    parser.add_argument("--ways", nargs="+", default=["recipe", "3x by hand", "tuned by hand"], help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3), help="(default: 1 2 3)")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training (default: %(default)g)")
    parser.add_argument("--output", default="output/recipes", metavar="DIR", help="where the runs go (default: %(default)s)")
    default = os.path.join(os.path.dirname(zoo.__file__), "recipes.json")
    parser.add_argument("--json", default=default, metavar="FILE", help="where the rows go (default: recipes.json of backbones/zoo)")
    args = parser.parse_args()
    check_output_file(args.json, "--json")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}: it must be positive", "value", "--minutes")
    for seed in args.seeds:
        for name in args.sets:
            folder = os.path.abspath(os.path.join(args.output, name.replace(" ", "_").replace(",", "")))
            made = make(name, folder)
            data = [item for split, (file, root) in made.items() for item in (f"--{split}", file, f"--{split}-images", root)]
            for way, config, opts, backbone in ways(name, folder, args):
                if way in args.ways:
                    _one(args, name, seed, folder, data, made, way, config, opts, backbone)


def _one(
    args: Any, name: str, seed: int, folder: str, data: list[str], made: Any, way: str, config: str, opts: list[str], backbone: str
) -> None:
    if way == "recipe":
        train_part, val_part = made["train"], made["val"]
        asked = argparse.Namespace(
            train_json=train_part[0], train_images=train_part[1], val_json=val_part[0], val_images=val_part[1], val_split=0,
            task="auto", minutes=args.minutes, iterations=None, latency=0.0, from_scratch=False, gpus=1, device="cpu",
            output_dir=os.path.join(folder, "out"),
        )  # fmt: skip
        design(asked, config, say=lambda line: None)
        data = []
    else:
        seconds = seconds_a_step(config, opts, backbone, data)
        count = max(int(60 * args.minutes * (1 - EVALUATION) / seconds), 5)
        steps = {"SOLVER.MAX_ITER": count, "SOLVER.STEPS": (count * 7 // 9, count * 8 // 9), "SOLVER.WARMUP_ITERS": min(1000, count // 5)}
        opts = [*opts, *_words(steps)]
    output = os.path.join(folder, f"{way.replace(' ', '_')}_{seed}")
    row = train(config, output, [*opts, "SEED", str(seed), "MODEL.DEVICE", "cpu"], backbone, data)
    row = {"set": name, "way": way, **row, "config": os.path.basename(config), "data": name, "command": "make recipes"}
    record(row, args.json, ("set", "way", "machine", "seed"))


if __name__ == "__main__":
    run(main)
