"""Clipping by the norm of all gradients together, the fused kernel, and the learning rate of sampling offsets."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from backbones import zoo
from backbones.engine import Trainer
from backbones.solver import build_lr_scheduler, build_optimizer, has_fused_kernel, scale_learning_rate


def step(clip_type, value, scale):
    """Gradients as the optimizer uses them, of two parameters with gradients (3, 4) and 12 times ``scale``: 13 together."""
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.MOMENTUM = 0.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clip_type is not None
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type or "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))])
    optimizer = build_optimizer(cfg, model)
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]) * scale, torch.tensor([12.0]) * scale
    optimizer.step()
    return torch.cat([-p.detach() for p in model])


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_whole_model_is_clipped(scale):
    torch.testing.assert_close(step("full_model", 6.5, scale), torch.tensor([1.5, 2.0, 6.0]), rtol=1e-5, atol=0)


def test_small_gradients_stay():
    torch.testing.assert_close(step("full_model", 35.0, 1.0), torch.tensor([3.0, 4.0, 12.0]))


def test_detectron2s_own_clip_each_parameter():
    torch.testing.assert_close(step("norm", 6.5, 1.0), torch.tensor([3.0, 4.0, 6.5]), rtol=1e-5, atol=0)
    torch.testing.assert_close(step("value", 3.5, 1.0), torch.tensor([3.0, 3.5, 3.5]))
    torch.testing.assert_close(step(None, 1.0, 1.0), torch.tensor([3.0, 4.0, 12.0]))


def test_fused(monkeypatch):
    """To 1e-6: the kernel multiplies and adds in one operation. A parameter may get its first gradient later, as in a supernet."""
    results, calls, kernel, there = [], [], torch._fused_sgd_, has_fused_kernel(torch.device("cpu"))
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **more: (calls.append(len(args[0])), kernel(*args, **more)))
    for fused in (False, True):
        torch.manual_seed(0)
        cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
        cfg.SOLVER.FUSED = fused
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        optimizer = build_optimizer(cfg, model)
        calls.clear()  # of the trial
        for i in range(3):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
            if i == 0:
                model[1].weight.grad = None
            optimizer.step()
        results.append(model.state_dict())
        assert sum(calls) == (11 if fused and there else 0)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_fused_where_torch_has_no_kernel(monkeypatch, caplog):
    def refuse(*args, fused=None, **more):
        if fused:
            raise RuntimeError("no kernel for this device")
        return sgd(*args, **more)

    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", refuse)
    cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
    cfg.SOLVER.FUSED = True
    groups = build_optimizer(cfg, nn.Conv2d(3, 4, 3)).param_groups
    assert not any(group["fused"] for group in groups)
    assert caplog.messages == ["SOLVER.FUSED True has no effect: this torch has no fused kernel for the device cpu"]
    caplog.clear()
    build_optimizer(cfg, nn.Linear(2, 2, device="meta"))  # a model that is only looked at, before the run
    assert not caplog.messages


@pytest.mark.parametrize("world, reference, rate", [(2, 16, 0.01), (2, 8, 0.02), (2, 0, 0.01), (0, 8, 0.04)])
def test_the_batch_that_the_rate_is_for(world, reference, rate):
    """Also where detectron2 scales batch and rate by the number of processes, here one."""
    cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.REFERENCE_BATCH = 16, 0.02, world, reference
    scaled = scale_learning_rate(Trainer.auto_scale_workers(cfg, 1), base=cfg.SOLVER.BASE_LR)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR) == (8 if world else 16, pytest.approx(rate))
    assert scale_learning_rate(scaled).SOLVER.BASE_LR == scaled.SOLVER.BASE_LR  # once


@pytest.mark.parametrize("node, builder", [("VOVNET", "build_vovnet_fpn_backbone"), ("RESNETS", "build_resnet_fpn_backbone")])
def test_offsets_have_a_rate_of_their_own(node, builder):
    """Each parameter keeps its other settings, is stepped once, and follows the schedule."""
    cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", builder, 0
    cfg.MODEL.VOVNET.CONV_BODY = "V-19-slim-dw-eSE"
    stages = [f"{'stage' if node == 'VOVNET' else 'res'}{i}" for i in range(2, 6)]
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL[node].OUT_FEATURES = stages
    cfg.MODEL[node].DEFORM_ON_PER_STAGE, cfg.MODEL[node].NORM = [False, False, False, True], "BN"
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.BASE_LR = 0.5, 0.4
    model = build_backbone(cfg)

    def settings(factor):
        cfg.SOLVER.OFFSET_LR_FACTOR = factor
        optimizer = build_optimizer(cfg, model)
        build_lr_scheduler(cfg, optimizer)
        groups = {p: (group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
        assert len(groups) == sum(len(group["params"]) for group in optimizer.param_groups)
        return {name: groups[p] for name, p in model.named_parameters()}

    alike, scaled = settings(1.0), settings(0.25)
    offsets = [name for name in alike if "offset" in name]
    assert len(offsets) == 6  # weight and bias of three convolutions
    assert scaled == {name: (0.1 if name in offsets else lr, decay) for name, (lr, decay) in alike.items()}
    assert {lr for lr, _ in alike.values()} == {0.4} and {decay for _, decay in alike.values()} == {1e-4, 0.5}
