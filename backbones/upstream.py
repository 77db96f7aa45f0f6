"""The private names of torch and detectron2 that this package cannot do without; nothing else in it touches any.

They were seen in torch 2.3.1 and 2.14.1, and in detectron2 0.6 and a59f0563, with fvcore 0.1.5.
"""

from typing import Any, Callable, Dict

import torch
from detectron2.data import build, detection_utils, samplers
from torch import nn
from torch.utils.data import Sampler

# What checkpoints in torch's older pickles call to make tensors. `torch.load(weights_only=True)` knows them, but takes no list of packages
# whose objects are to be passed over.
REBUILD: Dict[str, Callable[..., Any]] = {
    f"torch._utils.{name}": getattr(torch._utils, name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
}

# What has running statistics, and what drops out: the bases of all of torch's. It has public names for each of them alone, and adds some.
RunningNorm = nn.modules.batchnorm._NormBase
Dropout = nn.modules.dropout._DropoutNd

# The data set, sampler and mapper that a config asks for, as a dict. `build_detection_train_loader` gives them inside of a loader alone.
train_loader_parts = build._train_loader_from_config

# An image of Pillow's turned as its EXIF tag says. `read_image` does so after it has read the file by itself, and not from an open one.
turned = detection_utils._apply_exif_orientation


def seeded(sampler: Any, seed: int) -> Sampler:
    """The sampler of a loader in training, with another seed. They take one when they are made, by detectron2 and at random."""
    if isinstance(sampler, samplers.RandomSubsetTrainingSampler):
        ratio = (len(sampler._indexes_subset) + 0.5) / sampler._size  # which is cut to a whole number of images
        return samplers.RandomSubsetTrainingSampler(sampler._size, min(ratio, 1.0), seed_shuffle=seed, seed_subset=seed)
    sampler._seed = seed
    return sampler


def stop_workers(iterator: Any) -> None:
    """Ends the processes of a ``DataLoader``'s iterator at once. It does so by itself when it is collected, which an error whose traceback holds it delays."""
    iterator._shutdown_workers()


# Methods and fields that subclasses here override or read, by the class that has them. They are how these classes are extended, in their own
# code too, but none of them is documented.
INHERITED = {
    "torch.nn.Module": ("_load_from_state_dict",),
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
    "detectron2.modeling.roi_heads.Res5ROIHeads": ("_build_res5_block",),
}
