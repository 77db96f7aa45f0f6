"""Says on how many of 300 images exported files differ from their model: digits, photographs, flat colour, noise, sides of 1:10.

python tests/agreement.py output/digits/config.yaml output/digits/model_final.pth detector.onnx detector.xml

Detections agree to 0.1 pixels of the resized image and 0.001 of score, masks but for a pixel in 1,000. The exit code is 1 where more than 3
images differ: of two boxes whose overlap is the threshold of suppression to its last digit, either may be left. Weights should be trained: of
others many scores differ by less than rounding.
"""

import sys

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from sklearn.datasets import load_digits, load_sample_image

from backbones import zoo
from backbones.deploy import Runner
from backbones.deploy.export import Tolerance, match
from backbones.deploy.predictor import Predictor


def scene(rng: np.random.Generator, shapes: np.ndarray) -> np.ndarray:
    """Some digits on one colour."""
    height, width = rng.integers(120, 240, 2)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for digit in rng.choice(shapes, 4):
        side = int(rng.integers(16, 64))
        top, left = rng.integers(0, height - side), rng.integers(0, width - side)
        image[top : top + side, left : left + side] = cv2.resize((digit * 15.9).astype(np.uint8), (side, side))[..., None]
    return image


def images() -> list[tuple[str, np.ndarray]]:
    """300 of what an image shows, and the image (H, W, 3) BGR uint8. Photographs are scikit-image's too where that is installed."""
    rng, shapes = np.random.default_rng(0), load_digits().images
    photos = [load_sample_image(name)[:, :, ::-1] for name in ("china.jpg", "flower.jpg")]
    try:
        from skimage import data

        photos += [getattr(data, name)()[:, :, ::-1] for name in ("astronaut", "chelsea", "coffee")]
    except ImportError:
        print("without scikit-image's photographs: it is not installed")
    made = [("digits", scene(rng, shapes)) for _ in range(120)]
    for i in range(60):
        (height, width), photo = rng.integers(100, 300, 2), photos[i % len(photos)]
        top, left = rng.integers(0, photo.shape[0] - height + 1), rng.integers(0, photo.shape[1] - width + 1)
        made.append(("photograph", photo[top : top + height, left : left + width]))
    made += [("flat", np.full((*rng.integers(100, 300, 2), 3), rng.integers(0, 256, 3), np.uint8)) for _ in range(60)]
    made += [("noise", rng.integers(0, 256, (*rng.integers(100, 300, 2), 3)).astype(np.uint8)) for _ in range(30)]
    made += [("thin", cv2.resize(made[6 * i][1], (600, 60) if i % 2 else (60, 600))) for i in range(30)]
    return [(name, np.ascontiguousarray(image)) for name, image in made]


def differ(expected: Instances, found: Instances, pixels: float) -> bool:
    """Whether two lists of detections do, in any."""
    ours, theirs = ({"boxes": x.pred_boxes.tensor, "scores": x.scores, "classes": x.pred_classes} for x in (expected, found))
    pairs = match(ours, theirs, Tolerance(pixels, 1e-3))
    if not len(pairs) == len(expected) == len(found):
        return True
    if not expected.has("pred_masks") or not len(pairs):
        return False
    return bool((expected.pred_masks[pairs[:, 0]] != found.pred_masks[pairs[:, 1]]).float().mean() > 1e-3)


def main(config: str, weights: str, *files: str) -> int:
    cfg, shown = zoo.get_config(config), images()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = weights, "cpu"
    predictor = Predictor(cfg)
    shortest = [min(image.shape[:2]) for _, image in shown]
    pixels = [0.1 * max(side / (cfg.INPUT.MIN_SIZE_TEST or side), 1.0) for side in shortest]
    expected = [predictor(image)["instances"] for _, image in shown]
    bad = 0
    for file in files:
        runner = Runner(file)
        apart = [name for (name, image), ours, most in zip(shown, expected, pixels) if differ(ours, runner(image)["instances"], most)]
        total, empty = sum(map(len, expected)), sum(not len(ours) for ours in expected)
        print(f"{file}: differs on {len(apart)} of {len(shown)} images {sorted(set(apart))}; {total} detections, none in {empty}")
        bad += len(apart) > len(shown) // 100
    return min(bad, 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(*sys.argv[1:]))
