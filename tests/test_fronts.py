"""YAML and Python configs take one road: the same run has the same weights; all that takes a config takes both, and what a run leaves."""

import copy
import json
import os
import re
import shlex
import shutil

import pytest
import torch
from conftest import ROOT, few_digits, warm
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator

from backbones import UserError
from backbones.data import register_digits
from backbones.engine import PythonFront, open_config
from backbones.tools import benchmark

pytestmark = pytest.mark.slow

NAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
PYTHON = """train.device=cpu train.seed=3 train.max_iter=4 train.eval_period=2 train.checkpointer.period=2 train.log_period=1 train.pictures=1
train.model_ema.enabled=True train.accumulate=2 train.validation_loss=True train.init_checkpoint='' model.backbone.bottom_up.norm=BN
model.backbone.bottom_up.freeze_at=0 optimizer.lr=0.01 lr_multiplier.scheduler.milestones=[3,4] lr_multiplier.scheduler.values=[1.0,0.1]
lr_multiplier.warmup_length=${divide:2,4} lr_multiplier.warmup_factor=0.001 dataloader.train.total_batch_size=4 dataloader.train.num_workers=0
dataloader.test.num_workers=0 model.proposal_generator.post_nms_topk=[50,50] model.roi_heads.batch_size_per_image=16
model.roi_heads.box_predictor.test_score_thresh=0.001 model.roi_heads.box_predictor.test_topk_per_image=10
model.roi_heads.box_head.fc_dims=[64,64] model.roi_heads.box_predictor.input_shape.channels=64 model.roi_heads.mask_head.conv_dims=[32,32]
model.backbone.out_channels=64 model.proposal_generator.head.in_channels=64 model.roi_heads.box_head.input_shape.channels=64
model.roi_heads.mask_head.input_shape.channels=64
dataloader.test.mapper.augmentations.0.short_edge_length=64
dataloader.train.mapper.augmentations.0.short_edge_length=[64,80] dataloader.train.mapper.augmentations.0.max_size=200""".replace(
    "${divide:2,4}", repr(2 / 4)
).split()
YAML = """MODEL.DEVICE cpu SEED 3 SOLVER.MAX_ITER 4 TEST.EVAL_PERIOD 2 SOLVER.CHECKPOINT_PERIOD 2 TEST.PICTURES 1
MODEL_EMA.ENABLED True SOLVER.ACCUMULATE 2 TEST.LOSS True MODEL.WEIGHTS  MODEL.REGNET.NORM BN
MODEL.BACKBONE.FREEZE_AT 0 SOLVER.BASE_LR 0.01 SOLVER.STEPS (3,)
MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.001 SOLVER.WARMUP_ITERS 2 TEST.DETECTIONS_PER_IMAGE 10
MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.ROI_MASK_HEAD.CONV_DIM 32 MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.FPN.OUT_CHANNELS 64
SOLVER.WARMUP_FACTOR 0.001 SOLVER.IMS_PER_BATCH 4 DATALOADER.NUM_WORKERS 0
INPUT.MIN_SIZE_TEST 64 INPUT.MIN_SIZE_TRAIN (64,80) INPUT.MAX_SIZE_TRAIN 200""".replace("\n", " ").split(" ")
KINDS = {"yaml": (".yaml", YAML, "OUTPUT_DIR {}"), "python": (".py", PYTHON, "train.output_dir={}")}


def backbones(verb, *args, cwd=ROOT):
    return warm("-m", "backbones", verb, *args, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT})


def succeed(verb, *args, cwd=ROOT, code=0):
    result = backbones(verb, *args, cwd=cwd)
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    return result.stdout + result.stderr


def refused(verb, *args):
    """The one line of the error."""
    result = backbones(verb, *args)
    said = [line for line in result.stderr.splitlines() if "error: " in line]
    assert result.returncode == 2 and len(said) == 1 and "Traceback" not in result.stderr, result.stdout[-2000:] + result.stderr[-2000:]
    return said[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The flags of a few digits to train and evaluate on."""
    made = few_digits(tmp_path_factory.mktemp("data"), {"train": 12, "val": 2})
    return [item for split, (file, images) in made.items() for item in (f"--{split}-json", file, f"--{split}-images", images)]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """kind -> the folder of the same run by both kinds of config, and its command without the folder."""
    made = {}
    for kind, (ending, options, output) in KINDS.items():
        folder = str(tmp_path_factory.mktemp(kind))
        command = ["--config-file", NAME + ending, "--backbone", "RegNetX-200MF", *data]
        log = succeed("train", *command, *options, *output.format(folder).split())
        made[kind] = folder, command, log
    return made


def state(folder, name="model_final.pth"):
    return torch.load(os.path.join(folder, name), weights_only=True)


def metrics(folder, *names):
    with open(os.path.join(folder, "metrics.json")) as f:
        return [[line[name] for name in names] for line in map(json.loads, f) if names[0] in line]


def assert_same(first, second):
    """Weights, average, momentum and what the hooks hold: bit by bit."""
    for part in ("model", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items()), part
    momentum = [[s["momentum_buffer"] for s in each["trainer"]["_trainer"]["optimizer"]["state"].values()] for each in (first, second)]
    assert len(momentum[0]) == len(momentum[1]) > 50 and all(map(torch.equal, *momentum))
    assert first["trainer"]["hooks"] == second["trainer"]["hooks"] and first["iteration"] == second["iteration"] == 3


def test_the_same_run(runs):
    """From a YAML and from a Python config: the same losses, weights, figures and files."""
    yaml, python = runs["yaml"][0], runs["python"][0]
    assert_same(state(yaml), state(python))
    for names in (["validation/total_loss", "validation/loss_rpn_cls"], ["bbox/AP", "bbox/AP50"]):
        figures = metrics(yaml, *names)  # one of its own: a line is written every twenty iterations and at the end
        assert figures == metrics(python, *names)[-len(figures) :] and len(figures) == 2
    written = metrics(yaml, "total_loss", "lr")  # YAML's are written every twenty iterations, after evaluations and at the end, of the median
    losses = metrics(python, "total_loss", "lr")
    assert len(written) == 2 and len(losses) == 4 and losses[-1][1] == written[-1][1] == pytest.approx(0.001)
    left = [set(os.listdir(folder)) - {name for name in os.listdir(folder) if name.startswith("events")} for folder in (yaml, python)]
    assert left[0] == left[1] >= {"model_best.pth", "model_final.pth", "pictures", "inference", "config.yaml", "metrics.json"}
    assert sorted(os.listdir(f"{yaml}/pictures")) == sorted(os.listdir(f"{python}/pictures")) == ["0000002", "0000004"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_run_goes_on(kind, runs, tmp_path):
    """From the config.yaml that it left, in a folder that was moved: the same weights, average and best value."""
    whole, moved = runs[kind][0], tmp_path / "moved"
    moved.mkdir()
    for name in ("model_0000001.pth", "config.yaml"):
        shutil.copy(os.path.join(whole, name), moved)
    (moved / "last_checkpoint").write_text("model_0000001.pth")
    log = succeed("train", "--config-file", moved / "config.yaml", "--resume")
    assert f"was moved: the run continues in '{moved}'" in log and "Starting training from iteration 2" in log
    assert "the config has changed" not in log
    assert_same(state(whole), state(moved))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_one_run(kind, runs, tmp_path):
    folder = shutil.copytree(runs[kind][0], tmp_path / "run")
    _, command, _ = runs[kind]
    output = KINDS[kind][2].format(folder).split()
    small = [*KINDS[kind][1], *output, *("SOLVER.MAX_ITER 2" if kind == "yaml" else "train.max_iter=2").split()]
    said = refused("train", *command, *small)
    assert "holds another run" in said and all(way in said for way in ("--resume", "another folder", "--overwrite"))
    assert state(folder)["iteration"] == 3
    inside = ["MODEL.WEIGHTS", f"{folder}/model_final.pth"] if kind == "yaml" else [f"train.init_checkpoint={folder}/model_final.pth"]
    assert "model_final.pth" in refused("train", "--overwrite", *command, *small, *inside)
    (tmp_path / "also").symlink_to(folder)  # the same file by another name
    also = f"{tmp_path}/also/model_final.pth?matching_heuristics=True"
    inside[-1] = also if kind == "yaml" else f"train.init_checkpoint='{also}'"  # in quotes, for its "="
    assert "--overwrite would remove" in refused("train", "--overwrite", *command, *small, *inside)
    (folder / "notes.txt").write_text("mine")
    log = succeed("train", "--overwrite", *command, *small)
    assert "the earlier run" in log and "4 checkpoints" in log
    assert state(folder)["iteration"] == 1 and (folder / "notes.txt").is_file()
    assert len(metrics(folder, "bbox/AP")) == 1 and not (folder / "model_0000003.pth").exists()


def test_a_new_schedule(runs, tmp_path):
    """The rate does not jump unless that is asked for; then rate, decay and schedule are the new ones."""
    for kind, more in {
        "yaml": ["SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(5,)", "SOLVER.BASE_LR", "0.02"],
        "python": ["train.max_iter=6", "lr_multiplier.scheduler.milestones=[5,6]", "optimizer.lr=0.02"],
    }.items():
        folder = str(shutil.copytree(runs[kind][0], tmp_path / kind))
        arguments = ["--resume", *runs[kind][1], *KINDS[kind][1], *KINDS[kind][2].format(folder).split(), *more]
        with open(f"{folder}/config.yaml") as f:
            config = f.read()
        said = refused("train", *arguments)
        with open(f"{folder}/config.yaml") as f:
            assert f.read() == config  # of what was refused nothing stays
        assert "would jump from 0.001 to 0.01" in said and "--new-schedule" in said
        assert "needs --resume" in refused("train", "--new-schedule", *arguments[1:])
        log = succeed("train", "--new-schedule", *arguments)
        assert "the learning rate changes from 0.001 to 0.02" in log
        assert state(folder)["trainer"]["_trainer"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.002)
    rates = [rate for _, rate in metrics(str(tmp_path / "python"), "total_loss", "lr")]
    assert rates[4:] == pytest.approx([0.02, 0.002])


def test_only_so_many_iterations_more(runs, tmp_path):
    """A constant rate goes on as it was, with more iterations too."""
    folder = str(shutil.copytree(runs["yaml"][0], tmp_path / "run"))
    arguments = ["--resume", *runs["yaml"][1], *YAML, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", "5"]
    assert "raise SOLVER.MAX_ITER" in refused("train", *arguments[:-1], "4")
    succeed("train", *arguments)
    assert state(folder)["iteration"] == 4


# what a YAML run leaves is a YAML config, of which other tests have many
@pytest.fixture(params=["python", pytest.param("left by yaml", marks=pytest.mark.whole), "left by python"])
def config(request, runs):
    """The arguments of a Python config, and of what runs leave behind, with trained weights."""
    kind = request.param.split()[-1]
    folder, command, _ = runs[kind]
    weights = f"MODEL.WEIGHTS {folder}/model_final.pth" if kind == "yaml" else f"train.init_checkpoint={folder}/model_final.pth"
    if request.param.startswith("left"):
        return folder, ["--config-file", f"{folder}/config.yaml"], weights.split()
    return folder, command, [*PYTHON, *weights.split()]


def test_demo_and_export(config, data, tmp_path):
    _, command, options = config
    image = sorted(os.listdir(data[data.index("--val-images") + 1]))[0]
    image = os.path.join(data[data.index("--val-images") + 1], image)
    own = command[: command.index("--train-json")] if "--train-json" in command else command
    if "python" not in command[1]:  # a Python config by itself knows nothing of the digits' ten classes
        options = [*options, "model.roi_heads.num_classes=10"] if command[1].endswith(".py") else options
    said = succeed("demo", *own, "--input", image, "--output", tmp_path / "found", "--confidence-threshold", "0.001", "--opts", *options)
    assert re.search(r"\d+ objects", said) and os.listdir(tmp_path / "found") == [os.path.basename(image)]
    said = succeed("export", *own, "--format", "torchscript", "--image", image, "--output", tmp_path / "detector.ts", *options)
    assert "It differs from the model by at most" in said
    found = succeed(
        "demo", "--exported", tmp_path / "detector.ts", "--input", image, "--output", tmp_path / "exported", "--confidence-threshold", "0.001"
    )
    assert re.search(r"\d+ objects", found)


def test_counting(config, runs):
    _, command, options = config
    own = command[: command.index("--train-json")] if "--train-json" in command else command
    if "--backbone" in own:  # which analyze takes in a config's place
        own = own[: own.index("--backbone")]
        options = [item for item in options if not item.startswith(("train.init_checkpoint=/", "model.backbone.bottom_up"))]
    parts = json.loads(succeed("analyze", *own, "--size", "64", "64", "--json", *options))["parts"]
    assert parts["detector"]["parameters"] > parts["backbone"]["parameters"] > 1e6


def test_evaluating_and_drawing(config, data, tmp_path):
    folder, command, options = config
    output = ["train.output_dir={}", "OUTPUT_DIR {}"]["yaml" in str(options) or "MODEL.WEIGHTS" in options].format(tmp_path / "out").split()
    log = succeed("train", "--eval-only", *command, *options, *output)
    evaluated = re.findall(r"copypaste: (\d.*)", log)[-1]
    assert evaluated == re.findall(r"copypaste: (\d.*)", "".join(succeed("train", "--eval-only", *command, *options, *output)))[-1]
    results = tmp_path / "out" / "inference" / "coco_instances_results.json"
    left = f"{folder}/config.yaml"
    succeed("visualize", "--input", results, "--dataset", "own_val", "--config-file", left, "--output", tmp_path / "seen.png", "--num", "2")
    from PIL import Image

    assert min(Image.open(tmp_path / "seen.png").size) > 200


def test_the_doctor(config, tmp_path):
    _, command, options = config
    result = backbones("doctor", *command, *options)
    assert result.returncode == 0 and "Traceback" not in result.stdout + result.stderr, result.stdout[-3000:] + result.stderr[-2000:]
    assert "2 steps of" in result.stdout and "resumed and trained one more step" in result.stdout


def test_the_benchmark(runs, catalogue, tmp_path, monkeypatch):
    """Trains a Python config and writes down what it reached."""
    left = os.path.join(runs["python"][0], "config.yaml")
    rate = ["lr_multiplier.scheduler.milestones=[1]", "lr_multiplier.scheduler.values=[1.0]"]
    written = ["--json", str(tmp_path / "m.json"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("subprocess.call", lambda command, **streams: warm(*command[1:]).returncode)  # with its imports done
    monkeypatch.setattr("sys.argv", ["benchmark", left, *written, "--opts", "train.max_iter=1", *rate])
    benchmark.main()
    (row,) = json.loads((tmp_path / "m.json").read_text())["runs"]
    assert (row["iterations"], row["seed"], row["data"]) == (1, 3, "own_val") and 0 <= row["ap"] < 50


def test_comparing(runs):
    """Of the two runs, on the data that their config.yaml names: they found the same."""
    said = succeed("compare", runs["yaml"][0], runs["python"][0], "--samples", "100")
    assert re.search(r"\| AP +\| .* \| *0\.00", said), said


def test_the_zoo_shows_python_configs():
    said = succeed("zoo", "show", NAME + ".py")
    assert NAME + ".py" in said


def test_data_are_read_once(data, tmp_path, runs):
    """By the process that starts the others, not by each: an annotation file that is gone by then is not missed before training reads it."""
    code = """
import sys
from backbones.data import coco
from backbones.tools import train
reads = []
import builtins
opened = builtins.open
def counted(path, *rest, **options):
    reads.extend([1] * str(path).endswith("train.json"))
    return opened(path, *rest, **options)
builtins.open = counted
args = train.argument_parser().parse_args(sys.argv[1:])
front = train.read_config(args)
front.prepare(args, 1)
print("read", len(reads))
import cloudpickle
from detectron2.data import DatasetCatalog, MetadataCatalog
packed = cloudpickle.dumps(front)
for name in front.names:
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
reads.clear()
front = cloudpickle.loads(packed)
assert MetadataCatalog.get("own_train").thing_classes == [str(i) for i in range(10)]
print("again", len(reads), len(DatasetCatalog.get("own_train")))
"""
    (tmp_path / "counting.py").write_text(code)
    result = warm(tmp_path / "counting.py", *runs["yaml"][1], *YAML, "OUTPUT_DIR", tmp_path / "out", env={**os.environ, "PYTHONPATH": ROOT})
    assert result.returncode == 0, result.stderr[-2000:]
    assert "again 0 12" in result.stdout
    assert int(re.search(r"read (\d+)", result.stdout)[1]) <= 2


def test_keys_of_train_that_nothing_reads():
    """A slip in a file; on the command line it is refused."""
    cfg = open_config("COCO-Detection/retinanet_R_50_FPN_1x.py").cfg
    assert not PythonFront(copy.deepcopy(cfg)).said
    cfg.train.acumulate = 4
    assert PythonFront(copy.deepcopy(cfg)).said == ["train.acumulate: training reads no such key -> did you mean train.accumulate?"]
    del cfg.train["acumulate"]
    cfg.train.model_ema, cfg.train.checkpointer.max_to_kep, cfg.train.ddp.any = {"enabeld": True, "decay": 0.9}, 1, True
    assert PythonFront(cfg).said == [
        f"train.{slip}: training reads no such key -> did you mean train.{meant}?"
        for slip, meant in (("checkpointer.max_to_kep", "checkpointer.max_to_keep"), ("model_ema.enabeld", "model_ema.enabled"))
    ]


def few():
    return [{}]


class Few(torch.utils.data.Dataset):
    pass


def own_config(*opts, loader=False):
    """Of data outside the catalogue and an evaluator of its own; with ``loader`` of a training loader of its own too. Its model is none."""
    cfg = open_config("COCO-Detection/retinanet_R_50_FPN_1x.py").cfg
    cfg.model = L(torch.nn.Linear)(in_features=1, out_features=1)
    cfg.dataloader.train.dataset, cfg.dataloader.test.dataset, cfg.dataloader.evaluator = L(few)(), L(few)(), L(DatasetEvaluator)()
    if loader:
        cfg.dataloader.train = L(few)(mapper=cfg.dataloader.train.mapper)
    return PythonFront(cfg, "own.py", ["train.device=cpu", *opts])


def test_data_outside_the_catalogue_are_evaluated():
    """As the config asks; what needs the catalogue says so."""
    asked = [f"train.{item}" for item in ("patience=2", "validation_loss=True", "augmented_test.enabled=True", "pictures=2")]
    front, needed = own_config(*asked), "it needs data of detectron2's catalogue, in dataloader.test.dataset.names"
    assert not [problem for problem in front.config_findings(training=True) if problem.key == "train.patience"]
    assert list(front.idle(True)) == [("train.validation_loss", needed), ("train.pictures", needed)]
    assert not list(own_config().idle(True)) and not list(front.idle(False))  # what nobody asked for, or not in training
    front.build_train_loader = few
    job = front.job()
    assert job.evaluate and job.evaluate_augmented and job.patience == 2 and not job.validate and not job.draw


@pytest.mark.parametrize("lacks", ["train", "test"])
def test_losses_of_test_data_need_two_mappers(lacks):
    """Which is said before training, not at its first evaluation."""
    front = open_config("lazy/retinanet_V_39_FPN_1x.py", ["train.validation_loss=True", "train.device=cpu"])
    assert not [problem for problem in front.config_findings(True) if problem.key == "train.validation_loss"]
    del front.cfg.dataloader[lacks]["mapper"]
    problems = [str(problem) for problem in front.config_findings(True) if problem.key == "train.validation_loss"]
    assert problems == [f"train.validation_loss needs a mapper with augmentations in dataloader.{lacks}: set it to False"]
    with pytest.raises(UserError, match="train.validation_loss needs a mapper"):
        front.mapper(False, annotated=True)


def test_a_loader_of_ones_own_has_no_batch_to_divide_or_scale():
    """Nor can it leave out images; detectron2's can of a list."""
    assert [problem.code for problem in own_config().config_findings(True, 3)] == ["batch"]
    assert not list(own_config(loader=True).config_findings(True, 3))
    front = own_config("train.reference_batch=16", loader=True)
    (problem,) = front.config_findings(True)
    assert "train.reference_batch 16 needs dataloader.train.total_batch_size, which this config does not have" in str(problem)
    with pytest.raises(UserError, match="train.reference_batch 16 needs"):
        front.job()
    for loader in (True, False):
        front = own_config("train.unreadable=skip", loader=loader)
        if "dataset" in front.cfg.dataloader.train:
            assert front.build_train_loader().dataset.skip
            front.cfg.dataloader.train.dataset = L(Few)()
        with pytest.raises(UserError, match="train.unreadable 'skip' needs detectron2's loader"):
            front.build_train_loader()
        said = [str(problem) for problem in front.config_findings(True)]  # before an earlier run is removed
        assert len(said) == loader and all("train.unreadable 'skip' needs" in line for line in said)
    front.cfg.dataloader.test = L(few)()
    (line,) = front.idle(True)
    assert line == ("train.unreadable on dataloader.test", "use detectron2's loader, or another with a mapper")


def test_the_most_detections_of_each_kind_of_head():
    """By which COCO's evaluator counts, wherever the model has it."""
    most, name = "TEST.DETECTIONS_PER_IMAGE", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
    for config in "COCO-Detection/retinanet_R_50_FPN_1x.py", "lazy/gfl_MAE_DET_S_FPN_3x.py":
        front = open_config(config, ["model.max_detections_per_image=300"])
        assert front.settings.TEST.DETECTIONS_PER_IMAGE == 300 and front.name(most) == "model.max_detections_per_image"
    front = open_config(name, ["model.roi_heads.box_predictor.test_topk_per_image=300"])
    assert front.settings.TEST.DETECTIONS_PER_IMAGE == 300
    heads = front.cfg.model.roi_heads
    heads.box_predictors = [heads.pop("box_predictor")] * 3
    front = PythonFront(front.cfg)
    front.set(most, 200)
    front.set("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.25)
    assert [head.test_topk_per_image for head in front.cfg.model.roi_heads.box_predictors] == [300, 300, 200]
    assert front.settings.TEST.DETECTIONS_PER_IMAGE == 200 and front.cfg.model.roi_heads.box_predictors[2].test_score_thresh == 0.25


@pytest.mark.parametrize(
    "opts, words",
    [
        (["train.best_metric=bbox/APP"], "unknown train.best_metric: 'bbox/APP'. Did you mean 'bbox/AP'?"),
        (["train.best_metric=validation/total_loss"], "train.best_metric 'validation/total_loss' is a loss on the test data: set train.val"),
        (["train.best_metric=bbox/APP", "dataloader.evaluator.tasks=[bbox]"], ""),
        (["train.best_metric=segm/AP"], ""),
        (["train.augmented_test.enabled=True"], ""),
    ],
)
def test_what_cannot_be_evaluated_is_refused(opts, words):
    """Before training; of an evaluator's own figures nothing is known."""
    register_digits()
    names = [f"dataloader.{split}.dataset.names=digits_val" for split in ("train", "test")]
    front = open_config(NAME + ".py", ["train.device=cpu", "model.roi_heads.num_classes=10", *names, *opts])
    said = [str(problem) for problem in front.findings(training=True, processes=1)]
    assert said[0].startswith(words) if words else not said


def test_augmentation_of_the_wrong_kind_is_refused():
    front = open_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py", ["train.device=cpu", "train.augmented_test.enabled=True"])
    (problem,) = front.config_findings()
    assert str(problem).startswith("train.augmented_test.enabled supports R-CNNs, RetinaNet and GFL, not PanopticFPN")
    assert not list(open_config(front.path, ["train.device=cpu"]).config_findings())


@pytest.mark.parametrize("name", ["my run", "it's (1), 2\\'"])
def test_a_run_in_any_folder_is_named_in_words_of_a_shell(name, tmp_path):
    place = str(tmp_path / name)
    front = open_config("digits/faster_rcnn_digits.yaml", ["OUTPUT_DIR", place])
    words = ["--config-file", f"{place}/config.yaml", "MODEL.WEIGHTS", f"{place}/model_best.pth", "OUTPUT_DIR", f"{place}/test"]
    assert shlex.split(front.evaluation_of("test")) == words
    front = open_config(NAME + ".py")
    front.set("OUTPUT_DIR", place)
    _, config, *overrides = shlex.split(front.evaluation_of("test"))
    settings = open_config(NAME + ".py", overrides).settings
    assert config == f"{place}/config.yaml" and (settings.MODEL.WEIGHTS, settings.OUTPUT_DIR) == (f"{place}/model_best.pth", f"{place}/test")
