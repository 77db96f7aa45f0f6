"""Released weights by name, for MODEL.WEIGHTS: their source, their licence, and the images they expect.

backbones://V-39-eSE                          your own file of that name, else the first available source
backbones://V-39-eSE@timm:ese_vovnet39b.ra_in1k  that file alone; backbones://V-39-eSE@timm is any of timm's
timm://ese_vovnet39b.ra_in1k                  the same; torchvision:// and pycls:// likewise
backbones://faster_rcnn_RegNetX_3.2GF_FPN_1x  a released detector, by the name of its config

A file is downloaded once, its hash checked, converted by ``convert``, and kept converted. Weights that may not be used commercially are used
only if their licence is accepted or their source is named.
"""

import dataclasses
import functools
import importlib.util
import logging
import math
import os
import re
from typing import Any, Collection, Mapping
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock

from .. import registry
from ..checkpoint import fetch, fetch_hub, read_checkpoint
from ..checkpoint.fetching import cached, kept_if_whole
from ..checkpoint.fetching import place as place_of
from ..config import IMAGES
from ..documents import read_json
from ..errors import UserError, counted, either, unknown
from ..regnet import ROUNDINGS

PREFIX = "backbones://"
# spellings that people use
_LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0", "seer-license": "SEER"}
_ENDINGS = ("", ".safetensors", ".pth")
# all that a file can say of its network's structure
_STRUCTURE = "MODEL.REGNET.ROUNDING"
_SCRATCH = "from scratch: set MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 and the backbone's NORM SyncBN (BN on one GPU)"
_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")
_HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass(frozen=True)
class Release:
    """One released file. ``preprocessing`` is that of the file as this project has it: networks of RGB are turned to BGR in conversion."""

    name: str  # of the network, or of a whole detector's config
    source: str
    id: str
    title: str  # of the source
    licence: str
    preprocessing: Mapping[str, Any] | None = None
    hub: str = ""  # of huggingface.co, as owner/name
    url: str = ""
    sha256: str = ""  # or how it begins
    top1: float | None = None  # on ImageNet, %
    overrides: tuple[str, ...] = ()  # KEY, VALUE, ... that the network's structure needs
    restricted: str = ""  # what the licence forbids
    gone: str = ""  # why it cannot be downloaded
    package: str = ""  # module of `convert` that reads it from an installed package
    converter: str = ""  # the source of `convert`; "" where the file is loaded as it is

    @property
    def spec(self) -> str:
        return f"{self.source}:{self.id}"

    @property
    def address(self) -> str:
        """What names this file alone in MODEL.WEIGHTS."""
        return f"{PREFIX}{self.name}@{self.spec}"

    @property
    def free(self) -> bool:
        """Whether it is used without being named."""
        return not (self.gone or self.restricted)

    @property
    def as_it_is(self) -> bool:
        """Whether the file is used as it is downloaded."""
        return not self.converter and not self.preprocessing

    @property
    def place(self) -> str:
        """Where its file is."""
        return self.url or (f"hub:{self.hub}" if self.hub else f"package:{self.source}")


def folder() -> str:
    """The folder of the user's own files: the variable BACKBONES_WEIGHTS, by default ``weights``."""
    return os.path.expanduser(os.getenv("BACKBONES_WEIGHTS", "weights"))


@functools.cache
def data() -> dict[str, Any]:
    return read_json(os.path.join(_HERE, "weights.json"))


def _release(name: str, row: Mapping[str, Any]) -> Release:
    source = data()["sources"][row["source"]]
    images = dict(row.get("preprocessing") or source["preprocessing"])
    if images["format"] == "RGB":
        images = {"format": "BGR", **{key: images[key][::-1] for key in ("pixel_mean", "pixel_std")}}
    overrides = ("MODEL.REGNET.ROUNDING", row["rounding"]) if "rounding" in row else ()
    known = {key: row[key] for key in ("source", "id", "licence", "hub", "url", "sha256", "top1") if key in row}
    restricted = forbids(row["licence"])
    return Release(
        name, **known, title=source["title"], preprocessing=images, overrides=overrides, restricted=restricted, gone=source.get("gone", ""),
        converter=row["source"],
    )  # fmt: skip


@functools.cache
def models() -> dict[str, dict[str, Any]]:
    """The rows of published detectors, by the name of their config."""
    rows = read_json(os.path.join(_HERE, "models.json"))
    return {row["config"]: {**row, "about": rows["sources"][row["source"]]} for row in rows["models"] if "config" in row}


def stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _detector(name: str) -> list[Release]:
    wanted = name.removesuffix(".yaml")
    rows = {stem(config): row for config, row in models().items() if "checkpoint" in row}
    # by its file name alone too, which of several data sets means COCO's
    named = [whole for whole in rows if wanted in (whole, os.path.basename(whole))]
    if not named:
        return []
    whole = min(named, key=lambda whole: (whole != wanted, not whole.startswith("COCO-")))
    row = rows[whole]
    source, url = row["about"], row["checkpoint"]
    own = stem(os.path.basename(url.partition("?")[0]))
    return [
        Release(
            whole, row["source"], own, source["title"], source["licence"], url=url, sha256=row.get("sha256", ""),
            restricted=source.get("restricted", ""), gone=source.get("gone", ""), converter=source.get("converter", ""),
        )
    ]  # fmt: skip


def _of_library(name: str) -> list[Release]:
    """What a network's own library offers for it, in that library's format."""
    found = []
    row, packaged = registry.family_of(name).pretrained(name), data()["packages"].get(name.partition(".")[0])
    if row is not None:
        source, own = row["name"].split("/", 1)
        title, place = data()["sources"][source]["title"], next(key for key in ("hub", "url") if key in row)  # as for timm itself
        licence = _of_timm(row.get("licence", "not stated"))
        found.append(
            Release(row["name"], source, own, title, licence, row["preprocessing"], **{place: row[place]}, restricted=forbids(licence))
        )
    if packaged:
        source, images = packaged["source"], data()["sources"][packaged["source"]]["preprocessing"]
        found.append(Release(name, source, packaged["id"], source, packaged["licence"], images, package=packaged["package"]))
    return found


def forbids(licence: str) -> str:
    """What a licence forbids; "" if it is known to forbid nothing."""
    known: dict[str, str] = data()["licences"]
    return known.get(licence, "under an unknown licence: read it before you use them")


def known_licences(names: Collection[str]) -> list[str]:
    """The names of licences that a user accepts. Raises UserError for one that applies to no weights."""
    found = list(data()["licences"])
    if not set(names) <= set(found) and importlib.util.find_spec("timm"):
        family = registry.FAMILIES["timm"]
        rows = (family.pretrained(name) for name in family.specs)
        found += sorted({_of_timm(row["licence"]) for row in rows if row and "licence" in row} - set(found))
    spelt = {licence.lower(): licence for licence in found}
    for name in names:
        if name.lower() not in spelt:
            raise unknown("licence", name, found, "--accept-licence", listed="backbones zoo list")
    return [spelt[name.lower()] for name in names]


def _of_timm(licence: str) -> str:
    return _LICENCES.get(licence.lower(), licence)


def releases(name: str) -> list[Release]:
    """All weights released for a network, in the order in which they are tried; for a detector's config, the one of its row."""
    if name in data()["weights"]:
        return [_release(name, row) for row in data()["weights"][name]]
    return _of_library(name) if registry.is_network(name) else _detector(name)


def released(name: str, accepted: Collection[str] = ()) -> Release | None:
    """The default weights of a network: the first release that is free to use, or under one of the ``accepted`` licences."""
    return next((release for release in releases(name) if release.free or not release.gone and release.licence in accepted), None)


def local(name: str) -> str:
    """The path of the user's own file in `folder`, or "". Raises UserError if there are two."""
    there = [path for ending in _ENDINGS for path in [os.path.join(folder(), name + ending)] if os.path.isfile(path)]
    if len(there) > 1:
        raise UserError(f"{PREFIX}{name} could be any of {', '.join(there)}: remove or rename all but one", "conflict")
    return there[0] if there else ""


def stated(contents: Mapping[str, Any], path: str) -> tuple[dict[str, Any] | None, list[str]]:
    """What a file states about its images, and about the network structure that it needs (KEY, VALUE, ...).

    Files of strangers are read too. Raises UserError for keys other than those that `convert` writes, and for images that cannot be.
    """
    images, provenance = contents.get("preprocessing"), contents.get("provenance")
    overrides = provenance.get("overrides") or [] if isinstance(provenance, dict) and "detector" not in provenance else []
    if overrides and not (isinstance(overrides, list) and overrides[:-1] == [_STRUCTURE] and overrides[-1] in ROUNDINGS):
        said = f"{path!r} wants the config to have {str(overrides)[:200]}: weights can set only {_STRUCTURE}, to {either(ROUNDINGS)}"
        raise UserError(f"{said}. Remove 'overrides' from its 'provenance', or convert the original again", "bad-file", "MODEL.WEIGHTS")
    if not isinstance(images, dict) or not {"format", "pixel_mean", "pixel_std"} <= set(images):
        return None, overrides
    numbers = [images[key] for key in ("pixel_mean", "pixel_std")]
    right = all(isinstance(each, (list, tuple)) and each and all(map(_is_number, each)) for each in numbers)
    if images["format"] not in _FORMATS or not right or len(numbers[0]) != len(numbers[1]) or min(numbers[1]) <= 0:
        said = f"{path!r} states images that cannot be, {str(images)[:200]}: 'format' is one of {', '.join(_FORMATS)}"
        raise UserError(f"{said}, 'pixel_mean' and 'pixel_std' are lists of numbers, those of 'pixel_std' above 0", "bad-file", "MODEL.WEIGHTS")
    return images, overrides


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def settings(images: Mapping[str, Any] | None) -> dict[str, Any]:
    """Config keys and their values for what a file states about its images, which may be nothing."""
    return dict(zip(IMAGES, (images["format"], list(images["pixel_mean"]), list(images["pixel_std"])))) if images else {}


def about(name: str, accepted: Collection[str] = ()) -> tuple[Mapping[str, Any] | None, list[str]]:
    """`stated` for the weights that ``backbones://NAME`` uses first, without a download."""
    path, release = local(name), released(name, accepted)
    if path:
        return stated(read_checkpoint(path, lazy=True), path)
    return (release.preprocessing, list(release.overrides)) if release else (None, [])


def parsed(address: str) -> tuple[str, str] | None:
    """(name, the part after the @) of one of our addresses; None for any other. Raises UserError for an id that no network has."""
    scheme, found, rest = address.partition("://")
    if not found or scheme not in ("backbones", *data()["sources"]):
        return None
    if scheme == "backbones":
        name, _, wanted = rest.partition("@")
        return name, wanted
    for name, rows in data()["weights"].items():
        if any(row["source"] == scheme and row["id"] == rest for row in rows):
            return name, f"{scheme}:{rest}"
    if any(f"{scheme}/{rest}" in family.specs for family in registry.FAMILIES.values() if family.name == scheme and "." in rest):
        return f"{scheme}/{rest}", f"{scheme}:{rest}"
    ids = [row["id"] for rows in data()["weights"].values() for row in rows if row["source"] == scheme]
    own = [name.partition("/")[2] for family in registry.FAMILIES.values() if family.name == scheme for name in family.specs]
    ids = [name for name in own if name.startswith(rest + ".")] or sorted({*ids, *own})
    raise unknown(f"weights of {scheme}", rest, ids, "MODEL.WEIGHTS", "missing-weights", "backbones zoo list")


def here(release: Release) -> bool:
    """Whether a release needs no download."""
    if release.package:
        return importlib.util.find_spec(release.source.replace("-", "_")) is not None
    if release.url and release.as_it_is:
        return os.path.isfile(place_of(release.url))
    return os.path.isfile(_kept(release))


def is_here(address: str) -> bool:
    """Whether weights by an address of ours need no download, or cannot be downloaded."""
    name, wanted = parsed(address) or ("", "")
    if not wanted and local(name):
        return True
    candidates = _candidates(name, wanted, ())[0]
    return not candidates or here(candidates[0])


def find(address: str, accepted: Collection[str] = ()) -> tuple[str, Release | None]:
    """(local path, release) of weights by an address of ours; the release is None for the user's own file.

    ``accepted``: licences that the user agrees to, beside those that forbid nothing. Raises UserError, which lists all sources, if none can
    be used.
    """
    name, wanted = parsed(address) or ("", "")
    path = "" if wanted else local(name)
    if path:
        return path, None
    candidates, others = _candidates(name, wanted, accepted)
    failed = []
    for release in candidates:
        try:
            path = _converted(release)
        except UserError as error:
            failed.append(f"{release.spec}: {error}")
            continue
        for problem in failed:  # if all fail, the error reports them
            logging.getLogger(__name__).warning(f"weights of {name} come from {release.spec}, because another source cannot be used: {problem}")
        _log(release)
        return path, release
    said = "; ".join(failed[:2]) + (f" and {counted(len(failed) - 2, 'more source')}" if failed[2:] else "") or "there is no source"
    if others:
        said += f". Not tried: {'; '.join(others)}"
    prefixed = registry.is_network(name) and registry.family_of(name).prefix  # a library's own network, whose files need no conversion
    file = "your own file" + ("" if prefixed else ", converted by `python -m convert` if it is another project's,")
    own = f"Set MODEL.WEIGHTS to {file.rstrip(',')}" if wanted else f"Save {file} as {os.path.join(folder(), name + '.pth')!r}"
    raise UserError(
        f"no weights for {address!r}: {said}. {own}" + (f"; {_SCRATCH}" if name in data()["weights"] else ""),
        "missing-weights",
        "MODEL.WEIGHTS",
    )


def _candidates(name: str, wanted: str, accepted: Collection[str]) -> tuple[list[Release], list[str]]:
    """The releases that may be used, in order, and why not the others. Raises UserError for an unknown name or source."""
    rows = releases(name)
    if not rows and registry.is_network(name):
        said = f"no weights of {name} are known: save your own file as {os.path.join(folder(), name + '.pth')!r}, or train {_SCRATCH}"
        raise UserError(said, "missing-weights", "MODEL.WEIGHTS")
    if not rows:
        there = [stem(file) for file in sorted(os.listdir(folder()) if os.path.isdir(folder()) else [])]
        names = [*there, *data()["weights"], *map(stem, models())]
        what = f"weights, neither released nor in {folder()!r}"
        raise unknown(what, name, names, "MODEL.WEIGHTS", "missing-weights", "backbones zoo list")
    if wanted:
        chosen = [row for row in rows if wanted in (row.spec, row.source)]
        if not chosen:
            specs, shown = [row.spec for row in rows], f"backbones zoo show {name}"
            raise unknown(f"source of weights of {name}", wanted, specs, "MODEL.WEIGHTS", "missing-weights", shown)
        rows = chosen
    take, others = [], []
    refused: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.gone and not wanted:
            others.append(f"{row.spec} is {row.gone}")
        elif row.restricted and row.spec != wanted and row.licence not in accepted:
            refused.setdefault((row.licence, row.restricted), []).append(row.spec)
        else:
            take.append(row)
    for (licence, why), specs in refused.items():
        others.append(f"{', '.join(specs)}, {licence}, {why}: --accept-licence {licence}, or name one, such as {PREFIX}{name}@{specs[0]}")
    return take, others


def _log(release: Release) -> None:
    images = release.preprocessing
    expects = f"; it expects {images['format']} images, mean {images['pixel_mean']}, standard deviation {images['pixel_std']}" if images else ""
    level = logging.WARNING if release.restricted else logging.INFO
    but = f", {release.restricted}" if release.restricted else ""
    logging.getLogger(__name__).log(level, f"weights of {release.name}: {release.spec}, licence {release.licence}{but}{expects}")


def _kept(release: Release) -> str:
    """The path of the converted file, which may not exist yet."""
    file = re.sub(r"[^\w.-]", "_", f"{release.name}-{release.id}") + ".pth"
    return cached("backbones", release.source, file)


def _converted(release: Release) -> str:
    """The path of a release, downloaded and converted unless it exists."""
    kept = _kept(release)
    if os.path.isfile(kept):
        return kept
    path = "" if release.package else fetch(release.url, PathManager, release.sha256) if release.url else fetch_hub(release.hub)
    if release.as_it_is:
        return path
    command, core = (
        importlib.import_module(f"backbones.convert.{name}") for name in ("__main__", "core")
    )  # imported late, because they import this module

    os.makedirs(os.path.dirname(kept), exist_ok=True)
    with file_lock(kept):  # one process converts, the others wait and find it
        if not os.path.isfile(kept):
            with kept_if_whole(path, release.url):
                if release.package:
                    result = importlib.import_module(f"backbones.convert.{release.package}").convert_installed()
                elif release.converter:
                    name = ["--name", release.name] if release.name in data()["weights"] else []
                    result = command.convert(command.argument_parser().parse_args([release.converter, path, kept, *name]))
                else:
                    result = core.as_it_is(read_checkpoint(path), release.preprocessing, release.name)
            result.provenance.update(source=f"{release.title}, {release.id}", licence=release.licence)
            core.write(result, kept)
            proof = result.provenance["proof"]
            proved = f"equal to {proof['library']}'s own" if proof["run"] else f"no proof: {proof['why']}"
            logging.getLogger(__name__).info(f"{release.spec} was converted ({proved}) and saved as {kept}")
    return kept


def _instead(url: str) -> tuple[str, str | None]:
    """A hint about other sources of an address that failed, and the first of them; old links may have another host."""
    names = [
        name for name, rows in data()["weights"].items() for row in rows if "url" in row and urlparse(row["url"]).path == urlparse(url).path
    ]
    others = [release for name in names for release in releases(name) if release.free and release.url != url]
    if not others:
        return (f"; no other source of {names[0]} is known" if names else ""), None
    listed = ", ".join(f"{release.address} ({release.licence})" for release in others[:3])
    return f"; {PREFIX}{others[0].name} uses the first available of {listed}", PREFIX + others[0].name


def follow(address: str, accepted: Collection[str] = ()) -> tuple[str, Mapping[str, Any] | None, list[str]]:
    """(address, what the weights state about their images or None, and about the structure) for a value of MODEL.WEIGHTS. Downloads if needed.

    The address names one specific file, which later readers get too. Raises UserError if there is none.
    """
    if parsed(address):
        path, release = find(address, accepted)
        address = release.address if release else os.path.abspath(path)
    else:
        try:
            path = fetch(address, PathManager) if "://" in address else address.partition("?")[0]
        except UserError as error:
            said, suggestion = _instead(address)
            raise UserError(f"{error}{said}", error.code, "MODEL.WEIGHTS", suggestion) from error
    if not os.path.isfile(path):
        return address, None, []  # the gate says so
    with kept_if_whole(path, address):
        contents = read_checkpoint(path, lazy=True)
    return (address, *stated(contents, path))


class Handler(PathHandler):
    """Registers these addresses with detectron2."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX, *(f"{source}://" for source in data()["sources"])]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return find(path)[0]

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))

    _exists = _isfile


PathManager.register_handler(Handler(), allow_override=True)
