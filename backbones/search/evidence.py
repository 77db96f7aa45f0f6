"""What the rows of `backbones study` show: how reliable the measure is, what predicts AP, and whether searches find more."""

import dataclasses
import itertools
import math
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from .. import zoo
from ..errors import counted
from ..files import save_figure
from ..maedet import read_structure
from .entropy import Meter, plain
from .evolution import Candidate
from .structure_config import load_structure_config
from .study import BUDGET, DETECTORS, FAMILIES, FASTER, OWN, SUPERNETS, VARIANTS, Network, detectors, iterations_of, scores_of, structures

_RESAMPLES = 10_000  # of a bootstrap interval
_LEAST = 8  # networks of a rank correlation: of fewer, bootstrap intervals are too narrow


def by_network(rows: Sequence[Mapping[str, Any]], study: str, figure: str = "ap") -> dict[str, dict[int, float]]:
    """The figures of each network of a study, by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["study"] == study:
            found.setdefault(row["network"], {})[row["seed"]] = row[figure]
    return found


@dataclasses.dataclass
class Correlation:
    """A rank correlation (Spearman's), its bootstrap interval of 95 %, and the number of networks."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def correlation(a: Sequence[float], b: Sequence[float]) -> Correlation:
    """Spearman's rank correlation of two measures of the same networks; networks are resampled for its interval."""
    from scipy.stats import rankdata

    def rank(x: np.ndarray) -> np.ndarray:
        centred = (ranks := rankdata(x, axis=-1)) - ranks.mean(-1, keepdims=True)
        return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)

    def spearman(chosen: np.ndarray) -> np.ndarray:
        return (rank(first[chosen]) * rank(second[chosen])).sum(-1)

    first, second, count = np.asarray(a, float), np.asarray(b, float), len(a)
    chosen = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    low, high = np.percentile(spearman(chosen), [2.5, 97.5])
    return Correlation(float(spearman(np.arange(count)[None])[0]), float(low), float(high), count)


def reliability(found: Mapping[str, Mapping[int, float]], seeds: tuple[int, int] = (1, 2)) -> Correlation | None:
    """The rank correlation between two seeds of the same networks; None with fewer than `_LEAST` networks of both."""
    both = [by_seed for by_seed in found.values() if all(seed in by_seed for seed in seeds)]
    return correlation(*([by_seed[seed] for by_seed in both] for seed in seeds)) if len(both) >= _LEAST else None


def means(found: Mapping[str, Mapping[int, float]], names: Iterable[str]) -> dict[str, float]:
    """The mean of each network over the seeds that all of them have, as seeds differ in their level; empty if there is no such seed."""
    names = list(names)
    seeds = _common(found, names)
    return {name: float(np.mean([found[name][seed] for seed in seeds])) for name in names} if seeds else {}


def _common(found: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> set[int]:
    """The seeds that all of these networks have."""
    return set.intersection(*(set(found[name]) for name in names)) if names else set()


def _levels(found: Mapping[str, Mapping[int, float]], random: Sequence[str]) -> tuple[set[int], dict[str, float]]:
    """The seeds that all ``random`` networks have, and the mean of every network over these; over its own if it has none of them."""
    common = _common(found, random)
    own = {name: [value for seed, value in by_seed.items() if seed in common] or [*by_seed.values()] for name, by_seed in found.items()}
    return common, {name: float(np.mean(values)) for name, values in own.items()}


def spread(found: Mapping[str, Mapping[int, float]]) -> float:
    """The standard deviation of a figure between seeds of one network, pooled over networks; NaN with one seed each."""
    several = [list(by_seed.values()) for by_seed in found.values() if len(by_seed) > 1]
    squares = sum(float(np.var(values)) * len(values) for values in several)
    return float(np.sqrt(squares / max(sum(len(values) - 1 for values in several), 1))) if several else float("nan")


def predictors(structure: Candidate, image_size: int) -> dict[str, float]:
    """What is known of a structure without training: its entropy in all and by stage, and the simple rivals."""
    costs = Meter(image_size).measure(structure)
    stages = Meter(image_size, (1.0,) * 5).stages(structure)
    return {
        "entropy": costs.score,
        **{f"entropy at stride {2 << i}": share for i, share in enumerate(stages)},
        "parameters": costs.parameters,
        "operations": costs.flops,
        "layers": costs.layers,
        "width of the last stage": structure[-1][0],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rows say, in words and tables (Markdown)."""
    parts = [
        said
        for said in (
            _structures(rows, "structures"),
            _structures(rows, "short"),
            *(_paths(rows, study) for study in SUPERNETS),
            _detectors(rows),
        )
        if said
    ]
    return "\n\n".join(parts) or "no rows yet"


def _measure(found: Mapping[str, Mapping[int, float]], of: str = "") -> str:
    certain = reliability(found)
    between = (
        f"Rank correlation (Spearman's) of two seeds{of}, with its interval of 95 %: {certain}, {certain.count} networks. " if certain else ""
    )
    known = spread(found)
    return f"{between}Standard deviation between seeds of one network{of}: " + ("one seed so far." if np.isnan(known) else f"{known:.2f} AP.")


def _groups(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[int, float]]) -> str:
    """Random networks together, the others one by one; AP is over the seeds that all random ones have."""
    group = {row["network"]: row["group"] for row in rows}
    common, each = _levels(found, [name for name in found if group[name].startswith("random")])
    table = []
    for kind in sorted({kind for kind in group.values() if kind.startswith("random")}):
        names = [name for name in found if group[name] == kind]
        chance = {name: each[name] for name in names}
        seeds = sorted({seed for name in names for seed in found[name]})
        of_seeds = {seed: [found[name][seed] for name in names if seed in found[name]] for seed in seeds}
        said = (f"{np.mean(aps):.2f}" + (f" (of {len(aps)})" if len(aps) < len(names) else "") for aps in of_seeds.values())
        table.append((f"{kind}: mean of {len(chance)}", f"{np.mean([*chance.values()]):.2f}", " ".join(said)))
        table.append(("the best of them", f"{max(chance.values()):.2f}", ""))
    for name, mean in sorted(each.items(), key=lambda item: -item[1]):
        if not group[name].startswith("random"):
            others = "" if not common or common & {*found[name]} else " (other seeds)"
            table.append((name, f"{mean:.2f}{others}", " ".join(f"{value:.2f}" for _, value in sorted(found[name].items()))))
    compared = f", seed{'s' * (len(common) > 1)} {', '.join(map(str, sorted(common)))}" if common else ""
    return tabulate(table, ("network", f"AP{compared}", "of each seed"), "pipe", disable_numparse=True)


def _structures(rows: Sequence[Mapping[str, Any]], study: str) -> str:
    found, whole = by_network(rows, study), by_network(rows, "structures")
    if not found:
        return ""
    drawn = [network for network in structures() if network.group.startswith("random") and network.name in found]
    whole_space = {network.name: found[network.name] for network in drawn if network.group == "random"}
    parts = [f"Structures of one number of operations, {iterations_of(study):,} iterations. {_measure(whole_space, ' (group random)')}"]
    both = [name for name in whole_space if name in whole] if study == "short" else []
    if len(both) >= _LEAST and (now := means(found, both)) and (long := means(whole, both)):
        agreement = correlation([*now.values()], [*long.values()])
        parts[0] += f" Rank correlation with the AP of the long training (group random): {agreement}, {counted(len(both), 'network')}."
    size, columns = load_structure_config(BUDGET)["image_size"], {}
    for group in dict.fromkeys(network.group for network in drawn):
        own = [network for network in drawn if network.group == group]
        reached = means(found, [network.name for network in own])
        if len(reached) >= _LEAST:
            known = [predictors(network.structure, size) for network in own]
            aps = [reached[network.name] for network in own]
            columns[f"{group} ({len(own)})"] = {name: str(correlation([each[name] for each in known], aps)) for name in known[0]}
    if columns:
        lines = [(name, *(column[name] for column in columns.values())) for name in next(iter(columns.values()))]
        parts.append("Spearman's correlation with AP, and its interval:")
        parts.append(tabulate(lines, ("known without training", *columns), "pipe", disable_numparse=True))
    return "\n\n".join([*parts, _groups([row for row in rows if row["study"] == study], found)])


def _paths(rows: Sequence[Mapping[str, Any]], study: str) -> str:
    found = by_network(rows, study)
    if not found:
        return ""
    own, scored = [row for row in rows if row["study"] == study], by_network(rows, scores_of(study))
    drawn = {name: found[name] for name in found if any(row["network"] == name and row["group"] == "random" for row in own)}
    space = {"paths": "", "wide": " with branch widths"}.get(study, " with branch widths, and one choice for all blocks of a stage")
    space += ", trained with group norm" * (study == "stages_gn")
    parts = [f"Paths of one cost{space}, {iterations_of(study):,} iterations. {_measure(drawn, ' (group random)')}", _groups(own, found)]
    kinds = {row["network"]: row["group"] for row in rows if row["study"] == scores_of(study)}
    if values := [*means(scored, [name for name in scored if kinds[name] == "random"]).values()]:
        said = f"{counted(len(values), 'random path')}, {min(values):.2f} to {max(values):.2f}, {np.mean(values):.2f} on average"
        found_ones = "".join(f"; {name} {np.mean([*scored[name].values()]):.2f}" for name in scored if kinds[name] == "found")
        parts.insert(1, f"AP with the supernet's weights, on held-out training images: {said}{found_ones}.")
    both = [name for name in drawn if name in scored]
    if len(both) >= _LEAST and (scores := means(scored, both)) and (reached := means(drawn, both)):
        agreement = correlation([*scores.values()], [*reached.values()])
        parts.insert(1, f"Rank correlation of the supernet's scores with AP: {agreement}, {len(both)} random paths.")
    return "\n\n".join(parts)


def _detectors(rows: Sequence[Mapping[str, Any]]) -> str:
    found = by_network(rows, "detectors")
    if not found:
        return ""

    def cell(family: str, name: str) -> str:
        values = list(found.get(f"{family} in {name}", {}).values())
        return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "".join(f"{v:.1f}" for v in values)

    columns = [name for name in (*DETECTORS, *VARIANTS) if any(network.endswith(f" in {name}") for network in found)]
    families = [family for family in (*FAMILIES, OWN) if any(network.startswith(f"{family} in ") for network in found)]
    table = [(family, *(cell(family, name) for name in columns)) for family in families]
    trained = f"{len(found)} of {len(detectors())} networks so far"
    configs = {name: zoo.get_config(f"crowd/{name}_crowd.yaml") for name in (FASTER, *(name for name in columns if name in DETECTORS))}
    others = {name: cfg for name, cfg in configs.items() if cfg.INPUT != configs[FASTER].INPUT}
    sizes = "".join(f"{name} has images of {cfg.INPUT.MIN_SIZE_TEST} pixels and rate {cfg.SOLVER.BASE_LR:g}. " for name, cfg in others.items())
    said = f"AP of boxes, {iterations_of('detectors'):,} iterations, {trained}. Variants of {FASTER}: {'; '.join(VARIANTS)}. "
    said += sizes + _measure(found)
    return f"{said}\n\n" + tabulate(table, ("network", *columns), "pipe", disable_numparse=True)


def structure_of(network: Network) -> Candidate:
    """The structure of a network of MAE-DET's space; empty for others."""
    path = "" if network.structure or network.backbone else zoo.get_config(network.config).MODEL.MAEDET.STRUCTURE
    return plain(read_structure(path)) if path else network.structure


def plot(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Draws what was known before training against AP, with the range of the seeds: entropy of structures, scores of paths by a supernet.

    Stars are what was found. Lines are hand-made networks, and what was found but has no score.
    """
    meter = Meter(load_structure_config(BUDGET)["image_size"])
    panels: list[tuple[str, str, dict[str, float]]] = []  # (study, what is known, its value for each random network)
    entropy = {network.name: meter.measure(structure).score for network in structures() if (structure := structure_of(network))}
    for study in ("short", "structures"):
        panels.append((study, "entropy score", entropy))
    for study in SUPERNETS:
        scored = by_network(rows, scores_of(study))
        names = [name for name in by_network(rows, study) if name in scored]
        panels.append((study, "AP with the supernet's weights", means(scored, names)))
    panels = [panel for panel in panels if by_network(rows, panel[0])] or panels[:1]
    lines_of_panels = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(5.5 * min(len(panels), 3) + 2, 4.5 * lines_of_panels), layout="constrained")
    colours, lines = itertools.cycle(f"C{i}" for i in range(10)), itertools.cycle(("--", ":", "-.", "-"))
    styles: dict[str, dict[str, Any]] = {}  # the same in all panels
    places = [*figure.subplots(lines_of_panels, min(len(panels), 3), squeeze=False).flat]
    for axes in places[len(panels) :]:
        axes.remove()
    for axes, (study, what, known) in zip(places, panels):
        found, group = by_network(rows, study), {row["network"]: row["group"] for row in rows if row["study"] == study}
        _, level = _levels(found, [name for name in found if group[name].startswith("random")])
        drawn: dict[str, list[tuple[float, float, list[float]]]] = {}
        for name, by_seed in found.items():
            random_one = group[name].startswith("random")
            if name in known:
                drawn.setdefault(group[name] if random_one else name, []).append((known[name], level[name], [*by_seed.values()]))
            elif not random_one:
                style = styles.get(name) or styles.setdefault(name, {"color": "0.4", "linestyle": next(lines), "linewidth": 1})
                axes.axhline(level[name], label=name, **style)
        for label, points in drawn.items():
            low, high = ([abs(end(values) - mean) for _, mean, values in points] for end in (min, max))
            marker, size = ("o", 4) if label.startswith("random") else ("*", 10)
            style = styles.get(label) or styles.setdefault(label, {"color": next(colours), "fmt": marker, "markersize": size})
            middle = [mean for _, mean, _ in points]
            axes.errorbar([score for score, *_ in points], middle, yerr=[low, high], capsize=2, label=label, **style)
        missing = sum(name not in known and group[name].startswith("random") for name in found)
        more = f", {counted(missing, 'path')} not scored yet" if missing else ""
        axes.set(xlabel=what, ylabel="AP, mean of the seeds that all have", title=f"{study}, {iterations_of(study):,} iterations{more}")
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, fontsize=8, loc="outside right center")
    save_figure(figure, path)
