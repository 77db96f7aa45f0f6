"""Weights of other classes, matched by name: layers of every head, and what training and evaluation make of subsets and supersets."""

import argparse
import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from PIL import Image

from backbones import UserError, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.checkpoint.classes import by_name, chosen, rows_of
from backbones.config import add_data_arguments, architecture, merge_overrides, put
from backbones.engine import open_config
from backbones.engine.classes import stated

OURS, THEIRS = ["robot", "plate", "cup", "mug"], ["cup", "fork", "plate"]
SHARED = [(1, 2), (2, 0)]  # plate and cup: ours, theirs
HEADS = {
    "Faster R-CNN": ("digits/faster_rcnn_digits.yaml", [], 2),
    "Cascade R-CNN": (
        "digits/faster_rcnn_digits.yaml",
        ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"],
        3,
    ),
    "masks": ("digits/mask_rcnn_digits.yaml", [], 3),
    "keypoints": ("digits/keypoint_rcnn_digits.yaml", [], 2),
    "RetinaNet": ("digits/retinanet_digits.yaml", [], 1),
    "GFL": ("digits/gfl_digits.yaml", [], 1),
    "classifier": ("digits/classification_digits.yaml", [], 1),
    "panoptic": ("digits/panoptic_fpn_digits.yaml", [], 4),
}


def model_of(path, overrides, count):
    cfg = zoo.get_config(path)
    merge_overrides(cfg, [*overrides, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    for key, field in architecture(cfg).classes.items():
        if field != "keypoint_names":
            put(cfg, key, count)
    return build_model(cfg)


def by_class(module, layer, classes):
    """What a layer makes of some input, with the classes in the last place but one."""
    torch.manual_seed(1)
    part = module.get_submodule(layer.layer)
    x = torch.randn(2, part.weight.shape[1], *[4] * (part.weight.dim() - 2))
    with torch.no_grad():
        output = part(x)
    if output.dim() == 4:  # as dense detectors read it
        output = permute_to_N_HWA_K(output, classes)[..., None]
    else:
        output = output[:, : output.shape[1] - layer.others].reshape(2, classes, layer.each)
    return output


@pytest.mark.parametrize("kind", HEADS)
def test_layers_of_classes(kind):
    """Of shared classes they compute what they did, exactly, and of new ones what they did before the load."""
    path, overrides, expected = HEADS[kind]
    torch.manual_seed(0)
    old, new = (model_of(path, overrides, len(names)) for names in (THEIRS, OURS))
    names = [{"classes": each, "stuff": each} for each in (THEIRS, OURS)]
    weights, table = by_name(new, old.state_dict(), *names)
    layers = [rows for rows in rows_of(new) if rows.anchors(len(new.get_submodule(rows.layer).weight), len(OURS))]
    before = {rows: by_class(new, rows, len(OURS)) for rows in layers}
    assert len(layers) == expected and "robot, mug" in table and "plate, cup" in table and "fork" in table
    new.load_state_dict(weights)
    for rows in layers:
        given, found = by_class(old, rows, len(THEIRS)), by_class(new, rows, len(OURS))
        for ours, theirs in SHARED:
            torch.testing.assert_close(found[..., ours, :], given[..., theirs, :], rtol=0, atol=1e-5)
        for ours in (0, 3):
            torch.testing.assert_close(found[..., ours, :], before[rows][..., ours, :], rtol=0, atol=1e-5)
        if rows.others:
            assert torch.equal(weights[f"{rows.layer}.weight"][-1], old.state_dict()[f"{rows.layer}.weight"][-1])
    untouched = [key for key, value in old.state_dict().items() if not any(key.startswith(f"{rows.layer}.") for rows in layers)]
    assert all(torch.equal(weights[key], old.state_dict()[key]) for key in untouched)


def test_the_same_classes_stay_and_nameless_ones_are_said():
    model = model_of(*HEADS["RetinaNet"][:2], 3)
    weights = {key: value + 1 for key, value in model.state_dict().items()}
    for theirs in ({}, {"classes": THEIRS}, {"classes": THEIRS[:2]}):  # unknown, the same, of a file that has another number of rows
        ours = THEIRS if theirs != {"classes": THEIRS[:2]} else OURS
        found, table = by_name(model, weights, theirs, {"classes": ours})
        assert table == "" and all(torch.equal(found[key], value) for key, value in weights.items())
    other = model_of(*HEADS["RetinaNet"][:2], 4)
    assert "Set MODEL.WEIGHTS_CLASSES" in by_name(other, weights, {}, {"classes": OURS})[1]
    _, table = by_name(other, weights, {"classes": ["Cup", "fork", "plate"]}, {"classes": OURS})
    assert "names must match exactly: 'cup' and 'Cup' differ -> rename them" in table


@pytest.mark.parametrize(
    "kind, rows", [("RetinaNet", "27 rows there, not 9 for each"), ("Faster R-CNN", "4 rows there, not 1 for each and one more")]
)
def test_names_that_fit_no_rows_are_said(kind, rows):
    """And nothing is matched by them."""
    old, new = (model_of(*HEADS[kind][:2], len(names)) for names in (THEIRS, OURS))
    stated = [f"name {i}" for i in range(80)]
    found, table = by_name(new, old.state_dict(), {"classes": stated}, {"classes": OURS})
    assert f"not matched by name: the weights name 80 classes (name 0, name 1, name 2, name 3, name 4 and 75 more), but have {rows}" in table
    assert all(torch.equal(found[key], value) for key, value in old.state_dict().items())


def test_a_layer_that_all_classes_share_keeps_its_rows():
    """Of a single class it has the shape of one for each class."""
    shared = [*HEADS["Faster R-CNN"][1], "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    old, new = (model_of(HEADS["Faster R-CNN"][0], shared, 1) for _ in range(2))
    weights = {key: value + 1 for key, value in old.state_dict().items()}
    found, _ = by_name(new, weights, {"classes": ["cat"]}, {"classes": ["dog"]})
    layer = "roi_heads.box_predictor."
    assert torch.equal(found[layer + "bbox_pred.weight"], weights[layer + "bbox_pred.weight"])
    assert torch.equal(found[layer + "cls_score.weight"][0], new.state_dict()[layer + "cls_score.weight"][0])


def test_a_runs_own_names_prevail_over_those_of_what_it_began_with(tmp_path, catalogue):
    """Which its config.yaml still states: in evaluation, and where training goes on with other classes."""
    path = str(tmp_path / "model_best.pth")
    old, new = (model_of(*HEADS["RetinaNet"][:2], count) for count in (3, 4))
    old.head.cls_score.bias.data += torch.arange(27)
    torch.save({"model": old.state_dict(), "run": {"classes": THEIRS}}, path)
    begun = ["MODEL.WEIGHTS", path, "MODEL.WEIGHTS_CLASSES", "coco_2017_val", "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    front = prepared("digits/retinanet_digits.yaml", ["--val", data(tmp_path / "data", THEIRS)], begun, True)
    said = "MODEL.WEIGHTS_CLASSES is not used: it names 80 classes, but the weights 3 of their own"
    assert list(front.settings.DATASETS.CLASSES) == THEIRS and said in front.said
    checkpointer = GatedCheckpointer(new, classes=({"classes": OURS}, stated(front.settings)))
    checkpointer.load(path, checkpointables=[])
    given, found = old.head.cls_score.bias.data.reshape(-1, 3), new.head.cls_score.bias.data.reshape(-1, 4)
    assert all(torch.equal(found[:, ours], given[:, theirs]) for ours, theirs in SHARED)
    assert said in checkpointer.report.classes


@pytest.mark.parametrize(
    "names, used, said",
    [
        (["one", "two", "three"], True, ""),  # other names for the same rows
        (THEIRS[::-1], False, "the weights name the same classes in another order"),
        (THEIRS[:2], False, "it names 2 classes, but the weights 3 of their own"),
        (THEIRS, True, ""),
    ],
)
def test_which_names_of_weights_are_used(names, used, said):
    own = {"classes": THEIRS, "stuff": ["sky"]}
    found, line = chosen({"classes": names}, own)
    assert found == {"classes": names if used else THEIRS, "stuff": ["sky"]} and (said in line if said else not line)
    assert chosen({"classes": names}, {}) == ({"classes": names}, "")


def test_the_gate_matches_weights_to_begin_with_alone(tmp_path, caplog):
    path = str(tmp_path / "model_0000001.pth")
    old, new = (model_of(*HEADS["RetinaNet"][:2], 3) for _ in range(2))
    turned = [2, 0, 1]
    old.head.cls_score.bias.data += torch.arange(27)
    torch.save({"model": old.state_dict(), "run": {"classes": THEIRS}}, path)
    names = ({"classes": [THEIRS[i] for i in turned]}, {})
    checkpointer = GatedCheckpointer(new, classes=names)
    checkpointer.load(path, checkpointables=[])
    weights = old.head.cls_score.bias.data.reshape(-1, 3)
    assert torch.equal(new.head.cls_score.bias.data.reshape(-1, 3), weights[:, turned])
    assert "loaded from the weights" in checkpointer.report.table()
    checkpointer.load(path)  # a run that goes on has its classes checked elsewhere
    assert torch.equal(new.head.cls_score.bias.data.reshape(-1, 3), weights) and checkpointer.report.classes == ""


def test_weights_of_another_number_of_classes_are_said_with_the_remedy(tmp_path):
    """Where nothing but the layers of classes differs, and there alone."""
    path, of_another = str(tmp_path / "model.pth"), "Its number of classes differs: name its classes in MODEL.WEIGHTS_CLASSES"
    old, new = (model_of(*HEADS["RetinaNet"][:2], count) for count in (3, 4))
    for weights, said in ((old.state_dict(), True), ({k: v for k, v in old.state_dict().items() if "bbox_subnet" not in k}, False)):
        torch.save({"model": weights}, path)
        with pytest.raises(UserError, match="does not fit") as caught:
            GatedCheckpointer(new, require="all").load(path)
        assert (of_another in str(caught.value)) == said


def test_an_evaluation_reads_its_weights_once(tmp_path, monkeypatch):
    """What stands beside the tensors is looked at without them."""
    file, path = "digits/retinanet_digits.yaml", str(tmp_path / "model.pth")
    front = open_config(file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", path])
    about = {"format": "RGB", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]}
    torch.save({"model": front.build_model().state_dict(), "run": {"classes": list("0123456789")}, "preprocessing": about}, path)
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **more: (read.append(more.get("mmap", False)), load(*args, **more))[1])
    front.cfg.INPUT.NORMALIZATION = "weights"
    front.follow_classes(False)
    front.follow_weights()
    assert front.settings.INPUT.FORMAT == "RGB" and list(front.settings.MODEL.PIXEL_MEAN) == [1.0, 2.0, 3.0]
    front.load_for_evaluation(front.build_model())
    assert read == [True, True, False]


def test_names_that_a_config_states():
    cfg = zoo.get_config("digits/retinanet_digits.yaml")
    found = {}
    for cfg.MODEL.WEIGHTS_CLASSES in ("", "cup, fork,plate", "coco_2017_val", "coco_2017_val_panoptic_separated"):
        found[cfg.MODEL.WEIGHTS_CLASSES] = stated(cfg)
    assert found[""] == {} and found["cup, fork,plate"] == {"classes": THEIRS}
    assert len(found["coco_2017_val"]["classes"]) == 80 and found["coco_2017_val"]["classes"][0] == "person"
    assert len(found["coco_2017_val_panoptic_separated"]["stuff"]) == 54
    for cfg.MODEL.WEIGHTS_CLASSES, words in (
        ("coco_2017_vla", "Did you mean 'coco_2017_val'"),
        ("a,b,a", "'a' is empty or appears twice"),
    ):
        with pytest.raises(UserError, match=words):
            stated(cfg)


# training and evaluation


def data(folder, names):
    """A data set of an image with an object of each class, whose ids go down. Returns the flag's value."""
    folder.mkdir()
    Image.new("RGB", (96, 96), (90, 90, 90)).save(folder / "a.png")
    boxes = [
        {"id": i + 1, "image_id": 1, "category_id": 9 - i, "bbox": [5 + 9 * i, 8, 30, 30], "area": 900, "iscrowd": 0} for i in range(len(names))
    ]
    categories = [{"id": 9 - i, "name": name} for i, name in enumerate(names)]
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 96}], "annotations": boxes, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "a.json")


@pytest.fixture
def weights(tmp_path):
    model = model_of(*HEADS["RetinaNet"][:2], 3)
    model.head.cls_score.bias.data += torch.arange(len(model.head.cls_score.bias))
    torch.save({"model": model.state_dict(), "run": {"classes": THEIRS}}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def prepared(config, arguments, opts, eval_only):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    args = parser.parse_args(arguments)
    args.eval_only = eval_only
    return open_config(config, opts).prepare(args, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names, evaluated, left_out, ignored",
    [
        (["plate"], "plate", None, "cup, fork"),
        (["plate", "fork", "cup"], None, None, None),
        (["robot", "cup", "fork", "plate"], "cup, fork, plate", "robot", None),
        (["robot", "cup"], "cup", "robot", "fork, plate"),
    ],
    ids=["subset", "other order", "superset", "both"],
)
@pytest.mark.parametrize("known", ["by the file", "by the config"])
def test_evaluation(names, evaluated, left_out, ignored, known, tmp_path, weights, catalogue):
    """Of data with other classes than the weights: the model has those of the weights, and objects have their numbers there."""
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", weights]
    if known == "by the config":
        torch.save(torch.load(weights)["model"], weights)
        opts += ["MODEL.WEIGHTS_CLASSES", ",".join(THEIRS)]
    front = prepared("digits/retinanet_digits.yaml", ["--val", data(tmp_path / "data", names)], opts, True)
    assert front.settings.MODEL.RETINANET.NUM_CLASSES == 3 and list(front.settings.DATASETS.CLASSES) == THEIRS
    (record,) = DatasetCatalog.get("own_val")
    kept = [name for name in names if name in THEIRS]
    assert sorted(a["category_id"] for a in record["annotations"]) == sorted(THEIRS.index(name) for name in kept)
    tables = [line for line in front.said if "| classes by name" in line]
    assert len(tables) == (evaluated is not None)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in tables[0].splitlines()[3:]] if tables else []
    found = {what.split(":")[0]: ", ".join(sorted(which.split(", "))) for what, _, which in rows}
    expected = {"evaluated": evaluated, "in the data only": left_out, "in the model only": ignored}
    assert found == {what: which for what, which in expected.items() if which}
    model = front.build_model()
    front.load_for_evaluation(model)
    assert torch.equal(
        model.head.cls_score.bias, torch.load(weights, weights_only=True).get("model", torch.load(weights))["head.cls_score.bias"]
    )


def test_evaluation_without_a_shared_class_is_refused(tmp_path, weights, catalogue):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", weights]
    with pytest.raises(UserError, match="no class has the same name"):
        prepared("digits/retinanet_digits.yaml", ["--val", data(tmp_path / "data", ["robot"])], opts, True)


@pytest.mark.parametrize("stated", [[], ["MODEL.WEIGHTS_CLASSES", ",".join(THEIRS)]], ids=["by the file", "by the config"])
def test_fine_tuning(stated, tmp_path, weights, catalogue):
    """``--train`` on more classes begins with the rows of those that the weights know; the next checkpoint has the new names."""
    opts = [
        "MODEL.DEVICE",
        "cpu",
        "OUTPUT_DIR",
        str(tmp_path / "run"),
        "MODEL.WEIGHTS",
        weights,
        "SOLVER.IMS_PER_BATCH",
        "1",
        "SEED",
        "1",
        *stated,
    ]
    if stated:  # which prevails
        torch.save({"model": torch.load(weights)["model"], "run": {"classes": ["a", "b", "c"]}}, weights)
    front = prepared(
        "digits/retinanet_digits.yaml", ["--train", data(tmp_path / "data", OURS[::-1]), "--val", data(tmp_path / "val", OURS)], opts, False
    )
    assert not any("| classes by name" in line for line in front.said)  # a training's data have the classes that it learns
    fit = front.fit()
    fresh = fit.model.head.cls_score.bias.data.clone().reshape(-1, 4)
    fit.resume_or_load(resume=False)
    found, given = fit.model.head.cls_score.bias.data.reshape(-1, 4), torch.load(weights)["model"]["head.cls_score.bias"].reshape(-1, 3)
    assert fit.run.names() == {"classes": OURS}
    for ours, theirs in SHARED:
        assert torch.equal(found[:, ours], given[:, theirs])
    assert torch.equal(found[:, [0, 3]], fresh[:, [0, 3]])
    assert fit.run.state_dict()["classes"] == OURS


def test_detectron2s_data_in_another_order_are_refused(tmp_path):
    names = list(MetadataCatalog.get("voc_2007_val").thing_classes)
    torch.save({"model": {}, "run": {"classes": names[::-1]}}, tmp_path / "weights.pth")
    opts = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.WEIGHTS",
        str(tmp_path / "weights.pth"),
        "DATASETS.TEST",
        "('voc_2007_val',)",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    with pytest.raises(UserError, match="has the classes of the weights in a different order"):
        prepared("digits/retinanet_digits.yaml", [], opts, True)


def test_python_configs_likewise(tmp_path, catalogue):
    torch.save({"model": {}, "run": {"classes": THEIRS}}, tmp_path / "weights.pth")
    opts = ["train.device=cpu", f"train.init_checkpoint={tmp_path}/weights.pth", f"train.output_dir={tmp_path}"]
    front = prepared("lazy/retinanet_V_39_FPN_1x.py", ["--val", data(tmp_path / "data", ["plate", "robot"])], opts, True)
    assert front.cfg.model.num_classes == 3 and list(front.cfg.train.classes) == THEIRS
    assert front.settings.MODEL.RETINANET.NUM_CLASSES == 3 and any("in the model only" in line for line in front.said)


def test_folders_of_images_likewise(tmp_path, catalogue):
    for name in ("plate", "robot"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / name / "a.png")
    torch.save({"model": {}, "run": {"classes": THEIRS}}, tmp_path / "weights.pth")
    opts = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.WEIGHTS",
        str(tmp_path / "weights.pth"),
        "OUTPUT_DIR",
        str(tmp_path),
        "DATASETS.TEST",
        "('of_folders',)",
    ]
    opts += ["DATASETS.IMAGE_FOLDERS", str([["of_folders", str(tmp_path / "images")]])]
    front = prepared("digits/classification_digits.yaml", [], opts, True)
    assert [record["label"] for record in DatasetCatalog.get("of_folders")] == [2] and front.settings.MODEL.CLASSIFIER.NUM_CLASSES == 3
    assert any("in the data only" in line and "robot" in line for line in front.said)
