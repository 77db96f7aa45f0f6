"""backbones errors: what went wrong in an evaluation; and the pictures that show it."""

import json
import sys

import matplotlib
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from backbones.drawing import SIDE, Mark, beside, draw
from backbones.engine import open_config
from backbones.errors import UserError
from backbones.evaluation import build, corruptions
from backbones.evaluation.figures import headline, leading_task
from backbones.evaluation.mistakes import Judged, by_kind_of_object, confusion, judge, tide
from backbones.evaluation.results import config_of, results_file
from backbones.tools import errors as tool
from backbones.tools import run


def box(image, category, x, y, side=20, **more):
    return {"image_id": image, "category_id": category, "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0, **more}


def data():
    """Six images with an object or two, and one kind of error each."""
    truth = [box(i, 1, 10, 10) for i in range(1, 7)] + [box(1, 2, 60, 60), box(6, 2, 60, 10, iscrowd=1)]
    found = [
        box(1, 1, 10, 10, score=0.9),  # right
        box(2, 2, 10, 10, score=0.95),  # wrong class
        box(3, 1, 20, 10, score=0.8),  # IoU 1/3: localisation
        box(4, 1, 10, 10, score=0.9),
        box(4, 1, 11, 10, score=0.6),  # duplicate
        box(5, 1, 10, 10, score=0.9),
        box(5, 1, 70, 70, score=0.7),  # background
        box(5, 2, 20, 10, score=0.7),  # class and place
        box(6, 2, 60, 10, score=0.9),  # in a crowd
    ]
    dataset = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(1, 7)],
        "annotations": [{"id": i + 1, **a} for i, a in enumerate(truth)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}],
    }
    return dataset, found


def test_kinds_of_errors_are_tides():
    pytest.importorskip("tidecv")
    before = dict(matplotlib.rcParams)
    figures = tide(*data())
    assert dict(matplotlib.rcParams) == before  # tidecv sets colours for all pictures
    counts = {name: row["count"] for name, row in figures["kinds"].items()}
    assert counts == {
        "classification": 1,
        "localisation": 1,
        "both": 1,
        "duplicate": 1,
        "background": 2,
        "missed": 2,
    }  # one of background in a crowd
    assert figures["false positives"]["count"] == 5 and figures["false negatives"]["count"] == 4
    assert figures["kinds"]["missed"]["dAP"] > 0 and figures["kinds"]["duplicate"]["dAP"] < figures["false positives"]["dAP"] + 1e-9


def test_classes_without_objects_do_not_count():
    """As in AP; of crowds alone there is nothing to count."""
    pytest.importorskip("tidecv")
    dataset, found = data()
    expected = tide(dataset, found)
    dataset["categories"].append({"id": 3, "name": "fork"})
    ghosts = [{**found[0], "category_id": 3, "bbox": [80, 80, 5, 5]}] * 2
    assert tide(dataset, found + ghosts) == {**expected, "absent": 2} and expected["absent"] == 0
    with pytest.raises(UserError, match="no detection is of a class that the data have"):
        tide(dataset, ghosts)
    for a in dataset["annotations"]:
        a["iscrowd"] = 1
    with pytest.raises(UserError, match="all objects of the data are crowds"):
        tide(dataset, found)


def test_masks_have_kinds_of_errors():
    pytest.importorskip("tidecv")
    from pycocotools import mask

    dataset, found = data()
    for entry in (*dataset["annotations"], *found):
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 100, 100)[0]
    assert tide(dataset, found, "segm") == tide(*data())


def test_without_tidecv_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tidecv", None)
    with pytest.raises(UserError, match="the package tidecv is not installed: pip install tidecv"):
        tide(*data())


def test_confusion():
    dataset, found = data()
    judged = judge(dataset, found, 0.65)
    names, table = confusion(dataset, judged)
    assert names == ["cup", "plate", "background"]
    # cups: 3 right, 1 as plate, 2 missed; the plate missed; where nothing is: 2 cups (one too far off) and a plate, less the one in a crowd
    assert table.tolist() == [[3, 1, 2], [0, 0, 1], [2, 1, 0]]
    assert judged[2].counts() == {"wrong class": 1, "no object": 0, "missed": 0}
    assert judged[3].counts() == {"wrong class": 0, "no object": 1, "missed": 1}
    assert sum(map(len, (j.found for j in judge(dataset, found, 0.0).values()))) == 8


def test_sizes_and_crowding():
    dataset, found = data()
    small = [a for a in dataset["annotations"] if a["id"] < 4]
    for a in small:
        a.update(bbox=[10, 10, 60, 60], area=3600)
    rows = {row["name"]: row for row in by_kind_of_object(dataset, found)["size"]}
    assert rows["medium (32² to 96²)"]["objects"] == 3 and rows["medium (32² to 96²)"]["AP"] == 0
    assert rows["small (below 32²)"]["objects"] == 4 and rows["small (below 32²)"]["AP"] > 20
    assert rows["large (above 96²)"]["AP"] is None
    thirds = [row["objects"] for name, row in rows.items() if "third" in name]
    assert thirds == [4, 3, 0]  # an object of the limit's size is in one of them
    crowding = by_kind_of_object(*data())["objects in the image"]
    assert sum(row["images"] for row in crowding) == 6 and sum(row["objects"] for row in crowding) == 7


def test_one_figure_leads():
    assert headline(["bbox/AP", "keypoints/AP", "segm/AP"]) == "segm/AP" and headline(["bbox/AP", "keypoints/AP"]) == "keypoints/AP"
    boxes, masks = [{"bbox": [0, 0, 1, 1]}], [{"bbox": [0, 0, 1, 1], "segmentation": {}}]
    assert leading_task(masks, masks) == "segm" and leading_task(masks, boxes) == "bbox" and leading_task([]) == "bbox"


@pytest.mark.parametrize("size", [(40, 60), (200, 100), (3000, 2000)])
def test_pictures_are_at_a_size_for_eyes(size):
    picture = draw(np.zeros((*size, 3), np.uint8), [Mark((5, 5, 15, 15), "cup 90")])
    assert min(picture.shape[:2]) >= min(SIDE, 8 * min(size)) and max(picture.shape[:2]) < 1500 or size == (40, 60)


def test_labels_cover_no_object():
    """A white image with two black objects, one at the top edge: inside their boxes nothing but them is drawn."""
    image = np.full((100, 100, 3), 255, np.uint8)
    boxes = [(0, 0, 12, 12), (40, 40, 52, 52), (40, 56, 52, 68)]
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 0
    picture = draw(image, [Mark(b, "a long label 99", (230, 159, 0)) for b in boxes])
    margin, scale = 23, 4.8
    for b in boxes:
        x0, y0, x1, y1 = (int(v * scale) + margin for v in b)
        assert picture[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6].max() < 40, b  # resizing rings a little
    both = beside(picture, picture)
    assert both.shape[1] == 2 * picture.shape[1] + 6 and (both[26:, : picture.shape[1]] == picture).all()


def test_damage_grows():
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    for name, damage in corruptions.CORRUPTIONS.items():
        apart = [np.abs(damage(image, severity).astype(float) - image).mean() for severity in range(1, 6)]
        assert apart == sorted(apart) and apart[0] > 1, (name, apart)
        assert damage(image, 2).dtype == np.uint8 and (damage(image, 2) == damage(image, 2)).all()


def test_weather_is_the_same_every_time_or_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    said = []
    assert corruptions.corruptions(said.append) == corruptions.CORRUPTIONS and "backbones[corruptions]" in said[0]
    small = [{"file_name": "a.png", "height": 64, "width": 64}, {"file_name": "b.png", "height": 31, "width": 64}]
    assert corruptions.corruptions(said.append, small) == corruptions.CORRUPTIONS and "'b.png' has a side below 32" in said[1]
    monkeypatch.undo()
    pytest.importorskip("imagecorruptions", exc_type=ImportError)
    image = np.full((64, 64, 3), 90, np.uint8)
    snow = corruptions.corruptions()["snow"]
    assert (snow(image, 3) == snow(image, 3)).all() and np.abs(snow(image, 3).astype(float) - image).mean() > 5
    with pytest.raises(UserError, match="32 pixels"):
        snow(image[:20], 3)


def test_an_image_that_cannot_be_drawn_is_left_out(tmp_path, capsys):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "cut.jpg", quality=100)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])
    judged = Judged([], [], [])
    assert tool.picture_of({"file_name": str(tmp_path / "cut.jpg")}, judged, {}, {}) is None
    assert "left out: image" in capsys.readouterr().err


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["backbones errors", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        run(tool.main)
        raise SystemExit(0)
    return exit.value.code, capsys.readouterr()


@pytest.fixture
def finished(tmp_path, catalogue):
    """What a run leaves: a config that names its data, and detections."""
    dataset, found = data()
    for image in dataset["images"]:
        Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(tmp_path / image["file_name"])
    (tmp_path / "val.json").write_text(json.dumps(dataset))
    (tmp_path / "run" / "inference").mkdir(parents=True)
    (tmp_path / "run" / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    entry = {"NAME": "own_val", "JSON": str(tmp_path / "val.json"), "IMAGES": str(tmp_path)}
    (tmp_path / "run" / "config.yaml").write_text(f"DATASETS:\n  TEST: [own_val]\n  REGISTER: {json.dumps([list(entry.values())])}\n")
    return tmp_path / "run"


def test_tool(finished, monkeypatch, capsys):
    pytest.importorskip("tidecv")
    code, said = command(monkeypatch, capsys, finished, "--num", 3, "--conf-threshold", "0.5")  # as it was called once
    assert code == 0, said.err
    figures = json.loads((finished / "errors.json").read_text())
    assert figures["errors"]["kinds"]["missed"]["count"] == 2 and figures["confusion"]["classes"] == ["cup", "plate", "background"]
    page = (finished / "errors.html").read_text()
    assert page.count("data:image/jpeg") == 3 and "light-dark" in page and "http://" not in page
    assert "classification" in said.out
    heading, _, rows = next(table for table in tool.tables(figures) if table[0].startswith("Confused"))
    assert "also counts loose and second boxes" in heading and ["no matching object", "cup", 3] in rows
    assert "<td>no matching object</td><td>3</td><td>1</td><td>0</td>" in page


def test_tool_without_tidecv_does_the_rest(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tidecv", None)
    code, said = command(monkeypatch, capsys, finished)
    assert code == 0 and said.out.count("pip install tidecv") == 1
    assert json.loads((finished / "errors.json").read_text())["errors"] is None and (finished / "errors.html").exists()


def test_results_of_several_data_sets(finished, monkeypatch, capsys):
    """Each has its folder: those of one are not judged by the truth of another, whose images may have the same ids."""
    cfg = open_config(str(finished / "config.yaml"), ["OUTPUT_DIR", str(finished)]).cfg
    for tests, folder in ((("own_val",), "inference"), (("own_val", "a/b"), "inference/own_val")):
        cfg.DATASETS.TEST = tests
        monkeypatch.setitem(build._BUILDERS, "coco", [lambda cfg, name, output_dir: output_dir])
        MetadataCatalog.get("own_val").evaluator_type = "coco"
        assert build.build_evaluator(cfg, "own_val") == str(finished / folder)
    (finished / "inference" / "own_val").mkdir()
    (finished / "inference" / "coco_instances_results.json").rename(finished / "inference" / "own_val" / "coco_instances_results.json")
    own = results_file(str(finished), "own_val")
    assert own.endswith("own_val/coco_instances_results.json") and config_of(own) == str(finished / "config.yaml")
    later = finished / "inference" / "coco_instances_results.json"  # of an evaluation on this one alone
    later.write_text("[]")
    assert results_file(str(finished), "own_val", ["own_val"]) == str(later) and results_file(str(finished), "own_val", ["own_val", "a"]) == own
    later.unlink()
    code, said = command(monkeypatch, capsys, finished, "--num", 0)
    assert code == 0 and "AP50 of bbox is 25.25" in said.out


def test_runs_without_evaluation_are_refused_in_one_line(tmp_path, finished, monkeypatch, capsys):
    for arguments, words in (
        ((tmp_path / "none",), "none' does not exist"),
        ((tmp_path,), "no config.yaml"),
        ((finished, "--severities", 7), "from 1 to 5"),
        ((finished, "--weights", "a.pth"), "--weights needs --corruptions: alone it changes nothing"),
        ((finished, "--num", -1), "0 or more"),
        ((finished, "--output", finished / "report.json"), "must end in .html"),
        ((finished, "--output", finished / "metrics.html"), "metrics.json' would be overwritten"),
    ):
        code, said = command(monkeypatch, capsys, *arguments)
        assert code == 2 and words in said.err and said.err.count("\n") == 1
    (finished / "inference" / "coco_instances_results.json").unlink()
    code, said = command(monkeypatch, capsys, finished)
    assert code == 2 and "holds no evaluation" in said.err
