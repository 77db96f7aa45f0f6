"""detectron2's optimizer and schedules, with clipping by the norm of all gradients together, and a linear schedule."""

import logging
from typing import Callable

import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

from .layers import DeformConv2d

# detectron2's two clip each parameter by itself
CLIP_TYPES = ("value", "norm", "full_model")
LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupLinearLR")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """As detectron2's, with ``SOLVER.FUSED`` in one kernel, and ``SOLVER.OFFSET_LR_FACTOR`` for deformable convolutions.

    With ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE "full_model"`` the norm of all gradients together is clipped to ``CLIP_VALUE``, as MMDetection does.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    together = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    if together:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = detectron2.solver.build_optimizer(cfg, model)
    if cfg.SOLVER.get("OFFSET_LR_FACTOR", 1.0) != 1:
        _scale_offsets(optimizer, model, cfg.SOLVER.OFFSET_LR_FACTOR)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if cfg.SOLVER.get("FUSED", False) and parameters[0].device.type != "meta":  # where a model is only looked at
        _fuse(optimizer, parameters)

    def clip_all(*_) -> None:  # before each step: with AMP, the gradients are unscaled by then
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    if together:
        optimizer.register_step_pre_hook(clip_all)
    return optimizer


def has_fused_kernel(device: torch.device) -> bool:
    """Whether it runs: torch 2.3's optimizer accepts ``fused`` on CPUs, but fails at its first step."""
    probe = nn.Parameter(torch.zeros(1, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.SGD([probe], lr=0.0, fused=True).step()
    except RuntimeError:
        return False
    return True


def _fuse(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Makes each step one kernel, where this torch has one for the device; elsewhere the log says why not."""
    if not has_fused_kernel(device := parameters[0].device):
        logging.getLogger(__name__).warning(f"SOLVER.FUSED True has no effect: this torch has no fused kernel for the device {device.type}")
        return
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False  # torch prefers the latter

    def begin_momentum(*_) -> None:  # the kernel needs all of it or none, but each path of a supernet has other gradients
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    optimizer.register_step_pre_hook(begin_momentum)


def _scale_offsets(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Scales the learning rate of the convolutions that predict sampling offsets, in our networks and in detectron2's ResNet."""
    predictors = [m.offset if isinstance(m, DeformConv2d) else getattr(m, "conv2_offset", None) for m in model.modules()]
    offsets = {p for predictor in predictors if isinstance(predictor, nn.Module) for p in predictor.parameters()}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if p in offsets]
        if moved:
            group["params"] = [p for p in group["params"] if p not in offsets]
            optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * factor})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def scale_learning_rate(cfg: CfgNode, name: Callable[[str], str] = str, base: float | None = None) -> CfgNode:
    """Scales BASE_LR in proportion to the batch, if ``SOLVER.REFERENCE_BATCH`` says which batch it is for, and logs it.

    ``name`` gives the user's name for a key. ``base``: BASE_LR as it was before detectron2 scaled it by ``SOLVER.REFERENCE_WORLD_SIZE``.
    """
    solver = cfg.SOLVER
    base = solver.BASE_LR if base is None else base
    if not solver.REFERENCE_BATCH or (solver.REFERENCE_BATCH == solver.IMS_PER_BATCH and base == solver.BASE_LR):
        return cfg
    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.BASE_LR = base * solver.IMS_PER_BATCH / solver.REFERENCE_BATCH
    scaled.SOLVER.REFERENCE_BATCH = 0
    logging.getLogger(__name__).info(
        f"{name('SOLVER.BASE_LR')} {base:g} is for {solver.REFERENCE_BATCH} images per iteration: "
        f"with {solver.IMS_PER_BATCH}, {scaled.SOLVER.BASE_LR:g} is used"
    )
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer):
    """As detectron2's, and for ``SOLVER.LR_SCHEDULER_NAME "WarmupLinearLR"`` a straight line to ``BASE_LR_END``, after the warm-up."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupLinearLR":
        return detectron2.solver.build_lr_scheduler(cfg, optimizer)
    line = LinearParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 0.0)
    warmed = WarmupParamScheduler(line, solver.WARMUP_FACTOR, min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0), solver.WARMUP_METHOD)
    return LRMultiplier(optimizer, multiplier=warmed, max_iter=solver.MAX_ITER)
