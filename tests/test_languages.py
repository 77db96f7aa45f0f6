"""The same detector as a YAML and as a Python config: where the two differ, the docs say so."""

import os
import re

import pytest
from conftest import ROOT
from omegaconf import ListConfig
from torch import nn

from backbones import zoo
from backbones.config import flat
from backbones.engine import open_config
from backbones.engine.lazy_keys import KEYS
from backbones.meta import on_meta

_EVERY = {"TEST.EVAL_PERIOD": (0, 5000)}
_UNUSED = {"backbone.bottom_up.out_features"}  # the YAML's network gives a level that the FPN leaves
# config -> the keys and attributes in which its Python twin differs: (YAML, Python)
PAIRS = {
    "COCO-Detection/retinanet_R_50_FPN_1x": ("", _EVERY),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": ("", _EVERY),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": ("", _EVERY),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": ("", _EVERY),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": ("", _EVERY),
    "COCO-Detection/retinanet_V_39_FPN_1x": ("lazy/retinanet_V_39_FPN_1x", _EVERY),
    "COCO-InstanceSegmentation/mask_rcnn_RegNetX_3.2GF_FPN_1x": (
        "lazy/mask_rcnn_RegNetX_3.2GF_FPN_1x",
        {**_EVERY, "SOLVER.WARMUP_ITERS": (500, 1000), "norm": (["EvalBatchNorm2d", "FrozenBatchNorm2d"], ["FrozenBatchNorm2d"])},
    ),
    "COCO-Detection/gfl_MAE_DET_S_FPN_3x": (
        "lazy/gfl_MAE_DET_S_FPN_3x",
        {**_EVERY, "SOLVER.WARMUP_ITERS": (7330, 1000), "INPUT.NORMALIZATION": ("weights", "config")},
    ),
}


def plain(value):
    """A value that can be compared, or None."""
    if isinstance(value, (list, tuple, ListConfig)):
        parts = tuple(plain(part) for part in value)
        return None if None in parts else parts
    return value if isinstance(value, (bool, int, float, str)) else None


def attributes(part, prefix=""):
    """What the modules of a model are set to, and the objects of detectron2's within them, by name."""
    found = {}
    for name, value in vars(part).items():
        if name.startswith("_") or name == "training" or plain(value) is None and not hasattr(value, "__dict__"):
            continue
        if plain(value) is not None:
            found[prefix + name] = plain(value)
        elif type(value).__module__.startswith("detectron2") and not isinstance(value, nn.Module):
            found.update(attributes(value, f"{prefix}{name}."))
    for name, child in part.named_children() if isinstance(part, nn.Module) else ():
        if "Norm" not in type(child).__name__:
            found.update(attributes(child, f"{prefix}{name}."))
    return found


def norms(model):
    return sorted({type(m).__name__ for m in model.backbone.modules() if type(m).__name__.endswith("BatchNorm2d")})


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_where_languages_differ(name):
    """Every setting of the model and of the keys that both languages have is equal, but those that are listed, and in the docs."""
    other, expected = PAIRS[name]
    fronts = open_config(f"{name}.yaml", ["MODEL.DEVICE", "cpu"]), open_config(f"{other or name}.py", ["train.device=cpu"])
    mine, theirs = (flat(front.settings) for front in fronts)
    differing = {key: (mine[key], theirs[key]) for key in KEYS if key in mine and mine[key] != theirs[key] and key != "OUTPUT_DIR"}
    for front in fronts:
        front.set("MODEL.DEVICE", "meta")
    with on_meta():
        models = [getattr(front.build_model(), "module", None) or front.build_model() for front in fronts]
    mine, theirs = map(attributes, models)
    assert len(set(mine) & set(theirs)) > 100 and any("nms" in key for key in mine)  # they were found
    both = (set(mine) & set(theirs)) - _UNUSED
    differing.update({key: (mine[key], theirs[key]) for key in both if mine[key] != theirs[key]})
    if norms(models[0]) != norms(models[1]):
        differing["norm"] = norms(models[0]), norms(models[1])
    assert differing == expected
    with open(os.path.join(ROOT, "docs", "swap-a-backbone.md")) as f:
        docs = f.read()
    for key, values in expected.items():
        assert key == "norm" or re.search(rf"`{key}` .*\b{values[0]}\b.*\b{values[1]}\b", docs), key


def test_every_pair_is_compared():
    """All configs of detectron2's zoo that are there in both languages, and all of this project's Python configs."""
    names = zoo.list_detectron2_configs()
    both = {name.removesuffix(".py") for name in names if name.removesuffix(".py") + ".yaml" in names}
    own = {name.removesuffix(".py") for name in zoo.list_configs(python=True) if name.startswith("lazy/")}
    assert both | own == {other or name for name, (other, _) in PAIRS.items()}
