"""Small annotated data sets in the forms of several tools, and ways to damage them."""

import json
import os

from hypothesis import strategies as st
from PIL import Image

SIZE = (160, 120)  # width, height
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0)) or 60


def picture(path, size=SIZE, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path, **more)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def boxes(content):
    """[(file name, class, box)] in the order of the file."""
    images = {entry["id"]: entry["file_name"] for entry in content["images"]}
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    return [(images[a["image_id"]], names[a["category_id"]], [round(v, 6) for v in a["bbox"]]) for a in content["annotations"]]


def yolo_data(root):
    """Two splits of a YOLO data set: boxes of two classes, an image without objects and one without a file of labels."""
    for name in ("train/a.jpg", "train/b.jpg", "train/empty.jpg", "train/bare.jpg", "val/c.jpg"):
        picture(root / "images" / name)
    write(root / "labels/train/a.txt", "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n")
    write(root / "labels/train/b.txt", "1 0.5 0.5 1 1\n\n")
    write(root / "labels/train/empty.txt", "")
    write(root / "labels/val/c.txt", "0 0.1 0.1 0.1 0.1\n")
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: [cup, plate]\n")
    return root


def voc_xml(objects="", size=SIZE, name="a.jpg", head=""):
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"{head}<annotation><filename>{name}</filename>{sides}{objects}</annotation>"


def voc_object(name, *box, more=""):
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def voc_data(root):
    for name in "abcd":
        picture(root / f"JPEGImages/{name}.jpg")
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    write(root / "Annotations/a.xml", voc_xml(voc_object("dog", 1, 1, 160, 120, more=part) + voc_object("cat", 11, 21, 40, 60.5)))
    write(root / "Annotations/b.xml", voc_xml(voc_object("dog", 5, 5, 9, 9, more="<difficult>1</difficult>"), name="b.jpg"))
    write(root / "Annotations/c.xml", voc_xml(name="c.jpg"))
    write(root / "ImageSets/Main/train.txt", "a\nc\n")
    write(root / "ImageSets/Main/val.txt", "b  1\n")
    return root


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def labelme_file(shapes, name="a.jpg", size=SIZE, **more):
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageWidth": size[0],
        "imageHeight": size[1],
        **more,
    }


def labelme_data(root):
    picture(root / "a.jpg")
    picture(root / "unseen.jpg")
    write(
        root / "a.json",
        json.dumps(labelme_file([shape("dog", [[10, 10], [50, 10], [50, 30]]), shape("cat", [[90, 80], [70, 60]], "rectangle")])),
    )
    return root


def coco(root, count=6, classes=("cup", "plate"), **more):
    """A data set in COCO's form, with polygons, crowds and an image without objects."""
    images, annotations = [], []
    for i in range(count):
        picture(root / f"images/{i}.jpg")
        images.append({"id": 10 + i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for k in range(i % 3):
            x, y, w, h = 3.25 * i, 7.5 + 11 * k, 20.125, 15.375
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            box = {"id": len(annotations) + 1, "image_id": 10 + i, "category_id": 5 + k, "bbox": [x, y, w, h]}
            annotations.append({**box, "area": w * h, "iscrowd": 0, "segmentation": [polygon]})
    content = {
        "images": images,
        "categories": [{"id": 5 + i, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
        **more,
    }
    write(root / "coco.json", json.dumps(content))
    return str(root / "coco.json"), content


def damaged(original):
    """The bytes of a file with some of them replaced, removed or repeated."""
    place = st.integers(0, len(original))
    some = st.one_of(st.binary(max_size=6), st.sampled_from([b"nan", b"1e999", b"-", b"[", b"{", b'"', b"<", b"\0", b"null", b"9" * 30, b": "]))
    edit = st.tuples(place, place, some)

    def apply(edits):
        content = original
        for a, b, new in edits:
            content = content[: min(a, b)] + new + content[min(max(a, b), min(a, b) + 20) :]
        return content

    return st.lists(edit, min_size=1, max_size=3).map(apply)
