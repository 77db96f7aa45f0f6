"""A config's detector, called like detectron2's ``DefaultPredictor``: with checked weights, optimized on request."""

import logging
from typing import Any, Callable, Iterator, Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..data import images
from ..engine import Front, YamlFront
from .names import names_of
from .optimize import optimize


def size_in_mind(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of a 3:4 image as the config resizes it in evaluation."""
    height = cfg.INPUT.MIN_SIZE_TEST or 800
    return height, min(round(height * 4 / 3), max(cfg.INPUT.MAX_SIZE_TEST, height))


def evaluate_optimized(
    model: nn.Module,
    precision: str,
    evaluate: Callable[[nn.Module], dict[str, Any]],
    size: tuple[int, int] = (800, 1088),
    compile: bool = False,
) -> dict[str, Any]:
    """Evaluates the model, or with a ``precision`` the optimized one. For 16 bits it evaluates both and prints the difference."""
    if not precision:
        return evaluate(model)
    before = evaluate(model) if precision != "float32" else {}
    results = evaluate(optimize(model, precision=precision, size=size, compile=compile))
    rows = list(_differences(before, results))
    if rows and comm.is_main_process():
        table = tabulate(rows, ("", "float32", precision, "difference"), "pipe", floatfmt=".3f")
        logging.getLogger(__name__).info(f"what {precision} costs:\n{table}")
    return results


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float, float, float]]:
    """(name, before, after, difference) of the results of each task and data set, without those of single classes."""
    for name, value in before.items():
        if isinstance(value, Mapping):
            yield from _differences(value, after[name], f"{within}{name}/")
        elif "-" not in name:
            yield f"{within}{name}", value, after[name], after[name] - value


class Predictor:
    """Loads the detector of a config with its weights.

    Args:
        config: a full config, or an opened YAML or Python config.
        precision: one of `optimize.PRECISIONS` for an optimized model, see `optimize`, with MODEL.COMPILE compiled; "" for the model as it is.

    Attributes:
        metadata: class names, for drawing; ``said`` says where they come from. The data of the config need not exist.
        reading: how the config reads files, as arguments of `data.images.read`.

    Raises UserError if the weights do not fill the model.
    """

    def __init__(self, config: CfgNode | Front, precision: str = ""):
        front = YamlFront(config) if isinstance(config, CfgNode) else config
        front.follow_weights()
        self.model: nn.Module = front.build_model().eval()
        names = front.load_for_evaluation(self.model)
        self.metadata, self.said = names_of(front.settings, names.get("classes", ()), names.get("stuff", ()))
        if precision:
            s = front.settings
            self.model = optimize(self.model, precision=precision, size=size_in_mind(s), compile=s.MODEL.COMPILE)
        self.resize, self.format, self.reading = front.resize(), front.settings.INPUT.FORMAT, images.settings(front.settings)

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Predictions for an image (H, W, 3) BGR uint8, of its size or of another (height, width)."""
        height, width = size or image.shape[:2]
        sized = images.Input(images.converted(image, self.format))
        self.resize(sized)
        x = images.tensor(sized.image).float()
        with torch.no_grad():
            return self.model([{"image": x, "height": height, "width": width}])[0]
