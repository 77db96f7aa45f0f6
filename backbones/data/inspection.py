"""What may be odd in data beyond what the reader repairs or refuses, for the doctor: in every annotation, and in some images or all."""

import contextlib
import dataclasses
import os
from collections import Counter, defaultdict
from typing import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from ..files import sha256
from .coco import Reader
from .dataset import Dataset
from .findings import Findings, short
from .image_files import evenly, look
from .image_list import SAMPLED, TOLD, UNREADABLE, Progress
from .reader import read
from .sources import Source, Use

_USUAL = Use()
_ENDS = 5000  # images of which `check_ends` reads the last bytes


def inspect(source: Source, use: Use = _USUAL, images: int | None = SAMPLED, progress: Progress = lambda items, **_: items) -> Dataset:
    """The data set with all that is found in it: what `read` reports, and what is odd in classes, objects and pixels.

    Args:
        use: what the config does with the data.
        images: how many images are read; None: all. Whether files exist is always checked for all.
        progress: wraps each loop, called like ``tqdm``.
    """
    data = Dataset(source, Findings(source.name))
    gone = next((p for p, there in ((source.json_file, os.path.exists), (source.image_root, os.path.isdir)) if not there(p)), None)
    if gone is not None:
        data.findings.add("missing file", repr(gone))
        return data
    try:
        held = MetadataCatalog.get(source.name).get("reader") if source.name in DatasetCatalog else None
        data = held.dataset() if held is not None and images == SAMPLED and _is_read(held, source, use) else read(source, use, images, progress)
    except UserError as error:
        data.findings.add("unreadable file", str(error))
        return data
    _classes(data)
    _objects(data, use)
    _pixels(data, use, images, progress)
    return data


def _is_read(held: Reader, source: Source, use: Use) -> bool:
    """Whether registration has read the same data. It sets the config's classes from the data if the config has none."""
    if held.source != source or dataclasses.replace(held.use, classes=use.classes, points=use.points) != use:
        return False
    classes, points = held.use.classes or tuple(held.dataset().classes), held.use.points or tuple(held.dataset().keypoint_names)
    return held.use == use or (classes, points) == (use.classes, use.points or points)


def _classes(data: Dataset) -> None:
    say, counts = data.findings.add, data.counts()
    ids = [c["id"] for c in data.categories]
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        say("category gaps", f"{len(ids)} ids from {ids[0]} to {ids[-1]}")
    for name, count in counts.items() if data.labelled else ():
        if count == 0:
            say("unused category", short(name))
        elif data.source.training and count * 100 < max(counts.values()):
            say("imbalance", f"{short(name)} {count} (of at most {max(counts.values())})")


def _objects(data: Dataset, use: Use) -> None:
    images = {image["id"]: use.scale(image["width"], image["height"]) for image in data.images}
    boxes = np.array([a["bbox"] for a in data.annotations], float).reshape(-1, 4)
    of_image, of_class = (np.array([a[key] for a in data.annotations], np.int64) for key in ("image_id", "category_id"))
    scales = np.array([images[number] for number in of_image.tolist()], float)
    tiny = np.flatnonzero(np.sqrt(boxes[:, 2] * boxes[:, 3]) * scales < 8)
    columns = (*boxes.T, of_class, of_image)
    order = np.lexsort(columns)  # a stable order
    repeated = np.sort(order[1:][np.all([column[order[1:]] == column[order[:-1]] for column in columns], axis=0)])
    crowds = {a["image_id"] for a in data.annotations if a["iscrowd"]}
    objects = {a["image_id"] for a in data.annotations if not a["iscrowd"]}
    data.findings.add_all("tiny box", tiny, data.name)
    data.findings.add_all("duplicate annotation", repeated, data.name)
    for image in data.images if data.labelled else ():
        if image["id"] not in objects:
            data.findings.add("crowds only" if image["id"] in crowds else "image without objects", short(image["file_name"]))


def _pixels(data: Dataset, use: Use, count: int | None, progress: Progress) -> None:
    for name, times in Counter(image["file_name"] for image in data.images).items():
        if times > 1:
            data.findings.add("repeated file", f"{short(name)} ({times} times)")
    told = {kind for kind in TOLD if kind in data.findings.counts}  # by the reader, of the same images
    for image in progress(evenly(data.images, count), desc=f"{data.source.name}: images", unit="image"):
        path = os.path.join(data.source.image_root, image["file_name"])
        for kind, about in look(path, image, use):
            if use.skip and kind in UNREADABLE:
                data.findings.add("image left out", f"{short(image['file_name'])} ({kind}{about})")
            elif kind not in told:
                data.findings.add(kind, short(image["file_name"]) + about)


def copies(datasets: Sequence[Dataset], count: int | None, progress: Progress = lambda items, **_: items) -> list[Findings]:
    """Files with the same content, within a data set, and between data to train and to test on.

    Compares all files of a small data set, and a sample of a large one.
    """
    most = None if count is None else 20 * count
    found = {data.source.name: Findings(data.source.name) for data in datasets}
    by_size: dict[int, list[tuple[Source, str]]] = defaultdict(list)
    for data in datasets:
        source = data.source
        if source.training and source.testing:
            found[source.name].add("train and test", "all of them")
        paths = [os.path.join(source.image_root, image["file_name"]) for image in data.images]
        paths = paths if most is None or len(paths) <= most else evenly(paths, count)
        for path in sorted({os.path.realpath(path) for path in paths if os.path.isfile(path)}):
            if os.path.getsize(path):
                by_size[os.path.getsize(path)].append((source, path))
    candidates = [item for group in by_size.values() if len(group) > 1 for item in group]
    contents = defaultdict(list)
    for source, path in progress(candidates, desc="files of one size", unit="file"):
        try:
            contents[sha256(path)].append((source, path))
        except OSError:
            continue  # reported already
    for group in contents.values():
        first: dict[str, str] = {}  # data set -> its first file of this content
        trained = next(((s, p) for s, p in group if s.training), None)
        for source, path in group:
            name = repr(os.path.relpath(path, os.path.realpath(source.image_root)))
            if source.name in first and first[source.name] != path:
                found[source.name].add("duplicate image", f"{name} is {os.path.basename(first[source.name])!r}")
            first.setdefault(source.name, path)
            if trained and source.testing and not source.training:
                found[source.name].add("train and test", f"{name} is {os.path.basename(trained[1])!r} of {trained[0].name}")
    return list(found.values())


def check_ends(data: Dataset, use: Use) -> None:
    """Raises UserError for truncated images: headers, which are read of all data, do not show them. Only files without an end are decoded."""
    for image in () if use.skip else evenly(data.images, _ENDS):
        path = os.path.join(data.source.image_root, image["file_name"])
        for kind, about in look(path, image, use) if _has_no_end(path) else ():
            if kind == "truncated image":
                data.findings.add(kind, short(image["file_name"]) + about)
    if error := data.error():
        raise error


def _has_no_end(path: str) -> bool:
    """Whether a JPEG or PNG ends in other bytes than usual."""
    with contextlib.suppress(OSError), open(path, "rb") as f:
        begin = f.read(2)
        f.seek(max(os.path.getsize(path) - 12, 0))
        end = f.read()
        return begin == b"\xff\xd8" and not end.endswith(b"\xff\xd9") or begin == b"\x89P" and b"IEND" not in end
    return False
