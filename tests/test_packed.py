"""Records in one file that processes share: training data are read once, whatever the number of processes."""

import json
import os
import pickle

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import launch
from PIL import Image

from backbones import add_backbones_config
from backbones.data.coco import Reader
from backbones.data.loader import build_train_loader
from backbones.data.packed import Packed
from backbones.data.sources import Source, Use
from backbones.engine.launch import once_a_machine

ITEMS = [{"file_name": f"{i}.jpg", "annotations": [{"bbox": [i, 0, 2.5, 3]}] * i} for i in range(5)]


def test_items_by_place_and_slice():
    packed = Packed(iter(ITEMS), about="five")
    try:
        assert len(packed) == 5 and list(packed) == ITEMS and packed.about == "five"
        assert packed[-1] == ITEMS[-1] and packed[np.int64(2)] == ITEMS[2]
        assert packed[1:4] == ITEMS[1:4] and packed[::-2] == ITEMS[::-2] and packed[5:] == []
        assert packed[1] is not packed[1]  # who changes a record changes a copy
        for place in (5, -6):
            with pytest.raises(IndexError):
                packed[place]
    finally:
        packed.forget()
    empty = Packed([])
    empty.forget()
    assert len(empty) == 0 and list(empty) == []


def test_a_pickle_names_the_file():
    """However many records: a large one would make processes start one after the other. Without the file, it holds what was in it."""
    packed = Packed(range(20_000))
    content = pickle.dumps(packed)
    there = pickle.loads(content)
    packed.forget()
    packed.forget()  # twice does no harm
    assert len(content) < 1000 and not os.path.exists(packed.path)
    assert list(there) == list(packed) == list(range(20_000))  # who had it open still has it
    late = pickle.loads(pickle.dumps(there))
    assert list(late) == list(there) and late.path == there.path
    with pytest.raises(FileNotFoundError):
        pickle.loads(content)


def _coco(folder, images=6):
    (folder / "images").mkdir()
    names = [f"{i}.png" for i in range(images)]
    for name in names:
        Image.new("RGB", (40, 30)).save(folder / "images" / name)
    pictures = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)]
    objects = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 3, 10 + i, 5], "area": 50, "iscrowd": 0} for i in range(images)]
    content = {"images": pictures, "annotations": objects, "categories": [{"id": 1, "name": "cup"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return Source("shared_cups", str(folder / "a.json"), str(folder / "images"))


def test_a_reader_hands_on_what_it_has_read(tmp_path):
    reader = Reader(_coco(tmp_path), Use())
    expected = Reader(reader.source, reader.use)()
    reader.dataset()
    content = pickle.dumps(reader)
    os.remove(reader.source.json_file)
    theirs = pickle.loads(content)
    assert theirs() == expected and len(expected) == 6


def _train(reader, folder):
    """In each of two processes: notes whether it has read, and which records its loader has."""
    reads = []
    DatasetCatalog.register("shared_cups", lambda: reads.append(1) or reader())
    cfg = get_cfg()
    add_backbones_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = ("shared_cups",), 0, 2
    loader = build_train_loader(cfg, lambda record: record, once_a_machine)
    records = loader.dataset.records
    with open(os.path.join(folder, f"{os.getpid()}.seen"), "w") as f:
        json.dump(
            {"reads": len(reads), "names": [r["file_name"] for r in records], "file": records.path, "wide": loader.batches.wide.tolist()}, f
        )


@pytest.mark.slow
def test_one_process_reads_for_two(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reader = Reader(_coco(tmp_path), Use())
    reader.dataset()
    launch(_train, 2, dist_url="auto", args=(reader, str(tmp_path)))
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("*.seen")]
    assert sorted(one["reads"] for one in seen) == [0, 1]
    assert seen[0]["names"] == seen[1]["names"] == [str(tmp_path / "images" / f"{i}.png") for i in range(6)]
    assert seen[0]["file"] == seen[1]["file"] and not os.path.exists(seen[0]["file"])
    assert seen[0]["wide"] == seen[1]["wide"] == [True] * 6
