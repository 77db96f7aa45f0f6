"""Names the annotation tool or format of a file that is not COCO's, for a one-line error that says what to do."""

import re
from typing import Any

_EXPORT = "export it in COCO's format from the tool that wrote it"
_FOLDER = "give the folder of its files"
# of parsed JSON, a dictionary: the keys that it must have -> name, what to do
_OBJECTS: list[tuple[set[str], str, str]] = [
    ({"shapes", "imagePath"}, "a labelme file of one image", _FOLDER),
    ({"_via_img_metadata"}, "a project of VGG Image Annotator (VIA)", "choose Annotation, Export Annotations (COCO format) there"),
    ({"project", "config", "attribute", "metadata"}, "a project of VGG Image Annotator (VIA) 3", "choose Export, COCO there"),
    ({"items", "categories"}, "Datumaro's", "convert it: datum convert -f coco_instances"),
    ({"item", "annotations"}, "V7 Darwin's", _EXPORT),
    ({"objects", "size"}, "a Supervisely file of one image", _EXPORT),
    ({"classes", "tags", "projectType"}, "Supervisely's list of classes", _EXPORT),
    ({"data_row", "projects"}, "Labelbox's", "export it with Labelbox's converter to COCO"),
    ({"source-ref"}, "a manifest of SageMaker Ground Truth", "convert it to COCO with AWS's script for manifests"),
    ({"ID", "gtboxes"}, "odgt, one JSON object per line", "convert it to COCO, as ByteTrack's convert_crowdhuman_to_coco.py does"),
    ({"frames", "config"}, "Scalabel's", "convert it: python -m scalabel.label.to_coco"),
]  # fmt: skip
# of the first entry of a list: the keys that it must have -> name, what to do
_ENTRIES: list[tuple[set[str], str, str]] = [
    ({"image_id", "category_id", "score"}, "COCO results: detections without images and classes", "give the annotations that they belong to"),
    ({"image_id", "caption"}, "captions", "it has no boxes to learn from"),
    ({"image", "annotations"}, "CreateML's", _EXPORT),
    ({"annotations", "data"}, "an export of Label Studio in its own format", "choose COCO as the export format"),
    ({"completions", "data"}, "an export of Label Studio in its own format", "choose COCO as the export format"),
    ({"image", "annotation_id"}, "an export of Label Studio in its own minimal format (JSON-MIN)", "choose COCO as the export format"),
    ({"data_row", "projects"}, "Labelbox's", "export it with Labelbox's converter to COCO"),
    ({"Labeled Data", "Label"}, "Labelbox's", "export it with Labelbox's converter to COCO"),
    ({"name", "labels"}, "Scalabel's or BDD100K's", "convert it: python -m scalabel.label.to_coco"),
]
YOLO_LINE = re.compile(r"\s*\d+(\.0*)?(\s+-?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?){4,}\s*")
_ARCHIVES = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"Rar!": "rar", b"7z\xbc\xaf": "7z", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def foreign(content: Any, path: str = "") -> tuple[str, str] | None:
    """(what a file is, what to do with it), for "it is ...: ..."; None for what may be COCO's, or is unknown.

    Args:
        content: the file's parsed JSON, or its first kilobytes as bytes if it is not JSON.
        path: its name, of which only the extension matters.
    """
    if isinstance(content, bytes):
        return _of_bytes(content, path)
    if isinstance(content, dict):
        return _of_object(content)
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return None
    return next(((name, way) for keys, name, way in _ENTRIES if keys <= set(first)), None) or _of_object(first)


def _of_object(content: dict) -> tuple[str, str] | None:
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, dict) and "images" in content:
        if "caption" in first:
            return "COCO's captions", "it has no boxes to learn from: use the instances file of the same images"
        if "segments_info" in first:
            return "COCO's panoptic form", "register it as a panoptic data set, or use the instances file of the same images"
    if {"images", "categories"} <= set(content):
        return None
    for keys, name, way in _OBJECTS:
        if keys <= set(content):
            return name, way
    one = next(iter(content.values()), None)
    if isinstance(one, dict) and {"filename", "regions"} <= set(one):
        return "annotations of VGG Image Annotator (VIA) in its own format", "choose Annotation, Export Annotations (COCO format) there"
    return None


def _of_bytes(content: bytes, path: str) -> tuple[str, str] | None:
    for magic, name in _ARCHIVES.items():
        if content.startswith(magic):
            return f"an archive ({name})", "unpack it, and give the annotations in it"
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = content.decode(encoding, errors="replace").lstrip()
    line, _, more = text.partition("\n")
    if text.startswith("<"):
        if "<annotations" in text:
            return "CVAT's XML", _EXPORT
        return ("a Pascal VOC file of one image", _FOLDER) if "<annotation" in text else ("XML", _EXPORT)
    if line.startswith("{") and (more.lstrip().startswith("{") or line.rstrip().endswith("}")):
        # the first line may be longer than this excerpt: the names of its keys are enough
        keys = set(re.findall(r'"([\w-]+)"\s*:', line))
        for needed, name, way in _OBJECTS:
            if needed <= keys:
                return name, way
        if more.lstrip().startswith("{"):
            return "one JSON object per line", "convert it to COCO, which is a single JSON object"
        return None
    if YOLO_LINE.fullmatch(line):
        return "the YOLO labels of one image", "give the data.yaml, or the folder of the images"
    if "EncodedPixels" in line or "rle" in line.lower().split(","):
        return "Kaggle's run-length encodings (RLE) in a CSV table", "convert them to COCO's RLE: starts count from 1, column by column"
    if path.lower().endswith((".csv", ".tsv")) or line.count(",") >= 3 and more.partition("\n")[0].count(",") == line.count(","):
        return "a table (CSV)", _EXPORT
    if path.lower().endswith((".yaml", ".yml")) or re.search(r"^(names|nc)\s*:", text, re.M):
        return "YAML", "a YOLO data.yaml must end in .yaml"
    return None
