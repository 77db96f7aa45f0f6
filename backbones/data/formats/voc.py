"""Pascal VOC: an XML file for each image. Folders Annotations and JPEGImages, lists in ImageSets/Main; or XML beside images.

VOC counts pixels from 1 and a box holds its last pixel: x0 and y0 lose 1 and x1 and y1 stay, as in detectron2's own loader, so that width and
height are right. Files state no order of classes, so it is alphabetical.
"""

import contextlib
import os
from typing import Any
from xml.etree import ElementTree

from ...errors import UserError
from .building import Builder, Images, files, lists, number, text_of, without_suffix

ANNOTATIONS, PICTURES, LISTS = "Annotations", "JPEGImages", os.path.join("ImageSets", "Main")


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, *_: Any) -> None:
        # it can declare entities, by which a few lines expand to more than any memory holds
        raise ValueError("it has a DOCTYPE, which annotations must not have")


def splits(root: str) -> dict[str, tuple[str, str]]:
    """The lists of a VOC folder, for training, validation and test; trainval for training if there is no other."""
    found, both = lists(os.path.join(root, LISTS)), os.path.join(root, LISTS, "trainval.txt")
    if "train" not in found and os.path.isfile(both):
        found = {"train": both, **found}
    return {split: (path, image_folder(root)) for split, path in found.items()}


def image_folder(root: str) -> str:
    folder = os.path.join(root, PICTURES)
    return folder if os.path.isdir(folder) else root


def read(path: str, images: str, exif: str = "turn") -> dict[str, Any]:
    """The data of a list in ImageSets/Main, or of a folder; see `formats.load`."""
    root = os.path.normpath(os.path.join(os.path.dirname(path), "..", "..")) if os.path.isfile(path) else path
    folder = os.path.join(root, ANNOTATIONS)
    folder = folder if os.path.isdir(folder) else root
    build = Builder(images, exif)
    pictures = Images(images)
    names: set[str] = set()
    used: set[str] = set()
    for xml in _listed(path, folder) if os.path.isfile(path) else files(folder, (".xml",)):
        try:
            tree = ElementTree.fromstring(_bytes(xml), ElementTree.XMLParser(target=_Tree()))
            used.add(_image(build, tree, xml, folder, pictures, names))
        except (ValueError, LookupError, ElementTree.ParseError) as error:
            raise UserError(f"{xml!r} is not a Pascal VOC annotation: {error}", "bad-file") from error
    if os.path.isdir(path):
        build.note("images left out because they have no .xml file", count=len(set(pictures.all) - used), lost="image")
    return build.content([(name, {"name": name}) for name in sorted(names)])


def _bytes(path: str) -> bytes:
    with contextlib.suppress(UnicodeDecodeError):  # XML may declare another encoding
        text_of(path)  # which says what is wrong with other files
    with open(path, "rb") as f:
        return f.read()


def _listed(path: str, folder: str) -> list[str]:
    """The XML files of a list, whose lines begin with the name of an image."""
    try:
        lines = text_of(path).splitlines()
    except ValueError as error:
        raise UserError(f"{path!r} is not a list of images: {error}", "bad-file") from error
    found: list[str] = []
    for i, line in enumerate(lines, 1):
        name = line.strip()
        # lists of one class have a number after the name
        every = [os.path.join(folder, f"{part}.xml") for part in (name, name.partition(" ")[0])] if name else []
        xml = next(filter(os.path.isfile, every), None)
        if every and xml is None:
            raise UserError(f"{path!r} line {i}: {name[:100]!r} has no {every[1][-200:]!r}", "missing-file")
        found += [xml] if xml else []
    return found


def _image(build: Builder, tree: ElementTree.Element, xml: str, folder: str, pictures: Images, names: set[str]) -> str:
    """Adds an image and its objects. Returns the image's path."""
    if tree.tag != "annotation":
        raise ValueError(f"its root element is {tree.tag[:40]!r}, not 'annotation'")
    stem, stated = os.path.splitext(os.path.relpath(xml, folder))[0], (tree.findtext("filename") or "").strip()
    own = pictures.find(stem, stated)
    if own and stated and without_suffix(os.path.basename(stated.replace("\\", "/"))) != without_suffix(os.path.basename(own)):
        build.note("'filename' entries that name another file: the image with the name of the .xml file is used", repr(xml))
    path = own or os.path.join(build.root, stated or f"{stem}.jpg")
    sides = [number(tree.findtext(f"size/{side}") or "0") for side in ("width", "height")]
    stated_size = (int(sides[0]), int(sides[1])) if min(sides) >= 1 else None
    if not stated_size:
        build.note("image sizes read from the image files because the .xml file has none", repr(xml))
    image = build.image(path, stated_size)
    for i, thing in enumerate(tree.findall("object"), 1):
        where = f"{xml!r} object {i}"
        name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        if not name or box is None:
            build.note("objects left out because they have no name or no box", where, lost="object")
            continue
        x0, y0, x1, y1 = (number(box.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax"))
        if min(x0, y0) < 1:
            build.note("boxes clipped because they begin before the first pixel, which has the number 1", where)
        if thing.find("polygon") is not None:
            build.note("polygons left out because Pascal VOC has only boxes", where)
        hard = (thing.findtext("difficult") or "0").strip().lower() not in ("0", "false", "unspecified")
        if hard:
            build.note("'difficult' objects, which are ignored", where)
        names.add(name)
        build.add(image, name, (max(x0 - 1, 0.0), max(y0 - 1, 0.0), x1, y1), where, ignore=int(hard))
    return path
