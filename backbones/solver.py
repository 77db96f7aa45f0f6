"""detectron2's optimizer, with clipping by the norm of all gradients together."""

import detectron2.solver
import torch
from detectron2.config import CfgNode
from torch import nn

# detectron2's two clip each parameter by itself
CLIP_TYPES = ("value", "norm", "full_model")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """As detectron2's, and with ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE "full_model"`` the norm of all gradients is clipped, as MMDetection does."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return detectron2.solver.build_optimizer(cfg, model)
    unclipped = cfg.clone()
    unclipped.defrost()
    unclipped.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = detectron2.solver.build_optimizer(unclipped, model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip_all(*_) -> None:  # before each step: with AMP, the gradients are unscaled by then
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer
