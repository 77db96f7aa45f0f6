"""Looks into the model zoo: what configs there are, what is known of one, and its released weights.

backbones zoo list "*mask*V_39*"
python -m backbones.tools.zoo show faster_rcnn_V_39_FPN_3x.yaml
python -m backbones.tools.zoo download RegNetX-3.2GF
"""

import fnmatch
import os
from typing import Any

from tabulate import tabulate

from .. import registry, zoo
from ..engine import open_config
from ..errors import UserError
from ..zoo import weights
from . import parser_of, program, run

# what evaluators call the figures
_METRICS = {
    "box": ("bbox", "AP"),
    "mask": ("segm", "AP"),
    "keypoint": ("keypoints", "AP"),
    "pq": ("panoptic_seg", "PQ"),
    "recall": ("box_proposals", "AR@1000"),
}


def entries(pattern: str) -> list[str]:
    """Configs of ours and of detectron2's, and networks, whose name matches a shell pattern, or holds it."""
    names = [
        *zoo.list_configs(python=True),
        *zoo.list_detectron2_configs(),
        *registry.list_backbones(),
        *registry.list_backbones(pattern + "*"),
    ]
    pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [name for name in dict.fromkeys(names) if fnmatch.fnmatchcase(name, pattern)]


def list_entries(pattern: str) -> str:
    rows = []
    for name in entries(pattern):
        network = registry.is_network(name)
        known = {} if network else zoo.published(name)
        released = bool(weights.released(name)) if network else "checkpoint" in known and not weights.releases(name)[0].gone
        ours = network or name in zoo.list_configs(python=True)
        figures = ", ".join(f"{kind} {value}" for kind, value in known.get("published_ap", {}).items())
        rows.append((name, "network" if network else "ours" if ours else "detectron2's", figures, "yes" if released else ""))
    if not rows:
        raise UserError(f"nothing in the zoo matches {pattern!r}. Everything: backbones zoo list")
    return tabulate(rows, ("name", "what", "published AP", "weights"), "pipe", disable_numparse=True)


def show(name: str) -> str:
    """What is known of one entry, and how to use it."""
    if registry.is_network(name):
        return _show_network(name)
    path, known = zoo.get_config_file(name), zoo.published(name)
    settings = open_config(name).settings
    expected = settings.TEST.EXPECTED_RESULTS
    if expected and not known:
        return f"{path}\nexpects: {expected}\nverify:\n  backbones train --config-file {name} --eval-only --num-gpus 8"
    lines = [path]
    if known:
        about = known["about"]
        figures = ", ".join(f"{kind} {value}" for kind, value in known["published_ap"].items())
        lines += [f"published: {figures} ({about['published_ap']})", f"source: {about['url']}, {about['version']}"]
        lines += [f"licence of the weights: {about['licence']}", *([f"remark: {known['note']}"] if "note" in known else [])]
    if "checkpoint" in known:
        converted = f", converted by `backbones convert {known['about']['converter']}`" if "converter" in known["about"] else ""
        lines += [f"weights: {known['checkpoint']}{converted}", "verify the row:", f"  {verification(name)}"]
    else:
        lines += [f"backbone's weights: {settings.MODEL.WEIGHTS or 'none, trained from scratch'}"]
    lines += ["train:", f"  backbones train --config-file {name} --num-gpus 8"]
    return "\n".join(lines)


def verification(name: str) -> str:
    """The command that evaluates the released weights of a config and compares the figures with the published ones."""
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
    for release in releases:
        figure = "" if release.top1 is None else f", top-1 {release.top1:.1f} %"
        lines += [f"  {release.address}", f"    {release.licence}{figure}, {release.place}"]
        lines += [f"    not taken unless it is named: {why}" for why in filter(None, (release.gone, release.restricted))]
    command = f"backbones train --config-file COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml --backbone {name} --num-gpus 8"
    return "\n".join([*lines, "in any config:", f"  {command}"])


def download(name: str) -> str:
    """The local path of the released weights of a network or config, fetched into detectron2's cache where they are not there yet."""
    if registry.is_network(name):
        return weights.find(weights.PREFIX + name)[0]
    zoo.get_checkpoint_url(name)  # which knows what is not released
    return weights.find(weights.PREFIX + os.path.splitext(zoo.published(name)["config"])[0])[0]


def main() -> None:
    parser = parser_of(program("zoo"), __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, action, text, about in (
        ("list", list_entries, "configs and networks, with published figures", "a part of the name, or a shell pattern (default: all)"),
        ("show", show, "what is known of a config or network", "a config or network that `list` lists"),
        ("download", download, "fetch released weights, print where they are", "a config or network that `list` lists"),
    ):
        one = commands.add_parser(command, help=text)
        optional: dict[str, Any] = {"nargs": "?", "default": "*", "metavar": "PATTERN"} if command == "list" else {"metavar": "NAME"}
        one.add_argument("name", help=about, **optional)
        one.set_defaults(action=action)
    args = parser.parse_args()
    print(args.action(args.name))


if __name__ == "__main__":
    run(main)
