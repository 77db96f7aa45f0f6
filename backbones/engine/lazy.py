"""The Python front end: detectron2's LazyConfig, with everything that YAML configs can do in training."""

import copy
import dataclasses
import inspect
import re
import shlex
from functools import partial
from typing import Any, Callable, Collection, Iterator

import detectron2.data.transforms as T
import torch
import yaml
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator, inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException
from torch import nn

from .. import config
from ..config import apply_data_arguments, check_device, check_output_dir, defaults, from_libraries, get, put, training_findings
from ..data import dataset_findings, images
from ..data.loader import evaluation_loader, train_loader
from ..data.mapper import Mapper
from ..detectors import ranked
from ..errors import UserError, near, one_line, raised, unknown
from ..evaluation import augmented, check_augmented
from ..evaluation.build import coco_evaluator
from ..solver import scale_learning_rate
from ..swap import use_backbone, use_weights
from .fit import broadcast_buffers
from .front import Front, arranged, named
from .job import Job
from .lazy_keys import FRACTIONS, KEYS, LISTS, NAMES, SECTIONS, TRAIN, places


def is_python(path: str) -> bool:
    """Whether a config file is Python, or the config.yaml that a run of a Python config writes."""
    if path.endswith(".py") or not path.endswith((".yaml", ".yml")):
        return path.endswith(".py")
    with open(path, encoding="utf-8", errors="replace") as f:
        return re.search(r"^(?:dataloader|lr_multiplier):", f.read(1 << 20), re.M) is not None


class PythonFront(Front):
    """A Python config. `KEYS` maps it to ``settings``; ``places`` are the rows of `KEYS` that this config has."""

    words = 1

    def __init__(self, cfg: DictConfig, path: str = "", opts: list[str] | None = None):
        super().__init__(path)
        self.cfg, self.opts = cfg, opts or []
        defaults = _defaults()
        for name in _unread(cfg):
            close = near(name, TRAIN | SECTIONS)
            self.said.append(f"train.{name}: training reads no such key -> " + (f"did you mean train.{close[0]}?" if close else "remove it"))
        for key, place in KEYS.items():
            if place.startswith("train.") and _select(cfg, place) is None:
                value = get(defaults, key)
                OmegaConf.update(cfg, place, list(value) if isinstance(value, tuple) else value, force_add=True)
        self.merge(self.opts)

    @classmethod
    def read(cls, path: str, opts: list[str], backbone: str = "", weights: str = "", accepted: Collection[str] = ()) -> "PythonFront":
        """Reads a config file and applies overrides key.key=value, another backbone and other weights.

        ``accepted``: restrictive licences of weights that the user accepts. Raises UserError.
        """
        try:
            cfg = LazyConfig.load(path)
        except ModuleNotFoundError as error:
            raise _missing(error, path) from error
        except (SyntaxError, AssertionError, ImportError, OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"config file {path!r}: {error}", code="syntax") from error
        _check_sections(cfg, f"config file {path!r}")
        if backbone:
            given = [item.partition("=")[2] for item in opts if named(item) == KEYS["MODEL.WEIGHTS"]]
            use_backbone(cfg, backbone, own_weights=bool(weights or any(given)), accepted=accepted)
        if weights:
            use_weights(cfg, weights)
        return cls(cfg, path, opts)

    def merge(self, opts: list[str]) -> None:
        for item in opts:
            if item.startswith("--"):
                raise UserError(f"{item} comes after an override: put flags before all key=value", "syntax", item)
            if "=" not in item:
                raise UserError(
                    f"{self.path!r} is a Python config, whose overrides are key.key=value, such as train.device=cpu, not {item!r}",
                    code="syntax",
                )
            _check_key(self.cfg, named(item))
        for item in opts:
            try:
                self.cfg = LazyConfig.apply_overrides(self.cfg, [item])
            except Exception as error:  # hydra and omegaconf raise many kinds
                quoted = ". Put a value with quotes or other signs in double quotes of its own: 'key=\"value\"'" if '"' not in item else ""
                said = one_line(error).partition(" See http")[0]  # hydra's page does not say how to write this one
                raise UserError(f"{item} cannot be read: {said}{quoted}", code="syntax") from error
        _check_sections(self.cfg, " ".join(opts))
        given = [named(item) for item in opts]
        if any(places(self.cfg)[key] in given for key in config.IMAGES) and KEYS["INPUT.NORMALIZATION"] not in given:
            self.cfg.train.normalization = "config"
        self._read_settings()

    def _read_settings(self) -> None:
        """Raises UserError if the type of a value is not that of the YAML key."""
        cfg, settings, self.places = self.cfg, _defaults(), {}
        for key, place in places(cfg).items():
            value = _select(cfg, place)
            if value is None and not place.startswith("train.") or key in FRACTIONS:
                continue
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            if key in LISTS and not isinstance(value, list):
                value = [value]
            elif key == "INPUT.MIN_SIZE_TEST" and isinstance(value, list):
                value = value[0]
            _assign(settings, key, value, place)
            self.places[key] = place
        model = cfg.model
        settings.MODEL.META_ARCHITECTURE = getattr(_target(model), "__name__", "")
        heads = model.get("roi_heads") or {}
        settings.MODEL.MASK_ON = heads.get("mask_head") is not None
        settings.MODEL.KEYPOINT_ON = heads.get("keypoint_head") is not None
        self.settings = settings

    def name(self, key: str) -> str:
        return self.places.get(key, KEYS.get(key, key))

    def knows(self, key: str) -> bool:
        return key in self.places

    def override(self, key: str, value: Any) -> str:
        value = str(value)
        if not re.fullmatch(r"[\w./:-]+", value):  # hydra's own quotes
            value = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", r"\'")
            value = f"'{value}'"
        return shlex.quote(f"{self.name(key)}={value}")

    def set(self, key: str, value: Any) -> None:
        """For a key without a counterpart in this config, only the settings change."""
        if key in self.places:  # evaluators read the single name of their data there
            given = value[0] if key in NAMES and len(value) == 1 else list(value) if isinstance(value, tuple) else value
            OmegaConf.update(self.cfg, self.places[key], given, force_add=True)
        if key == "INPUT.FORMAT":
            for split in ("train", "test"):
                if _select(self.cfg, f"dataloader.{split}.mapper.image_format") is not None:
                    OmegaConf.update(self.cfg, f"dataloader.{split}.mapper.image_format", value)
        self.settings.defrost()
        _assign(self.settings, key, value, self.name(key))

    def apply_data_arguments(self, args: Any, training: bool) -> bool:
        own = self.settings.clone()
        own.defrost()
        if not apply_data_arguments(own, args, training):
            return False
        for key in ("REGISTER", "CLASSES", "KEYPOINTS", "KEYPOINT_FLIPS", "HOLD_OUT", "TRAIN", "TEST"):
            key, value = f"DATASETS.{key}", own.DATASETS[key]
            if value == get(self.settings, key):
                continue
            if key not in KEYS or key in NAMES and key not in self.places:
                raise UserError(f"--train and --val set {KEYS.get(key, key)}, which this Python config does not have", code="unsupported")
            self.set(key, value)
        self.merge(self.opts)
        return True

    def check_resize(self) -> None:
        steps: Any = OmegaConf.select(self.cfg, "dataloader.test.mapper.augmentations") or ()
        if len(steps) != 1 or _target(steps[0]) is not T.ResizeShortestEdge:
            place = "dataloader.test.mapper.augmentations"
            raise UserError(f"{place} must be one ResizeShortestEdge: an exported file can repeat nothing else", code="unsupported", key=place)

    def config_findings(self, training: bool = False, processes: int = 1) -> Iterator[UserError]:
        s = self.settings
        yield from raised(check_device, s.MODEL.DEVICE, self.name("MODEL.DEVICE"), self.override("MODEL.DEVICE", "cpu"))
        yield from raised(check_output_dir, s.OUTPUT_DIR, self.name("OUTPUT_DIR"))
        for row in config.KEYS:
            problem = row._replace(name=self.name(row.name)).error(get(s, row.name)) if row.name in self.places else None
            if problem:
                yield problem
        kind = _target(self.cfg.model)
        if s.TEST.AUG.ENABLED and isinstance(kind, type):
            yield from raised(check_augmented, s, kind, self.name)
        if training:
            for problem in training_findings(s, processes, s.MODEL.DEVICE, self.name, self.evaluates):
                if problem.code != "batch" or self.knows("SOLVER.IMS_PER_BATCH"):
                    yield problem
            yield from raised(self._check_reference)
            yield from raised(self._check_loader)
            if s.TEST.LOSS and self.knows("DATASETS.TEST"):
                yield from raised(self._check_mappers)

    def _check_reference(self) -> None:
        """Raises UserError if the learning rate should be scaled to the batch, but the config does not state both."""
        reference, lacking = self.settings.SOLVER.REFERENCE_BATCH, {"SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR"} - self.places.keys()
        if reference and lacking:
            place, needed = self.name("SOLVER.REFERENCE_BATCH"), " and ".join(sorted(KEYS[key] for key in lacking))
            raise UserError(f"{place} {reference} needs {needed}, which this config does not have: set it to 0", "unsupported", place, 0)

    def _has_own_loader(self) -> bool:
        """Whether training has a loader that cannot be made of detectron2's parts."""
        node = self.cfg.dataloader.train
        parts, known = set(node) - {"_target_"}, inspect.signature(train_loader).parameters.keys() - {"skip", "own_subset"}
        return _target(node) is not build_detection_train_loader or not {"dataset", "mapper", "total_batch_size"} <= parts <= known

    def _check_loader(self) -> None:
        """Raises UserError if the training loader cannot do what the config asks for."""
        if not self._has_own_loader():
            return
        self._check_reading("dataloader.train")
        self._check_skips()
        if (count := self.settings.SOLVER.ACCUMULATE) > 1:
            said = "it would multiply the batch of dataloader.train, which is not detectron2's loader: use it, or divide the batch yourself"
            raise UserError(f"train.accumulate {count}: {said}", "unsupported", "train.accumulate")

    def _check_mappers(self) -> None:
        """Raises UserError if the test data's losses need what the config's mappers do not have."""
        for part in ("train", "test"):
            if OmegaConf.select(self.cfg, f"dataloader.{part}.mapper.augmentations") is None:
                place = self.name("TEST.LOSS")
                raise UserError(f"{place} needs a mapper with augmentations in dataloader.{part}: set it to False", "unsupported", place, False)

    def idle(self, training: bool) -> Iterator[tuple[str, str]]:
        yield from super().idle(training)
        for key in ("TEST.LOSS", "TEST.PICTURES") if training and not self.knows("DATASETS.TEST") else ():
            value = get(self.settings, key)
            if value and (self.stated(key) or value != get(_defaults(), key)):
                yield self.name(key), f"it needs data of detectron2's catalogue, in {KEYS['DATASETS.TEST']}"
        if self.skips and self.evaluates and not _has_mapper(self.cfg.dataloader.test):
            yield f"{self.name('INPUT.UNREADABLE')} on dataloader.test", "use detectron2's loader, or another with a mapper"

    def data_findings(self, training: bool, skip: Collection[str] = ()) -> Iterator[UserError]:
        for problem in dataset_findings(self.settings, training, skip, self.name):
            # data need not come from detectron2's catalogue, and heads need not have a number of classes
            if problem.code != "missing-argument" and (problem.code != "classes" or _select(self.cfg, problem.key) is not None):
                yield problem

    def clone(self, *pairs: Any) -> "PythonFront":
        front = PythonFront(copy.deepcopy(self.cfg), self.path)
        front.accepted = list(self.accepted)
        for key, value in zip(pairs[::2], pairs[1::2]):
            front.set(key, value)
        return front

    def build_model(self) -> nn.Module:
        model = self._instantiate("model").to(self.settings.MODEL.DEVICE)
        return arranged(ranked(model), self.settings)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        self.cfg.optimizer.params.model = model
        try:
            return self._instantiate("optimizer")
        finally:
            del self.cfg.optimizer.params["model"]

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return LRMultiplier(optimizer, self._instantiate("lr_multiplier"), self.settings.SOLVER.MAX_ITER)

    def build_train_loader(self, workers: int | None = None) -> Any:
        """The config's own loader; if it is detectron2's, one of the same parts that can be resumed."""
        node, s, place = self.cfg.dataloader.train, self.settings, self.name("SOLVER.IMS_PER_BATCH")
        if self._has_own_loader():
            self._check_loader()
            return self._instantiate("dataloader.train")
        if s.SOLVER.IMS_PER_BATCH % (comm.get_world_size() * s.SOLVER.ACCUMULATE):
            among = f"{comm.get_world_size()} processes" + f" times train.accumulate {s.SOLVER.ACCUMULATE}" * (s.SOLVER.ACCUMULATE > 1)
            raise UserError(f"{place} {s.SOLVER.IMS_PER_BATCH} cannot be divided evenly among {among}", code="batch", key=place)
        built = {key: self._instantiate(f"dataloader.train.{key}", node[key]) for key in set(node) - {"_target_", "mapper"}}
        built["mapper"] = self._mapper("dataloader.train.mapper")
        built["total_batch_size"] //= s.SOLVER.ACCUMULATE
        if workers is not None:
            built["num_workers"] = workers
        if not isinstance(built["dataset"], list):
            self._check_skips()
            return build_detection_train_loader(**built)
        return train_loader(**built, skip=self.skips, own_subset=OmegaConf.select(node, "sampler.seed_subset") is not None)

    def mapper(self, training: bool, annotated: bool = False) -> Callable[[dict[str, Any]], dict[str, Any]]:
        if not annotated:
            return self._mapper(f"dataloader.{'train' if training else 'test'}.mapper")
        self._check_mappers()
        return self._mapper("dataloader.train.mapper", augmentations=self._instantiate("dataloader.test.mapper.augmentations"))

    def _mapper(self, key: str, **others: Any) -> Any:
        """The config's own mapper with arguments ``others``; detectron2's is replaced by one that reads files as the config says."""
        node = OmegaConf.select(self.cfg, key)
        kind = _target(node) if isinstance(node, DictConfig) else None
        if kind is DatasetMapper or isinstance(kind, type) and issubclass(kind, Mapper):
            kind = Mapper if kind is DatasetMapper else kind
            return kind(**{"reading": images.settings(self.settings), **self._parts(key, *others), **others})
        self._check_reading(key)
        return kind(**self._parts(key, *others), **others) if others and kind else self._instantiate(key)

    def _check_reading(self, key: str) -> None:
        """Raises UserError if the config sets how files are read, but has a mapper of its own at ``key``."""
        for name in ("EXIF", "VALUE_RANGE", "MAX_PIXELS"):
            if self.settings.INPUT[name] != _defaults().INPUT[name]:
                place = self.name(f"INPUT.{name}")
                raise UserError(f"{place} works with detectron2's mappers and this project's, not with the one at {key}", "unsupported", place)

    def _check_skips(self) -> None:
        """Raises UserError if unreadable images should be left out by a training loader that cannot."""
        if self.skips:
            place = self.name("INPUT.UNREADABLE")
            said = f"{place} 'skip' needs detectron2's loader in dataloader.train, with a list of records as its dataset: set it to stop"
            raise UserError(said, "unsupported", place, "stop")

    def resize(self) -> T.Augmentation:
        augmentations = OmegaConf.select(self.cfg, "dataloader.test.mapper.augmentations")
        if augmentations is None:
            return T.ResizeShortestEdge(self.settings.INPUT.MIN_SIZE_TEST, self.settings.INPUT.MAX_SIZE_TEST)
        return T.AugmentationList(instantiate(augmentations))

    @property
    def checkpoints_kept(self) -> int | None:
        return self.cfg.train.checkpointer.get("max_to_keep")

    @property
    def evaluates(self) -> bool:
        names = OmegaConf.select(self.cfg, KEYS["DATASETS.TEST"])  # None for data outside the catalogue
        return "evaluator" in self.cfg.dataloader and (names is None or len(names) > 0)

    @property
    def gives_usual_figures(self) -> bool:
        nodes, names = self.cfg.dataloader.get("evaluator"), self.settings.DATASETS.TEST
        panoptic = all(MetadataCatalog.get(name).get("evaluator_type") == "coco_panoptic_seg" for name in names)
        usual = (COCOEvaluator, SemSegEvaluator, COCOPanopticEvaluator) if panoptic else (COCOEvaluator,)
        nodes = list(nodes) if isinstance(nodes, ListConfig) else [nodes]
        return all(isinstance(node, DictConfig) and _target(node) in usual and not node.get("tasks") for node in nodes)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """The results of the config's own evaluator on its test data; empty without one."""
        if not self.evaluates:
            return {}
        broadcast_buffers(model)
        results = inference_on_dataset(model, self._test_loader(), self._evaluator("inference"))
        if comm.is_main_process():
            print_csv_format(results)
        return results

    def evaluate_augmented(self, model: nn.Module) -> dict[str, Any]:
        broadcast_buffers(model)
        results = inference_on_dataset(augmented(self.settings, model), self._test_loader(), self._evaluator("inference_TTA"))
        return {f"{name}_TTA": value for name, value in results.items()}

    def _test_loader(self) -> Any:
        node: Any = self.cfg.dataloader.test
        if not _has_mapper(node):
            self._check_reading("dataloader.test")
            return self._instantiate("dataloader.test")
        parts, names = self._parts("dataloader.test", "mapper"), self.settings.DATASETS.TEST
        kind = MetadataCatalog.get(names[0]).get("evaluator_type") if names else None
        mapper = self._mapper("dataloader.test.mapper")
        return evaluation_loader(partial(_target(node), **parts), mapper, self.skips, kind)

    def _evaluator(self, folder: str) -> Any:
        """The config's own evaluator; COCO's writes results into the run's folder and is of the kind train.coco_evaluator says."""
        node = self.cfg.dataloader.evaluator
        if not isinstance(node, DictConfig) or _target(node) is not COCOEvaluator or not isinstance(node.get("dataset_name"), str):
            return self._instantiate("dataloader.evaluator")
        options = self._parts("dataloader.evaluator", "dataset_name", "output_dir", "kpt_oks_sigmas")
        return coco_evaluator(self.settings, node.dataset_name, node.get("output_dir") or f"{self.settings.OUTPUT_DIR}/{folder}", **options)

    def job(self) -> Job:
        self._check_reference()
        train, scaled = self.cfg.train, scale_learning_rate(self.settings, self.name)
        if scaled is not self.settings:
            self.set("SOLVER.REFERENCE_BATCH", 0)
            self.set("SOLVER.BASE_LR", scaled.SOLVER.BASE_LR)
        return dataclasses.replace(super().job(), log_period=train.get("log_period") or 20)  # detectron2's own default

    def ddp(self) -> dict[str, Any]:
        return dict(self.cfg.train.get("ddp", {}))

    def plain(self) -> dict[str, Any]:
        return {
            key: _plain(OmegaConf.to_container(self.cfg[key], resolve=False)) for key in ("train", "optimizer", "lr_multiplier", "dataloader")
        }

    def _parts(self, key: str, *without: str) -> dict[str, Any]:
        """The instantiated arguments of the call at that place."""
        node = OmegaConf.select(self.cfg, key)
        return {str(part): self._instantiate(f"{key}.{part}", node[part]) for part in node if part not in ("_target_", *without)}

    def _instantiate(self, key: str, node: Any = None) -> Any:
        try:
            return instantiate(OmegaConf.select(self.cfg, key) if node is None else node)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise _missing(error, key) from error
        except Exception as error:
            if not from_libraries(error):  # the user's own code: show its traceback
                raise
            message = f"{key} of the config cannot be built: {type(error).__name__}: {error}"
            raise UserError(message, code="build", key=key) from error


def _defaults() -> CfgNode:
    cfg = defaults()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    return cfg


def _unread(cfg: DictConfig) -> list[str]:
    """What the section ``train`` holds and nothing reads, down to the keys of its own sections."""
    names = []
    for name in map(str, cfg.get("train", {})):
        section = _select(cfg, f"train.{name}") if name in SECTIONS else None
        inside = [f"{name}.{part}" for part in map(str, section)] if isinstance(section, DictConfig) else [name]
        names += [part for part in inside if part not in TRAIN | SECTIONS]
    return sorted(names)


def _check_sections(cfg: Any, where: str) -> None:
    for key in ("model", "train", "optimizer", "lr_multiplier", "dataloader"):
        if not isinstance(cfg, DictConfig) or not isinstance(cfg.get(key), DictConfig):
            raise UserError(f"{where}: {key!r} must be a section, as in Python configs", code="bad-file", key=key)
    for name in sorted(SECTIONS & set(map(str, cfg.train))):
        if not isinstance(_select(cfg, f"train.{name}"), DictConfig):
            inside = min(part for part in TRAIN if part.startswith(f"{name}."))
            said = f"{where}: train.{name} must be a section, whose values are set as in train.{inside}=..."
            raise UserError(said, "bad-file", f"train.{name}")


def _select(cfg: DictConfig, place: str) -> Any:
    try:
        return OmegaConf.select(cfg, place)
    except ConfigTypeError:  # a list, such as several evaluators, has no such key
        return None
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UserError(f"{place} of the config: {error}", code="syntax", key=place) from error


def _has_mapper(loader: Any) -> bool:
    return isinstance(loader, DictConfig) and {"mapper", "_target_"} <= set(loader)


def _target(node: DictConfig) -> Any:
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def _assign(settings: CfgNode, key: str, value: Any, place: str) -> None:
    """Sets a YAML key; ``place`` is the user's name for it. Raises UserError for a value of the wrong type."""
    old: Any = get(settings, key)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    elif isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(old) and not (isinstance(old, (tuple, list)) and isinstance(value, (tuple, list))):
        raise UserError(f"{place} is {value!r}: it must be {config.KINDS.get(type(old), type(old).__name__)}", key=place)
    put(settings, key, value)


def _plain(value: Any) -> Any:
    """The config with names in place of objects."""
    if isinstance(value, dict):
        # by name only: it is a class in the config and a path in the config.yaml of a run
        named = {key: str(item).rpartition(".")[2] for key, item in value.items() if key == "_target_" and isinstance(item, str)}
        return {str(key): _plain(item) for key, item in {**value, **named}.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else getattr(value, "__qualname__", str(value))


def _check_key(cfg: DictConfig, key: str) -> None:
    """Raises UserError for an override of a key that neither exists nor is an argument of the call at its place."""
    node: Any = OmegaConf.to_container(cfg, resolve=False)
    parts = key.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, list):
            node = {str(place): item for place, item in enumerate(node)}
        if isinstance(node, dict) and part in node:
            node = node[part]
            continue
        allowed = list(node) if isinstance(node, dict) else []
        if "_target_" in allowed:
            target = node["_target_"]
            parameters = inspect.signature(locate(target) if isinstance(target, str) else target).parameters
            if part in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                return
            allowed = [*allowed, *parameters]
        allowed = sorted(set(map(str, allowed)) - {"_target_", "self"})
        before = "".join(f"{name}." for name in parts[:i])
        raise unknown("config key", before + part, [before + name for name in allowed], key=key, code="unknown-key")


def _missing(error: ModuleNotFoundError, what: str) -> UserError:
    package = {"pkg_resources": "'setuptools<82'", "lvis": "--no-deps lvis", "panopticapi": "panopticapi-lite"}.get(str(error.name), error.name)
    message = f"{what!r} needs a package that is not installed: pip install {package}"
    return UserError(message, code="missing-package", suggestion=package)
