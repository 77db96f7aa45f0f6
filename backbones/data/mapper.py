"""detectron2's dataset mapper, reading images as the config says; and faster versions: the same tensors bit by bit ("exact"), or pixels that
differ by one level at most ("fast").

detectron2 converts an image between Pillow and numpy around each transform, and transposes masks one value at a time. This mapper first draws
all transforms, from the image's size alone and in the same order, and then applies them to what Pillow decoded; OpenCV transposes the masks.
"fast" reads JPEG files with simplejpeg where it is installed. It enlarges with OpenCV, and shrinks with torch's antialiased kernel. For a
config with an augmentation that looks at pixels, and for other kinds of data, the faster mapper does what detectron2's does.
"""

import copy
import itertools
from types import MappingProxyType
from typing import Any, Mapping, Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, VFlipTransform
from PIL import Image
from torch import Tensor

from ..upstream import turned
from . import images
from .annotations import run_lengths


class CropAroundObject(T.RandomCrop):
    """A random part of an image that has the centre of one of its objects; any part of an image without objects."""

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        sides = image.shape[:2]
        seen = np.clip(boxes, 0, 2 * sides[::-1])
        seen = seen[(seen[:, 2:] > seen[:, :2]).all(axis=1)]
        if not len(seen):
            return super().get_transform(image)
        box = seen[np.random.randint(len(seen))]
        return utils.gen_crop_transform_with_instance(self.get_crop_size(sides), sides, {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS})


# augmentations that follow from an image's size and its boxes; they make resizings, flips and crops
_BLIND = (T.ResizeShortestEdge, T.Resize, T.RandomFlip, T.RandomCrop, CropAroundObject)
_FLIPS = (HFlipTransform, VFlipTransform)


def _blank(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (height, width, 3))


class _Size(images.Input):
    """Stands in for an image while transforms are drawn: it has a size but no pixels."""

    boxes: Any

    def __init__(self, height: int, width: int, boxes: np.ndarray | None):
        super().__init__(_blank(height, width), boxes=boxes)

    def transform(self, tfm: Transform) -> None:
        self.keep_a_pixel(tfm)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if isinstance(tfm, T.ResizeTransform):
            self.image = _blank(tfm.new_h, tfm.new_w)
        elif isinstance(tfm, CropTransform):
            self.image = _blank(tfm.h, tfm.w)


class Mapper(DatasetMapper):
    """detectron2's ``DatasetMapper``, with the same calls and config; ``reading``: how files are read, of `images.settings`.

    If resizing would make a side shorter than a pixel, it becomes one pixel.
    """

    @configurable
    def __init__(self, is_train: bool, *, reading: Mapping[str, Any] = MappingProxyType({}), **others):
        super().__init__(is_train, **others)
        self.reading = dict(reading)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        asked = cfg
        if not is_train and cfg.MODEL.KEYPOINT_ON:  # detectron2 looks up the training data's mirrored keypoints, which no evaluation needs
            asked = cfg.clone()
            asked.defrost()
            asked.MODEL.KEYPOINT_ON = False
        made = {**super().from_config(asked, is_train), "use_keypoint": cfg.MODEL.KEYPOINT_ON, "reading": images.settings(cfg)}
        if is_train and cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.AROUND_OBJECTS:
            crop = CropAroundObject(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
            made["augmentations"] = [crop if type(each) is T.RandomCrop else each for each in made["augmentations"]]
        return made

    def copied(self, record: dict[str, Any]) -> dict[str, Any]:
        """A copy of a record, whose entries may be replaced."""
        return copy.deepcopy(record)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        record = self.copied(dataset_dict)
        labels = record.pop("sem_seg_file_name", None)
        if labels is not None:
            with images.opened(labels, self.reading.get("max_pixels", 0)) as image:
                labels = utils.convert_PIL_to_numpy(turned(image) if self.reading.get("exif", "turn") == "turn" else image, "L").squeeze(2)
        record["image"], transforms = self.transformed(record, labels)
        image_shape = tuple(record["image"].shape[1:])
        if labels is not None:
            record["sem_seg"] = torch.as_tensor(transforms.apply_segmentation(labels).astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, image_shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image_shape)
        return record

    def boxes(self, record: dict[str, Any]) -> np.ndarray | None:
        """(N, 4) of x0, y0, x1, y1, where an augmentation looks at them; crowds left out."""
        if not any(isinstance(augmentation, CropAroundObject) for augmentation in self.augmentations.augs):
            return None
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        return np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]).reshape(-1, 4)

    def transformed(self, record: dict[str, Any], labels: np.ndarray | None) -> tuple[Tensor, T.TransformList]:
        """A record's image (C, H, W), and the transforms that made it from the file's pixels."""
        pixels = images.read(record["file_name"], self.image_format, **self.reading)
        drawn = images.Input(pixels, boxes=self.boxes(record), sem_seg=labels)
        utils.check_image_size(record, drawn.image)
        transforms = self.augmentations(drawn)
        return images.tensor(drawn.image), transforms


class FasterMapper(Mapper):
    """A faster `Mapper`; ``fast``: pixels may differ by one level."""

    @configurable
    def __init__(self, is_train: bool, *, fast: bool = False, **others):
        super().__init__(is_train, **others)
        self.fast = fast
        self.blind = self.image_format in ("BGR", "RGB") and all(
            type(augmentation) in _BLIND and getattr(augmentation, "interp", Image.Resampling.BILINEAR) == Image.Resampling.BILINEAR
            for augmentation in self.augmentations.augs
        )

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        return {**super().from_config(cfg, is_train), "fast": cfg.INPUT.MAPPER == "fast"}

    def copied(self, record: dict[str, Any]) -> dict[str, Any]:
        # a shallow copy of each annotation is enough: only its own entries are replaced
        result = {key: copy.deepcopy(value) if key.startswith("proposal") else value for key, value in record.items()}
        if "annotations" in record:
            result["annotations"] = [dict(annotation) for annotation in record["annotations"]]
        return result

    def transformed(self, record: dict[str, Any], labels: np.ndarray | None) -> tuple[Tensor, T.TransformList]:
        if not self.blind:
            return super().transformed(record, labels)
        source = _read(record["file_name"], self.fast, **self.reading)
        height, width = source.shape[:2] if isinstance(source, np.ndarray) else source.size[::-1]
        drawn = _Size(height, width, self.boxes(record))
        utils.check_image_size(record, drawn.image)
        transforms = self.augmentations(drawn)
        return _transform(source, _flatten(transforms), self.image_format, self.fast), transforms

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        annotations = [a for a in dataset_dict["annotations"] if a.get("iscrowd", 0) == 0]
        segments = [a.get("segmentation") for a in annotations] if self.use_instance_mask else []
        bitmask = self.instance_mask_format == "bitmask"
        alike = segments and all(isinstance(segment, (list, dict) if bitmask else list) for segment in segments)
        if not annotations or not (alike or not self.use_instance_mask):
            return super()._transform_annotations(dataset_dict, transforms, image_shape)
        del dataset_dict["annotations"]
        for annotation in annotations:
            annotation.pop("segmentation", None)
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
        _transform_boxes(annotations, transforms, image_shape, self.keypoint_hflip_indices)
        if segments and not bitmask:
            for annotation, segment in zip(annotations, segments):
                annotation["segmentation"] = _polygons(segment, transforms)
        instances = utils.annotations_to_instances(annotations, image_shape)
        if segments and bitmask:
            masks, filled = _masks(segments, transforms, image_shape)
            instances.gt_masks = BitMasks(masks)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        # as ``filter_empty_instances`` does, which looks at every pixel
        kept = instances.gt_boxes.nonempty(threshold=1e-5)
        if segments:
            kept = kept & (filled if bitmask else instances.gt_masks.nonempty())
        dataset_dict["instances"] = instances if kept.all() else instances[kept]


def _transform_boxes(annotations: list[dict[str, Any]], transforms: T.TransformList, size: tuple[int, int], keypoint_hflip_indices) -> None:
    """Does ``transform_instance_annotations`` for all boxes at once, in place, if all are lists of floats in one mode."""
    if len({a["bbox_mode"] for a in annotations}) > 1 or not all(
        type(a["bbox"]) is list and set(map(type, a["bbox"])) == {float} for a in annotations
    ):
        for annotation in annotations:
            utils.transform_instance_annotations(annotation, transforms, size, keypoint_hflip_indices=keypoint_hflip_indices)
        return
    # rounded to single precision and back, as detectron2 does with each box
    boxes = BoxMode.convert(torch.tensor([a["bbox"] for a in annotations]), annotations[0]["bbox_mode"], BoxMode.XYXY_ABS)
    boxes = transforms.apply_box(boxes.double().numpy()).clip(min=0)
    for annotation, box in zip(annotations, np.minimum(boxes, list(size + size)[::-1])):
        annotation["bbox"], annotation["bbox_mode"] = box, BoxMode.XYXY_ABS
        if "keypoints" in annotation:
            annotation["keypoints"] = utils.transform_keypoint_annotations(annotation["keypoints"], transforms, size, keypoint_hflip_indices)


def _flatten(transforms: T.TransformList) -> list[Transform]:
    result: list[Transform] = []
    for t in transforms.transforms:
        result += _flatten(t) if isinstance(t, T.TransformList) else [t]
    return [t for t in result if not isinstance(t, NoOpTransform)]


def _read(path: str, fast: bool, exif: str = "turn", value_range: Sequence[float] = (), max_pixels: int = 0):
    """The image in RGB, as `images.read` gives it: a Pillow image, or with ``fast`` an array, of a JPEG file that needs no turning."""
    with images.opened(path, max_pixels) as image:
        if fast and image.format == "JPEG" and image.mode == "RGB" and not (exif == "turn" and images.is_turned(image)):
            try:
                from simplejpeg import decode_jpeg

                with utils.PathManager.open(path, "rb") as f:
                    return decode_jpeg(f.read(), "RGB")
            except (ImportError, ValueError):  # not installed; or a damaged file: Pillow reports how
                pass
        image = images.upright(image, path, exif, value_range)
        image.load()  # before the file is closed
        return image if image.mode == "RGB" else image.convert("RGB")


def _transform(source, transforms: list[Transform], image_format: str, fast: bool) -> Tensor:
    """Applies detectron2's transforms to an RGB image, Pillow's or an array. Returns (3, H, W) uint8."""
    flips = len(list(itertools.takewhile(lambda t: isinstance(t, _FLIPS), transforms[::-1])))
    for t in transforms[: len(transforms) - flips]:
        if isinstance(t, T.ResizeTransform):
            if fast:
                source = _resize_fast(np.asarray(source), t.new_h, t.new_w)
            else:
                image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
                source = image.resize((t.new_w, t.new_h), Image.Resampling.BILINEAR)
        elif isinstance(t, _FLIPS):
            source = cv2.flip(np.asarray(source), int(isinstance(t, HFlipTransform)))
        else:
            source = np.asarray(source)[t.y0 : t.y0 + t.h, t.x0 : t.x0 + t.w]
    image = _planes(np.asarray(source), image_format)
    for t in transforms[len(transforms) - flips :]:  # on planes, which is the fastest
        image = image.flip(2 if isinstance(t, HFlipTransform) else 1)
    return image


def _resize_fast(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if height >= pixels.shape[0] and width >= pixels.shape[1]:  # without shrinking, all kernels are the same one, and OpenCV's is the fastest
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return F.interpolate(image.contiguous(), (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def _planes(pixels: np.ndarray, image_format: str) -> Tensor:
    """(H, W, 3) RGB -> (3, H, W) in the channel order of ``image_format``."""
    result = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(result[::-1] if image_format == "BGR" else result))
    return torch.from_numpy(result)


def _polygons(segment: list[Any], transforms: T.TransformList) -> list[np.ndarray]:
    return [p.reshape(-1) for p in transforms.apply_polygons([np.asarray(p).reshape(-1, 2) for p in segment])]


def _masks(segments: list[Any], transforms: T.TransformList, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The masks (N, H, W) that detectron2 makes of polygons or run lengths; and whether each has any pixel, (N,)."""
    result = torch.zeros(len(segments), *size, dtype=torch.bool)
    filled = [
        _fill(_polygons(segment, transforms), row) if isinstance(segment, list) else _pick(segment, transforms, row)
        for row, segment in zip(result.numpy().view(np.uint8), segments)
    ]
    return result, torch.tensor(filled)


def _fill(polygons: list[np.ndarray], row: np.ndarray) -> bool:
    """Draws polygons into an empty mask (H, W) by COCO's rules, only in their own columns. Returns whether they have any pixel."""
    if not polygons:
        return False
    columns, left = _columns(mask_util.merge(mask_util.frPyObjects([p.reshape(-1) for p in polygons], *row.shape)))
    if len(columns):
        row[:, left : left + len(columns)] = cv2.transpose(columns)
    return bool(len(columns))


def _pick(runs: dict[str, Any], transforms: T.TransformList, row: np.ndarray) -> bool:
    """As `_fill`, for run lengths. Each pixel of the result copies one of theirs; its row and its column alone say which."""
    ys, xs = (np.arange(length, dtype=np.int32) for length in runs["size"])
    for t in _flatten(transforms):
        if isinstance(t, T.ResizeTransform):
            ys, xs = _nearest(ys, t.new_h), _nearest(xs, t.new_w)
        elif isinstance(t, HFlipTransform):
            xs = xs[::-1]
        elif isinstance(t, VFlipTransform):
            ys = ys[::-1]
        else:
            ys, xs = ys[t.y0 : t.y0 + t.h], xs[t.x0 : t.x0 + t.w]
    if (len(ys), len(xs)) != row.shape:
        raise ValueError(f"a mask of {(len(ys), len(xs))} belongs to an image of {row.shape}")
    columns, left = _columns(runs)
    inside = np.flatnonzero((xs >= left) & (xs < left + len(columns)))  # contiguous: flips, crops and resizings keep columns in order
    if not len(inside):
        return False
    picked = row[:, inside[0] : inside[-1] + 1]
    picked[:] = cv2.transpose(columns[xs[inside] - left])[ys]
    return bool(picked.any())


def _nearest(places: np.ndarray, length: int) -> np.ndarray:
    """The entries of ``places`` that Pillow picks when it resizes them to ``length``."""
    return np.asarray(Image.fromarray(places[None]).resize((length, 1), Image.Resampling.NEAREST))[0]


def _columns(runs: dict[str, Any]) -> tuple[np.ndarray, int]:
    """A compressed mask's columns (number, H), from the first that has a pixel to the last, and the index of the first."""
    height = runs["size"][0]
    counts = runs["counts"]
    counts = run_lengths(counts.encode() if isinstance(counts, str) else counts)  # down the columns: of zeros, of ones, ...
    if len(counts) < 2:
        return np.zeros((0, height), np.uint8), 0
    if not counts[1:].all():  # empty runs, which COCO's own code does not write
        columns = mask_util.decode(runs).T
        used = np.flatnonzero(columns.any(1))
        return (columns[used[0] : used[-1] + 1], used[0]) if len(used) else (columns[:0], 0)
    before = np.cumsum(counts)
    last = before[-1] if len(counts) % 2 == 0 else before[-2]
    left, right = counts[0] // height, (last - 1) // height + 1
    counts[0] -= left * height
    if len(counts) % 2:
        counts[-1] -= before[-1] - right * height
    else:
        counts = np.append(counts, right * height - before[-1])
    return np.repeat((np.arange(len(counts)) % 2).astype(np.uint8), counts).reshape(-1, height), left
