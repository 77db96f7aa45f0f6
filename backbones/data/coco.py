"""Registers data in COCO's format from a config, without code."""

import atexit
import contextlib
import dataclasses
from typing import Any, Collection, Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import architecture, get
from ..errors import Finding, UserError, first_of
from .dataset import Dataset
from .holdout import HELD_OUT, KEPT, entries
from .keypoints import flip_pairs
from .packed import Packed
from .reader import number_classes, read
from .sources import Source, Use


class Reader:
    """Reads a data set when it is first asked for, and gives detectron2's records when called.

    What `dataset` reads is kept until `__call__` returns it, so that a file is parsed once before training.
    """

    def __init__(self, source: Source, use: Use):
        self.source, self.use = source, use
        self._held: Dataset | None = None
        self._packed: Packed | None = None  # records for other processes

    def dataset(self) -> Dataset:
        """Raises UserError if the data cannot be used."""
        if self._held is None:
            data = read(self.source, self.use)
            error = data.error()
            if error:
                raise error
            self._held = data
        return self._held

    def __call__(self) -> list[dict[str, Any]]:
        if self._packed is not None:
            records, self._packed = list(self._packed), None
            return records
        data, self._held = self.dataset(), None
        return data.records(self.use)

    def truth(self) -> dict[str, Any]:
        """The data in COCO's form, for an evaluation."""
        return self.dataset().truth()

    def number(self, classes: Sequence[str]) -> None:
        """Numbers the classes as other data do. Raises UserError if no class name matches theirs."""
        self.use = dataclasses.replace(self.use, classes=tuple(classes))
        number_classes(self.dataset(), self.use.classes)
        error = self.dataset().error()
        if error:
            raise error

    def __getstate__(self) -> dict[str, Any]:
        """What goes to other processes: of training data, the records in a file, so that they need not read them again."""
        if self._held is not None and self.source.training:
            self._packed = Packed(self())
            atexit.register(self._packed.forget)
        return {**self.__dict__, "_held": None}


def register_from_config(cfg: CfgNode, names: Collection[str] | None = None) -> list[str]:
    """Registers the data sets of ``cfg.DATASETS.REGISTER``: [name, annotation file, image folder] each. Returns the new names.

    Args:
        names: those to register; None: all.

    All data sets use the class names of ``cfg.DATASETS.CLASSES``, or of the first data set to train on; the others match them by name.
    Raises UserError for data that cannot be used, and for a malformed entry.
    """
    found = list(entries(cfg, "REGISTER", {"'name'": str, "'annotations.json'": str, "'image_folder'": str}))
    wanted = None if names is None else {name.removesuffix(HELD_OUT).removesuffix(KEPT) for name in names}
    training = {name.removesuffix(KEPT) for name in cfg.DATASETS.TRAIN}
    use, new = Use.of(cfg), []
    classes, points = use.classes, use.points
    twice = next((name for name in classes if classes.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"DATASETS.CLASSES: the name {twice!r} appears twice", "value", "DATASETS.CLASSES")
    found.sort(key=lambda entry: entry[0] not in training)
    if not classes and wanted is not None and found and found[0][0] in training - wanted:  # the classes of a model that is only evaluated
        with contextlib.suppress(UserError):
            model = read(Source(*found[0]), dataclasses.replace(use, masks=False, keypoints=False), files=False)
            classes, points = tuple(model.classes), points or _stated(model.keypoint_names, use)
    for name, json_file, image_root in found:
        if wanted is not None and name not in wanted:
            continue
        reader = Reader(
            Source(name, json_file, image_root, name in training, name in cfg.DATASETS.TEST),
            dataclasses.replace(use, classes=classes, points=points),
        )
        if name in DatasetCatalog:
            known = MetadataCatalog.get(name).get("reader")
            if known is None:
                raise UserError(f"DATASETS.REGISTER: the name {name!r} is taken by another data set", "conflict", "DATASETS.REGISTER")
            if known.source == reader.source and known.use == reader.use:
                classes = classes or tuple(MetadataCatalog.get(name).thing_classes if name in training else ())
                points = points or (_stated(MetadataCatalog.get(name).get("keypoint_names", ()), use) if name in training else ())
                continue
        data = reader.dataset()
        if not classes and name not in training:
            theirs = _classes_of_the_model(cfg)
            if theirs and set(data.classes) <= set(theirs):
                reader.number(theirs)
        if not classes and name in training:
            classes = tuple(data.classes)
        named = _stated(data.keypoint_names, use)
        if points and not use.points and len(named) == len(points) and set(named) != set(points):
            here, there = (first_of(sorted(set(a) - set(b))) for a, b in ((named, points), (points, named)))
            said = f"{reader.source.called}its keypoints are called otherwise than those of the training data: {here} here, {there} there"
            todo = "give them the same names, or with DATASETS.KEYPOINTS names for all data, which keep their order"
            raise UserError(f"{said}: {todo}", "classes", "DATASETS.KEYPOINTS")
        points = points or (named if name in training else ())
        _register(reader, cfg)
        new.append(name)
    return new


def _stated(names: Sequence[str], use: Use) -> tuple[str, ...]:
    """The names of keypoints if they are learnt, and are not the numbers that replace missing names."""
    numbered = list(names) == [str(i) for i in range(1, len(names) + 1)]
    return tuple(names) if use.keypoints and not numbered else ()


def _register(reader: Reader, cfg: CfgNode) -> None:
    name, data = reader.source.name, reader.dataset()
    names = [*map(str, cfg.DATASETS.KEYPOINTS)] or data.keypoint_names
    for pair in cfg.DATASETS.KEYPOINT_FLIPS if names and reader.use.keypoints else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not {*map(str, pair)} <= set(names):
            said = f"{pair!r} must be two of the keypoints: {', '.join(names)}"
            raise UserError(f"DATASETS.KEYPOINT_FLIPS: {said}", "value", "DATASETS.KEYPOINT_FLIPS")
    for each in (name, name + HELD_OUT, name + KEPT):  # its parts, which `register_held_out` makes, have its metadata
        if each in DatasetCatalog and (each == name or MetadataCatalog.get(each).get("part_of") == name):
            DatasetCatalog.remove(each)
            MetadataCatalog.remove(each)
    DatasetCatalog.register(name, reader)
    about: dict[str, Any] = dict(
        json_file=reader.source.json_file,
        image_root=reader.source.image_root,
        evaluator_type="coco",
        thing_classes=data.classes,
        thing_dataset_id_to_contiguous_id=data.ids(),
        reader=reader,
        truth=reader.truth,
        file_classes=[*(category["name"] for category in data.categories), *data.foreign],
        labelled=data.labelled,
        mask_runs=data.runs,
        most_objects=data.most(),
        said=[data.summary(), *map(_line, data.findings.lines())],
    )
    if names:
        pairs, why = flip_pairs(names, cfg.DATASETS.KEYPOINT_FLIPS)
        about.update(keypoint_names=names, keypoint_flip_map=pairs, keypoint_flips_unknown=why)
        if pairs and reader.use.keypoints:
            about["said"].append(f"{name}: keypoints swapped in a flipped image: {', '.join('/'.join(pair) for pair in pairs)}")
    MetadataCatalog.get(name).set(**about)


def _line(finding: Finding) -> str:
    return f"{finding.message} -> {finding.advice}" if finding.severity == "warning" else finding.message


def _classes_of_the_model(cfg: CfgNode) -> list[str]:
    """The class names of the registered data that the config trains on, if the model has the same number of classes."""
    for name in cfg.DATASETS.TRAIN:
        classes = MetadataCatalog.get(name).get("thing_classes") if name in DatasetCatalog else None
        keys = [key for key, value in architecture(cfg).classes.items() if value == "thing_classes"]
        if classes and keys and all(get(cfg, key) == len(classes) for key in keys):
            return list(classes)
    return []


def follow(cfg: CfgNode, replaced: bool) -> Iterator[tuple[str, Any, str]]:
    """(key, value, reason) of each setting that the registered data require and the config lacks.

    ``replaced``: the data replace the config's own, so the numbers of classes and keypoints follow from them too.
    """
    known = [MetadataCatalog.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if name in DatasetCatalog]
    own = [about for about in known if about.get("truth")]
    if not own:
        return
    classes, names = list(own[0].thing_classes), next((list(about.keypoint_names) for about in own if about.get("keypoint_names")), [])
    if list(cfg.DATASETS.CLASSES) != classes:
        yield "DATASETS.CLASSES", classes, ""
    for key in (key for key, field in architecture(cfg).classes.items() if field == "thing_classes"):
        if replaced and get(cfg, key) != len(classes):
            yield key, len(classes), "the data have this many classes"
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon" and any(about.mask_runs for about in own):
        yield "INPUT.MASK_FORMAT", "bitmask", "some masks are run-length encodings (RLE)"
    if not names or not cfg.MODEL.KEYPOINT_ON:
        return
    if list(cfg.DATASETS.KEYPOINTS) != names:
        yield "DATASETS.KEYPOINTS", names, ""
    if replaced and len(names) != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
        yield "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", len(names), "the data have this many keypoints"
    if replaced and len(names) != (len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or 17):
        sigmas = [] if len(names) == 17 else [round(1 / len(names), 4)] * len(names)
        yield "TEST.KEYPOINT_OKS_SIGMAS", sigmas, (
            "one for each keypoint, all equal; COCO's are 0.025 to 0.107, and smaller ones are stricter"
            if sigmas
            else "those of COCO's 17 keypoints"
        )
    unknown = next((about.keypoint_flips_unknown for about in own if about.get("keypoint_flips_unknown")), "")
    if unknown:
        reason = f"{unknown}, so images cannot be flipped; name the pairs in DATASETS.KEYPOINT_FLIPS"
        if cfg.INPUT.RANDOM_FLIP == "horizontal":
            yield "INPUT.RANDOM_FLIP", "none", reason
        if cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.FLIP:
            yield "TEST.AUG.FLIP", False, reason
