"""The common view of a config, YAML or Python. Training, evaluation and every tool take a config as a `Front`."""

import difflib
import os
import shlex
from abc import ABC, abstractmethod
from typing import Any, Callable, Collection, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from torch import nn

from ..checkpoint import PARTIAL, GatedCheckpointer, last_checkpoint, names_in
from ..config import architecture, get, idle_keys
from ..data import dataset_findings, follow, register_from_config, register_held_out, register_image_folders
from ..data.formats import other_splits, unused
from ..data.holdout import HELD_OUT, KEPT
from ..data.loader import NamesFiles
from ..data.sources import trained_on
from ..errors import UserError
from ..evaluation.figures import metric_findings
from ..files import nearest
from ..swap import use_structure
from ..zoo import weights
from . import classes
from .fit import Fit
from .hooks import validation_losses
from .job import Job
from .pictures import draw_predictions
from .tracking import tracker_findings


def named(item: str) -> str:
    """The key in an override of a Python config: of key=value, ++key=value or ~key."""
    return item.partition("=")[0].lstrip("+~")


def arranged(model: nn.Module, settings: CfgNode) -> nn.Module:
    """``model`` in MODEL.MEMORY_FORMAT; it states INPUT.FORMAT, which not all of detectron2's do, in its checkpoints."""
    if hasattr(model, "pixel_mean") and getattr(model, "input_format", None) is None:
        model.input_format = settings.INPUT.FORMAT
    if settings.MODEL.MEMORY_FORMAT != "channels_last":
        return model
    for module in model.modules():
        if isinstance(module, KRCNNConvDeconvUpsampleHead):  # its loss needs the other order
            module.score_lowres.register_forward_hook(lambda module, inputs, output: output.contiguous())
    return model.to(memory_format=torch.channels_last)


class Front(ABC):
    """A config, opened; see `opening.open_config`.

    Attributes:
        cfg: the config itself, a CfgNode or a DictConfig.
        path: path of its file, or "".
        settings: its values under YAML keys: ``cfg`` itself for a YAML config, the keys with a counterpart for a Python config.
        words: how many words one override takes on the command line.
    """

    cfg: Any
    settings: CfgNode
    words = 2

    def __init__(self, path: str = ""):
        self.path = path
        self.names: list[str] = []  # data sets that the config registers
        self.said: list[str] = []  # lines to log about them and about settings that follow from them
        self.opts: list[str] = []
        self.accepted: list[str] = []  # licences of weights that the user accepts

    @abstractmethod
    def name(self, key: str) -> str:
        """The name of a YAML key in the user's config."""

    def knows(self, key: str) -> bool:
        """Whether the value of a key in ``settings`` comes from the config. Others are detectron2's defaults, unrelated to this run."""
        return True

    @abstractmethod
    def override(self, key: str, value: Any) -> str:
        """How to set a YAML key on the command line, quoted for a shell."""

    @abstractmethod
    def merge(self, opts: list[str]) -> None:
        """Applies overrides of the command line to the config. After a UserError the config must not be used."""

    @abstractmethod
    def set(self, key: str, value: Any) -> None:
        """Sets a YAML key, or its counterpart."""

    @abstractmethod
    def clone(self, *pairs: Any) -> "Front":
        """A copy with keys set: ``clone("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2)``."""

    @abstractmethod
    def apply_data_arguments(self, args: Any, training: bool) -> bool:
        """Puts the data of ``--train`` and related flags into the config; returns whether there are any. Overrides take precedence."""

    @abstractmethod
    def config_findings(self, training: bool = False, processes: int = 1) -> Iterator[UserError]:
        """Problems of the config that show before anything is built: `config.config_findings`."""

    def data_findings(self, training: bool, skip: Collection[str] = ()) -> Iterator[UserError]:
        """Problems of its data: `data.dataset_findings`."""
        return dataset_findings(self.settings, training, skip)

    def findings(self, training: bool, processes: int) -> Iterator[UserError]:
        """All problems."""
        yield from self.config_findings(training, processes)
        yield from self.data_findings(training)
        if training and self.gives_usual_figures:
            yield from metric_findings(self.settings, self.name)
        yield from tracker_findings(self.settings, self.name)

    def check_resize(self) -> None:
        """Raises UserError if evaluation does anything to images other than resize them by their shorter side."""

    @abstractmethod
    def build_model(self) -> nn.Module: ...

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...

    @abstractmethod
    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler: ...

    @abstractmethod
    def build_train_loader(self, workers: int | None = None) -> Any:
        """An endless loader of batches; ``workers`` replaces the config's number of worker processes."""

    @abstractmethod
    def mapper(self, training: bool, annotated: bool = False) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """The mapper from records to examples; with ``annotated``, objects as in training, the image as in evaluation."""

    @property
    def skips(self) -> bool | None:
        """Whether images that cannot be read are left out; None: no, and do not suggest INPUT.UNREADABLE."""
        return self.settings.INPUT.UNREADABLE == "skip" or None

    @abstractmethod
    def resize(self) -> T.Augmentation:
        """The augmentations of evaluation."""

    @property
    def checkpoints_kept(self) -> int | None:
        """The periodic checkpoints that a run keeps; None: all."""
        return None

    @property
    def evaluates(self) -> bool:
        """Whether the config names data to evaluate on."""
        return bool(self.settings.DATASETS.TEST)

    @property
    def gives_usual_figures(self) -> bool:
        """Whether evaluations give the figures that the kind of data suggests, as ours and detectron2's evaluators do."""
        return True

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Evaluates on the test data; returns nested dicts of numbers, in the first process."""

    @abstractmethod
    def evaluate_augmented(self, model: nn.Module) -> dict[str, Any]:
        """`evaluate` with test-time augmentation; names end in ``_TTA``."""

    def verify(self, results: dict[str, Any]) -> None:
        """Compares results with those that the config expects."""

    def fit(self, allow_partial_weights: bool = False) -> Fit:
        """The trainer of the config's run in this process."""
        return Fit(self.job(), allow_partial_weights)

    def job(self) -> Job:
        s, model = self.settings, self.build_model()
        optimizer = self.build_optimizer(model)
        tests = bool(s.DATASETS.TEST)
        return Job(
            model=model,
            optimizer=optimizer,
            loader=self.build_train_loader(),
            scheduler=self.build_scheduler(optimizer),
            output_dir=s.OUTPUT_DIR,
            max_iter=s.SOLVER.MAX_ITER,
            name=self.name,
            init_checkpoint=s.MODEL.WEIGHTS,
            init_classes=classes.stated(s),
            seed=s.SEED,
            batch=s.SOLVER.IMS_PER_BATCH,
            accumulate=s.SOLVER.ACCUMULATE,
            dataset=next(iter(s.DATASETS.TRAIN), None),
            config=self.plain(),
            precision=getattr(torch, s.SOLVER.AMP.PRECISION) if s.SOLVER.AMP.ENABLED else None,
            activations=s.MODEL.ACTIVATIONS,
            compile=s.MODEL.COMPILE,
            ddp=self.ddp(),
            ema_decay=s.MODEL_EMA.DECAY if s.MODEL_EMA.ENABLED else None,
            precise_bn=(lambda: self.build_train_loader(workers=0)) if s.TEST.PRECISE_BN.ENABLED else None,
            precise_bn_batches=s.TEST.PRECISE_BN.NUM_ITER,
            checkpoint_period=s.SOLVER.CHECKPOINT_PERIOD,
            eval_period=s.TEST.EVAL_PERIOD,
            checkpoints_kept=self.checkpoints_kept,
            evaluate=self.evaluate if self.evaluates else None,
            evaluate_augmented=self.evaluate_augmented if self.evaluates and s.TEST.AUG.ENABLED else None,
            validate=self.validate if tests and s.TEST.LOSS else None,
            draw=self.draw if tests and s.TEST.PICTURES else None,
            best_metric=s.TEST.BEST_METRIC,
            patience=s.TEST.PATIENCE,
            wandb=s.TRACKING.WANDB,
            mlflow=s.TRACKING.MLFLOW,
            check=self.verify,
        )

    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """All keys and values as nested dicts, for trackers and for comparison on resume."""

    def ddp(self) -> dict[str, Any]:
        """Arguments of torch's DistributedDataParallel."""
        return {name.lower(): True for name, on in self.settings.SOLVER.DDP.items() if on}

    def prepare(self, args: Any, processes: int) -> "Front":
        """Reads and checks everything possible before a process of the run starts. Raises UserError.

        The front carries the result, by pickle, to processes that have not read the data themselves.
        """
        training, s = not args.eval_only, self.settings
        if not training:
            self.check_has_weights(getattr(args, "resume", False))
        replaced = self.apply_data_arguments(args, training)
        self.said += (
            unused(args.train_json, args.train_images, args.val_json, self.evaluation_of("test"))
            if training
            else other_splits(args.val_json, args.val_images)
        )
        known = [] if training else self.follow_classes(getattr(args, "resume", False))
        self.register(training, [*(s.DATASETS.TRAIN if training else ()), *s.DATASETS.TEST], replaced)
        self.said += trained_on(s) if training else []
        for problem in self.findings(training, processes):
            raise problem
        if not training and not self.evaluates:
            said = "the config has no evaluator for its test data, so --eval-only would measure nothing: add dataloader.evaluator"
            raise UserError(said, "missing-argument", "dataloader.evaluator")
        self.said += [f"{what} has no effect -> {why}" for what, why in self.idle(training)]
        self.said += classes.of_files(list(s.DATASETS.TEST), known) if known else []
        self.follow_weights(getattr(args, "resume", False))  # last, since it may download
        self.settings.freeze()
        return self

    def follow_classes(self, resume: bool) -> list[str]:
        """The class names of the weights to evaluate, if known. The model takes them, and your data are matched to them."""
        s = self.settings
        found, said = classes.of_weights(s, last_checkpoint(s.OUTPUT_DIR, resume) or s.MODEL.WEIGHTS)
        names = found.get("classes", [])
        self.said += [said] if said else []
        own = {
            str(entry[0])
            for entries in (s.DATASETS.REGISTER, s.DATASETS.IMAGE_FOLDERS)
            for entry in entries
            if isinstance(entry, (list, tuple)) and entry
        }
        tests = [name.removesuffix(HELD_OUT).removesuffix(KEPT) for name in s.DATASETS.TEST]
        before = list(s.DATASETS.CLASSES)
        for name in s.DATASETS.TEST if names else ():
            theirs = classes.names_of(MetadataCatalog.get(name)).get("classes", []) if name in DatasetCatalog else []
            if theirs != names and sorted(theirs) == sorted(names) and name not in own:
                said = f"{name!r} has the classes of the weights in a different order: only data of DATASETS.REGISTER are matched by name"
                raise UserError(said, "classes", self.name("DATASETS.TEST"))
        if not names or not tests or not own.issuperset(tests):
            return []
        if before and len(before) == len(names) and not set(before) & set(names):  # the config states other names for the same classes
            self.said.append(
                f"the weights name their classes {names[0]!r}, ..., but {self.name('DATASETS.CLASSES')} {before[0]!r}, ... -> matched by number"
            )
            return before
        if before != names:
            self.set("DATASETS.CLASSES", names)
        for key in (
            key for key, field in architecture(s).classes.items() if field in ("thing_classes", "classes") and get(s, key) != len(names)
        ):
            self.set(key, len(names))
            self.said.append(f"{self.name(key)} is set to {len(names)}, the number of classes of the weights")
        return names

    def follow_weights(self, resume: bool = False) -> None:
        """Finds and fetches the file that MODEL.WEIGHTS names; if the config leaves the image format to the weights, sets it.

        With ``resume`` it is the last checkpoint of the run. Raises UserError for weights that cannot be fetched.
        """
        s = self.settings
        begun = last_checkpoint(s.OUTPUT_DIR, resume)
        path = begun or s.MODEL.WEIGHTS
        leaves = s.INPUT.NORMALIZATION == "weights"
        if leaves:  # decided here once
            self.set("INPUT.NORMALIZATION", "config")
        if not begun:
            _check_is_there(path)
        if not path or not (leaves or weights.parsed(path)):
            return
        address, images, overrides = weights.follow(path, self.accepted)
        if not begun:
            self.set("MODEL.WEIGHTS", address)
        if leaves:
            for key, value in weights.settings(images).items():
                self.set(key, value)
            s = self.settings
            whose = "as the weights say" if images else f"as the config says: the weights {address!r} do not state what images they expect"
            self.said.append(f"images: {s.INPUT.FORMAT}, mean {s.MODEL.PIXEL_MEAN}, standard deviation {s.MODEL.PIXEL_STD}, {whose}")
            use_structure(self.cfg, overrides)

    def check_model(self) -> None:
        """Raises UserError if the config's model cannot be built here; needs no data."""
        for problem in self.config_findings():
            raise problem

    def evaluation_of(self, split: str) -> str:
        """The words that evaluate the best weights of the run on other data, in a folder of its own."""
        names = ("config.yaml", "model_best.pth" if self.settings.DATASETS.TEST else "model_final.pth", split)
        config, weights, place = (os.path.join(self.settings.OUTPUT_DIR, name) for name in names)
        return f"--config-file {shlex.quote(config)} {self.override('MODEL.WEIGHTS', weights)} {self.override('OUTPUT_DIR', place)}"

    def idle(self, training: bool) -> Iterator[tuple[str, str]]:
        """What the user set without any effect, and what to do."""
        return ((self.name(key), why) for key, why in idle_keys(self.settings, self.name) if self.stated(key))

    def stated(self, key: str) -> bool:
        """Whether the command line overrides a key."""
        return key in self.opts[::2] if self.words == 2 else self.name(key) in map(named, self.opts)

    def register(self, training: bool = False, names: Sequence[str] | None = None, replaced: bool = False) -> None:
        """Registers the data sets that the config defines, and sets the keys that follow from them. Raises UserError.

        Args:
            training: whether the run trains; then it must not train on held-out images.
            names: the data sets needed; None: all.
            replaced: whether they replace the config's.
        """
        before = dict(DatasetCatalog)
        register_from_config(self.settings, names)
        register_image_folders(self.settings)
        register_held_out(self.settings, training=training, names=names)
        self.names += sorted(name for name, read in DatasetCatalog.items() if read is not before.get(name))  # new, or of other files
        for key, value, reason in list(follow(self.settings, replaced)):
            if self.stated(key) and key not in ("INPUT.RANDOM_FLIP", "TEST.AUG.FLIP"):  # a flip that swaps left and right is never intended
                continue
            self.set(key, value)
            if key == "INPUT.RANDOM_FLIP" and not self.knows(key):
                self.said.append(f"{reason} -> remove RandomFlip from the augmentations")
            elif reason:
                self.said.append(f"{self.name(key)} is set to {value}: {reason}")
        if replaced and training and not self.settings.DATASETS.TEST:
            self.said.append("there are no data to evaluate on: name some with --val, or hold out part of the images with --val-split 0.2")
        for name in self.names:
            self.said += MetadataCatalog.get(name).get("said", [])

    def __getstate__(self) -> dict[str, Any]:
        catalogue = {name: (DatasetCatalog[name], MetadataCatalog.get(name).as_dict()) for name in self.names}
        return {**self.__dict__, "catalogue": catalogue}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, (read, about) in state.pop("catalogue").items():
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, read)
                MetadataCatalog.get(name).set(**{key: value for key, value in about.items() if key != "name"})
        self.__dict__.update(state)

    def metadata(self) -> Any:
        """Metadata of the first data set for evaluation, with its class names."""
        names = self.settings.DATASETS.TEST or self.settings.DATASETS.TRAIN
        return MetadataCatalog.get(names[0] if names else "__unused")

    def load_for_evaluation(self, model: nn.Module, resume: bool = False, allow_partial_weights: bool | None = None) -> dict[str, list[str]]:
        """Loads ``model`` from the weights that the config names, or with ``resume`` from the last checkpoint of its run.

        ``allow_partial_weights``: whether they may fill only a part; None where the user cannot ask for it.

        Returns the class names in the checkpoint, by "classes" and "stuff"; those of other projects hold none.

        Raises UserError if there is nothing to load, or if any weight would keep its initial value.
        """
        self.check_has_weights(resume)
        s = self.settings
        beside = (os.path.join(os.path.dirname(self.path), name) for name in ("model_best.pth", "model_final.pth"))
        own = next((path for path in beside if os.path.isfile(path)), "model_final.pth of its run")
        hint = f"Name those of a trained model, such as {own}"
        hint += f". {PARTIAL}" if allow_partial_weights is not None else ""
        checkpointer = GatedCheckpointer(model, s.OUTPUT_DIR, require="nothing" if allow_partial_weights else "all", hint=hint)
        run = checkpointer.resume_or_load(s.MODEL.WEIGHTS, resume=resume).get("run")
        return names_in({"run": run})

    def check_has_weights(self, resume: bool) -> None:
        """Raises UserError if there is nothing to evaluate."""
        folder = self.settings.OUTPUT_DIR
        if not self.settings.MODEL.WEIGHTS and not last_checkpoint(folder, resume):
            final = os.path.join(folder, "model_final.pth")
            hint = f", such as {final}" if os.path.isfile(final) else ""
            message = f"weights are needed: add {self.override('MODEL.WEIGHTS', '/path/to/model_final.pth')}{hint}"
            raise UserError(message, code="missing-weights", key=self.name("MODEL.WEIGHTS"), suggestion=final if hint else None)

    def _records(self, name: str) -> list[dict[str, Any]]:
        """The records of a data set for evaluation, with proposals if the model takes them from a file."""
        s = self.settings
        files = [s.DATASETS.PROPOSAL_FILES_TEST[list(s.DATASETS.TEST).index(name)]] if s.MODEL.LOAD_PROPOSALS else None
        return get_detection_dataset_dicts([name], filter_empty=False, proposal_files=files)

    def validate(self, model: nn.Module) -> dict[str, Any]:
        """The losses on each data set for evaluation."""
        names, mapper = list(self.settings.DATASETS.TEST), self.mapper(False, annotated=True)
        labelled = [name for name in names if MetadataCatalog.get(name).get("labelled", True)]
        return {
            f"validation/{name}" if len(names) > 1 else "validation": validation_losses(
                model, self._records(name), mapper, self.settings.DATALOADER.NUM_WORKERS, self.skips
            )
            for name in labelled
        }

    def draw(self, model: nn.Module) -> dict[str, Any]:
        """Pictures of the predictions on the first images for evaluation."""
        records = self._records(self.settings.DATASETS.TEST[0])[: self.settings.TEST.PICTURES]
        return draw_predictions(model, records, NamesFiles(self.mapper(False), self.skips), self.metadata(), self.settings.INPUT.FORMAT)


def _check_is_there(path: str) -> None:
    """Raises UserError if MODEL.WEIGHTS is a local file that does not exist, before anything expensive starts."""
    file = path.partition("?")[0]
    if not file or "://" in file or os.path.exists(file):
        return
    sources = difflib.get_close_matches(path, weights.data()["sources"], 1, 0.4)
    near = nearest(file, (".pth", ".pkl", ".safetensors")) or next(iter(sources), None)
    hint = f". Did you mean {near!r}?" if near else ""
    raise UserError(f"checkpoint {path!r} does not exist{hint}", "missing-file", "MODEL.WEIGHTS", near)
