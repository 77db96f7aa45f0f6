"""Readers of untrusted files, fed with valid files that were damaged: each takes them, or says in one line what is wrong.

FUZZ_EXAMPLES=3000 pytest tests/test_fuzz.py tries so many files of each reader; the same ones in every run.
"""

import copy
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from choices import cases
from conftest import ROOT
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backbones import documents, zoo
from backbones.benchmark import speed
from backbones.checkpoint import read_checkpoint
from backbones.choices import read_choices
from backbones.config import add_backbones_config, all_keys, check_config, merge_file, merge_overrides, put
from backbones.data import register_from_config
from backbones.data.findings import KINDS
from backbones.errors import UserError
from backbones.maedet import MAEDET, SPECS, format_structure, read_structure
from backbones.search import evidence, rank_correlation, study
from backbones.search.latency import load_table
from backbones.search.paths import load_archive, load_costs
from backbones.search.structure_config import load_structure_config, problem_of
from backbones.search.structure_search import identity_of, load_state
from backbones.shufflenetv2 import SPECS as SHUFFLENETS
from backbones.tools import plot, visualize

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
SECONDS, BYTES = 2, 1 << 30  # of the processor and of memory, for each file
LONGEST = 1000  # characters of a message
SHORTENED = len(str(UserError("x" * 5000))) < LONGEST  # whether a UserError sees to that


class Hang(BaseException):
    """Not to be caught by a reader."""


def _hang(*_):
    raise Hang(f"more than {SECONDS} s")


@contextmanager
def limited():
    """So much memory and time of the processor, by a timer that pytest-timeout does not use."""
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGVTALRM, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, most))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
        signal.signal(signal.SIGVTALRM, handler)


def check(read, *args):
    """Whether ``read`` takes it; anything but a UserError of one short line fails."""
    try:
        with limited():
            read(*args)
    except UserError as error:
        check_words(error)
        return False
    return True


def check_words(error):
    text = str(error)
    assert len(text.splitlines()) == 1 and (len(text) < LONGEST or not SHORTENED), text[:2000]


# what stands in the place of a value; a name in @ becomes the text below, which no writer of JSON or YAML would write
LAUGHS = "lol"
for _i in range(12):
    LAUGHS = f"&a{_i} [{LAUGHS}" + (f", *a{_i - 1}" if _i else ", lol") * 8 + "]"
RAW = {
    "@deep@": "[" * 20_000 + "]" * 20_000,
    "@digits@": "1" * 5000,
    "@overflow@": "1e999",
    "@nan@": "NaN",
    "@laughs@": LAUGHS,
    "@date@": "2001-99-99",
    "@hex@": "0x_",
}
NUMBERS = [0, 1, -1, 3, 255, 1 << 16, 1 << 31, 1 << 63, 10**400, -(10**400), 0.5, -0.0, 5e-324, 1e308, float("inf"), float("nan")]
TEXTS = ["", "x", "..", "/", "../../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "two\nlines\r\u2028", "é", "x" * 5000, "1e999", *RAW]
VALUES = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [{}], [1, 2, 3, 4], {"a": 1}, [None] * 40, list(range(40))]


def places(tree):
    """Every (container, key) of a document; those of a container that stands in several places once."""
    todo, seen = [tree], set()
    while todo:
        holder = todo.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], (dict, list)) and id(holder[key]) not in seen:
                seen.add(id(holder[key]))
                todo.append(holder[key])


@st.composite
def damaged_tree(draw, valid, values=VALUES):
    """A document with one to three places deleted, replaced, doubled, renamed or exchanged."""
    tree = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(tree))
        if not every:
            break
        holder, key = every[draw(st.integers(0, len(every) - 1))]
        how = draw(st.sampled_from(["replace", "replace", "replace", "delete", "double", "rename", "exchange", "wrap"]))
        if how == "replace":
            holder[key] = copy.deepcopy(values[draw(st.integers(0, len(values) - 1))])
        elif how == "delete":
            del holder[key]
        elif how == "double" and isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * draw(st.sampled_from([1, 2, 1000]))
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from([key + "x", *TEXTS[:-1]]) if isinstance(key, str) else st.sampled_from(TEXTS))] = holder.pop(key)
        elif how == "exchange":
            other, place = every[draw(st.integers(0, len(every) - 1))]
            there = place in other if isinstance(other, dict) else place < len(other)
            holder[key] = copy.deepcopy(other[place]) if there else None
        elif how == "wrap":
            holder[key] = [holder[key]] if draw(st.booleans()) else {"a": holder[key]}
    return tree


# no long ones: torch's own words for a name of 40,000 characters in a pickle take it seconds
TOKENS = [value.encode() for value in RAW.values() if len(value) < 20_000] + [
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"null",
    b"-1",
    b"{",
    b"]",
    b'"',
    b"\r",
    b"\xed\xa0\x80",
]


@st.composite
def damaged_bytes(draw, valid):
    """A file with one to four places cut off, cut out, flipped, overwritten, repeated, or with a number or a word replaced."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1024]))
        how = draw(st.sampled_from(["truncate", "cut", "flip", "flip", "overwrite", "repeat", "insert", "token"]))
        if how == "truncate":
            del data[at:]
        elif how == "cut":
            del data[at : at + size]
        elif how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "overwrite":
            data[at : at + size] = draw(st.binary(min_size=min(size, 8), max_size=8))
        elif how == "repeat":
            data[at:at] = data[at : at + size] * draw(st.sampled_from([1, 2, 100]))
        elif how == "insert":
            data[at:at] = draw(st.sampled_from(TOKENS))
        elif how == "token":
            found = re.compile(rb"-?\d[\d.e+-]*|\w+").search(bytes(data), at)
            if found:
                data[found.start() : found.end()] = draw(st.sampled_from(TOKENS))
    return bytes(data)


def as_text(tree, write):
    """A document as bytes."""
    text = write(tree)
    for name, raw in RAW.items():
        text = re.sub(f"[\"']{name}[\"']", lambda _, raw=raw: raw, text)
    return text.encode("utf-8", "surrogatepass")


def as_yaml(tree):
    return yaml.safe_dump(tree, sort_keys=False)


JSON = st.recursive(
    st.sampled_from([*VALUES[:5], *NUMBERS, *TEXTS]), lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4)
)


@st.composite
def files(draw, reader):
    """What ``reader`` is given: mostly one of its valid files, damaged as a document or as bytes."""
    valid = reader.valid[draw(st.integers(0, len(reader.valid) - 1))]
    how = draw(st.sampled_from(["tree"] * 6 + ["bytes"] * 3 + ["random", "binary"]))
    if how == "binary":
        return draw(st.binary(max_size=200))
    if how == "random" and reader.write:
        return as_text(draw(JSON), json.dumps)
    if how == "tree" and reader.write:
        write = json.dumps if reader.write is as_yaml and draw(st.booleans()) else reader.write
        return as_text(draw(damaged_tree(valid)), write)
    if how == "tree" and reader.pack:
        return reader.pack(draw)
    return draw(damaged_bytes(valid if isinstance(valid, bytes) else as_text(valid, reader.write)))


# --- the readers


def png(folder, name, size, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(os.path.join(folder, name), exif=exif)


COCO = {
    "info": {"year": 2020},
    "images": [
        {"id": 1, "file_name": "a.png", "width": 16, "height": 12},
        {"id": 2, "file_name": "b.jpg", "width": 12, "height": 16},
        {"id": 3, "file_name": "a.png", "width": 16, "height": 12},
    ],
    "categories": [
        {"id": 1, "name": "cup", "keypoints": ["left ear", "right ear"], "skeleton": [[1, 2]], "supercategory": "thing"},
        {"id": 7, "name": "hat", "supercategory": "thing"},
    ],
    "annotations": [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": category,
            "bbox": [1, 2.5, 6, 5],
            "area": 30.0,
            "iscrowd": crowd,
            "segmentation": segmentation,
            "keypoints": [2, 3, 2, 5.5, 4, 1],
            "num_keypoints": 2,
        }
        for i, (image, category, crowd, segmentation) in enumerate(
            (
                (1, 1, 0, [[1, 2.5, 7, 2.5, 7, 7.5, 1, 7.5]]),
                (1, 7, 1, {"size": [12, 16], "counts": [20, 30, 142]}),
                (2, 1, 0, [[1, 2, 7, 2, 7, 7], [8, 8, 9, 8, 9, 9]]),
                (2, 7, 0, {"size": [16, 12], "counts": "S16:0000000]2"}),
            )
        )
    ],
}


# what the findings call entries that are not in what is read
NO_IMAGES = ("malformed image", "repeated image entry", "image left out")
NO_OBJECTS = (
    *("malformed annotation", "object of such an image", "orphan annotation", "unknown category"),
    *("no box", "empty box", "box outside", "object without mask"),
)


def check_counts(path, name):
    """Every entry of the file is there, or counted among those that are not."""
    content, about = documents.read_json(path), MetadataCatalog.get(name)
    data, records = about.reader.dataset(), DatasetCatalog.get(name)
    counts = data.findings.counts
    assert len(content["images"]) == len(records) + sum(counts.get(kind, 0) for kind in NO_IMAGES), counts
    if not data.labelled:
        assert not content.get("annotations")
        return
    objects = [a for record in records for a in record["annotations"]]
    assert len(content["annotations"]) == len(objects) + sum(counts.get(kind, 0) for kind in NO_OBJECTS), counts
    assert sum(a["iscrowd"] for a in objects) == counts.get("crowds", 0) + counts.get("ignored annotation", 0), counts
    said = re.search(r"left out: (\d+)(?: images? and (\d+) objects?)?", about.said[0])
    assert sum(int(number or 0) for number in said.groups()) == sum(counts.get(kind, 0) for kind in LEFT), about.said[0]


LEFT = [kind for kind, row in KINDS.items() if row.effect == "left out"]
USES = [
    {},
    {"MODEL.MASK_ON": True},
    {"MODEL.KEYPOINT_ON": True},
    {"MODEL.MASK_ON": True, "DATASETS.NO_MASK": "skip", "INPUT.UNREADABLE": "skip", "DATASETS.CROWDS": "objects"},
    {"MODEL.MASK_ON": True, "MODEL.KEYPOINT_ON": True, "DATASETS.NO_MASK": "box", "DATASETS.BOX_FORMAT": "xyxy"},
]


def read_coco(path, folder):
    """What is taken is to load and to become training examples, and each object is in them or counted."""
    name, errors = "fuzzed", []
    for use in USES:
        cfg = get_cfg_with_ours()
        cfg.DATASETS.REGISTER = [[name, path, os.path.join(folder, "images")]]
        for key, value in use.items():
            put(cfg, key, value)
        masks, keypoints = cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON
        try:
            register_from_config(cfg)
            check_counts(path, name)
            mapper = DatasetMapper(
                is_train=True,
                augmentations=[],
                image_format="BGR",
                use_instance_mask=masks,
                use_keypoint=keypoints,
                instance_mask_format="bitmask",
            )
            for record in DatasetCatalog.get(name):
                mapper(record)
        except UserError as error:
            errors.append(error)
            check_words(error)
        finally:
            forget(name)
    if errors:
        raise errors[0]


def forget(name):
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)


def read_image(path, folder):
    """An image beside COCO's annotations."""
    name = os.path.basename(path)
    annotations = os.path.join(folder, "image.json")
    with open(annotations, "w") as f:
        json.dump({**COCO, "images": [{"id": 1, "file_name": name, "width": 16, "height": 12}], "annotations": []}, f)
    cfg = get_cfg_with_ours()
    cfg.DATASETS.REGISTER = [["fuzzed image", annotations, os.path.dirname(path)]]
    try:
        register_from_config(cfg)
    finally:
        forget("fuzzed image")


_CFG = []


def get_cfg_with_ours():
    if not _CFG:
        cfg = get_cfg()
        add_backbones_config(cfg)
        _CFG.append(cfg)
    return _CFG[0].clone()


def build_structure(path, _):
    structure = read_structure(path)
    with torch.device("meta"):
        MAEDET(structure)


def read_subnet(path, _):
    spec = SHUFFLENETS["DetNAS-300M"]
    choices = read_choices(path, spec.blocks, {"network": "DetNAS-300M", "split": "input", "shuffle": "alternate", "width": 1.0})
    assert len(choices) == sum(spec.blocks) and set(choices) <= set(range(4))


def read_search(path, _):
    problem_of(load_structure_config(path))


def read_search_state(path, folder):
    config = load_structure_config("search/maedet_r50_budget.yaml")
    problem, _ = problem_of(config)
    load_state(path, identity_of(config, 0), problem)


def read_latency(path, _):
    table = load_table(path)
    for stride in (1, 2):
        for width in (8, 24, 4096):
            try:
                assert table.conv(width, 3, 3, stride, 240) >= 0
            except UserError:
                pass


def read_train(path, _):
    merge_file(get_cfg_with_ours(), path)


def read_metrics(path, folder):
    if path != os.path.join(folder, "metrics.json"):
        os.makedirs(os.path.join(folder, "run"), exist_ok=True)
        os.replace(path, os.path.join(folder, "run", "metrics.json"))
    rows = plot.read_metrics(os.path.join(folder, "run"))
    for key in {key for row in rows for key in row}:
        x, y = plot.series(rows, key)
        np.asarray(x, np.int64), np.asarray(y, float)


def read_speed(path, _):
    for rows in speed.by_place(speed.read(path)).values():
        for row in rows:
            row["name"].split("/"), [float(s) for s in row.get("seconds", ())]


def read_one_shot(path, _):
    load_costs(path).range()
    load_archive(path, json.loads(json.dumps(ONE_SHOT["search"])))


def read_rank(path, _):
    rows, _ = rank_correlation.load_paths(path, "1f")
    rank_correlation.compared(path)
    if len(rows) > 2:
        rank_correlation.summary(rows)


def read_study(path, _):
    evidence.summary(study.read(path))


def read_results(path, _):
    visualize.read_results(path)


TENSORS = {"stem.conv.weight": torch.arange(6.0).reshape(2, 3), "stem.norm.bias": torch.ones(3), "count": torch.tensor(3)}
ABOUT = {"provenance": {"overrides": ["MODEL.MASK_ON", "False"]}, "iteration": 7, "conventions": {"split": "input"}}
CHECKPOINT = {"model": TENSORS, **ABOUT, "list": [1, (2, "x")]}
ARRAYS = {"model": {key: value.numpy() for key, value in TENSORS.items()}, "__author__": "x", "lr": np.float64(0.1), "list": [1, "x"]}


class Hostile:
    """Makes the folder ``marker`` when it is unpickled by anything that runs code."""

    marker = ""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        code = f"__import__('os').makedirs({self.marker!r}, exist_ok=True)"
        return [
            (os.makedirs, (self.marker,)),
            (eval, (code,)),
            (exec, (code,)),
            (os.system, (f"mkdir -p {self.marker}",)),
            (subprocess.call, (["mkdir", "-p", self.marker],)),
            (getattr, (os, "getpid")),
            (torch.jit.load, (self.marker,)),
            (map, (os.makedirs, [self.marker])),
            (np.load, (self.marker,)),
        ][self.kind]

    def __deepcopy__(self, memo):
        return Hostile(self.kind)


LAUGH = ["x"]
for _ in range(40):
    LAUGH = [LAUGH] * 9
LOOP = []
LOOP.append(LOOP)
OBJECTS = [Hostile(kind) for kind in range(9)] + [
    LOOP,
    LAUGH,
    torch.device("meta"),
    slice(0, 1),
    {1, 2},
    np.array(["a", None], object),
    torch.nn.ReLU(),
]
OBJECTS += [
    torch.zeros(1).expand(10**12),
    torch.eye(2).to_sparse(),
    torch.zeros(2, device="meta"),
    torch.float16,
    torch.Size([1]),
    *VALUES[:24],
]
OPCODES = [
    getattr(pickle, name)
    for name in dir(pickle)
    if name.isupper() and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1
]


def damaged_pickle(draw, data):
    """Bytes of a pickle, damaged, also by other opcodes."""
    if draw(st.booleans()):
        return draw(damaged_bytes(data))
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        opcode = draw(st.sampled_from(OPCODES)) + draw(
            st.sampled_from([b"", b"\0", b"\x01", b"\xff\xff\xff\x7f", b"\xff" * 8, b"os\nsystem\n"])
        )
        data[at : at + draw(st.sampled_from([0, 1, len(opcode)]))] = opcode
    return bytes(data)


def packer(valid, write):
    """Files of objects: hostile ones in the tree, or the pickle in them damaged."""

    def pack(draw):
        hostile = draw(st.booleans())
        tree = draw(damaged_tree(valid, OBJECTS)) if hostile else copy.deepcopy(valid)
        try:
            data = write(tree)
        except (pickle.PicklingError, RecursionError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError):
            data = write(valid)
        return data if hostile else damaged_pickle(draw, data)

    return pack


def save_zip(tree):
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def save_legacy(tree):
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def pack_zip(draw):
    """The pickle inside of torch's archive damaged, with sums that are right."""
    if draw(st.booleans()):
        return packer(CHECKPOINT, save_zip)(draw)
    source, buffer = zipfile.ZipFile(io.BytesIO(save_zip(CHECKPOINT))), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, damaged_pickle(draw, data) if name.endswith("data.pkl") else data)
    return buffer.getvalue()


def save_safetensors():
    from safetensors.torch import save

    return save(TENSORS, {"backbones": json.dumps(ABOUT)})


def pack_safetensors(draw):
    """Its header damaged as a document, or what stands in it of this project."""
    data = save_safetensors()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if draw(st.booleans()):
        header["__metadata__"]["backbones"] = as_text(draw(damaged_tree(ABOUT)), json.dumps).decode("utf-8", "replace")
    else:
        header = draw(damaged_tree(header))
    text = as_text(header, json.dumps)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def read_weights(path, folder):
    assert isinstance(read_checkpoint(path), dict)


def read_inert(path, folder):
    assert isinstance(read_checkpoint(path, inert=("mmengine", "numpy")), dict)


with open(os.path.join(ROOT, "configs", "search", "maedet_r50_budget.yaml")) as _f:
    SEARCH = yaml.safe_load(_f)
STRUCTURE = eval(format_structure(SPECS["MAE-DET-S"].structure))
SEARCH["start"] = STRUCTURE["best_structures"][0]
_CHOICES = list(SHUFFLENETS["DetNAS-300M"].choices)
SUBNETS = [
    _CHOICES,
    {"network": "DetNAS-300M", "choices": _CHOICES, "split": "input", "shuffle": "alternate", "width": 1.0, "score": 30.5},
    {f"stage_{s}_block_{b}": {"chosen": "shuffle_3x3"} for s, n in enumerate((4, 4, 8, 4)) for b in range(n)},
    {f"backbone.layers.{s}.{b}": {"chosen": ["shuffle_5x5"]} for s, n in enumerate((4, 4, 8, 4)) for b in range(n)},
]
TRAIN = {
    "MODEL": {
        "WEIGHTS": "",
        "MASK_ON": False,
        "BACKBONE": {"NAME": "build_vovnet_fpn_backbone", "FREEZE_AT": 0},
        "VOVNET": {"CONV_BODY": "V-19-eSE", "OUT_FEATURES": ["stage2", "stage3"], "DEFORM_ON_PER_STAGE": [False, False, False, True]},
        "MAEDET": {"STRUCTURE": "best_structure.txt", "WIDTH": 1.0},
        "ANCHOR_GENERATOR": {"SIZES": [[32], [64]], "ASPECT_RATIOS": [[0.5, 1.0]]},
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
    },
    "DATASETS": {"TRAIN": "('a',)", "TEST": ["b"], "REGISTER": [["a", "a.json", "images"]]},
    "SOLVER": {"IMS_PER_BATCH": 2, "BASE_LR": 0.02, "STEPS": "(6, 8)", "AMP": {"ENABLED": True}},
    "INPUT": {"MIN_SIZE_TRAIN": [640, 800], "FORMAT": "BGR"},
    "VERSION": 2,
}
TABLE = {
    "about": {"device": "cpu", "batch": 1},
    "image_size": 480,
    "entries": {"3/2/480": [[3, 8, 1e-4], [3, 16, 2e-4]], "3/1/240": [[8, 8, 1e-4], [8, 16, 2e-4], [16, 8, 1e-4], [16, 16, 3e-4]]},
}
METRICS = [
    {"iteration": i, "total_loss": 3.0 / (i + 1), "loss_cls": 1.0, "lr": 0.02, **({"bbox/AP": 40.0} if i == 39 else {})} for i in (0, 19, 39)
]
SPEED = {
    "runs": [
        {
            "name": f"inference/{name}/800x1333/optimized_vs_eager",
            "unit": "times as fast",
            "machine": "cpu",
            "threads": 2,
            "precision": "fp32",
            "versions": {"python": "3.11", "torch": "2.14"},
            "seconds": [0.5, 1.0],
            "median": 2.0,
            "low": 1.9,
            "high": 2.1,
            "pairs": 3,
        }
        for name in ("V-39-eSE", "R-50")
    ]
}
ONE_SHOT = {
    "search": {
        "weights": "0" * 64,
        "table": {"kind": "macs", "base": 1e6, "blocks": [[1.0, 2.0, 3.0, 4.0]] * 3},
        "method": "evolution",
        "seed": 0,
        "config": {"ONE_SHOT.POPULATION": 50},
    },
    "archive": [{"path": [0, 1, 2], "cost": 1e6, "score": 30.5, "generation": 0, "seconds": {"inference": 1.0}}] * 2,
}
RANKED = [{"path": [0, i, 2], "cost": 1e6, "supernet": 30.5 - i, "trained": 31.0, "seconds": {"inference": 1.0}} for i in range(3)]
REACHED = {"random_paths": 2, "found": 31.0, "others_mean": 31.0, "others_best": 31.0, "spearman": 0.5}
RANK = {"runs": [{"comparison": "1f", "config": "a.yaml", "seed": 1, **REACHED, "paths": RANKED}]}
STUDY = {
    "runs": [
        {"study": name, "network": f"path {i}", "group": "random", "setting": "0" * 12, "seed": 1, "ap": 30.5 + i}
        for name in ("paths", "paths supernet")
        for i in range(4)
    ]
}
RESULTS = [{"image_id": i, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.9} for i in range(3)]


def search_state():
    config = load_structure_config("search/maedet_r50_budget.yaml")
    problem, start = problem_of(config)
    return json.loads(json.dumps({"search": identity_of(config, 0), "rounds": 3, "history": [[1, 2.0]], "population": [start]}))


def image_files():
    result = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[274], exif[270] = 1, "x"
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(buffer, kind, exif=exif)
        result.append(buffer.getvalue())
    return result


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows) if isinstance(rows, list) else json.dumps(rows)


def reader(read, valid, write=None, ending=".json", pack=None):
    return SimpleNamespace(read=read, valid=valid, write=write, ending=ending, pack=pack)


READERS = {
    "coco": reader(read_coco, [COCO], json.dumps),
    "image": reader(read_image, image_files(), ending=".png"),
    "structure": reader(build_structure, [STRUCTURE, STRUCTURE["best_structures"][0]], repr, ".txt"),
    "subnet": reader(read_subnet, SUBNETS, as_yaml, ".yaml"),
    "search config": reader(read_search, [SEARCH], as_yaml, ".yaml"),
    "search state": reader(read_search_state, [search_state()], json.dumps),
    "latency table": reader(read_latency, [TABLE], json.dumps),
    "one-shot state": reader(read_one_shot, [ONE_SHOT], json.dumps),
    "rank correlation": reader(read_rank, [RANK], json.dumps),
    "study": reader(read_study, [STUDY], json.dumps),
    "train config": reader(read_train, [TRAIN], as_yaml, ".yaml"),
    "metrics": reader(read_metrics, [METRICS], lines),
    "speed": reader(read_speed, [SPEED], json.dumps),
    "results": reader(read_results, [RESULTS], json.dumps),
    ".pth": reader(read_weights, [save_zip(CHECKPOINT)], ending=".pth", pack=pack_zip),
    ".pth legacy": reader(read_weights, [save_legacy(CHECKPOINT)], ending=".pth", pack=packer(CHECKPOINT, save_legacy)),
    ".pth of packages": reader(read_inert, [save_zip(CHECKPOINT), save_legacy(CHECKPOINT)], ending=".pth", pack=pack_zip),
    ".pkl": reader(read_weights, [pickle.dumps(ARRAYS, 2), pickle.dumps(ARRAYS, 4)], ending=".pkl", pack=packer(ARRAYS, pickle.dumps)),
    ".safetensors": reader(read_weights, [save_safetensors()], ending=".safetensors", pack=pack_safetensors),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the images that COCO's annotations name."""
    path = tmp_path_factory.mktemp("fuzz")
    (path / "images").mkdir()
    png(path / "images", "a.png", (16, 12))
    png(path / "images", "b.jpg", (16, 12), orientation=6)
    Hostile.marker = str(path / "ran")
    return str(path)


def feed(name, folder, data):
    path = os.path.join(folder, "file" + READERS[name].ending)
    with open(path, "wb") as f:
        f.write(data)
    return check(READERS[name].read, path, folder)


def intact(reader):
    return [valid if isinstance(valid, bytes) else as_text(valid, reader.write) for valid in reader.valid]


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_taken(name, folder):
    for data in intact(READERS[name])[: 1 if name == "image" else None]:
        assert feed(name, folder, data)


# so many files of each reader: of those that take longer fewer
DAILY = {"search config": 40, "search state": 60, "train config": 40, "subnet": 100, "structure": 100}


@pytest.mark.parametrize(
    "name", cases(READERS, tried=READERS, daily=[name for name in READERS if name not in ("coco", "structure", "search state")])
)
def test_damaged_files(name, folder):
    @settings(max_examples=EXAMPLES or DAILY.get(name, 150))
    @given(files(READERS[name]))
    def damaged(data):
        feed(name, folder, data)
        assert not os.path.exists(Hostile.marker), "code in the file ran"

    damaged()


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("image", "metrics", "rank correlation", "results")])
@pytest.mark.parametrize("path", ["missing", "", ".", "a\0b", "\ud800", "x" * 300, "/dev/zero", "pipe", "locked"])
def test_what_is_no_file(name, path, folder, tmp_path):
    path = path if path in ("", ".", "/dev/zero") else str(tmp_path / path)
    if path.endswith("pipe"):
        os.mkfifo(path)
    elif path.endswith("locked"):
        with open(path, "w") as f:
            f.write("x")
        os.chmod(path, 0)
    if READERS[name].read is read_one_shot:
        with pytest.raises(UserError), limited():
            load_costs(path)
    else:
        assert not check(READERS[name].read, path, folder)


@pytest.mark.parametrize(
    "text", ["[" * 300, LAUGHS, "&x [*x]", "1" * 30, "0x_", "2001-99-99", "!!python/name:os.system", "? {a: 1}\n: 2", "=", "\x07"]
)
def test_yaml_of_anybody(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        documents.read_yaml(str(tmp_path / "a.yaml"))
    assert len(str(error.value).splitlines()) == 1


def test_yaml_with_aliases(tmp_path):
    """As Python writes what stands in several places."""
    (tmp_path / "a.yaml").write_text("a: &x [1]\nb: *x")
    assert documents.read_yaml(str(tmp_path / "a.yaml")) == {"a": [1], "b": [1]}


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", "", "'a'"])
def test_json_of_anybody(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError):
        documents.read_json(str(tmp_path / "a.json"))


@pytest.mark.parametrize("inert", [(), ("mmengine",)])
@pytest.mark.parametrize("ending", [".pkl", ".pth"])
def test_pickle_that_asks_for_memory(ending, inert, tmp_path):
    """One that says that it has two thousand million objects."""
    path = tmp_path / ("a" + ending)
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    try:
        with limited():
            read_checkpoint(str(path), inert)
    except UserError as error:
        assert not isinstance(error.__cause__, MemoryError)


def test_pickle_that_repeats_itself(tmp_path):
    """Lists of nine times the same list, forty deep."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": LAUGH}))
    with limited():
        assert list(read_checkpoint(str(tmp_path / "a.pkl"))) == ["model"]


def test_train_configs_by_flags():
    keys = sorted(all_keys(get_cfg_with_ours()))
    values = (
        st.sampled_from(VALUES).map(str)
        | st.text(max_size=10)
        | st.sampled_from(["[", "(1,", "{'a'", "[1]*3", "1e999", "None", "__import__('os')"])
    )

    @settings(max_examples=EXAMPLES or 100)
    @given(st.lists(st.one_of(st.sampled_from(keys), st.text(max_size=20)), max_size=2), values)
    def overridden(names, value):
        check(merge_overrides, get_cfg_with_ours(), [part for name in names for part in (name, value)])

    overridden()


def test_names_of_configs():
    @settings(max_examples=EXAMPLES or 100)
    @given(
        st.text(max_size=30)
        | st.sampled_from([str(v) for v in VALUES])
        | st.sampled_from(zoo.list_configs()).flatmap(lambda n: st.sampled_from([n, n[1:], "../" + n, n + "\0", n.upper()]))
    )
    def named(name):
        check(zoo.get_config_file, name)

    named()


@pytest.mark.slow
def test_checked_train_configs(folder):
    """What merges is built or refused in one line."""
    every = get_cfg_with_ours()
    keys = [key for key in all_keys(every) if key.startswith(("MODEL.", "SOLVER.", "INPUT.", "TEST."))]

    @settings(max_examples=(EXAMPLES or 400) // 10)
    @given(st.sampled_from(keys), st.sampled_from(VALUES[:40]))
    def checked(key, value):
        cfg = get_cfg_with_ours()
        cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "cpu", folder
        try:
            merge_overrides(cfg, [key, str(value)])
        except UserError:
            return
        check(check_config, cfg, True)

    checked()
