"""The meta-architectures: which keys of a config each one reads, and what it learns."""

import dataclasses
from typing import Mapping

from detectron2.config import CfgNode


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One value of MODEL.META_ARCHITECTURE. The defaults are for a user's own class, about which nothing is known."""

    # what it learns of images: "proposals", "boxes", "masks" and "keypoints" (each if its _ON is set), "semantic", "class"
    tasks: tuple[str, ...] = ()
    features: tuple[str, ...] | None = None  # keys that name features of the backbone; None: not known
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # key of a number -> list in the data's metadata of that length
    dense: bool = False  # without proposals, on features from P3 on, like RetinaNet
    anchors: str = "MODEL.RPN.IN_FEATURES"  # key of the features that anchors of several sizes lie on; "": there are none
    augmented: bool = False  # whether test-time augmentation supports it


_RPN, _ROI_HEADS, _SEGMENTATION = (f"MODEL.{part}.IN_FEATURES" for part in ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"))
_INSTANCES = {"MODEL.ROI_HEADS.NUM_CLASSES": "thing_classes", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "keypoint_names"}
_STUFF = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": "stuff_classes"}
_RETINANET = Architecture(
    tasks=("boxes",),
    features=("MODEL.RETINANET.IN_FEATURES",),
    classes={"MODEL.RETINANET.NUM_CLASSES": "thing_classes"},
    dense=True,
    anchors="MODEL.RETINANET.IN_FEATURES",
    augmented=True,
)
ARCHITECTURES: dict[str, Architecture] = {
    "GeneralizedRCNN": Architecture(("boxes", "masks", "keypoints"), (_RPN, _ROI_HEADS), _INSTANCES, augmented=True),
    "PanopticFPN": Architecture(("boxes", "masks", "keypoints", "semantic"), (_RPN, _ROI_HEADS, _SEGMENTATION), {**_INSTANCES, **_STUFF}),
    "ProposalNetwork": Architecture(("proposals",), (_RPN,)),
    "RetinaNet": _RETINANET,
    "MMDetRetinaNet": _RETINANET,
    "GFL": Architecture(
        ("boxes",), ("MODEL.GFL.IN_FEATURES",), {"MODEL.GFL.NUM_CLASSES": "thing_classes"}, dense=True, anchors="", augmented=True
    ),
    "ImageClassifier": Architecture(("class",), (), {"MODEL.CLASSIFIER.NUM_CLASSES": "classes"}, anchors=""),
    "SemanticSegmentor": Architecture(("semantic",), (_SEGMENTATION,), _STUFF, anchors=""),
}


def architecture(cfg: CfgNode) -> Architecture:
    """The row of a config's meta-architecture; for a user's own class, what its name suggests."""
    name = cfg.MODEL.META_ARCHITECTURE
    own = dataclasses.replace(_RETINANET, features=None, augmented=False) if "RetinaNet" in name else Architecture()
    return ARCHITECTURES.get(name, own)


def learns(cfg: CfgNode, task: str) -> bool:
    """Whether a config's model learns a task of `Architecture.tasks`."""
    switched_on = {"masks": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}.get(task, True)
    return task in architecture(cfg).tasks and switched_on
