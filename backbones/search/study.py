"""What `backbones study` trains, and how its rows name it. `evidence` says what the rows show."""

import dataclasses
import functools
import json
import math
import os
import random
from typing import Any, Callable, Iterable, Mapping

from .. import zoo
from ..documents import read_json, reading
from ..maedet import Block, format_structure, read_structure
from ..registry import family_of, get_spec
from ..shufflenetv2 import read_subnet
from .entropy import plain
from .evolution import Candidate
from .paths import CostTable, cost_table
from .rank_correlation import paths_of_one_cost
from .structure_config import load_structure_config, problem_of

BUDGET, SHALLOW = "search/crowd_budget.yaml", "search/crowd_shallow_budget.yaml"
GFL = "crowd/gfl_crowd.yaml"
SUPERNETS = {  # of the studies of paths
    "paths": "crowd/detnas_supernet_crowd.yaml",
    "wide": "crowd/detnas_wide_supernet_crowd.yaml",
    "stages": "crowd/detnas_wide_supernet_crowd.yaml",
    "stages_gn": "crowd/detnas_wide_gn_supernet_crowd.yaml",
}
SUBNET = "crowd/detnas_subnet_crowd.yaml"
PATH = "MODEL.SHUFFLENETV2.CHOICES"
COUNT = 24  # random networks of a group
FEW_LAYERS = "random, at most 16 layers"
FOUND = {  # by `backbones search exact` within so many layers: "found by entropy" may have 91
    "found by entropy, 16 layers": "found_16_layers.txt",
    "found by entropy, 22 layers": "found_22_layers.txt",
    "found by entropy, 31 layers": "found_31_layers.txt",
    "found with equal stage weights, 22 layers": "found_22_layers_equal_weights.txt",
}
FOUND_PATHS = {  # by `backbones search-paths` with the study's supernet
    "paths": ("found path", "found_path.txt"),
    "wide": ("found wide", "found_wide_path.txt"),
    "stages_gn": ("found, of mixed choices", "found_wide_gn_path.txt"),
}
GROUP_NORM = {"MODEL.SHUFFLENETV2.NORM": "GN", "MODEL.FPN.NORM": "GN"}
SHORT = {"SOLVER.MAX_ITER": 2000}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to train.

    Args:
        name: unique within its study.
        group: "random", "random, at most 16 layers", "found" by a search, "hand-made", or a detector's name.
        config: what it is trained with.
        backbone: for ``--backbone``; "" is the config's own.
        options: config overrides.
        structure: of MAE-DET's search space, if it is one.
    """

    name: str
    group: str
    config: str
    backbone: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    structure: Candidate = ()


def random_structures(config: str) -> list[Candidate]:
    """Of the budget of a search's config, drawn from its whole space."""
    problem, start = problem_of(load_structure_config(config))
    rng = random.Random(0)
    return [problem.random(start, rng) for _ in range(COUNT)]


def structures() -> list[Network]:
    """Random structures of one budget, what the training-free search finds in it, and hand-made networks with as many operations or fewer."""
    folder = os.path.join(zoo.config_root(), "crowd")
    found = {name: plain(read_structure(os.path.join(folder, file))) for name, file in FOUND.items()}
    return [
        *(Network(f"structure {i}", "random", GFL, structure=structure) for i, structure in enumerate(random_structures(BUDGET))),
        *(Network(f"shallow {i}", FEW_LAYERS, GFL, structure=structure) for i, structure in enumerate(random_structures(SHALLOW))),
        Network("found by entropy", "found", "crowd/gfl_found_crowd.yaml"),
        *(Network(name, "found", GFL, structure=structure) for name, structure in found.items()),
        *(Network(name, "hand-made", GFL, name) for name in ("V-19-slim-dw-eSE", "RegNetX-400MF", "MobileNetV2", "DetNAS-300M")),
    ]


def short() -> list[Network]:
    """The same structures with a third of the iterations: cheaper, if they rank alike."""
    return [dataclasses.replace(network, options={**network.options, **SHORT}) for network in structures()]


def paths(study: str = "paths") -> list[Network]:
    """Random paths of one cost in DetNAS's space and the one that its search found, in the short training."""
    node, one = zoo.get_config(SUPERNETS[study]).MODEL.SHUFFLENETV2, study.partition("_")[0].rstrip("s")
    each = [(f"{one} {i}", "random", path) for i, path in enumerate(random_paths(COUNT, study))]
    if study in FOUND_PATHS:
        name, file = FOUND_PATHS[study]
        each.append((name, "found", read_subnet(node, os.path.join(zoo.config_root(), "crowd", file))))
    common = {"MODEL.SHUFFLENETV2.BRANCH_WIDTHS": list(node.BRANCH_WIDTHS), **SHORT}
    return [Network(name, group, SUBNET, options={PATH: list(path), **common}) for name, group, path in each]


def wide() -> list[Network]:
    """Random paths of one cost where each block also has a choice of widths."""
    return paths("wide")


def stages() -> list[Network]:
    """The same with one choice for all blocks of a stage: such paths differ more than those that mix all choices."""
    return paths("stages")


def stages_gn() -> list[Network]:
    """The paths of `stages` with group norm, with which few small images teach them far more, and what their supernet's search found."""
    return [dataclasses.replace(network, options={**network.options, **GROUP_NORM}) for network in paths("stages_gn")]


def random_paths(count: int, study: str = "paths") -> list[tuple[int, ...]]:
    """Paths that cost the most that the supernet's search allows, or up to 3 % less."""
    cfg = zoo.get_config(SUPERNETS[study])
    blocks = get_spec(cfg.MODEL.SHUFFLENETV2.NAME).blocks if study.startswith("stages") else ()
    return paths_of_one_cost(path_costs(study), cfg.ONE_SHOT.MAX_COST, count, 0.03, 0, stages=blocks)


def path_costs(study: str = "paths") -> CostTable:
    return _costs(SUPERNETS[study])


@functools.lru_cache
def _costs(config: str) -> CostTable:
    cfg = zoo.get_config(config)
    return cost_table(cfg, cfg.ONE_SHOT.COST, cfg.ONE_SHOT.COST_SIZE)


FAMILIES: dict[str, dict[str, Any]] = {
    "V-19-slim-dw-eSE": {},
    "MobileNetV2": {},
    "RegNetX-200MF": {},
    "RegNetY-200MF": {},
    "MAE-DET-S": {"MODEL.MAEDET.WIDTH": 0.24},  # about the parameters of the first
    "DetNAS-300M": {},
}
FASTER = "faster_rcnn"
DETECTORS = (
    *(FASTER, "cascade_rcnn", "mask_rcnn", "keypoint_rcnn", "panoptic_fpn", "retinanet", "gfl"),
    *("faster_rcnn_c4", "faster_rcnn_dc5"),  # of one level, stride 16
)
ONE_RATE = "deformable, one rate"  # offsets that learn as fast as weights leave the image: one network shows it
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of Faster R-CNN with FPN: the options of a family's node, and others
    "deformable": ({"DEFORM_ON_PER_STAGE": [False, True, True, True]}, {"SOLVER.OFFSET_LR_FACTOR": 0.1}),
    ONE_RATE: ({"DEFORM_ON_PER_STAGE": [False, True, True, True]}, {}),
    "GN": ({"NORM": "GN"}, {"MODEL.FPN.NORM": "GN"}),
}
OWN = "R-50, quarter widths"  # detectron2's, about as large as ours: what does not learn with it either is the setting
_NARROW = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 16, "MODEL.RESNETS.WIDTH_PER_GROUP": 16, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
_FPN_OF_OWN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": [f"res{i}" for i in range(2, 6)],
    "MODEL.FPN.IN_FEATURES": [f"res{i}" for i in range(2, 6)],
    "MODEL.RESNETS.NORM": "BN",
}


def detectors() -> list[Network]:
    """Each of our families in each detector, and detectron2's ResNet in Faster R-CNN's kinds."""
    networks = []
    for detector in DETECTORS:
        config, has_fpn = f"crowd/{detector}_crowd.yaml", not detector.endswith(("_c4", "_dc5"))
        if detector == FASTER or not has_fpn:
            networks += _kinds(OWN, detector, config, "", "MODEL.RESNETS", {**_NARROW, **(_FPN_OF_OWN if has_fpn else {})})
        for family, options in FAMILIES.items():
            networks += _kinds(family, detector, config, family, f"MODEL.{family_of(family).name.upper()}", options)
    return networks


def _kinds(name: str, detector: str, config: str, backbone: str, node: str, options: Mapping[str, Any]) -> list[Network]:
    """A backbone in a detector, and in the variants of `FASTER`."""
    networks = [Network(f"{name} in {detector}", detector, config, backbone, {**options, **SHORT})]
    for variant, (own, others) in VARIANTS.items() if detector == FASTER else ():
        if variant == ONE_RATE and name != next(iter(FAMILIES)) or variant == "GN" and name == OWN:  # 16 channels have no 32 groups
            continue
        more = {**{f"{node}.{key}": value for key, value in own.items()}, **others}
        networks.append(Network(f"{name} in {variant}", variant, config, backbone, {**options, **more, **SHORT}))
    return networks


STUDIES: dict[str, Callable[[], list[Network]]] = {
    "short": short,
    "structures": structures,
    "paths": paths,
    "wide": wide,
    "stages": stages,
    "stages_gn": stages_gn,
    "detectors": detectors,
}


def scores_of(study: str) -> str:
    """What rows call the scores of a study's paths by its supernet."""
    return f"{study} supernet"


def identities(studies: Iterable[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """What rows of these studies and of their supernets are of, by study and network.

    It is as rows say it: the setting, the options, and the structure of a network that is one.
    """
    known, settings = {}, {config: zoo.digest(config) for config in SUPERNETS.values()}
    for name in studies:
        for network in STUDIES[name]():
            if network.config not in settings:
                settings[network.config] = zoo.digest(network.config)
            about = {"options": dict(network.options), **({"structure": network.structure} if network.structure else {})}
            known[name, network.name] = {**about, "setting": settings[network.config]}
            if name in SUPERNETS:
                known[scores_of(name), network.name] = {**about, "setting": settings[SUPERNETS[name]]}
    return {key: json.loads(json.dumps(about)) for key, about in known.items()}


def is_current(row: Mapping[str, Any], known: Mapping[tuple[str, str], Mapping[str, Any]]) -> bool:
    """Whether a row is of a network of `identities` as it is now. Earlier versions wrote no options."""
    about = known.get((row["study"], row["network"]))
    return about is not None and all(row.get(key, value) == value for key, value in about.items())


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a study's file. Raises UserError for anything else."""
    with reading(f"{path!r} is not a file of `backbones study`"):
        rows = list(read_json(path)["runs"])
        for row in rows:
            words = [row[key] for key in ("network", "group", "setting")]
            if row["study"] not in (*STUDIES, *map(scores_of, SUPERNETS)):
                raise ValueError(f"{row['study']!r} is no study")
            if not all(isinstance(word, str) for word in words):
                raise ValueError("a row names no network, group or setting")
            if type(row["seed"]) is not int or type(row["ap"]) not in (int, float) or not math.isfinite(row["ap"]):
                raise ValueError("a row has a seed or an AP that is not a number")
        return rows


def iterations_of(study: str) -> int:
    """Iterations of a study's trainings."""
    return SHORT["SOLVER.MAX_ITER"] if study != "structures" else int(zoo.get_config(GFL).SOLVER.MAX_ITER)


def structure_file(network: Network) -> str:
    return format_structure(tuple(Block(*block) for block in network.structure))
