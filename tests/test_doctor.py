"""The doctor: each kind of problem is found by its name, sound data give none, and nothing is left behind."""

import base64
import copy
import functools
import html
import io
import json
import os
import random
import re
import sys
import tempfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from PIL import Image

from backbones import zoo
from backbones.benchmark.training import kept_bytes
from backbones.config import merge_overrides
from backbones.data.findings import KINDS
from backbones.data.inspection import copies, inspect
from backbones.data.sources import Source, Use, sources
from backbones.doctor import report
from backbones.doctor.config import config as look_at_config
from backbones.doctor.data import data as look_at_data
from backbones.doctor.data import unmatched
from backbones.doctor.environment import _disk
from backbones.doctor.examination import Examination, quiet, size_in_words
from backbones.doctor.memory import activations, memory
from backbones.doctor.report import printable
from backbones.engine.opening import open_config
from backbones.errors import SEVERITIES
from backbones.tools import doctor, run

WIDTH, HEIGHT = 100, 80
KEYPOINTS = [30, 30, 2, 40, 40, 1, 0, 0, 0]


def annotation(number, image, category, box=(20, 20, 40, 30), **more):
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    about = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": w * h, "iscrowd": 0}
    return {**about, "segmentation": [polygon], "keypoints": KEYPOINTS, "num_keypoints": 2, **more}


def picture(path, seed, mode="RGB", **options):
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


def album(path, count):
    first, *others = (Image.new("RGB", (WIDTH, HEIGHT), (40 * i, 0, 0)) for i in range(count))
    first.save(path, save_all=True, append_images=others)


def content(names):
    return {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, 1)],
        "annotations": [annotation(2 * i + j, i, j, (20 + j, 20, 40, 30)) for i in range(1, len(names) + 1) for j in (1, 2)],
        "categories": [{"id": i, "name": name, "keypoints": ["a", "b", "c"]} for i, name in ((1, "cup"), (2, "plate"))],
    }


class Data:
    """A sound data set of eight images to train on and three to test on, in a folder of its own."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.train, self.test = ([f"{split}{i}.png" for i in range(n)] for split, n in (("train", 8), ("test", 3)))
        for i, name in enumerate(self.train + self.test):
            picture(self.path(name), i)
        self.contents = {"train": content(self.train), "test": content(self.test)}
        self.write()

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self):
        for split, value in self.contents.items():
            with open(self.path(split + ".json"), "w") as f:
                json.dump(value, f)

    def sources(self):
        return [
            Source(f"own_{split}", self.path(split + ".json"), self.folder, training=split == "train", testing=split == "test")
            for split in self.contents
        ]

    def problems(self, images=500, **use):
        """{kind: names} of all that is found."""
        datasets = [inspect(source, Use(**{"shortest": 96, "longest": 200, **use}), images) for source in self.sources()]
        found = {}
        for findings in [*(data.findings for data in datasets), *copies(datasets, images)]:
            for kind, names in findings.names.items():
                found[kind] = found.get(kind, []) + [names, findings.counts[kind]]
        return found

    def overrides(self):
        entries = [[f"doctors_{split}", self.path(split + ".json"), self.folder] for split in self.contents]
        values = {
            "DATASETS.REGISTER": entries,
            "DATASETS.TRAIN": ("doctors_train",),
            "DATASETS.TEST": ("doctors_test",),
            "MODEL.ROI_HEADS.NUM_CLASSES": 2,
            "INPUT.MIN_SIZE_TRAIN": (128,),
            "INPUT.MIN_SIZE_TEST": 128,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.BASE_LR": 0.0125,
            "OUTPUT_DIR": self.path("output"),
        }
        return [item for key, value in values.items() for item in (key, repr(value) if not isinstance(value, str) else value)]


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


@pytest.fixture(autouse=True)
def clean_catalogues():
    before = set(DatasetCatalog)
    yield
    left = set(DatasetCatalog) - before
    for name in left:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert all(name.startswith(("doctors_", "own_")) for name in left), left


def examine(capsys, *arguments):
    """(exit code, what was printed)."""
    before, sys.argv = sys.argv, ["doctor", "--config-file", "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as end:
            run(doctor.main)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return end.value.code, out + (err if end.value.code == 2 else "")


def test_sound_data_have_no_problem(data):
    assert data.problems() == {}
    assert data.problems(images=None, masks=True, keypoints=True) == {}
    assert [inspect(source).counts() for source in data.sources()] == [{"cup": 8, "plate": 8}, {"cup": 3, "plate": 3}]


def change(key, index, split="train", **values):
    return lambda d: d.contents[split][key][index].update(values)


def remove(key, index, field):
    return lambda d: d.contents["train"][key][index].pop(field)


def add(key, index, **values):
    def apply(d):
        entries = d.contents["train"][key]
        entries.append({**copy.deepcopy(entries[index]), **values})

    return apply


def file(name, make):
    return lambda d: make(d.path(name))


def both(*changes):
    return lambda d: [apply(d) for apply in changes]


def cut(path, part):
    with open(path, "rb+") as f:
        f.truncate(int(os.path.getsize(path) * part))


def text(path, value):
    with open(path, "w") as f:
        f.write(value)


def turned(path):
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).rotate(90, expand=True).save(path, exif=exif)


def copied(source):
    return lambda path: text_bytes(path, os.path.join(os.path.dirname(path), source))


def text_bytes(path, source):
    with open(source, "rb") as f, open(path, "wb") as g:
        g.write(f.read())


def many(d):
    entries = d.contents["train"]["annotations"]
    entries += [annotation(1000 + i, 1, 1, (10 + i / 10, 20, 30, 20)) for i in range(150)]
    entries[:] = [a for a in entries if a["category_id"] == 1 or a["id"] == 4]


def rle(height=HEIGHT, width=WIDTH):
    return {"size": [height, width], "counts": [100, 50, height * width - 150]}


# (kind, what is done to a sound data set, what its name holds); what the reader alone finds is in test_data.py
BROKEN = [
    ("unreadable file", lambda d: text(d.path("train.json"), "{"), "train.json"),
    ("missing file", lambda d: os.remove(d.path("train.json")), "train.json"),
    ("unreadable file", lambda d: text(d.path("train.json"), "[" * 100000), "train.json"),
    ("unreadable file", lambda d: text(d.path("train.json"), '{"images": [], "categories": [{}], "annotations": []}'), "'images' is empty"),
    ("malformed category", lambda d: d.contents["train"]["categories"].append("cup"), "entry 2"),
    ("duplicate image id", add("images", 2, file_name="train7.png"), "3"),
    ("duplicate category id", add("categories", 0, name="pot"), "1"),
    ("orphan annotation", change("annotations", 5, image_id=99), "annotation 8 of image 99"),
    ("category gaps", lambda d: d.contents["train"]["categories"].append({"id": 90, "name": "pot"}), "3 ids from 1 to 90"),
    ("unused category", lambda d: d.contents["train"]["categories"].append({"id": 3, "name": "pot"}), "'pot'"),
    ("imbalance", many, "'plate' 1"),
    ("no box", change("annotations", 4, bbox=[1, 2, float("nan"), 3]), "annotation 7 of 'train2.png'"),
    ("box beyond edge", change("annotations", 4, bbox=[80, 20, 30, 30]), "annotation 7"),
    ("tiny box", change("annotations", 4, bbox=[80, 20, 6, 6]), "annotation 7"),
    ("duplicate annotation", add("annotations", 4, id=500), "annotation 500 of 'train2.png'"),
    ("short polygon", change("annotations", 4, segmentation=[[1, 1, 5, 5], [1, 1, 5, 5, 9, 9]]), "annotation 7"),
    ("bad mask", change("annotations", 4, segmentation=[[1, 1, 5, 5, 9, 1e9]]), "annotation 7"),
    ("bad mask", change("annotations", 4, segmentation={"size": [HEIGHT, WIDTH], "counts": "\u00ff"}), "annotation 7"),
    ("bad mask", change("annotations", 4, segmentation={"size": [HEIGHT, WIDTH], "counts": None}), "annotation 7"),
    ("mask of other size", change("annotations", 4, segmentation=rle(HEIGHT + 1)), "annotation 7"),
    ("mask of other size", change("annotations", 4, segmentation={**rle(), "counts": [1, 2, 3]}), "annotation 7"),
    ("no mask", remove("annotations", 4, "segmentation"), "annotation 7"),
    ("keypoints absent", remove("annotations", 4, "keypoints"), "annotation 7"),
    ("number of keypoints", change("annotations", 4, keypoints=[1, 1, 2]), "annotation 7"),
    ("number of keypoints", change("annotations", 4, keypoints=[1e7, 1, 2] * 3), "annotation 7"),
    ("keypoint visibility", change("annotations", 4, keypoints=[1, 1, 3, 1, 1, 1, 0, 0, 0]), "annotation 7"),
    ("count of keypoints", change("annotations", 4, num_keypoints=3), "annotation 7"),
    ("image without objects", lambda d: d.contents["train"]["annotations"].__delitem__(slice(0, 2)), "'train0.png'"),
    ("crowds only", both(change("annotations", 0, iscrowd=1), change("annotations", 1, iscrowd=1)), "'train0.png'"),
    ("repeated file", change("images", 1, file_name="train0.png"), "'train0.png' (2 times)"),
    ("missing image", file("train1.png", os.remove), "'train1.png'"),
    ("missing image", change("images", 1, file_name="train\0.png"), "'train\\x00.png'"),
    ("empty image", file("train1.png", lambda path: cut(path, 0)), "'train1.png'"),
    ("unreadable image", file("train1.png", lambda path: text(path, "no picture")), "'train1.png'"),
    ("truncated image", file("train1.png", lambda path: cut(path, 0.5)), "'train1.png'"),
    ("image of other size", change("images", 1, width=HEIGHT, height=WIDTH), "'train1.png' (100x80, not 80x100)"),
    ("EXIF orientation", file("train1.png", turned), "'train1.png' (6)"),
    ("turned image", both(file("train1.png", turned), change("images", 1, width=HEIGHT, height=WIDTH)), "'train1.png'"),
    ("several pictures", file("train1.png", lambda path: album(path, 2)), "'train1.png' (2)"),
    ("grey image", file("train1.png", lambda path: picture(path, 1, "L")), "'train1.png' (L)"),
    ("alpha image", file("train1.png", lambda path: picture(path, 1, "RGBA")), "'train1.png' (RGBA)"),
    ("CMYK image", file("train1.png", lambda path: picture(path, 1, "CMYK", format="TIFF")), "'train1.png' (CMYK)"),
    ("deep image", file("train1.png", lambda path: Image.fromarray(np.full((HEIGHT, WIDTH), 900, np.uint16)).save(path)), "'train1.png' (I;16"),
    ("palette image", file("train1.png", lambda path: picture(path, 1, "P")), "'train1.png' (P)"),
    ("duplicate image", file("train1.png", copied("train0.png")), "'train1.png' is 'train0.png'"),
    ("train and test", file("test1.png", copied("train0.png")), "'test1.png' is 'train0.png' of own_train"),
]


@pytest.mark.parametrize("kind, apply, name", BROKEN)
def test_each_kind_is_found(data, kind, apply, name):
    """And nothing else: no finding follows from another."""
    apply(data)
    if kind not in ("unreadable file", "missing file"):
        data.write()
    found = data.problems(masks="mask" in kind or "polygon" in kind, keypoints="keypoint" in kind)
    names, count = found.pop(kind)
    assert count == 1 and name in names[0]
    allowed = {"crowds only": {"crowds"}, "crowds": set(), "imbalance": {"duplicate annotation"}, "train and test": {"duplicate image"}}
    allowed["category gaps"] = {"unused category"}
    assert set(found) <= allowed.get(kind, set()) | ({"image without objects"} if "box" in kind or "orphan" in kind else set()), found


def test_every_kind_is_tested():
    with open(os.path.join(os.path.dirname(__file__), "test_data.py")) as f:
        others = f.read()
    tested = {kind for kind, *_ in BROKEN}
    assert not [kind for kind in KINDS if kind not in tested and kind not in others]
    assert {row.severity for row in KINDS.values()} == set(SEVERITIES)


def test_one_problem_does_not_hide_another(data):
    content = data.contents["train"]
    changes = {
        "malformed image": ("images", 7, {"file_name": None}),
        "no box": ("annotations", 0, {"bbox": [0, 0, float("nan"), 1]}),
        "unknown category": ("annotations", 3, {"category_id": 77}),
        "annotation ids": ("annotations", 4, {"id": 0}),
        "box outside": ("annotations", 6, {"bbox": [500, 1, 20, 20]}),
    }
    for key, index, values in changes.values():
        content[key][index].update(values)
    cut(data.path("train5.png"), 0.5)
    data.write()
    found = {kind: what[1] for kind, what in data.problems().items()}
    # what is of the image that is malformed, is of none
    assert found == dict.fromkeys(changes, 1) | {"annotation ids": 9, "truncated image": 1, "object of such an image": 2}


ODD = [
    None,
    True,
    -1,
    0,
    10**400,
    1e400,
    float("nan"),
    "",
    "\0",
    "\udfff",
    "a" * 5000,
    "../..",
    [],
    [[]],
    [None],
    {},
    {"size": 1, "counts": "P"},
    [[1e9] * 6],
]


def test_whatever_stands_in_a_file_is_listed(data):
    """Nothing in an annotation file ends the inspection."""
    rng, sound = random.Random(0), json.dumps(data.contents["train"])
    use = Use(masks=True, keypoints=True)
    for _ in range(150):
        content = json.loads(sound)
        for _ in range(3):
            node, key = content, rng.choice(list(content))
            while isinstance(node[key], (list, dict)) and node[key] and rng.random() < 0.85:
                node = node[key]
                key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node[key] = copy.deepcopy(rng.choice(ODD))
        with open(data.path("train.json"), "w") as f:
            json.dump(content, f)
        looked = inspect(data.sources()[0], use, images=1)
        for finding in looked.findings.lines():
            assert printable(finding.message).isprintable()
        read = len(content["annotations"]) if isinstance(content.get("annotations"), list) else 0
        said = looked.findings.counts
        if read and not said.keys() & {"unreadable file", *(kind for kind, row in KINDS.items() if row.severity == "error")}:
            lost = sum(count for kind, count in said.items() if KINDS[kind].effect == "left out" and kind in OF_OBJECTS)
            assert len(looked.annotations) + lost == read, said


# kinds that count objects which are left out
OF_OBJECTS = ("malformed annotation", "orphan annotation", "object of such an image", "unknown category", "no box", "empty box", "box outside")


def test_a_part_that_is_held_out_has_the_classes_of_the_data(data):
    """As in training, --val-split included."""
    parser = doctor.argument_parser()
    arguments = ["--config-file", "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", "--train", data.path("train.json")]
    front, found, replaced = doctor.read_config(parser.parse_args([*arguments, "--val-split", "0.25"]))
    said = list(look_at_config(Examination(front, processes=1, replaced=replaced)))
    assert not found and not [finding for finding in said if finding.severity == "error"]
    assert any("MODEL.ROI_HEADS.NUM_CLASSES is set to 2: the data have this many classes" in finding.message for finding in said)


def test_data_that_are_both(data):
    cfg = zoo.get_config("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml")
    merge_overrides(cfg, [*data.overrides(), "DATASETS.TEST", "('doctors_train',)"])
    found, others = sources(cfg)
    assert [(s.training, s.testing) for s in found] == [(True, True)] and others == []
    (findings,) = copies([inspect(found[0])], None)
    assert findings.names == {"train and test": ["all of them"]}


def test_images_are_sampled(data):
    for i in (1, 2, 3):
        cut(data.path(data.train[i]), 0.5)
    assert data.problems(images=None)["truncated image"][1] == 3
    assert "truncated image" not in data.problems(images=2)  # the first and the last


def test_pixels_of_every_image_are_looked_at(data):
    """Of JPEG files the header tells nothing of what is missing at the end; each that is cut off is counted."""
    rng = np.random.default_rng(0)
    for image in data.contents["train"]["images"][:4]:
        name = image["file_name"] = os.path.splitext(image["file_name"])[0] + ".jpg"
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data.path(name))
        cut(data.path(name), 0.5)
    data.write()
    assert data.problems(images=None)["truncated image"][1] == 4


def test_summary_names_the_first_five(data):
    for name in data.train[:7]:
        os.remove(data.path(name))
    (finding,) = inspect(data.sources()[0]).findings.lines()
    assert finding.severity == "error" and "missing image (7)" in finding.message and "'train4.png' and 2 more" in finding.message


def test_unmatched_agrees_with_detectron2():
    """The nearest centre alone is looked at; detectron2 compares with every anchor."""
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 150, (200, 2)), rng.uniform(4, 90, (200, 2))
    boxes = np.concatenate([corner, corner + side], 1)
    generator = DefaultAnchorGenerator(sizes=[[24], [48]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[8, 16], offset=0.0)
    anchors = generator([torch.zeros(1, 1, 320 // s, 320 // s) for s in (8, 16)])
    expected = pairwise_iou(Boxes(torch.tensor(boxes, dtype=torch.float32)), Boxes.cat(anchors)).max(1).values < 0.5
    found = unmatched(boxes, [c.numpy() for c in generator.cell_anchors], generator.strides, generator.offset)
    assert 20 < expected.sum() < 180 and (found == expected.numpy()).all()


def findings(*overrides, config="quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", processes=1):
    examination = Examination(open_config(config, [str(item) for item in overrides]), processes, processes)
    with quiet():
        return list(look_at_config(examination))


@pytest.mark.parametrize(
    "overrides, severity, expected",
    [
        (["SOLVER.IMS_PER_BATCH", 2], "warning", "IMS_PER_BATCH 2 with BASE_LR 0.05.*rate was not scaled.*set SOLVER.BASE_LR 0.0125"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"], "warning", "STEPS .*are never reached"),
        (["SOLVER.WARMUP_ITERS", 900], "warning", "WARMUP_ITERS 900 covers all of"),
        (["TEST.EVAL_PERIOD", 0], "note", "EVAL_PERIOD is 0"),
        (["TEST.EVAL_PERIOD", 2000], "warning", "EVAL_PERIOD 2000 is more than"),
        (["MODEL.VOVNET.NORM", "FrozenBN"], "warning", "frozen batch norms without"),
        (["MODEL.BACKBONE.FREEZE_AT", 2], "warning", "random layers stay random"),
        (["INPUT.MIN_SIZE_TRAIN", "(150,)"], "note", "150 is not a multiple of 32.*set 160"),
        (["INPUT.MAX_SIZE_TRAIN", 100], "warning", "MIN_SIZE_TRAIN 160 is more than INPUT.MAX_SIZE_TRAIN 100"),
        (["INPUT.MIN_SIZE_TEST", 800], "warning", "MIN_SIZE_TEST 800 is far from"),
        (["SOLVER.BASE_LR", 0], "warning", "nothing is learned"),
        (["DATASETS.TEST", "()"], "warning", "DATASETS.TEST is empty"),
        (["DATASETS.TRAIN", "('digit_train',)"], "error", "Did you mean 'digits_train'"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 80], "error", "set MODEL.ROI_HEADS.NUM_CLASSES 10"),
    ],
)
def test_config(overrides, severity, expected):
    lines = [f"{f.message} -> {f.advice}" for f in findings(*overrides) if f.severity == severity]
    assert any(re.search(expected, line) for line in lines), lines
    assert expected.startswith("EVAL_PERIOD is 0") or not any(
        re.search(expected, f"{f.message} -> {f.advice}") for f in findings("TEST.EVAL_PERIOD", 100)
    )


def test_an_empty_section_says_so():
    assert "<h2>config</h2><table></table><p>nothing to report</p>" in report.page("", {"config": []}, {}, {})


def test_all_mistakes_of_a_config_are_said():
    found = findings(
        *("MODEL.VOVNET.NORM", "FrozenBM", "SOLVER.MAX_ITER", 0, "INPUT.MASK_FORMAT", "bitmap", "MODEL.GFL.PRIOR_PROB", 2.0),
        *("DATASETS.REGISTER", "[['doctors_a', 'nowhere.json', 'nowhere'], ['doctors_b', 'x']]", "MODEL.ROI_HEADS.NUM_CLASSES", 7),
    )
    errors = [f.message for f in found if f.severity == "error"]
    for part in (
        "'FrozenBM'",
        "SOLVER.MAX_ITER is 0",
        "'bitmap'",
        "PRIOR_PROB is 2.0",
        "doctors_a: image folder 'nowhere' does not exist",
        "'doctors_b'",
        "NUM_CLASSES is 7",
    ):
        assert any(part in message for message in errors), (part, errors)
    assert all("\n" not in message for message in errors) and len(set(errors)) == len(errors)


@pytest.mark.slow
def test_sound_run_leaves_nothing_behind(data, capsys, monkeypatch, tmp_path):
    """No error, exit code 0; no file is new but the report asked for, no data set stays registered, loggers are as they were."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    os.mkdir(tempfile.tempdir)
    before = {os.path.join(folder, f) for folder, _, files in os.walk(data.folder) for f in files}
    code, out = examine(capsys, *data.overrides())
    assert code == 0 and "0 errors, 0 warnings" in out, out
    for part in (
        "2 steps of 2 images: losses",
        "s for a step of 2 images; ",
        "evaluated bbox on 3 images",
        "resumed and trained one more step",
        "minutes, without evaluations",
    ):
        assert part in out
    assert {os.path.join(folder, f) for folder, _, files in os.walk(data.folder) for f in files} == before
    assert os.listdir(tempfile.tempdir) == [] and not os.path.exists(data.path("output"))


def test_broken_data_of_refused_registration(data, capsys):
    """Registration says the first mistake; the doctor all, and goes on."""
    cut(data.path("train1.png"), 0.5)
    os.remove(data.path("train2.png"))
    data.contents["train"]["annotations"][0]["bbox"] = [1, 2, float("nan"), 3]
    data.contents["test"]["annotations"][1]["category_id"] = 8
    data.write()
    code, out = examine(capsys, *data.overrides())
    assert code == 1
    for kind, name in (
        ("truncated image", "train1.png"),
        ("missing image", "train2.png"),
        ("no box", "annotation 3"),
        ("unknown category", "annotation 4"),
    ):
        assert re.search(rf"(error|warning) +doctors_\w+: {kind} \(1\).*{name}", out), (kind, out)
    assert "Memory" in out and "Traceback" not in out


def test_data_that_cannot_be_divided(data, capsys):
    """The only error is why the data are refused, not what follows from that."""
    os.remove(data.path("train2.png"))
    usual = ("DATALOADER.NUM_WORKERS", 0, "DATASETS.CLASSES", "['cup', 'plate']")
    divided = ("DATASETS.TRAIN", "('doctors_train_kept',)", "DATASETS.TEST", "('doctors_train_held_out',)")
    for given in (("DATASETS.HOLD_OUT", "[['doctors_train', 0.2]]", *divided), ()):
        code, out = examine(capsys, "--no-run", *data.overrides(), *usual, *given)
        assert "worker processes" not in out
        (said,) = re.findall(r" error +(.*)", out)
        assert code == 1 and said.startswith("doctors_train: missing image (1): image files do not exist: 'train2.png'"), out


@pytest.mark.slow
def test_weights(data, capsys, tmp_path):
    torch.save({"model": {"backbone.bottom_up.stem.weight": torch.zeros(3)}}, tmp_path / "odd.pth")
    code, out = examine(capsys, "--no-run", *data.overrides(), "MODEL.WEIGHTS", tmp_path / "odd.pth")
    assert code == 1 and "would keep their initial values" in out and "| part " in out
    code, out = examine(capsys, "--no-run", *data.overrides(), "MODEL.WEIGHTS", "https://example.org/model.pth")
    assert code == 0 and "training will download it" in out and "add --download" in out


@pytest.mark.slow
def test_resuming(data, capsys):
    os.mkdir(data.path("output"))
    code, out = examine(capsys, "--no-run", "--resume", "--dist-url", "auto", *data.overrides())
    assert code == 0 and "no checkpoint in" in out
    torch.save({"model": {"odd": torch.zeros(3)}}, data.path("output/model_0000004.pth"))
    text(data.path("output/last_checkpoint"), "model_0000004.pth")
    code, out = examine(capsys, "--no-run", "--resume", *data.overrides())
    assert code == 1 and "model_0000004.pth' does not fit" in out and "holds an earlier run" not in out
    code, out = examine(capsys, "--no-run", "--resume", "--allow-partial-weights", *data.overrides())
    assert code == 0 and "0 of " in out
    code, out = examine(capsys, "--no-run", *data.overrides())
    assert code == 0 and "holds an earlier run" in out


@pytest.mark.slow
def test_losses_that_are_not_finite(data, capsys):
    code, out = examine(
        capsys, *data.overrides(), "SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.WARMUP_FACTOR", "1.0"
    )
    assert code == 1 and re.search("error +while training: .*(diverged|finite)", out), out


@pytest.mark.parametrize("copies", [1, 2])
def test_room_for_an_average_of_weights(copies, data):
    """In memory and in checkpoints: two periodic ones, the last and the best."""
    options = ["MODEL_EMA.ENABLED", str(copies == 2), "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    front = open_config("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", data.overrides() + options)
    examination = Examination(front)
    with quiet():
        list(look_at_config(examination))
        model = examination.model
        said = [next(look(examination)).message for look in (memory, _disk)]
    own, trained = (4 * sum(p.numel() for p in tensors) for tensors in (model.state_dict().values(), model.parameters()))
    assert f"weights {size_in_words(own)}, " in said[0] and (f"their average {size_in_words(own)}" in said[0]) == (copies == 2)
    assert f"4 checkpoints of {size_in_words(copies * own + trained)}, " in said[1]
    assert said[0].endswith(f", gradients {size_in_words(trained)}, optimizer's state {size_in_words(trained)}")


def test_state_of_an_own_optimizer(monkeypatch):
    """Adam keeps two values for each weight, SGD without momentum none; of one that needs the whole model it is not known."""
    path = os.path.join(ROOT, "configs", "lazy", "retinanet_V_39_FPN_1x.py")
    for optimizer, states in ((torch.optim.AdamW, 2), (functools.partial(torch.optim.SGD, momentum=0.9), 1), (torch.optim.SGD, 0)):
        front = open_config(path, [])
        monkeypatch.setattr(front, "build_optimizer", lambda model, made=optimizer: made(model.parameters(), lr=0.1))
        assert Examination(front).states == states
    monkeypatch.setattr(front, "build_optimizer", lambda model: torch.optim.SGD(model.backbone.parameters()))
    examination = Examination(front)
    assert examination.states is None and next(memory(examination)).message.endswith("optimizer's state unknown")


@pytest.mark.slow
def test_memory_estimate(data):
    """Two small sizes say what a third one keeps, within a tenth; parameters are counted exactly."""
    front = open_config("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", data.overrides())
    examination = Examination(front)
    with quiet():
        list(look_at_config(examination))
        list(look_at_data(examination))
        fixed, slope = activations(examination)
        model = front.build_model()
        example = front.clone("INPUT.MIN_SIZE_TRAIN", (512,)).mapper(training=True)(examination.some_records(1)[0])
        with EventStorage():
            real = kept_bytes(model, [example])
        lines = [f.message for f in memory(examination)]
    assert example["image"].shape[1:] == (512, 640)
    assert fixed + slope * 512 * 640 == pytest.approx(real, rel=0.1)
    trained = 4 * sum(p.numel() for p in model.parameters())
    assert f"gradients {size_in_words(trained)}" in lines[0]


@pytest.mark.slow
def test_report(data, capsys, tmp_path):
    """One page, whose pictures are inside; names of files and classes stand there as text."""
    evil = "<script>alert('x')</script> $\\frac$"
    for value in data.contents.values():
        value["categories"][0]["name"] = evil
    data.contents["train"]["images"][1]["file_name"] = "<b>\x1b[31m&.png"
    os.rename(data.path("train1.png"), data.path("<b>\x1b[31m&.png"))
    data.contents["train"]["images"][2]["file_name"] = "<i>gone</i>.png"
    data.write()
    page = tmp_path / "new" / "doctor.html"
    code, out = examine(capsys, "--no-run", "--report", page, *data.overrides())
    written = page.read_text()
    assert code == 1 and "\x1b" not in out and "\x1b" not in written
    assert "<script>" not in written and "<i>" not in written and "<b>" not in written and html.escape("<i>gone</i>.png") in written
    assert not re.search(r'(src|href)="(?!data:)', written)
    data.contents["train"]["images"][2]["file_name"] = "train2.png"
    data.write()
    code, _ = examine(capsys, "--no-run", "--report", page, *data.overrides())
    written = page.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', written)
    assert code == 0 and len(pictures) == 2 + 8  # charts and samples
    for encoded in pictures:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"))
        assert min(image.shape) >= 250 and image.std() > 10  # something is drawn
    assert "160x128, of 100x80, 2 objects" in written  # as the mapper resized them


def test_mistakes(data, capsys, tmp_path):
    for arguments, words in (
        (["--images", "none"], "neither a positive number"),
        (["--num-gpus", "0"], "must be at least 1"),
        (["--report", "page.txt"], "must end in .html"),
        (["--report", os.path.join(data.path("train0.png"), "page.html")], "is a file"),
        (["SOLVER.MAX_ITER"], "their number is odd"),
        (["--config-file", "mask_rcnn_V_99.yaml"], "Did you mean"),
        (["--backbone", "V-38-eSE"], "Did you mean 'V-39-eSE'"),
    ):
        code, out = examine(capsys, *arguments)
        assert code == 2 and words in out and "Traceback" not in out, (arguments, out)
    code, out = examine(capsys, "--no-run", "--images", "1", "SOLVER.MAX_ITR", "3", "SOLVER.STEPS", "x=", *data.overrides())
    assert code == 1 and "Did you mean 'SOLVER.MAX_ITER'" in out and "SOLVER.STEPS is 'x=': it must be a list" in out
    wrong = ["train.max_itr=3", "train.seed=abc", "SEED", "train.device=cpu", "train.eval_period=-1", f"train.output_dir={data.path('output')}"]
    code, out = examine(capsys, "--config-file", os.path.join(ROOT, "configs", "lazy", "retinanet_V_39_FPN_1x.py"), "--no-run", *wrong)
    assert code == 1 and "Traceback" not in out
    for words in ("Did you mean 'train.max_iter'", "train.seed is 'abc': it must be a whole number", "not 'SEED'", "train.eval_period is -1"):
        assert words in out, (words, out)


@pytest.mark.slow
def test_own_data_by_flags(data, capsys):
    flags = [
        item
        for split, flag in (("train", "train"), ("test", "val"))
        for item in (f"--{flag}-json", data.path(split + ".json"), f"--{flag}-images", data.folder)
    ]
    code, out = examine(capsys, "--no-run", *flags, "INPUT.MIN_SIZE_TRAIN", "(96,)", "OUTPUT_DIR", data.path("output"))
    for name in ("own_train", "own_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert code == 0 and "own_train: 8 images, 16 objects of 2 classes" in out, out
