"""Recipes: each rule on data made to need it, the file that is written, memory that runs out, and the way from data to a trained detector."""

import argparse
import json
import logging
import os
import sys
import threading
from statistics import NormalDist

import numpy as np
import pytest
import torch
import yaml
from choices import cases
from conftest import few_digits
from detectron2.data import DatasetCatalog
from PIL import Image
from small_data import coco, write

from backbones import UserError, zoo
from backbones.benchmark.training import peak_bytes
from backbones.config import add_data_arguments, check_config, get, merge_overrides
from backbones.data import digits, inspection
from backbones.data.reader import read
from backbones.data.sources import Source, Use
from backbones.doctor import memory
from backbones.doctor.examination import Examination, quiet
from backbones.engine import count_processes, open_config, step
from backbones.files import write_whole
from backbones.recipe import design, measuring, rules
from backbones.recipe.design import Design, candidates
from backbones.recipe.facts import Facts, facts_of
from backbones.recipe.networks import available
from backbones.recipe.writing import beside_3x, text
from backbones.swap import network_of
from backbones.tools import recipe, train
from backbones.zoo import checking


def facts(images=300, side=480.0, objects=5, sizes=(20, 200), **more):
    """Of images ``side`` by 4/3 ``side`` with so many objects each, whose sides lie between two sizes."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(*np.log(sizes), images * objects))
    counts = {"cup": images * objects // 2, "plate": images * objects - images * objects // 2}
    usual = dict(
        images=images,
        short=np.full(images, side),
        long=np.full(images, side * 4 / 3),
        boxes=np.stack([sides, sides], 1),
        shorter=np.full(images * objects, side),
        counts=counts,
        shares={"cup": 0.9, "plate": 0.9},
        empty=0,
        per_image=np.full(images, objects),
        masks=0.0,
        rectangles=0.0,
        keypoints=0.0,
        tested=50,
    )
    return Facts(**{**usual, **more})


@pytest.fixture
def little_memory(monkeypatch):
    """Memory of a step is pretended, where it does not matter: measuring it takes longer than the rest."""
    monkeypatch.setattr(memory, "peak", lambda *args: memory.Peak(2.0**28, 2.0**20, 100.0))


def chosen(choices):
    return {choice.key: choice.value for choice in choices}


@pytest.mark.parametrize(
    "more, kind",
    [
        ({}, "boxes"),
        ({"masks": 0.9}, "masks"),
        ({"rectangles": 0.9, "masks": 0.1}, "boxes"),
        ({"rectangles": 0.55, "masks": 0.45}, "masks"),
        ({"keypoints": 0.8, "masks": 0.9}, "keypoints"),
    ],
)
def test_task(more, kind):
    assert rules.task(facts(**more))[0] == kind
    assert rules.task(facts(**more), "boxes")[0] == "boxes"


def test_size_follows_from_small_objects():
    """Small objects ask for larger images, at most twice as large; large ones for smaller images, down to 320 pixels."""
    assert rules.image_size(facts(sizes=(12, 100)), 4)[0] > rules.image_size(facts(sizes=(30, 200)), 4)[0]
    assert rules.image_size(facts(sizes=(4, 6)), 4)[0] == 960
    assert rules.image_size(facts(sizes=(200, 400)), 4)[0] == 320
    size, reason = rules.image_size(facts(side=160.0, sizes=(30, 80)), 4)
    assert size == 160 and "cells" in reason


def test_size_gives_way_to_time():
    """Whole images where there is time; then parts of them, so that objects keep their size; then smaller images; at last the fastest."""
    small = facts(side=640.0, sizes=(10, 20))
    wanted, _ = rules.image_size(small, 4)

    def seconds(view):  # a thousand images in training, of so many megapixels, and a hundred in an evaluation
        return 1e-6 * view.size**2 * (1000 * view.part**2 + 100)

    whole, parts, smaller = (rules.within(small, wanted, seconds, limit) for limit in (2000, 500, 100))
    assert 1120 <= wanted <= 1280 and whole == (wanted, 1.0)
    assert parts.size == wanted and parts.part < 0.7 and seconds(parts) <= 500
    assert smaller.size < wanted and smaller.part < 1 and seconds(smaller) <= 100 < seconds(smaller._replace(size=smaller.size + 32))
    assert rules.within(small, wanted, seconds, 0.1) == min(rules.views(small, wanted), key=seconds)
    assert all(view.part == 1 for view in rules.views(facts(side=640.0, sizes=(200, 400)), 640))  # large objects are not cut up
    choices = chosen(rules.sizes(small, rules.View(640, 0.25)))
    assert choices["INPUT.CROP.SIZE"] == [0.25, 0.25] and max(choices["INPUT.MIN_SIZE_TRAIN"]) == 160 < choices["INPUT.MAX_SIZE_TEST"]
    assert "INPUT.CROP.ENABLED" not in chosen(rules.sizes(small, rules.View(640)))


@pytest.mark.slow
def test_measuring_is_bounded(little_memory, monkeypatch, tmp_path):
    """Steps that would take too long are not measured: what small ones tell is taken, and the image size follows from it."""
    data = few_digits(tmp_path, {"train": 8, "val": 4})
    said, sizes = [], []

    def steps(front, more, count=4, seconds=0.0):
        sizes.append(more["INPUT.MIN_SIZE_TRAIN"][0])
        return [0.2 * (more["INPUT.MIN_SIZE_TRAIN"][0] / 100) ** 2] * 3, [1.0] * 4

    monkeypatch.setattr(measuring, "steps", steps)
    monkeypatch.setattr(measuring, "latency", lambda cfg, ratio: 0.5)
    work = Design(asked(data, tmp_path, task="boxes", from_scratch=True, iterations=None, minutes=1), say=said.append)
    work.run()
    assert sizes == [128, 256] and any("too long to measure" in line for line in said)
    seconds = 8 * work.pace.of(0.81 * 160**2)
    assert work.cfg.SOLVER.MAX_ITER == pytest.approx((60 - 4 * 4 * 0.5) / seconds, abs=1)
    assert (
        measuring.length(10, 0.5, 60) == (1080, 1) and measuring.length(10, 0.5, 1) == (1180, 10) and measuring.length(10, 0.5, 0) == (1200, 10)
    )


def test_steps_that_take_longer_than_expected_are_cut_short(tmp_path):
    """On busy cores the second step is the last where the time is over, and a line says so."""
    digits.generate()
    said, small = [], ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"]
    made = Design(asked({}, tmp_path), say=said.append)
    made.cfg = open_config("digits/faster_rcnn_digits.yaml", small).cfg
    made._batch, made.allowed = lambda: 2, 1.0
    made.measured = made.allowed
    assert len(made._steps({}, 6, 2)[1]) == 2
    assert said == ["2 steps were measured instead of 6: they took longer than the 0 s for them"]


def test_steps_are_estimated_for_the_chosen_network(monkeypatch, tmp_path):
    """The cheapest one is measured; one with five times its multiply-adds takes longer. What is spent on latencies counts as measuring."""
    made = Design(asked({}, tmp_path, latency=1.0), say=lambda line: None)
    monkeypatch.setattr(design, "candidates", lambda: iter([("RegNetX-3.2GF", 39.9), ("RegNetX-400MF", None)]))
    monkeypatch.setattr(design, "available", lambda names, say: {name: f"backbones://{name}" for name in names})
    monkeypatch.setattr(design, "costs", lambda names: {"RegNetX-3.2GF": 5.0, "RegNetX-400MF": 1.0})
    monkeypatch.setattr(Design, "_latency", lambda self: 0.5)
    clock = iter(range(100))
    monkeypatch.setattr(design, "now", lambda: next(clock))
    made.facts, made.pace = facts(), measuring.Pace(0.1, 1e-6)
    made._network()
    assert network_of(made.cfg) == "RegNetX-3.2GF" and made.measured == 1
    pixels = 0.81 * 4 / 3 * made.view.size**2
    made.allowed = 0.0
    assert made._fastest() == pytest.approx(8 * (0.1 + 5e-6 * pixels))


def test_too_little_time_is_said(little_memory, monkeypatch, tmp_path):
    """There are 20 steps at least: where they, or the 300 that a training should have, take longer than --minutes, the file says how long."""
    data = few_digits(tmp_path, {"train": 8, "val": 4})
    slow = lambda front, more, count=4, seconds=0.0: ([more.get("INPUT.MIN_SIZE_TRAIN", (160,))[0] / 10] * 3, [1.0] * 4)
    monkeypatch.setattr(measuring, "steps", slow)
    monkeypatch.setattr(measuring, "latency", lambda cfg, ratio: 0.5)
    said = []
    work = Design(asked(data, tmp_path, task="boxes", from_scratch=True, iterations=None, minutes=1), say=said.append)
    work.run()
    length, size = (work.choices[key].reason for key in ("SOLVER.MAX_ITER", "INPUT.MIN_SIZE_TEST"))
    seconds, evaluations = 8 * work.pace.of(0.81 * 160**2), -(-work.cfg.SOLVER.MAX_ITER // work.cfg.TEST.EVAL_PERIOD)
    minutes = (20 * seconds + evaluations * 4 * 0.5) / 60
    assert minutes > 1 and work.cfg.SOLVER.MAX_ITER == 20
    assert length.startswith(
        f"20 steps, the fewest possible: {minutes:.1f} minutes ({seconds:.2f} s a step, {evaluations} evaluations of 2 s), "
    )
    assert length.endswith(" passes over 8 images. Without a limit: 300 passes")
    assert work.expected == f"expected: 20 steps in about {minutes:.1f} minutes, 20 passes over 8 images"
    assert any(line.endswith("in addition to the 1 minute for training") for line in said)
    least = work._seconds(work.view) / 60
    assert f"; 300 steps of 8 images and an evaluation would take at least {least:.1f} minutes at any size: the training will be short" in size
    assert any(line.endswith(length) for line in said) and any(line.endswith(size) for line in said)
    enough = Design(asked(data, tmp_path, task="boxes", from_scratch=True, iterations=None, minutes=10_000), say=said.append)
    enough.run()
    assert not any("too few for" in choice.reason for choice in enough.choices.values())


def test_reasons_are_true_and_stand_alone(little_memory, monkeypatch, tmp_path):
    """Keys are sorted in the file: no reason may point to the one before. Figures are those of the value."""
    monkeypatch.setattr(design, "candidates", lambda: iter([("RegNetX-400MF", None)]))
    monkeypatch.setattr(design, "available", lambda names, say: {name: f"backbones://{name}" for name in names})
    work = Design(asked(few_digits(tmp_path, {"train": 8, "val": 4}), tmp_path, task="masks"), say=lambda line: None)
    work.run()
    lines = {line.split(":")[0].strip(): line for line in text(work.cfg, work.choices, "").splitlines()}
    assert not [line for line in lines.values() if any(word in line for word in ("likewise", "twice as many", "of so few"))]
    written = text(work.cfg, work.choices, "").splitlines()
    assert any("NAME: RegNetX-400MF  # from the chosen network" in line for line in written)
    assert all("file's name" not in line for line in written) and "the folder that training writes into" in lines["OUTPUT_DIR"]
    sizes = {c.key: c for c in rules.sizes(facts(), rules.View(256))}["INPUT.MIN_SIZE_TRAIN"]
    assert sizes.value == (192, 224, 256) and sizes.reason.startswith("0.75 to 1 times the 256 pixels")
    for tested, iterations, evaluations, period, said in (
        (50, 20, 3, 7, "3 evaluations"),
        (50, 25, 10, 3, "9 evaluations"),
        (0, 20, 10, 0, ""),
    ):
        choices = {c.key: c for c in rules.schedule(facts(tested=tested), 8, iterations, "", evaluations)}
        assert choices["TEST.EVAL_PERIOD"].value == period and choices["TEST.EVAL_PERIOD"].reason.startswith(said)
        assert choices["SOLVER.CHECKPOINT_PERIOD"].reason.startswith("with each evaluation") == bool(tested)
        assert choices["SOLVER.WARMUP_ITERS"].value == 10 and "at least 10" in choices["SOLVER.WARMUP_ITERS"].reason


@pytest.mark.slow
def test_cocos_numbers_lead_to_cocos_recipe(tmp_path, monkeypatch):
    """COCO 2017 train: 118,287 images, 7.3 objects each, 41 % of them with masks below 32x32 pixels and 24 % above 96x96, as its page says."""
    middle, spread = 3.99, 1.18  # of the logarithm of a box's side: both shares, with masks that fill 60 % of their boxes
    levels = (np.arange(20_000) + 0.5) / 20_000
    sides = np.exp(middle + spread * np.array([NormalDist().inv_cdf(level) for level in levels])).clip(1, 480)
    filled = (0.6 * sides**2) ** 0.5
    assert (filled < 32).mean() == pytest.approx(0.41, abs=0.02) and (filled > 96).mean() == pytest.approx(0.24, abs=0.02)
    coco = facts(
        images=rules.COCO_IMAGES,
        objects=0,
        boxes=np.stack([sides, sides], 1),
        shorter=np.full(len(sides), 480.0),
        per_image=np.array([1, 3, 5, 7, 9, 14, 12] * 100),
        counts={f"class {i}": 10_000 for i in range(80)},
        shares={f"class {i}": 0.05 for i in range(80)},
        tested=5000,
    )
    monkeypatch.setattr(design, "facts_of", lambda training, testing: coco)
    args = asked(few_digits(tmp_path, {"train": 4, "val": 4}), tmp_path, gpus=8, device="cuda", iterations=270_000, task="boxes")
    work = Design(args, say=lambda line: None)
    work.run()
    cfg = work.cfg
    assert chosen(rules.schedule(coco, 16, None, ""))["SOLVER.MAX_ITER"] == pytest.approx(270_000, rel=0.01)
    assert cfg.SOLVER.MAX_ITER == 270_000 and cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.BASE_LR == 0.02
    assert cfg.INPUT.MIN_SIZE_TEST == pytest.approx(800, rel=0.05) and cfg.INPUT.MAX_SIZE_TEST == pytest.approx(1333, rel=0.05)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]] and cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 512
    same, others = beside_3x(cfg)
    assert "SOLVER.MAX_ITER" in same and "INPUT.MIN_SIZE_TEST" in same and "SOLVER.LR_SCHEDULER_NAME WarmupCosineLR" in others
    assert all(work.choices[key].reason for key in ("SOLVER.LR_SCHEDULER_NAME", "MODEL.BACKBONE.FREEZE_AT", "MODEL_EMA.ENABLED"))
    assert rules.passes(rules.COCO_IMAGES) == pytest.approx(36.5) and rules.passes(60) == 300


def test_gpus_of_another_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, words in ((["--minutes", "60"], "--minutes"), (["--iterations", "9", "--latency", "30ms"], "--latency")):
        monkeypatch.setattr(sys, "argv", ["recipe", "--train", "t.json", "--gpus", "8", "--output", "my.yaml", *flags])
        with pytest.raises(UserError, match=f"{words} with --num-gpus 8: this machine has no GPU"):
            recipe.main()
    monkeypatch.setattr(sys, "argv", ["recipe", "--train", "t.json", "--gpus", "0", "--output", "my.yaml"])
    with pytest.raises(UserError, match="--num-gpus 0: it must be at least 1"):
        recipe.main()


def test_a_recipe_that_may_have_been_changed_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "design", lambda args, output: [write_whole(output, "SOLVER: {MAX_ITER: 8}"), open_config(output)][1])
    path = tmp_path / "my.yaml"
    path.write_text("SOLVER: {MAX_ITER: 7}")
    command = ["recipe", "--train", "t.json", "--device", "cpu", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError, match="my.yaml' exists: name another file, or add --overwrite"):
        recipe.main()
    assert "7" in path.read_text()
    monkeypatch.setattr(sys, "argv", [*command, "--overwrite"])
    recipe.main()
    assert "8" in path.read_text()


@pytest.mark.parametrize(
    "device, gpus, batch, at_once, norm",
    [
        ("cuda", 1, 16, 16, "BN"),
        ("cuda", 4, 16, 4, "SyncBN"),
        ("cuda", 3, 15, 5, "SyncBN"),
        ("cuda", 24, 24, 1, "SyncBN"),
        ("cpu", 2, 8, 8, "naiveSyncBN"),
    ],
)
def test_gpus_divide_the_time(device, gpus, batch, at_once, norm, monkeypatch, tmp_path):
    """One GPU's share of a batch is measured, and of the evaluation. Processes of one CPU share its cores and its memory."""
    measured = []

    def steps(front, more, count=4, seconds=0.0):
        measured.append(more["SOLVER.IMS_PER_BATCH"])
        return [0.1 * measured[-1]] * 3, [1.0] * 4

    monkeypatch.setattr(measuring, "steps", steps)
    monkeypatch.setattr(measuring, "latency", lambda cfg, ratio: 0.01)
    monkeypatch.setattr(design, "Examination", lambda front: argparse.Namespace(can_keep_less=lambda: True, divisibility=lambda: 32))
    monkeypatch.setattr(memory, "peak", lambda *about: memory.Peak(0.0, 1.0, 0.0))
    monkeypatch.setattr(memory, "room", lambda device: 6.0)
    made = Design(asked({}, tmp_path, gpus=gpus, device=device, minutes=10, iterations=None, from_scratch=True), say=lambda line: None)
    made.facts, made.view, made.pretrained, made.pace = (
        facts(images=6000, objects=1, tested=1000),
        rules.View(320),
        False,
        measuring.Pace(0.1, 0.0),
    )
    monkeypatch.setattr(made, "_front", lambda cfg: None)
    monkeypatch.setattr(made, "_has_bf16", lambda: False)
    made._use(design.SCRATCH, "", "")
    made._time()
    solver, devices = made.cfg.SOLVER, gpus if device == "cuda" else 1
    assert solver.IMS_PER_BATCH == batch and solver.BASE_LR == pytest.approx((0.1 if device == "cpu" else 0.02) * batch / 16, abs=1e-5)
    assert made.cfg.MODEL.VOVNET.NORM == norm and measured == [at_once]
    evaluation = -(-1000 // devices) * 0.01
    assert solver.MAX_ITER == measuring.length(10, 0.1 * at_once, evaluation)[0]
    needed = rules.steps_needed(made.facts, batch) * 0.1 * at_once
    assert made._seconds(made.view) == pytest.approx(needed + 0.7 * 0.1 * -(-1000 // devices))
    assert solver.ACCUMULATE == (2 if device == "cpu" else 1)  # two images for each of two processes fit, four do not
    assert recipe._command(made.args, "my rec.yaml").startswith("backbones train --config-file 'my rec.yaml'")
    command = recipe._command(made.args, "my.yaml")
    assert command == "backbones train --config-file my.yaml" + (f" --num-gpus {gpus}" if gpus > 1 else "")


def test_anchors_are_fitted_where_they_miss():
    cfg = zoo.get_config("Base-RCNN-VoVNet-FPN.yaml")
    (kept,) = rules.anchors(facts(sizes=(40, 400)), cfg, 480)
    assert kept.value == cfg.MODEL.ANCHOR_GENERATOR.SIZES and kept.reason.startswith("kept")
    tiny = facts(sizes=(8, 24))
    fitted = next(rules.anchors(tiny, cfg, 480))
    assert fitted.value != cfg.MODEL.ANCHOR_GENERATOR.SIZES and len(fitted.value) == 5
    boxes, strides = tiny.boxes, (4, 8, 16, 32, 64)
    before, after = (rules.met(boxes, sizes, [0.5, 1.0, 2.0], strides) for sizes in (cfg.MODEL.ANCHOR_GENERATOR.SIZES, fitted.value))
    assert after > before + 0.2 and f"{before:.1%}" in fitted.reason and f"{after:.1%}" in fitted.reason
    tall = facts(sizes=(9, 18))
    choices = chosen(rules.anchors(tall, cfg, 480))["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert rules.met(tall.boxes, choices, [0.5, 1.0, 2.0], strides) > 0.9  # small boxes all lie on the finest levels
    wide = facts(sizes=(40, 400))
    wide = facts(boxes=wide.boxes * [4, 0.5])
    ratios = chosen(rules.anchors(wide, cfg, 480))["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"]
    assert all(ratio < 0.3 for ratio in ratios[0])


def test_rare_classes_and_empty_images():
    rare = facts(counts={"cup": 900, "plate": 800, "spoon": 4}, shares={"cup": 0.9, "plate": 0.8, "spoon": 0.01})
    assert chosen(rules.sampling(rare))["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert chosen(rules.sampling(facts())) == {}
    assert chosen(rules.sampling(facts(empty=30))) == {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": False}
    assert chosen(rules.sampling(facts(empty=200))) == {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": True}


def test_facts_of_odd_masks_and_keypoints(tmp_path):
    """Data for boxes may have any masks and keypoints; only sound ones count."""
    path, content = coco(tmp_path)
    for a, mask in zip(content["annotations"], (None, [1, 1, 9, 1, 9, 9], [[1, 1, 9, 1, 9, 9, 3]], {"size": [120, 160]}, "1 5", [[[1, 1]]])):
        a.update(segmentation=mask, keypoints=None)
    content["annotations"][1].update(keypoints="x")
    write(tmp_path / "coco.json", json.dumps(content))
    facts = facts_of([read(Source("", path, str(tmp_path / "images")), Use())], [])
    assert facts.objects == 6 and (facts.masks, facts.rectangles, facts.keypoints) == (pytest.approx(1 / 6), 0, 0)


def test_flips():
    for names, none in ((["left shoe", "right shoe"], True), (list("0123"), True), (["cup", "plate"], False), (["upright"], False)):
        assert bool(chosen(rules.flips(facts(counts=dict.fromkeys(names, 5))))) == none
    assert chosen(rules.flips(facts(), "pairs are unknown")) == {"INPUT.RANDOM_FLIP": "none"}


def test_schedule_within_the_time():
    short = chosen(rules.schedule(facts(), 8, 100, "3 minutes"))
    assert short["SOLVER.MAX_ITER"] == 100 and short["SOLVER.WARMUP_ITERS"] == 10 and short["TEST.EVAL_PERIOD"] == 10
    assert chosen(rules.schedule(facts(tested=0), 8, 100, ""))["TEST.EVAL_PERIOD"] == 0
    for asked in (50_000, 5):  # neither cut to what the images need, nor warmed up for longer than it lasts
        choices = {choice.key: choice for choice in rules.schedule(facts(images=100), 8, asked, f"--iterations {asked}", asked=True)}
        assert choices["SOLVER.MAX_ITER"].value == asked and choices["SOLVER.MAX_ITER"].reason.startswith(f"--iterations {asked}, ")
        assert choices["SOLVER.WARMUP_ITERS"].value == min(asked, 1000)
    one = chosen(rules.schedule(facts(images=1, objects=1), 8, None, ""))
    assert one["SOLVER.MAX_ITER"] == 100  # a hundred at least, also of a single image


def test_small_objects_are_learnt_gently():
    """Where they are smaller than the rule for sizes asks: a longer warm-up, and gradients clipped tighter."""
    assert rules.gentle(facts(side=640.0, sizes=(10, 20)), 640, 4) and not rules.gentle(facts(side=640.0, sizes=(10, 20)), 1280, 4)
    assert chosen(rules.schedule(facts(), 8, 100, "", gently=True))["SOLVER.WARMUP_ITERS"] == 25
    values = [chosen(rules.rate(8, True, gently))["SOLVER.CLIP_GRADIENTS.CLIP_VALUE"] for gently in (False, True)]
    assert values == [10.0, 1.0]


def test_batch_by_memory():
    """The largest part of a batch that fits in four fifths of what is free; an image that does not fit is said in one line."""

    def parts(room):
        return chosen(rules.parts(8, lambda images: 2e9 + 1e9 * images, room))["SOLVER.ACCUMULATE"]

    assert [parts(room) for room in (0, 13e9, 12e9, 5.2e9, 4e9)] == [1, 1, 2, 4, 8]
    with pytest.raises(UserError, match="an image needs about 2.79 GiB of memory in training, and 3.26 GiB are available"):
        parts(3.5e9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", cases(["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "gfl"], tried=["mask_rcnn", "keypoint_rcnn", "gfl"])
)
def test_memory_is_predicted(name, capsys):
    """Small steps tell a larger one's peak within 15 %: of 4 images of 256 pixels, what torch allocates for weights, momentum and the step.

    Measured, MiB predicted and there: Faster R-CNN 334 of 334, Mask 359 of 359, Keypoint 341 of 336, RetinaNet 313 of 313, GFL 137 of 137.
    """
    digits.generate()
    examination = Examination(open_config(f"digits/{name}_digits.yaml", ["MODEL.DEVICE", "cpu"]))
    with quiet():
        predicted = memory.peak(examination, sizes=(160, 224))
    model = examination.build().train()
    optimizer = examination.front.build_optimizer(model)
    images = [memory._example(examination, model, 256)[0] for _ in range(4)]
    memory.step_backward(model, images[:1])
    optimizer.step()
    optimizer.zero_grad()
    kept = [*model.parameters(), *model.buffers(), *(value for state in optimizer.state.values() for value in state.values())]
    there = sum(t.numel() * t.element_size() for t in kept if isinstance(t, torch.Tensor))
    there += peak_bytes(lambda: memory.step_backward(model, images))
    with capsys.disabled():
        print(f" {name}: {predicted.of(4, 256**2) / 2**20:.0f} of {there / 2**20:.0f} MiB", end="")
    assert predicted.of(4, 256**2) == pytest.approx(there, rel=0.15)


def test_candidates_are_published_ones():
    found = list(candidates())
    figures = [ap for _, ap in found if ap]
    assert figures == sorted(figures, reverse=True) and dict(found)["V-39-eSE"] == 42.7 and found[-1][1] is None


def test_networks_that_are_not_considered_are_named(monkeypatch, tmp_path):
    """Each with the reason and what to do, whether a host answers or none does."""
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    gone, asked, own = "V-99-eSE", ["RegNetX-400MF", "RegNetX-800MF"], "RegNetX-1.6GF"
    (tmp_path / f"{own}.pth").touch()

    def one_answers(releases, timeout):
        return {release.place: checking.Answer("alive" if release.name == asked[1] else "dead", "HTTP 404 Not Found") for release in releases}

    def none_answers(releases, timeout):
        raise UserError("no internet connection: cannot reach any of a.org", "download")

    todo = f". To have them considered, save weights of theirs as NAME.pth in {str(tmp_path)!r}"
    first = f"not considered: {gone}, because their weights are gone from the web, or their licence restricts use{todo}"
    for answers, left, why, there in (
        (one_answers, asked[:1], "their weights cannot be downloaded: HTTP 404 Not Found", {asked[1], own}),
        (none_answers, asked, "their weights must be downloaded, and there is no internet connection: cannot reach any of a.org", {own}),
    ):
        monkeypatch.setattr(checking, "check", answers)
        said = []
        assert set(available([gone, *asked, own], said.append)) == there
        assert said == [first, f"not considered: {', '.join(left)}, because {why}{todo}"]


def asked(data, tmp_path, **more):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    recipe.add_recipe_arguments(parser)
    flags = [item for split, (file, folder) in data.items() for item in (f"--{split}", file, f"--{split}-images", folder)]
    args = parser.parse_args([*flags, "--iterations", "6"])
    return argparse.Namespace(**{**vars(args), "gpus": 1, "device": "cpu", "output_dir": str(tmp_path / "run"), **more})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["boxes", "masks", "keypoints"])
def test_the_file_needs_no_other(little_memory, task, tmp_path):
    """Every line says why; the config that it gives is the one that was worked out, and can be trained."""
    data = few_digits(tmp_path, {"train": 8, "val": 4})
    work = Design(asked(data, tmp_path, task=task, from_scratch=True), say=lambda line: None)
    work.run()
    written = text(work.cfg, work.choices, "head\n  command")
    (tmp_path / "my.yaml").write_text(written)
    assert all("  # " in line for line in written.splitlines() if not line.startswith("#") and not line.endswith(":"))
    front = open_config(str(tmp_path / "my.yaml"))
    for key in (*work.choices, "MODEL.ROI_HEADS.NUM_CLASSES", "DATASETS.CLASSES"):
        assert get(front.cfg, key) == get(work.cfg, key), key
    assert front.cfg.MODEL.MASK_ON == (task == "masks") and front.cfg.MODEL.KEYPOINT_ON == (task == "keypoints")
    check_config(front.cfg, training=True)


def test_the_cpu_is_not_taken_silently(monkeypatch, capsys):
    for seen, asked, device in ((False, "", "cpu"), (False, "cpu", "cpu"), (True, "", "cuda"), (True, "cpu", "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda seen=seen: seen)
        assert recipe.device_of(asked) == device
        assert ("torch sees no GPU" in capsys.readouterr().out) == (not seen and not asked)


@pytest.mark.slow
@pytest.mark.parametrize("images, held_out", [(8, True), (1, False)])
def test_no_validation_set(little_memory, images, held_out, tmp_path, capsys):
    """A fifth is held out; of a single image none can be, and it is trained on without evaluations."""
    data = few_digits(tmp_path, {"train": images})
    args = asked(data, tmp_path, task="boxes", from_scratch=True)
    recipe.design(args, str(tmp_path / "my.yaml"))
    cfg = open_config(str(tmp_path / "my.yaml")).cfg
    assert bool(cfg.DATASETS.TEST) == bool(cfg.TEST.EVAL_PERIOD) == held_out
    said = capsys.readouterr().out
    assert (
        ("a single image cannot be split: there is no evaluation" in said)
        != ("no --val or --val-split: 3 of 8 images are held out for" in said)
        == held_out
    )
    assert said.count("are held out") == held_out and said.count("MODEL.ROI_HEADS.NUM_CLASSES") == 1
    assert said.splitlines()[-1] == f"expected: 6 steps, {'9.6 passes over 5 images' if held_out else '48 passes over 1 image'}"
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 and cfg.SOLVER.MAX_ITER == 6


def run_lengths(content):
    from pycocotools import mask

    size = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for a in content["annotations"]:
        rle = mask.merge(mask.frPyObjects(a["segmentation"], *size[a["image_id"]]))
        a["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}


def nameless(content):
    for category in content["categories"]:
        del category["keypoints"], category["skeleton"]


@pytest.mark.slow
@pytest.mark.parametrize("task, change", [("masks", run_lengths), ("keypoints", nameless)])
def test_a_part_held_out_is_read_as_its_task_needs(little_memory, task, change, tmp_path):
    """The data are read for boxes first, then for the task."""
    data = few_digits(tmp_path, {"train": 10})
    with open(data["train"][0]) as f:
        content = json.load(f)
    change(content)
    with open(data["train"][0], "w") as f:
        json.dump(content, f)
    work = Design(asked(data, tmp_path, task=task, from_scratch=True), say=lambda line: None)
    work.run()
    assert work.cfg.DATASETS.TEST == ("own_train_held_out",)
    if task == "masks":
        assert work.cfg.INPUT.MASK_FORMAT == "bitmask"
    else:
        assert work.cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == len(content["annotations"][0]["keypoints"]) // 3 != 17


def test_data_with_a_validation_set_of_their_own(little_memory, tmp_path, capsys):
    """A folder of splits needs no --val, and nothing is held out; of data that are not there nothing is said of --val."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "images" / split / f"{i}.png")
            (tmp_path / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [cup]\n")
    args = asked({}, tmp_path, train_json=str(tmp_path / "data.yaml"), task="boxes", from_scratch=True)
    recipe.design(args, str(tmp_path / "my.yaml"))
    cfg = open_config(str(tmp_path / "my.yaml")).cfg
    assert cfg.DATASETS.TEST == ("own_val",) and not cfg.DATASETS.HOLD_OUT and "no --val" not in capsys.readouterr().out
    with pytest.raises(UserError, match="nowhere.json' does not exist"):
        recipe.design(asked({}, tmp_path, train_json="nowhere.json"), str(tmp_path / "my.yaml"))
    assert capsys.readouterr().out == ""


def test_what_cannot_be(tmp_path):
    with pytest.raises(UserError, match="--train is missing"):
        recipe.design(argparse.Namespace(train_json="", val_json="", val_split=0, minutes=1, iterations=None), "x.yaml")
    with pytest.raises(UserError, match="--minutes -1: it must be positive"):
        recipe.design(argparse.Namespace(train_json="t.json", val_json="", val_split=0, minutes=-1, iterations=None), "x.yaml")
    with pytest.raises(UserError, match="^give --iterations or --minutes, not both$"):
        recipe.design(argparse.Namespace(train_json="t.json", val_json="", val_split=0, minutes=5.0, iterations=3), "x.yaml")
    for flags in (["--config-file", "x.yaml"], ["--backbone", "V-39-eSE"], ["--eval-only"]):
        with pytest.raises(UserError, match="--auto works out the config itself"):
            train.read_config(train.argument_parser().parse_args(["--auto", *flags]))
    for flag in ("--weights", "MODEL.WEIGHTS"):
        match = f"cannot be combined with {flag}. Run `backbones recipe --output my.yaml`, then .* --config-file my.yaml {flag} x.pth`"
        with pytest.raises(UserError, match=match):
            train.read_config(train.argument_parser().parse_args(["--auto", "--train", "t.json", flag, "x.pth"]))


def test_auto_resumes_with_the_data_of_its_recipe(tmp_path, catalogue):
    """What was held out stays so, although the command does not say it again."""
    ((file, folder),) = few_digits(tmp_path, {"train": 8}).values()
    (tmp_path / "run").mkdir()
    base = zoo.get_config_file("digits/faster_rcnn_digits.yaml")
    data = {"REGISTER": [["own_train", file, folder]], "HOLD_OUT": [["own_train", 0.25]]}
    parts = {"TRAIN": ["own_train_kept"], "TEST": ["own_train_held_out"]}
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump({"_BASE_": base, "DATASETS": {**data, **parts}}))
    flags = ["--auto", "--resume", "--train", file, "--train-images", folder, "--minutes", "5"]
    args = train.argument_parser().parse_args([*flags, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")])
    front = train.prepare(args, train.read_config(args))
    assert (front.cfg.DATASETS.TRAIN, front.cfg.DATASETS.TEST) == (("own_train_kept",), ("own_train_held_out",))
    held_out, kept = ({record["file_name"] for record in DatasetCatalog.get(name)} for name in ("own_train_held_out", "own_train_kept"))
    assert held_out and kept and not held_out & kept and any("--train, --minutes changed nothing" in line for line in front.said)


def test_results_of_a_run_stay(tmp_path):
    """An evaluation on other data of the same name takes another folder; on the same data it may stay."""
    config = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('own_val',)", "DATASETS.REGISTER", "[['own_val', '/a.json', '/a']]"]
    before = open_config("digits/faster_rcnn_digits.yaml", config)
    (tmp_path / "config.yaml").write_text(before.cfg.dump())
    other = before.clone("DATASETS.REGISTER", [["own_val", "/b.json", "/b"]])
    train._check_results_stay(other)  # there is no run
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    (tmp_path / "model_final.pth").write_text("")
    train._check_results_stay(before)
    with pytest.raises(UserError, match="has a run's results on '/a.json', which those on '/b.json' would replace: name another folder"):
        train._check_results_stay(other)
    named, held = (before.clone("DATASETS.TEST", names) for names in (("coco_2017_val",), ("own_val_held_out",)))
    for front, said in (
        (named, "'/a.json', which those on 'coco_2017_val' would"),
        (held.clone("DATASETS.HOLD_OUT", [["own_val", 0.2]]), r"'/a.json', which those on '/a.json' \(0.2 of it\) would"),
    ):
        with pytest.raises(UserError, match=said):
            train._check_results_stay(front)
    (tmp_path / "config.yaml").write_text(before.clone("DATASETS.TEST", ()).cfg.dump())
    train._check_results_stay(other)  # the run has no test data, so no results
    flags = ["--auto", "--resume", "--train", "t.json", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(UserError, match="has no recipe.yaml of --auto: continue its run with --config-file .*config.yaml --resume"):
        train.read_config(train.argument_parser().parse_args(flags))


def test_auto_leaves_an_earlier_run_until_there_is_a_recipe(tmp_path):
    """Data that are not there neither remove a run with --overwrite nor make a folder without one."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model_final.pth").write_text("weights")
    for flags, name in ((["--overwrite"], "old"), ([], "new")):
        arguments = ["--auto", *flags, "--train", str(tmp_path / "typo.json"), "OUTPUT_DIR", str(tmp_path / name)]
        with pytest.raises(UserError, match="typo.json"):
            train.read_config(train.argument_parser().parse_args(arguments))
    assert (tmp_path / "old" / "model_final.pth").read_text() == "weights" and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "config, weights",
    [
        ("digits/faster_rcnn_digits.yaml", "MODEL.WEIGHTS {}/model_final.pth"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.py", "train.init_checkpoint={}/model_final.pth"),
        ("digits/classification_digits.yaml", ""),
    ],
)
def test_a_training_ends_with_the_next_command(config, weights, tmp_path, caplog):
    """In the words of its kind of config; a classifier has nothing to draw."""
    caplog.set_level(logging.INFO, "backbones")
    front = open_config(config)
    front.set("OUTPUT_DIR", str(tmp_path))
    train.say_next(front)
    found = [line for line in caplog.messages if "--output found" in line]
    assert len(found) == bool(weights) and all(line.endswith(weights.format(tmp_path)) for line in found)


def test_auto_is_for_one_machine(monkeypatch):
    flags = ["--auto", "--train", "t.json"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    with pytest.raises(UserError, match="--auto starts its processes itself, on one machine"):
        train.read_config(train.argument_parser().parse_args(flags))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(UserError, match="--auto starts its processes itself, on one machine"):
        train.read_config(train.argument_parser().parse_args([*flags, "--num-machines", "2"]))


def test_recipes_read_data_as_they_are_told(tmp_path, capsys, catalogue):
    """Boxes are corners, and what was read is said; keys of anything else are the recipe's."""
    ((file, folder),) = few_digits(tmp_path, {"train": 12}).values()
    with open(file) as f:
        content = json.load(f)
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]
    content["annotations"][0]["bbox"] = [5, 5, 5, 5]
    content["images"][0]["file_name"] = "elsewhere/" + os.path.basename(content["images"][0]["file_name"])
    with open(file, "w") as f:
        json.dump(content, f)
    args = asked({"train": (file, folder)}, tmp_path, opts=["DATASETS.BOX_FORMAT", "xyxy"])
    work = Design(args)
    work._data()
    said = capsys.readouterr().out
    assert (
        "own_train" in said
        and said.count("1 empty box") == said.count("another folder") == 1
        and work.choices["DATASETS.BOX_FORMAT"].value == "xyxy"
    )
    sides = [max(a["bbox"][2:]) for data in [work._read(work.cfg.DATASETS.TRAIN)[0]] for a in data.annotations]
    assert max(sides) < 90  # of digits, not of corners


def test_counts_that_torchrun_does_not_have(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "7", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for flags, count in (([], 4), (["--num-gpus", "2", "--num-machines", "2"], 4)):
        assert count_processes(train.argument_parser().parse_args(flags)) == count
    with pytest.raises(UserError, match="--num-gpus 8: torchrun started 2 instead"):
        count_processes(train.argument_parser().parse_args(["--num-gpus", "8"]))


def test_misspelt_classes_of_validation_data_are_said_last(little_memory, tmp_path, capsys):
    """Training data show their classes with counts, the rarest last."""
    for split, (circle, star), numbers in (("train", ("circle", "star"), (1, 0, 0)), ("val", ("cicle", "star"), (0, 0, 1))):
        (tmp_path / split).mkdir()
        for i in range(4):
            Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / split / f"{i}.png")
            labels = "".join(f"{number} 0.5 0.5 0.4 0.4\n0 0.2 0.2 0.2 0.{3 + n}\n" for n, number in enumerate(numbers))
            (tmp_path / split / f"{i}.txt").write_text(labels)
        (tmp_path / split / "classes.txt").write_text(f"{circle}\n{star}\n")
    args = asked({}, tmp_path, train_json=str(tmp_path / "train"), val_json=str(tmp_path / "val"), task="boxes", from_scratch=True)
    recipe.design(args, str(tmp_path / "my.yaml"))
    *lines, last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("data: 4 images, 24 objects of 2 classes (circle 20, star 4); 4 images") for line in lines)
    assert lines[-1].startswith("expected: 6 steps, ")
    lost = "'cicle' (20, there spelt 'circle')"
    assert last == f"WARNING: own_val: 20 of 24 objects are left out, since the training data have no such class: {lost}. Misspelt?"


@pytest.mark.slow
def test_images_to_test_on_that_are_trained_on(tmp_path, capsys, monkeypatch, catalogue):
    """A recipe and a training say so, by the files' paths. A stream gets the config alone."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    os.mkfifo(tmp_path / "pipe")
    written = []
    reader = threading.Thread(target=lambda: written.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    data = ["--train", str(tmp_path / "a"), "--val", str(tmp_path / "a")]
    more = ["--iterations", "6", "--from-scratch", "--device", "cpu", "--output", str(tmp_path / "pipe")]
    monkeypatch.setattr(sys, "argv", ["recipe", *data, *more])
    recipe.main()
    reader.join(10)
    out, err = capsys.readouterr()
    assert out == "" and yaml.safe_load(written[0])["SOLVER"]["MAX_ITER"] == 6
    line = "own_val: 4 of 4 images are also trained on: figures are too good, and choose model_best.pth -> test on others"
    assert line in err.splitlines() and "--iterations: no step was measured" in err
    config = tmp_path / "my.yaml"
    config.write_text(written[0])
    for tested, said in (("a", True), ("b", False)):
        data = ["--train", str(tmp_path / "a"), "--val", str(tmp_path / tested)]
        args = train.argument_parser().parse_args(["--config-file", str(config), *data, "OUTPUT_DIR", str(tmp_path / "run")])
        assert (line in train.prepare(args, train.read_config(args)).said) == said


@pytest.mark.parametrize("split, name", [("train", "1.jpg"), ("val", "1.png")])
def test_truncated_images_are_found_first(split, name, tmp_path):
    """Their headers are sound. A file with more behind its end is not one of them, and INPUT.UNREADABLE skip leaves them to the training."""
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for file in ("0.jpg", "0.png", "1.jpg", "1.png"):
            path = tmp_path / part / file
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[: 2000 if (part, file) == (split, name) else None] + b"more" * (file[0] == "0"))
            path.with_suffix(".txt").write_text("0 0.5 0.5 0.4 0.4\n")
        for file in ("0.png", "1.jpg" if name == "1.png" else "1.png"):
            (tmp_path / part / file).unlink()
        (tmp_path / part / "classes.txt").write_text("cup\n")
    args = asked({}, tmp_path, train_json=str(tmp_path / "train"), val_json=str(tmp_path / "val"), task="boxes", from_scratch=True)
    words = {"1.jpg": "truncated image .1.: image files are truncated: '1.jpg'", "1.png": "'1.png' .image file is truncated"}
    with pytest.raises(UserError, match=words[name]):
        Design(args)._data()  # of a PNG the whole file is read with its header
    assert inspection._has_no_end(str(tmp_path / split / name))
    Design(argparse.Namespace(**{**vars(args), "opts": ["INPUT.UNREADABLE", "skip"]}))._data()


def test_auto_checks_overrides_before_it_measures(tmp_path):
    for word, said in (("SOLVER.BASE_LRR", "Did you mean 'SOLVER.BASE_LR'"), ("SOLVER.MAX_ITER", "must be a whole number")):
        with pytest.raises(UserError, match=said):
            train.read_config(
                train.argument_parser().parse_args(["--auto", "--train", "t.json", "OUTPUT_DIR", str(tmp_path / "x"), word, "0.1"])
            )
    assert not (tmp_path / "x").exists()


def test_own_data_need_a_config():
    """Overrides alone stand for detectron2's defaults."""
    with pytest.raises(UserError, match="^--config-file is missing. For your own data: --auto, or `backbones recipe`$"):
        train.read_config(train.argument_parser().parse_args(["--train", "coco", "OUTPUT_DIR", "x"]))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--minutes", "5"], "--minutes needs --auto"),
        (["--iterations", "7"], "--iterations needs --auto"),
        (["--task", "masks"], "--task needs --auto"),
        (["--from-scratch"], "--from-scratch needs --auto"),
        (["--latency", "3ms"], "--latency needs --auto"),
        (["--eval-only", "--precision", "bfloat16"], "--precision needs --optimize"),
        (["--weights", "a.pth", "MODEL.WEIGHTS", "b.pth"], "--weights and MODEL.WEIGHTS name weights: leave one out"),
    ],
)
def test_flags_that_would_change_nothing(flags, said):
    with pytest.raises(UserError, match=said):
        train.read_config(train.argument_parser().parse_args(["--config-file", "digits/faster_rcnn_digits.yaml", *flags]))


@pytest.mark.slow
def test_auto_trains_and_halves_what_memory_cannot_hold(little_memory, tmp_path, monkeypatch, capfd, own_logs):
    """From data to a trained detector in one command; a batch that is too large is taken in parts, and without --auto one line says how."""
    data = few_digits(tmp_path, {"train": 8, "val": 4})
    flags = [item for split, (file, folder) in data.items() for item in (f"--{split}", file, f"--{split}-images", folder)]
    (kind,) = [kind for kind in vars(step).values() if isinstance(kind, type) and "_forward" in vars(kind)]
    plain = kind._forward

    def short(self, batch):
        if len(batch) > 4:
            model, self.model = self.model, _Full()
            try:
                return plain(self, batch)
            finally:
                self.model = model
        return plain(self, batch)

    class _Full(torch.nn.Module):
        def forward(self, batch):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(kind, "_forward", short)
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")]
    train.command_line(["--auto", "--task", "boxes", "--from-scratch", "--iterations", "2", *flags, *options])
    assert "Trying SOLVER.ACCUMULATE 2" in capfd.readouterr().out
    assert os.path.isfile(tmp_path / "run" / "recipe.yaml") and os.path.isfile(tmp_path / "run" / "model_final.pth")
    with pytest.raises(SystemExit):
        train.command_line(["--config-file", str(tmp_path / "run" / "recipe.yaml"), "--overwrite", *options])
    assert "not enough memory for 8 images at once, at iteration 0: set SOLVER.ACCUMULATE 2" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_random_weights_can_be_timed(norm):
    """detectron2's keypoints fail on numbers as large as random weights make without norms of the image."""
    cfg = zoo.get_config("crowd/keypoint_rcnn_crowd.yaml")
    options = [
        "MODEL.BACKBONE.NAME",
        "build_vovnet_fpn_backbone",
        "MODEL.VOVNET.NORM",
        norm,
        "MODEL.DEVICE",
        "cpu",
        "INPUT.MIN_SIZE_TEST",
        "64",
    ]
    merge_overrides(cfg, options)
    for seed in range(4):
        torch.manual_seed(seed)
        assert 0 < measuring.latency(cfg, 1.0, count=1) < 60


@pytest.mark.slow
def test_latency(little_memory, tmp_path, monkeypatch):
    """The best network within it; else the fastest at smaller images; else an error. Latencies are pretended, as the square of the size."""
    data = few_digits(tmp_path, {"train": 4, "val": 4})
    whole = facts(side=480.0, sizes=(12, 100))
    monkeypatch.setattr(memory, "room", lambda device: 1 << 40)  # whatever else runs on this machine
    monkeypatch.setattr(design, "facts_of", lambda training, testing: whole)
    speed = {"RegNetX-3.2GF": 3.0, "RegNetX-400MF": 1.0}
    monkeypatch.setattr(design, "candidates", lambda: iter([("RegNetX-3.2GF", 39.9), ("RegNetX-400MF", None)]))
    monkeypatch.setattr(design, "available", lambda names, say: {name: f"backbones://{name}" for name in names})
    monkeypatch.setattr(measuring, "latency", lambda cfg, ratio: 1e-7 * speed[network_of(cfg)] * cfg.INPUT.MIN_SIZE_TEST**2)

    def work(latency):
        made = Design(asked(data, tmp_path, latency=latency, task="boxes"), say=lambda line: None)
        made.run()
        return network_of(made.cfg), made.cfg.INPUT.MIN_SIZE_TEST, made.choices["INPUT.MIN_SIZE_TEST"].reason

    size = rules.image_size(whole, 4)[0]
    assert work(0)[:2] == work(1e-7 * 3 * size**2)[:2] == ("RegNetX-3.2GF", size)
    assert work(1e-7 * 2 * size**2)[:2] == ("RegNetX-400MF", size)
    name, smaller, reason = work(1e-7 * (size - 40) ** 2)
    assert (name, smaller) == ("RegNetX-400MF", size - 64) and f"the objects need {size}, but --latency" in reason
    with pytest.raises(UserError, match="no network is within --latency 1ms on this device, even at 320 pixels"):
        work(0.001)


@pytest.mark.parametrize("part, allowed", [(0.25, 0.15), (0.25, 0.01), (0.35, 0.01), (1.0, 0.2)])
def test_latency_keeps_the_sizes_of_objects_in_training(part, allowed, monkeypatch, tmp_path):
    """Parts of an image stay parts of it, of 160 pixels at least: training never sees objects larger than an evaluation does."""
    made = Design(asked({}, tmp_path, latency=allowed), say=lambda line: None)
    made.facts, made.pretrained = facts(side=320.0 if part < 1 else 640.0, sizes=(5, 10)), True
    made._see(rules.View(640, part), "the objects need it")
    monkeypatch.setattr(made, "_slowness", lambda name, address: 1e-6 * made.cfg.INPUT.MIN_SIZE_TEST**2 / allowed)
    monkeypatch.setattr(made, "_use", lambda *about: None)
    if allowed == 0.01:
        monkeypatch.setattr(rules, "least_size", lambda facts: 96.0)
    made._shrink("RegNetX-400MF", None, "", made._slowness("RegNetX-400MF", ""))
    crop, size = made.cfg.INPUT.CROP, made.cfg.INPUT.MIN_SIZE_TEST
    assert size < 640 and size**2 <= 1e6 * allowed
    seen = crop.SIZE[0] if crop.ENABLED else 1.0
    assert max(made.cfg.INPUT.MIN_SIZE_TRAIN) <= 1.1 * seen * size and seen * size >= min(size, 0.95 * 160)
    assert crop.ENABLED == (made.view.part < 1) == any(key.startswith("INPUT.CROP.") for key in made.choices)
