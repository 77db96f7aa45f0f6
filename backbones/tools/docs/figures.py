"""model_zoo.md and the tables of figures in README.md and docs, from backbones/zoo; costs are computed now."""

import os
import re
import statistics
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from ... import registry, zoo
from ...benchmark.detectors import FASTER
from ...benchmark.tables import FIGURES, columns_of, int8, recipes, recorded, speed, table_of, transfer
from ...benchmark.tables import path as data_file
from ...meta import conv_counts, on_meta
from ...search import evidence
from ...search.rank_correlation import ahead, compared
from ...zoo import weights
from ..analyze import parameters
from ..search_demo import SUBNET

SIZE = (800, 1344)


def _on_meta(cfg: CfgNode) -> Any:
    cfg.MODEL.DEVICE = "meta"
    with on_meta():
        return build_model(cfg)


def conv_gmacs(network: torch.nn.Module) -> float:
    """Multiply-adds / 1e9 of a network's convolutions at SIZE, on the meta device: nothing is computed."""
    return conv_counts(network.eval(), torch.empty(1, 3, *SIZE, device="meta"))[0] / 1e9


def render() -> str:
    counted: dict[str, float] = {}
    sections = [_section(key, source, counted) for key, source in recorded("models.json")["sources"].items()]
    rest = (_configs_without_figures(counted), _search(), _one_shot(), _study(), speed(), _measured(), transfer(), recipes())
    return "\n".join([_HEAD, _backbones(), _weights(), _timm(), "## Detectors on COCO\n", *sections, *filter(None, rest)])


_HEAD = """# Model zoo

Written by `python -m backbones.tools.docs`; do not edit. Each figure is marked *published*, *computed* or *measured here*.
[Words](docs/README.md#words) explains AP, PQ, OKS, spread, 3x and other terms.
"""


def _backbones() -> str:
    rows = []
    for name in registry.list_backbones():
        with on_meta():
            net = registry.create(name)
        count, affine = parameters(net)
        first = weights.released(name)
        top1 = f"{first.top1:.1f}" if first and first.top1 else ""
        rows.append((name, f"{count / 1e6:.2f}", f"{affine / 1e6:.2f}", f"{conv_gmacs(net):.2f}", top1))
    return f"""## Backbones

*Computed.* Param.: millions of parameters; with affine: including the weights of frozen norms, which detectron2 keeps as buffers. GFLOPs:
multiply-adds / 1e9 of the convolutions of the bare backbone on one image of {SIZE[0]}x{SIZE[1]}. `backbones analyze` counts
any of them at any size. Top-1: on ImageNet, %, *published*, of the weights that `MODEL.WEIGHTS backbones://<name>` takes first.

{table_of(rows, ("backbone", "Param.", "with affine", "GFLOPs", "top-1"))}
"""


_SCRATCH = {"maedet": "gfl_MAE_DET_*_FPN_73e.yaml", "shufflenetv2": "the five steps in configs/DetNAS", "": "SyncBN and FREEZE_AT 0"}


def _weights() -> str:
    rows = []
    for name in registry.list_backbones():
        there = weights.releases(name)
        kinds = ([r for r in there if r.free], [r for r in there if not r.free and not r.gone], [r for r in there if r.gone])
        cells = ["<br>".join(f"`{r.spec}` ({', '.join([r.licence, *([f'{r.top1:.1f}'] if r.top1 else [])])})" for r in some) for some in kinds]
        family = registry.family_of(name).name
        rows.append((name, cells[0] or f"from scratch: {_SCRATCH.get(family, _SCRATCH[''])}", *cells[1:]))
    known = weights.data()["sources"].items()
    sources = "\n".join(f"- {key}: {about['title']}" + (f", top-1 {about['top1']}" if "top1" in about else "") for key, about in known)
    gone = "; ".join(f"{key}: {about['gone']}" for key, about in known if "gone" in about)
    return f"""### Weights of the backbones

The sources that `MODEL.WEIGHTS backbones://<name>` tries, in this order; `backbones://<name>@<source>:<id>` uses one file. Licence, and top-1
on ImageNet in %, are *published*. Weights in the third column have restrictive licences: they need `--accept-licence`, or their full name.
`backbones zoo check` tells whether an address still works.

{sources}

Gone: {gone}.

{table_of(rows, ("backbone", "used", "used only if named", "gone"))}
"""


# a dozen of timm's many networks, of different kinds
_OF_TIMM = """
    resnet50 resnetv2_50 convnext_tiny convnextv2_nano swin_tiny_patch4_window7_224 pvt_v2_b2 efficientnet_b0 tf_efficientnet_lite0
    mobilenetv3_large_100 fastvit_t8 repvit_m1_0 hgnetv2_b2 mambaout_tiny
"""


def _timm() -> str:
    rows = []
    for name in _OF_TIMM.split():
        with on_meta():
            net = registry.create(f"timm/{name}").eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, *SIZE, device="meta"))
        widths = " ".join(str(shape.channels) for shape in net.output_shape().values())
        rows.append((f"timm/{name}", f"{parameters(net)[1] / 1e6:.2f}", f"{counter.get_total_flops() / 2e9:.2f}", widths))
    return f"""## Backbones of timm

*Computed.* `--backbone timm/NAME` takes any network of timm whose stages run one after the other. `backbones zoo list "timm/*"` lists
timm's names; here are some. Param.: millions of parameters of the bare backbone, with those of frozen norms. GFLOPs: multiply-adds
/ 1e9 of its convolutions and matrix products on one image of {SIZE[0]}x{SIZE[1]}. Channels: of "res2" to "res5".

{table_of(rows, ("backbone", "Param.", "GFLOPs", "channels"))}
"""


def _section(key: str, source: dict, counted: dict[str, float]) -> str:
    rows = [row for row in recorded("models.json")["models"] if row["source"] == key]
    computed = any("config" in row for row in rows)
    costs = [_cost(row["config"], counted) for row in rows] if computed else []
    columns = {
        "config" if computed else "network": [_link(row["config"]) if "config" in row else row["network"] for row in rows],
        **{heading: [row["published_ap"].get(kind, "") for row in rows] for kind, heading in _KINDS.items()},
        **dict(zip(("Param.", "GFLOPs"), zip(*costs))),
        "name there": [row.get("row", "") for row in rows],
        "files": [" \\| ".join(f"[{name}]({row[key]})" for name, key in _FILES.items() if key in row) for row in rows],
        "remark": [row.get("note", "") for row in rows],
    }
    cost = " Param. (of the whole detector, with affine) and GFLOPs (of backbone and FPN, as above): *computed* here." if computed else ""
    images, about = source.get("preprocessing"), ""
    if images:
        mean, std = (", ".join(map(str, images[key])) for key in ("pixel_mean", "pixel_std"))
        about = f" They expect {images['format']} images, mean {mean}, standard deviation {std}, as the configs say."
    restricted = f", {source['restricted']}" if "restricted" in source else ""
    if "availability" in source:
        about += f" Of the files: {source['availability']}."
    return f"""### {source["title"]}

AP, PQ and recall: *published*: {source["published_ap"]}.{cost}{" " + source["remark"] if "remark" in source else ""}

Source: [{key}]({source["url"]}), {source["version"]}. Licence of the weights: {source["licence"]}{restricted}.{about}

{columns_of(columns)}
"""


_FILES = {"model": "checkpoint", "metrics": "metrics"}
_KINDS = {"box": "box AP", "mask": "mask AP", "keypoint": "keypoint AP", "pq": "PQ", "recall": "recall"}


def _cost(config: str, counted: dict[str, float]) -> tuple:
    """Param. and GFLOPs; the latter are ``counted`` once for all configs of the same backbone and FPN."""
    cfg = zoo.get_config(config)
    model = _on_meta(cfg)
    nodes = ("BACKBONE", "FPN", "RESNETS", *(family.upper() for family in registry.FAMILIES))
    key = "".join(cfg.MODEL[node].dump() for node in nodes)
    if key not in counted:
        counted[key] = conv_gmacs(model.backbone)
    return f"{parameters(model)[1] / 1e6:.1f}", f"{counted[key]:.1f}"


def _configs_without_figures(counted: dict[str, float]) -> str:
    named = {row.get("config") for row in recorded("models.json")["models"]}
    others = ("quickstart/", "digits/", "reproduce/", "DetNAS/")
    table = [(_link(c), *_cost(c, counted)) for c in zoo.list_configs() if c not in named and not c.startswith(others)]
    return f"""### Configs without published figures

By the same recipes, ours or detectron2's of the same name; costs *computed* as above.

{table_of(table, ("config", "Param.", "GFLOPs"))}
"""


def _search() -> str:
    data = recorded("search.json")
    names = ("flops", "parameters", "layers")
    limits = ", ".join(f"{name} {data['budget'][name]:,.0f}" for name in names if name in data["budget"])
    rows = [(f"evolution, seed {r['seed']}", f"{r['score']:.3f}", *(f"{r[name]:,}" for name in names)) for r in data["runs"]]
    rows.append(("the best possible", f"{data['exact']['score']:.3f}", *(f"{data['exact'][name]:,}" for name in names)))
    each, times = (statistics.median(r[key] for r in data["runs"]) for key in ("microseconds", "times_reference"))
    return f"""## Training-free search

[{os.path.basename(data["config"])}]({data["config"]}): {limits} at {data["image_size"]} pixels, {data["runs"][0]["candidates"]:,} candidates.
*Measured here* in one process ({data["machine"]}; `{data["command"]}`): {each:.1f} microseconds per candidate, the median of the seeds.
The original's own loop takes {data["reference_ms"]} milliseconds, {times:.0f} times as long: one thread, on another machine, without the
networks that it also builds. *Computed*: the scores. No structure scores more than the last row's, by `zero_shot exact`.

{table_of(rows, ("", "score", *names))}
"""


def _one_shot() -> str:
    every = compared(data_file("one_shot.json"))
    rows, earlier = ([row for row in every if (row["config"] == SUBNET) == now] for now in (True, False))
    parts = {name: statistics.median(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
    *first, last = (f"{value:.2f} s {part}" for part, value in parts.items())
    one = statistics.stdev(row["ap"] for row in recorded("transfer.json")["runs"] if row["start"] == "supernet")
    best = sum(row["found"] > row["others_best"] for row in rows)
    return f"""## One-shot search

*Measured here* ({_places(rows)}; `make search-proof`): DetNAS's search, as `make search-demo` does it.
For each seed a supernet is trained and searched.
Then the found path and random ones of equal cost are trained alike ({_link(rows[0]["config"])}), from their weights in the supernet.
The figures are {rows[0]["metric"]} on digits_crowd_val.
The found path is ahead of the mean of the random ones in {ahead(rows)} of {len(rows)} seeds, and of the best of them in {best}.
Spearman's rank correlation is that of the supernet's scores, on {rows[0]["dataset"]}, with these figures: 1 for the same order, 0 for
unrelated ones. Random paths of one cost have a standard deviation of {_between(rows):.2f} AP.

{_comparisons(rows)}

One evaluation of a path takes {', '.join(first)} and {last} (medians). It is
fast because the path's network is built without memory and takes its slice of the supernet's weights. Images are decoded once. Batch norms
are recalibrated, in the backbone alone if only it has any; group norms need none. The detector is optimized as `--optimize` does it. COCO's
figures come from faster-coco-eval.

In easy scenes, with DetNAS's four choices for a block and batch norm ({_link(earlier[0]["config"])}), the found path
was ahead of the mean in {ahead(earlier)} of {len(earlier)} seeds.
There, random paths of one cost have a standard deviation of {_between(earlier):.2f} AP,
and one path that is trained with several seeds has {one:.2f} ([below](#what-pretraining-is-worth)): there is little to find.

{_comparisons(earlier)}
"""


def _places(rows: list[dict[str, Any]]) -> str:
    return "; ".join(sorted({str(row["machine"]) for row in rows}))


def _between(rows: list[dict[str, Any]]) -> float:
    """The standard deviation of random paths' AP after training, within comparisons."""
    return float(statistics.mean(statistics.variance([path["trained"] for path in row["paths"][1:]]) for row in rows) ** 0.5)


def _comparisons(rows: list[dict[str, Any]]) -> str:
    return columns_of(
        {
            "seed": [row["seed"] for row in rows],
            "found": [f"{row['found']:.2f}" for row in rows],
            "random: mean": [f"{row['others_mean']:.2f}" for row in rows],
            "random: best": [f"{row['others_best']:.2f}" for row in rows],
            "random paths": [len(row["paths"]) - 1 for row in rows],
            "Spearman": [f"{row['spearman']:.2f}" for row in rows],
        }
    )


def _study() -> str:
    rows = recorded("study.json")["runs"]
    minutes = sum(float(row.get("minutes", 0)) for row in rows)
    measured = f"*Measured here* ({_places(rows)}): {len(rows)} rows, {minutes / 60:.1f} hours. " if rows else ""
    return f"""## Does a search pay?

{measured}`backbones study` trains each network on digits_crowd from scratch, in the setting of [Crowd.yaml](configs/bases/Crowd.yaml).
It adds a row to [study.json](backbones/zoo/study.json). Intervals are bootstraps over networks.

![AP against entropy scores of structures, and against scores of paths by a supernet](docs/study.png)

{evidence.summary(rows)}
"""


def _measured() -> str:
    return f"""## Digits

*Measured here* on digits_val, by training from scratch; the minutes include training and evaluation, on a machine that may have been busy.
Every family in every detector, in one setting, is [above](#does-a-search-pay).

{_runs(recorded("measured.json")["runs"])}
"""


def _runs(runs: list[dict]) -> str:
    """A table of runs, with their backbones if they have others than their configs'."""
    return columns_of(
        {
            "config": [_link(r["config"]) for r in runs],
            **({"backbone": [r.get("backbone", "") for r in runs]} if any("backbone" in r for r in runs) else {}),
            **{heading: [f"{r[name]:.2f}" if name in r else "" for r in runs] for name, (heading, _) in FIGURES.items()},
            **{key: [r[key] for r in runs] for key in ("iterations", "machine", "seed")},
            "minutes": [f"{r['minutes']:.1f}" for r in runs],
            "command": [f"`{r['command']}`" for r in runs],
        }
    )


def _link(config: str) -> str:
    if config not in zoo.list_configs():  # detectron2's
        return config[: -len(".yaml")]
    return f"[{os.path.basename(config)[: -len('.yaml')]}](configs/{config})"


_READERS_SIZE = "800x1088"


def _readers() -> str:
    """A table to choose a network by: AP, size, speed, and whether its weights are available."""
    measured = {row["name"]: row for row in recorded("speed.json")["runs"]}
    rows, machine = [], ""
    for name, config in FASTER.items():
        row = measured[f"inference/{name}/{_READERS_SIZE}/optimized_vs_detectron2_R-50"]
        machine = f"{row['machine']}, {row['threads']} threads"
        first = weights.released(name)
        theirs = "" if name in registry.list_backbones() else "detectron2"
        alive = f"{first.spec.partition(':')[0]}, {first.licence}" if first else theirs or "gone: bring a file, or train from scratch"
        count = parameters(_on_meta(zoo.get_config(config)))[1]
        rows.append((name, f"{zoo.published(config)['published_ap']['box']}", f"{count / 1e6:.1f}", f"{row['median']:.2f}", alive))
    return f"""{table_of(rows, ("network", "COCO box AP", "parameters, M", "speedup", "ImageNet weights"))}

Faster R-CNN with FPN. The first two have FPNLite, an FPN of 128 channels instead of 256. R-50 and R-101 are detectron2's own.
AP: *published* by others, COCO 2017 val. They may have started from other ImageNet weights than the last column names. Their trained
detectors can be downloaded for RegNet, R-50 and R-101; those of VoVNet and MobileNetV2 are gone. Parameters: *computed*, of the whole detector.
Speedup: *measured here* ({machine}), one image of {_READERS_SIZE}: how many times faster than detectron2 runs its R-50 detector.
All rows use `--optimize`; therefore R-50 has more than 1. [model_zoo.md](model_zoo.md) has more.
"""


# page -> the table between two comments on it
PAGES = {"README.md": _readers, os.path.join("docs", "deploy.md"): int8}
_PLACE = re.compile(r"(<!-- written by python -m backbones.tools.docs -->\n).*?(<!-- end -->)", re.S)


def filled(page: str, text: str) -> str:
    """The text of one of `PAGES` with its table up to date."""
    table = PAGES[page]()
    return _PLACE.sub(lambda match: f"{match[1]}{table}{match[2]}", text)
