"""Private names of torch and detectron2: only backbones/upstream.py uses them, and the installed versions have them."""

import ast
import glob
import importlib
import inspect
import os
import re

import pytest
from conftest import ROOT

from backbones import upstream

# documented, though they begin with an underscore: of named tuples, os and detectron2's Python configs; and Python's unpickler in Python
PUBLIC = {"_replace", "_exit", "_target_", "_Unpickler"}
# not moved yet
ELSEWHERE = {
    ("backbones/tools/docs/reference.py", "_actions"),
    ("backbones/tools/docs/reference.py", "_SubParsersAction"),
    ("backbones/tools/docs/reference.py", "_choices_actions"),
}

# Methods and fields that subclasses in this package override or read, by the class that has them. These classes are meant to be extended
# so, and do it themselves, but do not document it.
INHERITED = {
    "torch.nn.Module": ("_load_from_state_dict",),
    "argparse.ArgumentParser": ("_actions", "_check_value"),
    "iopath.common.file_io.PathHandler": ("_get_supported_prefixes", "_get_local_path", "_open", "_isfile", "_exists"),
    "detectron2.checkpoint.DetectionCheckpointer": ("_load_file", "_load_model", "_log_incompatible_keys"),
    "detectron2.data.DatasetMapper": ("_transform_annotations",),
    "detectron2.engine.DefaultTrainer": ("_trainer", "_last_eval_results"),
    "detectron2.engine.hooks.PreciseBN": ("_data_iter",),
    "detectron2.engine.SimpleTrainer": ("_write_metrics", "_data_loader_iter", "_data_loader_iter_obj"),
    "detectron2.evaluation.COCOEvaluator": (
        *("_eval_predictions", "_derive_coco_results", "_tasks_from_predictions", "_tasks", "_coco_api", "_metadata", "_results"),
        *("_output_dir", "_do_evaluation", "_max_dets_per_image", "_kpt_oks_sigmas", "_logger"),
    ),
    "detectron2.modeling.roi_heads.CascadeROIHeads": ("_init_mask_head", "_forward_box", "_create_proposals_from_boxes", "_run_stage"),
    "detectron2.modeling.GeneralizedRCNNWithTTA": (
        *("_inference_one_image", "_get_augmented_inputs", "_turn_off_roi_heads", "_get_augmented_boxes", "_merge_detections"),
        *("_batch_inference", "_rescale_detected_boxes", "_reduce_pred_masks"),
    ),
    "detectron2.modeling.roi_heads.Res5ROIHeads": ("_build_res5_block", "_shared_roi_transform"),
}


def files():
    for path in [*glob.glob(os.path.join(ROOT, "backbones", "**", "*.py"), recursive=True), os.path.join(ROOT, "train_net.py")]:
        if path != upstream.__file__:
            with open(path, encoding="utf-8") as f:
                yield os.path.relpath(path, ROOT), list(ast.walk(ast.parse(f.read())))


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_no_other_file_touches_them():
    nodes = dict(files())
    own = PUBLIC | {name for names in INHERITED.values() for name in names}
    for node in (node for each in nodes.values() for node in each):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            own.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    found = []
    for path, each in nodes.items():
        for node in each:
            names = []
            if isinstance(node, ast.Attribute) and node.attr not in own:
                names = [node.attr]
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            if isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            found += [f"{path}:{node.lineno} {name}" for name in names if is_private(name) and (path, name) not in ELSEWHERE]
    assert not found


@pytest.mark.parametrize("owner", INHERITED)
def test_what_is_overridden_is_there(owner):
    """Nobody would call an override of a method that is gone."""
    module, _, name = owner.rpartition(".")
    bases = [base for base in getattr(importlib.import_module(module), name).__mro__ if base is not object]
    source = "".join(
        inspect.getsource(base)
        for base in bases
        if base.__module__.partition(".")[0] in ("torch", "detectron2", "fvcore", "iopath", "argparse")
    )
    for name in INHERITED[owner]:
        assert re.search(rf"def {name}\(|self\.{name}\b[^(]*=", source), name
