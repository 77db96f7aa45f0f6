"""A detector, or its backbone and FPN, as a traceable function of tensors, and how to make it find something to check an export on."""

import contextlib
import io
import warnings
from functools import partial
from typing import Any, Callable, Iterator

import torch
from detectron2.layers import shapes_to_tensor
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, ProposalNetwork
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import BaseKeypointRCNNHead
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..detectors import ImageClassifier
from ..errors import UserError
from . import preprocessing, run_exported
from .runner import FIELDS


class Heatmaps(nn.Module):
    """A keypoint head that leaves its maps to `Runner`: other runtimes cannot search for peaks region by region."""

    def __init__(self, head: BaseKeypointRCNNHead):
        super().__init__()
        self.head: Any = head

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        for one, maps in zip(instances, self.head.layers(x).split([one.pred_boxes.tensor.shape[0] for one in instances])):
            one.pred_keypoint_heatmaps = maps
        return instances


class Traceable(nn.Module):
    """Maps an image (3, H, W), or ``batch`` images (N, 3, H, W), to a detector's results; or images to the features of its backbone.

    With ``about`` from `describe`, images are original ones, (H, W, 3) RGB uint8, and boxes are in their pixels.
    ``fields`` names the results. For a batch, the objects of the images are concatenated, "counts" (N,) in each.
    """

    def __init__(self, model: Any, part: str, batch: int = 0, about: dict[str, Any] | None = None):
        super().__init__()
        self.model, self.part, self.batch, self.about = model, part, batch, about
        head = getattr(getattr(model, "roi_heads", None), "keypoint_head", None)
        if isinstance(head, BaseKeypointRCNNHead):
            model.roi_heads.keypoint_head = Heatmaps(head)
        prepare = getattr(model, "preprocess_image", None)
        if prepare:
            model.preprocess_image = partial(_padded, lambda images: prepare([{"image": images[0]}]))
        self.fields: tuple[str, ...] = tuple(model.backbone.output_shape()) if part == "backbone" else ()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.part == "backbone":
            features = self.model.backbone((image - self.model.pixel_mean) / self.model.pixel_std)
            return tuple(features[name] for name in self.fields)
        images = image if self.batch else image[None]
        if self.about:
            x = preprocessing.prepared(images, self.about)
            each = [preprocessing.in_pixels(one, x.shape[2:], images.shape[1:3]) for one in _found(self.model, x)]
        else:
            each = _found(self.model, images)
        found = _together(each) if self.batch else each[0]
        return tuple(found.values())

    def alone(self, x: Tensor) -> list[dict[str, Tensor]]:
        """The expected results for the file's input ``x``, computed for each image alone. Sets ``fields``."""
        if self.part == "backbone":
            return [dict(zip(self.fields, self(x)))]
        each = [self._of_one(image) for image in (x if self.batch else x[None])]
        self.fields = tuple(_together(each) if self.batch else each[0])
        return each

    def _of_one(self, image: Tensor) -> dict[str, Tensor]:
        if not self.about:
            return _found(self.model, image[None])[0]
        x = torch.from_numpy(run_exported.prepared(image.numpy(), self.about))  # by Pillow itself
        return preprocessing.in_pixels(_found(self.model, x[None])[0], x.shape[1:], image.shape[:2])


def _padded(pad: Callable[[list[Any]], ImageList], images: Any) -> ImageList:
    """Pads images (N, 3, H, W) of one size as ``pad`` does in a trace with one image; it would copy several one by one."""
    padded = pad([images])
    return ImageList(padded.tensor[0], padded.image_sizes * int(padded.tensor.shape[1]))


def _together(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Joins the results of the images of a batch; `run_exported.separated` undoes it."""
    objects = next((name for name in ("boxes", "proposals") if name in each[0]), "")
    join = {name: torch.cat if objects and name != "sem_seg" else torch.stack for name in each[0]}
    found = {name: join[name]([one[name] for one in each]) for name in each[0]}
    if objects:
        found["counts"] = torch.stack([shapes_to_tensor([one[objects].shape[0]])[0] for one in each])
    return found


def _found(model: Any, images: Tensor) -> list[dict[str, Tensor]]:
    """A detector's results for each of some images (N, 3, H, W), before scaling to the original size."""
    if isinstance(model, ImageClassifier):
        return [{"scores": one["scores"]} for one in model([{"image": image} for image in images])]
    extra: list[dict[str, Tensor]] = [{}] * int(images.shape[0])
    if isinstance(model, PanopticFPN):
        instances, sem_seg = model.inference(images, do_postprocess=False)
        extra = [{"sem_seg": one} for one in sem_seg]
    elif isinstance(model, GeneralizedRCNN):
        instances = model.inference(images, do_postprocess=False)
    elif isinstance(model, DenseDetector):
        padded = model.preprocess_image(images)
        features = model.backbone(padded.tensor)
        features = [features[name] for name in model.head_in_features]
        instances = model.forward_inference(padded, features, model.head(features))
    elif isinstance(model, ProposalNetwork):
        normalized = (images - model.pixel_mean) / model.pixel_std
        padded = _padded(partial(ImageList.from_tensors, size_divisibility=model.backbone.size_divisibility), normalized)
        instances = model.proposal_generator(padded, model.backbone(padded.tensor), None)[0]
    else:
        message = f"{type(model).__name__} cannot be exported as a whole: export its backbone with --part backbone"
        raise UserError(message, "unsupported", "--part", "backbone")
    return [{**_tensors(one), **more} for one, more in zip(instances, extra)]


def _tensors(instances: Instances) -> dict[str, Tensor]:
    """Their contents, by the names of the file's outputs."""
    found = {name: instances.get(field) for name, field in FIELDS.items() if instances.has(field)}
    return {name: value if isinstance(value, Tensor) else value.tensor for name, value in found.items()}


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Also traces ``len`` of tensors in detectron2's modules. Hides warnings about branches on types and lengths: parity is checked."""
    from detectron2.export.torchscript_patch import patch_builtin_len

    with patch_builtin_len(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _edge(scores: Tensor, count: int) -> float:
    """A threshold that about ``count`` scores exceed, in the widest gap nearby, which rounding does not cross."""
    if not len(scores):
        raise UserError("it finds nothing at all", "data")
    best = scores.sort(descending=True).values[: 2 * count]
    gaps = best[:-1] - best[1:]
    if not gaps.any():  # all are alike
        return float(best[0]) / 2
    place = int(gaps.argmax())
    return float(best[place : place + 2].mean())


@contextlib.contextmanager
def finding_more(traceable: Traceable, inputs: list[Tensor], count: int = 10) -> Iterator[None]:
    """Lowers a detector's score threshold so that it finds something in each image. Raises UserError if that is impossible."""
    modules: list[Any] = [module for module in traceable.modules() if hasattr(module, "test_score_thresh")]
    thresholds = [module.test_score_thresh for module in modules]
    try:
        for module in modules:
            module.test_score_thresh = 0.0
        lowered = min(_edge(one["scores"], count) for x in inputs for one in traceable.alone(x))
        for module in modules:
            module.test_score_thresh = lowered
        yield
    finally:
        for module, threshold in zip(modules, thresholds):
            module.test_score_thresh = threshold
