"""Data sets: digits (real images, no download), COCO-format data from the command line, and checks before training."""

from .checks import check_datasets, check_packages, check_paths, dataset_findings
from .classification import register_image_folders
from .coco import follow, register_from_config
from .digits import register_digits
from .holdout import register_held_out

__all__ = [
    "check_datasets",
    "check_packages",
    "check_paths",
    "dataset_findings",
    "follow",
    "register_digits",
    "register_from_config",
    "register_held_out",
    "register_image_folders",
]
