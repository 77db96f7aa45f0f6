"""What goes on around training, part by part: data order, averages, best values, losses and pictures of the test data, trackers."""

import contextlib
import importlib
import io
import itertools
import json
import logging
import math
import sys
import types

import cloudpickle
import numpy as np
import pytest
import torch
from conftest import ROOT  # noqa: F401  for the data's place
from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, JSONWriter
from PIL import Image
from torch import nn
from torchvision.ops import StochasticDepth

from backbones import zoo
from backbones.config import merge_overrides
from backbones.data import register_digits
from backbones.data.loader import Batches, Examples, TrainLoader, build_train_loader, seed_random_numbers
from backbones.engine import Trainer, YamlFront, hooks, tracking
from backbones.engine.fit import Fit
from backbones.engine.lazy import PythonFront
from backbones.engine.pictures import draw_predictions
from backbones.engine.step import Steps, moving_values, set_moving_values
from backbones.upstream import RunningNorm

CONFIG = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"


def config(*overrides, path=CONFIG):
    cfg = zoo.get_config(path)
    small = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,96)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "4"]
    merge_overrides(cfg, [*small, *map(str, overrides)])
    return cfg


# data


def noise(record):
    return {"index": record, "noise": (np.random.rand(), torch.rand(1).item())}


def first(loader, count):
    return [[(e["index"], e["noise"]) for e in batch] for batch in itertools.islice(iter(loader), count)]


def loader(workers=0, sampler=None, wide=None, size=2):
    sampler = sampler or TrainingSampler(7, seed=0)
    return TrainLoader(Examples(list(range(7)), noise), sampler, size, wide, workers)


def test_order_and_noise_follow_from_seed_and_place():
    """Any number of workers, and any place to go on from."""
    whole = loader()
    whole.go_to(3, 0)
    expected = first(whole, 12)
    assert sorted(index for batch in expected[:7] for index, _ in batch) == sorted([*range(7)] * 2)
    for workers, start in ((0, 5), (2, 0), (3, 7)):
        other = loader(workers)
        other.go_to(3, start)
        assert first(other, 12 - start) == expected[start:]
    other = loader()
    other.go_to(4, 0)
    assert first(other, 12) != expected
    noises = [n for batch in expected for _, n in batch]
    assert len(set(noises)) == len(noises)  # the same image again is another example


def test_a_subset_is_drawn_by_the_run():
    chosen = []
    for _ in range(2):
        part = loader(sampler=RandomSubsetTrainingSampler(7, 3 / 7))
        part.go_to(5, 0)
        chosen.append({index for batch in first(part, 9) for index, _ in batch})
    assert chosen[0] == chosen[1] and len(chosen[0]) == 3
    part = loader(sampler=RandomSubsetTrainingSampler(7, 3 / 7))
    orders = []
    for other in (0, 1, 2):  # as for the statistics of norms
        part.go_to(5, 0, other)
        orders.append([index for batch in first(part, 9) for index, _ in batch])
    assert all(set(order) == chosen[0] for order in orders) and orders[0] != orders[1] != orders[2]


def records(count):
    return [{} for _ in range(count)]


def test_a_subset_that_the_config_states():
    """A Python config's seed of the subset counts, whatever the seed of the run; so does an order that is not shuffled."""
    front = PythonFront(zoo.get_lazy_config("COCO-Detection/retinanet_R_50_FPN_1x.py"))
    sampler = LazyCall(RandomSubsetTrainingSampler)(size=7, subset_ratio=0.5, shuffle=False, seed_subset=11)
    wanted = list(itertools.islice(RandomSubsetTrainingSampler(7, 0.5, shuffle=False, seed_subset=11), 6))
    front.cfg.dataloader.train.update(sampler=sampler, dataset=LazyCall(records)(count=7), num_workers=0)
    for seed in (3, 4):
        made = front.build_train_loader()
        made.go_to(seed, 0)
        assert list(itertools.islice(made.batches.sampler, 6)) == wanted
    del front.cfg.dataloader.train.sampler["seed_subset"]
    assert not front.build_train_loader().own_subset


def test_batches_are_of_one_kind():
    wide = np.array([True, False, True, True, False, False, True])
    batches = itertools.islice(iter(Batches(TrainingSampler(7, seed=0), 2, 7, wide)), 40)
    kinds = [{bool(wide[code % 7]) for code in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds) and {True} in kinds and {False} in kinds


def test_the_loader_of_a_config():
    register_digits()
    cfg = config("DATALOADER.NUM_WORKERS", 0, "SOLVER.ACCUMULATE", 2)
    batch = next(iter(build_train_loader(cfg)))
    assert len(batch) == 2 and {"image", "instances"} <= set(batch[0])


def test_seeds_of_several_numbers():
    drawn = []
    for numbers in ((1, 2), (2, 1), (1, 2)):
        seed_random_numbers(*numbers)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[2] != drawn[1]


# hooks


def test_average_of_weights():
    """The formula, to 1e-6: the first weights, then shares (1 + t) / (10 + t), at most the decay; buffers too."""
    model = nn.BatchNorm1d(1)
    ema = hooks.EMA(model, decay=0.25)
    expected = None
    for t in range(6):
        with torch.no_grad():
            model.weight.fill_(float(t + 1))
            model.running_mean.fill_(float(10 * t))
        ema.after_step()
        share = min(0.25, (1 + t) / (10 + t))
        now = (t + 1.0, 10.0 * t)
        expected = now if t == 0 else tuple(share * e + (1 - share) * n for e, n in zip(expected, now))
    averaged = ema.average.module
    assert averaged.weight.item() == pytest.approx(expected[0], rel=1e-6)
    assert averaged.running_mean.item() == pytest.approx(expected[1], rel=1e-6)


def test_headlines():
    assert hooks.headline(["bbox/AP50", "bbox/AP", "segm/AP"]) == "segm/AP"
    assert hooks.headline(["lr", "own/bbox/AP", "other/bbox/AP"]) == "own/bbox/AP"
    assert hooks.headline(["bbox/AP", "bbox/AP50"], "bbox/AP50") == "bbox/AP50"
    assert hooks.headline(["sem_seg/mIoU"]) == "sem_seg/mIoU" and hooks.headline(["loss"]) is None


@pytest.mark.parametrize(
    "figures, classes, said",
    [
        ({"classification/top1": 15.0}, 10, "classification/top1 is 15.0, and guessing among 10 classes reaches 10.0"),
        ({"classification/top1": 20.0}, 10, ""),
        ({"classification/top1": 54.0}, 2, "guessing among 2 classes reaches 50.0"),
        ({"classification/top1": 60.0}, 2, ""),
        ({"classification/top1": 1.0}, 1000, ""),
        ({"classification/top1": 100.0}, 1, ""),
        ({"bbox/AP": 0.3}, 10, "bbox/AP is 0.3, and the model finds next to nothing"),
        ({"bbox/AP": 40.0, "segm/AP": math.nan}, 10, "segm/AP is nan"),
        ({"bbox/AP": 5.0}, 10, ""),
        ({}, 10, ""),
    ],
)
def test_a_run_that_learned_nothing_says_so(figures, classes, said, caplog):
    evaluation = types.SimpleNamespace(last=hooks.Evaluation(9, figures))
    hook = hooks.Learned(evaluation, classes)
    hook.trainer = types.SimpleNamespace(done=10, max_iter=10, job=types.SimpleNamespace(name=str))
    hook.after_train()
    assert said in caplog.text and bool(caplog.text) == bool(said)
    caplog.clear()
    hook.trainer.done = 5  # stopped: it is to go on
    hook.after_train()
    assert not caplog.text


def test_losses_of_the_test_data():
    """Of every image, the same each time, whatever the number of workers; nothing of the model changes."""
    register_digits()
    cfg = config()
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    records = DatasetCatalog.get("digits_val")[:3]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.backbone.bottom_up.eval()
    mapper = YamlFront(cfg).mapper(False, annotated=True)
    losses = [hooks.validation_losses(model, records, mapper, workers) for workers in (0, 2)]
    assert losses[0] == losses[1]
    assert losses[0]["total_loss"] == pytest.approx(sum(v for k, v in losses[0].items() if k != "total_loss"))
    assert model.training and not model.backbone.bottom_up.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    alone = [hooks.validation_losses(model, [record], mapper, 0)["loss_rpn_loc"] for record in records]
    assert losses[0]["loss_rpn_loc"] == pytest.approx(np.mean(alone), rel=0.5)  # other proposals are sampled


@pytest.mark.parametrize("length, period", [(2, 20), (9, 20), (10, 2), (20, 4), (99, 19), (100, 20), (90000, 20)])
def test_a_short_run_has_a_curve(length, period):
    """Five points at least; trials of a few iterations are logged as ever."""
    assert Fit._log_period(types.SimpleNamespace(job=types.SimpleNamespace(log_period=20, max_iter=length))) == period


def test_test_losses_drop_nothing():
    """Stochastic depth has no base class by which to know it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.dropout = StochasticDepth(0.9, "row"), nn.Dropout(0.9)

        def forward(self, batch):
            return {"loss": self.dropout(self.drop(torch.ones(4, 1))).sum()}

    assert hooks.validation_losses(Model(), [{}, {}], lambda record: record, 0)["loss"] == 4.0


def test_normalizers_of_dense_detectors():
    """Those of other heads are constants of the config. Losses of test data are those of one batch, and move nothing."""
    keypoints = Trainer.build_model(config(path="digits/keypoint_rcnn_digits.yaml"))
    assert moving_values(keypoints) == {}
    register_digits()
    cfg = config(path="digits/retinanet_digits.yaml")
    model = Trainer.build_model(cfg).train()
    set_moving_values(model, {"module": 9.0})  # as runs of several processes once named it
    assert moving_values(model) == {"": 9.0}
    records, mapper = DatasetCatalog.get("digits_val")[:2], YamlFront(cfg).mapper(False, annotated=True)
    alone = [hooks.validation_losses(model, [record], mapper, 0) for record in records]
    together = hooks.validation_losses(model, records[::-1], mapper, 0)
    assert moving_values(model) == {"": 9.0} and alone[0] != alone[1]
    for module in model.modules():
        module.training = not isinstance(module, RunningNorm)
    with EventStorage() as storage, torch.no_grad():
        losses = model([mapper(record) for record in records])  # as in training: 0.9 of 9.0, and 0.1 of the positive anchors
        positive = 2 * storage.latest()["num_pos_anchors"][0]
    assert moving_values(model) == {"": pytest.approx(8.1 + 0.1 * positive)}
    for name, value in losses.items():
        assert together[name] == pytest.approx(float(value) * (8.1 + 0.1 * positive) / positive, rel=1e-4), name
    assert together["total_loss"] == pytest.approx(sum(together[name] for name in losses))
    set_moving_values(model, {})
    assert moving_values(model) == {}


class Finds(nn.Module):
    """A detector that finds one box in every image."""

    def forward(self, batch):
        results = []
        for example in batch:
            height, width = example["image"].shape[1:]
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(torch.tensor([[16.0, 12.0, 80.0, 60.0], [0.0, 0.0, 160.0, 120.0]]))
            instances.scores, instances.pred_classes = torch.tensor([0.9, 0.1]), torch.tensor([1, 0])
            instances.pred_masks = torch.ones(2, 1, 28, 28)
            results.append({"instances": detector_postprocess(instances, example.get("height", height), example.get("width", width))})
        return results


def test_pictures(tmp_path):
    """The box that is sure enough, and its mask, are drawn where they are in the network's image."""
    metadata = MetadataCatalog.get("drawn").set(thing_classes=["a", "b"])
    example = {"image": torch.zeros(3, 120, 160, dtype=torch.uint8), "height": 60, "width": 80}
    records = [{"file_name": "a/1.jpg"}, {"file_name": "b/1.jpg"}]
    pictures = draw_predictions(Finds(), records, lambda record: example, metadata, "BGR")
    margin = 23  # for labels; the image is enlarged four times
    assert list(pictures) == ["0_1", "1_1"] and pictures["0_1"].shape == (480 + 2 * margin, 640 + 2 * margin, 3)
    rows, columns = np.nonzero(pictures["0_1"][margin:-margin, margin:-margin].sum(axis=2))
    assert len(rows) > 0.9 * 16 * 64 * 48
    assert abs(columns.min() / 4 - 16) <= 1 and abs(columns.max() / 4 - 80) <= 1 and rows.max() / 4 <= 61
    truth = {"annotations": [{"bbox": [8, 6, 40, 30], "bbox_mode": 0, "category_id": 1}], "height": 60, "width": 80}
    both = draw_predictions(Finds(), [{**records[0], **truth}], lambda record: example, MetadataCatalog.get("drawn"), "BGR")["0_1"]
    unsized = {**records[0], "annotations": truth["annotations"]}  # as detectron2 allows: the mapper adds the size, or else the file has it
    assert np.array_equal(draw_predictions(Finds(), [unsized], lambda record: example, metadata, "BGR")["0_1"], both)
    Image.new("RGB", (80, 60)).save(tmp_path / "1.png")
    bare, unsized["file_name"] = {"image": example["image"]}, str(tmp_path / "1.png")
    assert np.array_equal(draw_predictions(Finds(), [unsized], lambda record: bare, metadata, "BGR")["0_1"], both)
    MetadataCatalog.remove("drawn")
    left = both[26 + margin : -margin, margin : margin + 640].sum(axis=2)  # the truth, below its title
    rows, columns = np.nonzero(left)
    assert (
        abs(columns.min() / 4 - 16) <= 1
        and abs(columns.max() / 4 - 80) <= 1
        and abs(rows.max() / 4 - 60) <= 1
        and left[100:200, 120:280].max() == 0
    )

    class Segments(Finds):
        def forward(self, batch):
            return [{"sem_seg": 0}]

    assert draw_predictions(Segments(), records, lambda record: example, metadata, "BGR") == {}


@pytest.mark.slow
def test_a_trainer_of_ones_own(tmp_path, monkeypatch):
    """With detectron2's loader, a hook before the writer whose state holds numpy's numbers, and norms estimated anew of what is evaluated."""

    class Own(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg)

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            return {"bbox": {"AP": 1.0}}

        def build_hooks(self):
            built = super().build_hooks()
            built.insert(-1, Counts())
            return built

    class Counts(HookBase):
        def state_dict(self):
            return {"best": np.float64(0.5), "seen": [np.int64(3)]}

        def after_step(self):
            self.trainer.storage.put_scalar("counted", 1.0)

    register_digits()
    overrides = (
        "TEST.PRECISE_BN.ENABLED True TEST.PRECISE_BN.NUM_ITER 1 TEST.EVAL_PERIOD 1 MODEL_EMA.ENABLED True DATALOADER.NUM_WORKERS 0".split()
    )
    trainer = Own(config(*overrides, "SOLVER.MAX_ITER", 2, "TEST.PICTURES", 0, "OUTPUT_DIR", tmp_path))
    assert isinstance(trainer._hooks[-1], PeriodicWriter) and isinstance(trainer._hooks[-2], Counts)
    precise = next(hook for hook in trainer._hooks if isinstance(hook, hooks.PreciseBN))
    assert precise._model is trainer.ema.average.module
    assert trainer._hooks.index(precise) > trainer._hooks.index(trainer.ema)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert '"counted": 1.0' in (tmp_path / "metrics.json").read_text()
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]["hooks"]
    assert next(value for key, value in state.items() if key.endswith("Counts")) == {"best": 0.5, "seen": [3]}


def test_every_evaluation_is_written(tmp_path):
    """Whatever its period: one at the start, which an interrupted run missed, and two between lines of losses."""
    done = types.SimpleNamespace(last=None)
    writers = tracking.Writers([JSONWriter(str(tmp_path / "metrics.json"))], [], 20, done)
    with EventStorage(0) as storage:
        writers.trainer = types.SimpleNamespace(iter=0, max_iter=100)

        def evaluate(i):
            done.last = hooks.Evaluation(i, {})
            storage.put_scalar("bbox/AP", float(i), smoothing_hint=False, cur_iter=i)

        evaluate(0)
        writers.before_train()
        for i in range(1, 45):
            storage.iter = writers.trainer.iter = i
            storage.put_scalar("total_loss", 1.0)
            if i in (5, 10, 39):
                evaluate(i)
            writers.after_step()
        writers.after_train()
    with open(tmp_path / "metrics.json") as f:
        assert [(row["iteration"], row.get("bbox/AP")) for row in map(json.loads, f)] == [
            (0, 0),
            (5, 5),
            (10, 10),
            (19, None),
            (39, 39),
            (44, None),
        ]


def test_progress(monkeypatch):
    """On a terminal alone; lines of figures go to files then, others stay."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not hooks.Progress.is_wanted()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert hooks.Progress.is_wanted()
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger("detectron2").addHandler(handler)
    bar = hooks.Progress()
    bar.trainer = types.SimpleNamespace(max_iter=40, start_iter=0, iter=19, storage=EventStorage())
    bar.trainer.storage.put_scalar("total_loss", 1.5)
    record = logging.LogRecord("detectron2.utils.events", logging.INFO, "", 0, "iter: 1", None, None)
    try:
        bar.before_train()
        assert not handler.filter(record)
        bar.after_step()
        assert "loss=1.5" in str(bar.bar)
        bar.after_train()
        assert handler.filter(record)
    finally:
        logging.getLogger("detectron2").removeHandler(handler)


# trackers


def test_trackers(monkeypatch, tmp_path):
    """Each figure once, at its iteration; what is no number is left out."""
    seen = {"wandb": [], "mlflow": [], "parameters": {}}
    run = types.SimpleNamespace(
        log=lambda figures, step: seen["wandb"].append((step, figures)), finish=lambda: seen["wandb"].append("end"), id="w7"
    )
    asked = {"wandb": [], "mlflow": []}
    wandb = types.SimpleNamespace(
        init=lambda project, dir, config, id, resume: asked["wandb"].append(id) or seen.update(config=config, project=project) or run
    )
    mlflow = types.SimpleNamespace(
        set_experiment=lambda name: seen.update(experiment=name),
        start_run=lambda run_id: asked["mlflow"].append(run_id) or types.SimpleNamespace(info=types.SimpleNamespace(run_id="m8")),
        end_run=lambda: seen["mlflow"].append("end"),
        log_params=lambda parameters: seen["parameters"].update(parameters) or 0 < len(parameters) <= 100 or pytest.fail("too many"),
        log_metrics=lambda figures, step: seen["mlflow"].append((step, figures)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    cfg = config("TRACKING.WANDB", "cups", "TRACKING.MLFLOW", "plates", "OUTPUT_DIR", tmp_path)
    assert not list(tracking.tracker_findings(cfg))
    job = types.SimpleNamespace(wandb="cups", mlflow="plates", output_dir=str(tmp_path), config=YamlFront(cfg).plain(), name=str)
    begun = {}
    writers = tracking.trackers(job, begun)
    tracking.Writers([], writers, 20, types.SimpleNamespace(last=None)).before_train()
    assert (seen["project"], seen["experiment"]) == ("cups", "plates")
    assert seen["config"]["SOLVER"]["IMS_PER_BATCH"] == 4 and seen["parameters"]["SOLVER.IMS_PER_BATCH"] == "4"
    with EventStorage(0) as storage:
        storage.put_scalars(total_loss=2.0, smoothing_hint=False)
        for writer in writers:
            writer.write()
        storage.step()
        storage.put_scalar("bbox/AP", 30.0, smoothing_hint=False)
        storage.put_scalar("box_proposals/AR@100", 40.0, smoothing_hint=False)
        storage.put_scalar("bbox/APl", float("nan"), smoothing_hint=False)
        storage.put_scalar("bbox/AP-don't (large)", 20.0, smoothing_hint=False)  # of a class
        storage.put_scalar("bbox/AP-don't [large]", 21.0, smoothing_hint=False)
        for writer in writers:
            writer.write()
            writer.close()
    figures = {"bbox/AP": 30.0, "box_proposals/AR@100": 40.0, "bbox/AP-don't (large)": 20.0, "bbox/AP-don't [large]": 21.0}
    assert seen["wandb"] == [(0, {"total_loss": 2.0}), (1, figures), "end"]
    names = ("bbox/AP", "box_proposals/AR_at_100", "bbox/AP-don_t _large_", "bbox/AP-don_t _large__")
    assert seen["mlflow"][1] == (1, dict(zip(names, figures.values())))
    # a training that goes on is the same run, whose parameters stay
    assert begun == {"wandb": "w7", "mlflow": "m8"}
    seen["parameters"].clear()
    tracking.Writers([], tracking.trackers(job, begun), 20, types.SimpleNamespace(last=None)).before_train()
    assert asked == {"wandb": [None, "w7"], "mlflow": [None, "m8"]} and not seen["parameters"]
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    tracking.trackers(job, begun)[0].begin()
    assert asked["wandb"][-1] == "mine"
    monkeypatch.setitem(sys.modules, "wandb", None)
    (problem,) = tracking.tracker_findings(cfg, {"TRACKING.WANDB": "train.tracking.wandb"}.get)
    assert (problem.code, problem.key, problem.suggestion) == ("missing-package", "train.tracking.wandb", "wandb")


# steps


def test_bfloat16_on_a_cpu():
    """What autocast makes bfloat16 is bfloat16, and weights stay as they are."""
    kinds = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            y = self.inner(x)
            kinds.append(y.dtype)
            return {"loss": y.float().square().mean()}

    model = Model()
    steps = Steps(model, [torch.ones(4, 3)], torch.optim.SGD(model.parameters(), lr=0.1), precision=torch.bfloat16)
    before = model.inner.weight.clone()
    with EventStorage():
        steps.run_step()
    assert kinds == [torch.bfloat16] and model.inner.weight.dtype == torch.float32 and not torch.equal(before, model.inner.weight)


def test_losses_of_the_test_data_are_of_the_weights_that_are_evaluated():
    """With an average of the weights, its own: else AP and loss of one evaluation would be of different models."""
    seen = []
    fit = Fit.__new__(Fit)
    fit.ema = types.SimpleNamespace(average=types.SimpleNamespace(module="averaged"))
    fit.job = types.SimpleNamespace(
        evaluate=lambda model: seen.append(model) or {"bbox/AP": 1.0},
        validate=lambda model: seen.append(model) or {"validation/total_loss": 2.0},
        draw=None,
    )
    assert fit._evaluate() == {"bbox/AP": 1.0, "validation/total_loss": 2.0} and seen == ["averaged"] * 2


@pytest.mark.parametrize("stated, threads", [(None, [3]), ("2", [])])
def test_processes_share_the_cores(stated, threads, monkeypatch):
    """Unless the user says how many threads each has."""
    launch, seen = importlib.import_module("backbones.engine.launch"), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(launch.comm, "get_local_size", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if stated:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    launch._begin(lambda args, prepared: seen.append(prepared), None, cloudpickle.dumps("prepared"))
    assert seen == [*threads, "prepared"]


def test_an_evaluation_at_the_end_is_saved_while_it_is_due():
    """A run that goes on without it has no state without a hook."""
    hook = hooks.EvaluateAtTheEnd(0, dict, contextlib.nullcontext)
    for done, state in ((1, {}), (2, {"pending": True})):
        hook.trainer = types.SimpleNamespace(done=done, max_iter=2)
        assert hook.state_dict() == state
