"""Lists the model zoo: its configs, the facts about one, and its released weights.

backbones zoo list "*mask*V_39*"
backbones zoo show faster_rcnn_V_39_FPN_3x.yaml
backbones zoo download RegNetX-3.2GF
backbones zoo check "RegNet*" --json

Each command has its own flags: see for example `backbones zoo check --help`.
"""

import dataclasses
import fnmatch
import json
import os
import re
import sys
from collections import Counter
from typing import Any

from tabulate import tabulate

from .. import registry, zoo
from ..engine import open_config
from ..errors import UserError, raised
from ..meta import on_meta
from ..zoo import checking, weights
from . import parser_of, program, run

# names of the metrics in evaluators
_METRICS = {
    "box": ("bbox", "AP"),
    "mask": ("segm", "AP"),
    "keypoint": ("keypoints", "AP"),
    "pq": ("panoptic_seg", "PQ"),
    "recall": ("box_proposals", "AR@1000"),
}

_LICENCES = ("Apache-2.0", "BSD-3-Clause", "CC-BY-NC-4.0", "CC-BY-SA-3.0", "MIT")  # whose texts spdx.org has under these names


def entries(pattern: str) -> list[str]:
    """Our configs, detectron2's, and networks whose name matches a shell pattern or contains it."""
    names = [
        *zoo.list_configs(python=True),
        *zoo.list_detectron2_configs(),
        *registry.list_backbones(),
        *registry.list_backbones(pattern + "*"),
    ]
    pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [name for name in dict.fromkeys(names) if fnmatch.fnmatchcase(name, pattern)]


def _releases(name: str) -> list[weights.Release]:
    """The weights of a network, or of the detector of a config."""
    known = {} if registry.is_network(name) else zoo.published(name)
    return weights.releases(known["config"] if known else name) if registry.is_network(name) or "checkpoint" in known else []


def _seen(release: weights.Release) -> str:
    """Whether the file existed at the last check."""
    last = checking.last_seen(release.place)
    return f"{last[0]} {last[1][:10]}" if last else "gone" if release.gone else f"address not checked yet: `{program('zoo')} check`"


def list_entries(pattern: str) -> str:
    rows = []
    for name in entries(pattern):
        network = registry.is_network(name)
        known = {} if network else zoo.published(name)
        releases = _releases(name)
        first = next((release for release in releases if release.free), releases[0] if releases else None)
        figures = ", ".join(f"{kind} {value}" for kind, value in known.get("published_ap", {}).items())
        if first:
            figures = f"top-1 {first.top1:.1f}" if network and first.top1 else figures
            where = f"{first.spec}, and {len(releases) - 1} more" if len(releases) > 1 else first.spec
        cells = (where, first.licence.partition(",")[0], _seen(first)) if first else ("", "", "")
        rows.append((name, "network" if network else "ours" if name in zoo.list_configs(python=True) else "detectron2's", figures, *cells))
    if not rows:
        raise UserError(f"nothing in the zoo matches {pattern!r}. List everything: backbones zoo list")
    return tabulate(rows, ("name", "what", "published", "weights", "licence", "last seen"), "pipe", disable_numparse=True)


def _text_of(licence: str, otherwise: str = "its source") -> str:
    """Where the text of a licence is."""
    return f"its text: {f'https://spdx.org/licenses/{licence}.html' if licence in _LICENCES else otherwise}"


def _lines(releases: list[weights.Release]) -> list[str]:
    lines = []
    for release in releases:
        figure = "" if release.top1 is None else f", top-1 {release.top1:.1f} %"
        lines += [f"  {release.address}", f"    {release.licence}{figure}; {release.place}; {_seen(release)}"]
        images = release.preprocessing
        if images:
            lines += [f"    expects {images['format']} images, mean {images['pixel_mean']}, standard deviation {images['pixel_std']}"]
        lines += [f"    used only if its source is named: it is {release.gone}"] if release.gone else []
        accept = f"used only with --accept-licence {release.licence} or this full address"
        lines += [f"    {accept}: {release.restricted}; {_text_of(release.licence)}"] if release.restricted else []
    return lines


def show(name: str) -> str:
    """The facts about one entry, and how to use it."""
    if registry.is_network(name):
        return _show_network(name)
    theirs = name.replace("-", "_").upper()  # R_50 in the names of configs
    if re.fullmatch(r"[A-Z]_\d+", theirs) and any(f"_{theirs}_" in config for config in zoo.list_detectron2_configs()):
        said = f"{name!r} is a network of detectron2's own and has no entry. Its configs: {program('zoo')} list {theirs}"
        raise UserError(said, "unknown-name", "NAME")
    full = registry.full_name(name)
    if full:
        raise UserError(f"unknown config or network: {name!r}. Did you mean {full!r}?", "unknown-name", "NAME", full)
    networks = registry.list_backbones("timm/*" if name.startswith("timm/") else "*")
    path, known = zoo.get_config_file(name, networks), zoo.published(name)
    settings, releases = open_config(name).settings, _releases(name)
    lines = [path]
    if known:
        about = known["about"]
        figures = ", ".join(f"{kind} {value}" for kind, value in known["published_ap"].items())
        lines += [f"published: {figures} ({about['published_ap']})", f"source: {about['url']}, {about['version']}"]
        forbidden = f", {about['restricted']}" if "restricted" in about else ""
        lines += [f"licence of the weights: {about['licence']}{forbidden}; {_text_of(about['licence'], about['url'])}"]
        lines += [f"remark: {known['note']}"] if "note" in known else []
    if releases:
        lines += ["weights of the detector:", *_lines(releases)]
    elif known:
        lines += [f"weights of the detector: none to download; your own file is found as {weights.PREFIX}{weights.stem(known['config'])}"]
    if settings.TEST.EXPECTED_RESULTS:
        lines += ["check the published figures:", f"  backbones train --config-file {name} --eval-only --num-gpus 8"]
    elif any(not release.gone for release in releases):
        lines += ["check the published figures:", f"  {verification(name)}"]
    address = settings.MODEL.WEIGHTS
    if not settings.TEST.EXPECTED_RESULTS:
        lines += [f"training starts from: {address or 'random weights'}"]
        own = weights.parsed(address) if address else None
        lines += _lines(weights.releases(own[0])) if own else []
        lines += ["train:", f"  backbones train --config-file {name} --num-gpus 8"]
    return "\n".join(lines)


def verification(name: str) -> str:
    """The command that evaluates the released weights of a config and compares the metrics with the published ones."""
    known = zoo.published(name)
    expected = [[*_METRICS[kind], value, 0.1] for kind, value in known["published_ap"].items()]
    options = f'MODEL.WEIGHTS {zoo.get_checkpoint_url(name)} TEST.EXPECTED_RESULTS "{expected}"'
    return f"backbones train --config-file {name} --num-gpus 8 --eval-only {options}"


def _show_network(name: str) -> str:
    lines = [f"{name}: {registry.get_spec(name)}"]
    local, releases = weights.local(name), weights.releases(name)
    if local:
        lines += [f"weights here: {local}"]
    lines += [f"weights, in the order in which MODEL.WEIGHTS {weights.PREFIX}{name} tries them:"] if releases else ["no weights: from scratch"]
    lines += _lines(releases)
    with on_meta():
        unfit = raised(registry.create, name)
    if unfit:
        return "\n".join([*lines, f"it cannot serve as a backbone: {unfit[0]}"])
    command = f"backbones train --config-file COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml --backbone {name} --num-gpus 8"
    return "\n".join([*lines, "in any config:", f"  {command}"])


def download(name: str) -> str:
    """The local path of the released weights of a network or config; downloads them into detectron2's cache if necessary."""
    if registry.is_network(name):
        return weights.find(weights.PREFIX + name)[0]
    zoo.get_checkpoint_url(name)  # raises for weights that are not released
    return weights.find(weights.PREFIX + os.path.splitext(zoo.published(name)["config"])[0])[0]


def check(pattern: str, jobs: int = 8, timeout: float = 10) -> list[dict[str, Any]]:
    """Checks each address that matches the pattern with `checking.check`: a row per release, with ``gone`` if it was known to be gone."""
    releases = checking.addresses(entries(pattern))
    if not releases:
        raise UserError(f"no released weights match {pattern!r}. Check everything: backbones zoo check")
    answers = checking.check(releases, jobs, timeout)
    rows = []
    for release in releases:
        row = {"name": release.name, "source": release.spec, "address": release.place, **dataclasses.asdict(answers[release.place])}
        row.update(sha256=row["sha256"] or release.sha256, gone=bool(release.gone))
        rows.append(row)
    return rows


def check_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        state = f"{row['state']}, as known" if row["state"] == "dead" and row["gone"] else row["state"]
        about = f"to {row['to']}" if row["to"] else row["why"]
        size = "" if row["size"] is None else f"{row['size'] / 1e6:.1f} MB"
        cells.append((row["name"], row["source"], f"{state}: {about}" if about else state, size, row["sha256"][:12] or "not known"))
    counts = Counter(row["state"] for row in {row["address"]: row for row in rows}.values())
    summary = ", ".join(f"{counts[state]} {state}" for state in checking.STATES if counts[state])
    table = tabulate(cells, ("name", "source", "state", "size", "sha256"), "pipe", disable_numparse=True)
    return f"{table}\n\n{counts.total()} addresses: {summary}"


def _check(args: Any) -> None:
    if args.workers < 1 or not 0 < args.timeout < float("inf"):
        raise UserError(
            f"--workers {args.workers} --timeout {args.timeout:g}: both must be positive", key="--workers" if args.workers < 1 else "--timeout"
        )
    rows = check(args.name, args.workers, args.timeout)
    print(json.dumps(rows, indent=1) if args.json else check_table(rows))
    sys.exit(any(row["state"] == "dead" and not row["gone"] for row in rows))


def main() -> None:
    parser = parser_of(program("zoo"), __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, action, text in (
        ("list", lambda args: print(list_entries(args.name)), "configs and networks, with published figures"),
        ("show", lambda args: print(show(args.name)), "facts about a config or network"),
        ("download", lambda args: print(download(args.name)), "download released weights and print their path"),
        (
            "check",
            _check,
            "check that each file of released weights can be downloaded; exit code 1 if one cannot that was not known to be gone",
        ),
    ):
        one = commands.add_parser(command, help=text, description=text)
        if command in ("list", "check"):
            one.add_argument("name", nargs="?", default="*", metavar="PATTERN", help="a part of the name, or a shell pattern (default: all)")
        else:
            one.add_argument("name", metavar="NAME", help="a config or network that `list` lists")
        one.set_defaults(action=action)
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--workers", "--jobs", type=int, default=8, metavar="N", help="addresses checked at a time (default: 8)")
    one.add_argument("--timeout", type=float, default=10, metavar="S", help="seconds to wait for a server's answer (default: 10)")
    args = parser.parse_args()
    args.action(args)


if __name__ == "__main__":
    run(main)
