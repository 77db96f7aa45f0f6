"""MMDetection: RegNet backbones, and whole detectors with a RegNet or a ResNet: Faster, Mask, Cascade R-CNN, RetinaNet and GFL.

What differs there from detectron2, and what becomes of it:
- RetinaNet's nine anchors a place are ordered by ratio, then size, in detectron2 by size, then ratio: the last layers' channels are reordered.
- RetinaNet has no ReLU between P6 and P7, and clips boxes before overlapping ones are removed: `MMDetRetinaNet`.
- Cascade R-CNN averages the logits of its three stages, where detectron2 averages probabilities, and has a mask head in each: they become
  `MMDetCascadeROIHeads`. Its boxes' deviations of 0.033 and 0.067 are not quite detectron2's 1/30 and 1/15: folded into the weights.
- GFL's 1000 best candidates of a level are places, as when its figures were published; newer versions take pairs of place and class.
- Classes run from 0, the background last, in both; boxes are encoded alike. Versions before 2.0 did both differently, and are refused.
- Anchors and the coding of boxes are set in MMDetection's config, and change no weight's shape: its text in the file is read. Other sizes and
  ratios of R-CNNs' anchors become overrides; what has no counterpart here is refused.
- Normalisation is set in MMDetection's config: RegNets there expect BGR images, ResNets RGB; some RegNets RGB too. The file's statement counts
  (``--channels`` must agree), then ``--channels``, then this rule. First convolutions of RGB are turned, and every converted file takes BGR.
"""

import ast
import contextlib
import importlib
import re
from types import ModuleType
from typing import Any, Iterator, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from backbones import registry, zoo
from backbones.choices import CHOICES
from backbones.config import get, merge_overrides
from backbones.errors import UserError

from .core import (
    IMAGENET_BGR,
    IMAGENET_RGB,
    Converted,
    Network,
    Preprocessing,
    Source,
    agreed,
    check_fit,
    compare,
    identify,
    listed,
    renamed,
    under,
    under_bottom_up,
)

_BLOCKS_OF_DEPTH: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152, (2, 2, 2, 2): 18}
# ours <- theirs, of layers that are the same
_HEADS: list[tuple[str, Any]] = [
    (r"rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (
        r"roi_head\.bbox_head\.shared_convs\.(\d)\.(conv|bn)\.",
        lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}.{'norm.' * (m[2] == 'bn')}",
    ),
    (r"roi_head\.bbox_head\.(\d\.)?shared_fcs\.(\d)\.", lambda m: f"roi_heads.box_head.{m[1] or ''}fc{int(m[2]) + 1}."),
    (r"roi_head\.bbox_head\.(\d\.)?fc_cls\.", r"roi_heads.box_predictor.\1cls_score."),
    (r"roi_head\.bbox_head\.(\d\.)?fc_reg\.", r"roi_heads.box_predictor.\1bbox_pred."),
    (r"roi_head\.mask_head\.(\d\.)?convs\.(\d)\.conv\.", lambda m: f"roi_heads.mask_head.{m[1] or ''}mask_fcn{int(m[2]) + 1}."),
    (r"roi_head\.mask_head\.(\d\.)?upsample\.", r"roi_heads.mask_head.\1deconv."),
    (r"roi_head\.mask_head\.(\d\.)?conv_logits\.", r"roi_heads.mask_head.\1predictor."),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.", lambda m: f"head.cls_subnet.{2 * int(m[1])}."),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.", lambda m: f"head.bbox_subnet.{2 * int(m[1])}."),
    (r"bbox_head\.retina_cls\.", "head.cls_score."),
    (r"bbox_head\.retina_reg\.", "head.bbox_pred."),
]
# in a tower of GFL a convolution, its norm and an activation in turn
_GFL_HEAD: list[tuple[str, Any]] = [
    (
        r"bbox_head\.(cls|reg)_convs\.(\d)\.(conv|gn)\.",
        lambda m: f"head.{'cls' if m[1] == 'cls' else 'bbox'}_subnet.{3 * int(m[2]) + (m[3] == 'gn')}.",
    ),
    (r"bbox_head\.gfl_cls\.", "head.cls_score."),
    (r"bbox_head\.gfl_reg\.", "head.bbox_pred."),
    (r"bbox_head\.reg_conf\.", "head.quality."),  # of GFLV2
    (r"bbox_head\.scales\.", "head.scales."),
]
_RESNET: list[tuple[str, Any]] = [
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.conv2\.conv_offset\.", ".conv2_offset."),
]


def _library() -> ModuleType | None:
    """mmdet, where it is installed with its operators."""
    try:
        return importlib.import_module("mmdet.models") and importlib.import_module("mmdet")
    except ImportError:  # not here, or mmcv without its operators, or of a version that mmdet does not take
        return None


def network(name: str, options: dict[str, Any]) -> tuple[Network, str] | None:
    """MMDetection's own RegNet, where it is installed."""
    mmdet = _library()
    if mmdet is None or options:
        return None
    spec = registry.get_spec(name)
    if registry.family_of(name).name != "regnet" or spec.se_ratio:  # it has no Y
        return None
    arch = {"w0": spec.w0, "wa": spec.wa, "wm": spec.wm, "group_w": spec.group_width, "depth": spec.depth, "bot_mul": 1.0}
    module = mmdet.models.backbones.RegNet(arch=arch)
    return Network(module, lambda image: module(image)), f"mmdet {mmdet.__version__}"


def is_detector(contents: dict[str, Any]) -> bool:
    return any(key.startswith(("neck.", "rpn_head.", "roi_head.", "bbox_head.")) for key in under(contents, "state_dict"))


def _config_text(contents: dict[str, Any]) -> str:
    meta = contents.get("meta")
    return next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "") if isinstance(meta, dict) else ""


def stated_preprocessing(contents: dict[str, Any]) -> Preprocessing | None:
    """What the file itself says of its images: in buffers of its own, or in the config that MMDetection saves as text. It is not run."""
    weights, text = {}, _config_text(contents)
    with contextlib.suppress(UserError):  # with --key it may be no state dict, or one of several
        weights = under(contents, "state_dict")
    number = r"[\[(]\s*(\d+\.?\d*),\s*(\d+\.?\d*),\s*(\d+\.?\d*),?\s*[\])]"
    mean, std = (re.search(rf"\b{key}\s*=\s*{number}", text) for key in ("mean", "std"))
    if "data_preprocessor.mean" in weights and "data_preprocessor.std" in weights:
        values = [tuple(round(float(v), 4) for v in weights[f"data_preprocessor.{key}"].flatten()) for key in ("mean", "std")]
    elif mean and std:
        values = [tuple(map(float, found.groups())) for found in (mean, std)]
    else:
        return None
    turned = re.search(r"\b(bgr_to_rgb|to_rgb)\s*=\s*(True|False)", text)
    # if nothing is stated, the larger mean is that of red
    rgb = turned[2] == "True" if turned else values[0][0] > values[0][2]
    return Preprocessing("RGB" if rgb else "BGR", *values)


SOURCE = Source(
    "MMDetection",
    "Apache-2.0",
    {"regnet": "mmdet"},
    lambda name: IMAGENET_BGR,
    lambda data: ("state_dict",),
    network,
    stated=stated_preprocessing,
)


def convert_detector(
    contents: dict[str, Any], preprocessing: Preprocessing | None = None, config: str = "", source: Source = SOURCE
) -> Converted:
    """A whole detector's file as ours: every tensor used, every weight of the model filled.

    ``config``: the name or path of the config whose model it is to fit; by default it follows from the file. ``source``: MMDetection, or a
    project on top of it. Raises UserError for a detector that is not supported, or where anything is unmatched, missing or of another shape.
    """
    meta = contents.get("meta")
    version = re.split(r"[^\w.+-]", str(meta.get("mmdet_version", "")))[0] if isinstance(meta, dict) else ""
    if version.startswith(("0.", "1.")):
        raise UserError(
            f"the file is from MMDetection {version}, which encodes classes and boxes differently: upgrade it there to 2.0 or later first"
        )
    weights = under(contents, "state_dict")
    # the numbers 0 to 16 of GFL are no weights
    left = re.compile(r"data_preprocessor\.|.*num_batches_tracked$|bbox_head\.integral\.project$")
    copies = [key for key in weights if key.startswith("ema_")]  # MMDetection 2's EMAHook keeps a second copy of the weights
    weights = {key: value for key, value in weights.items() if not left.match(key) and not key.startswith("ema_")}
    for key, value in weights.items():
        if not value.numel() or value.dim() != _dims(key):
            raise UserError(f"the file is not a detector from {source.title}: {key!r} is {tuple(value.shape)}")
    backbone = {key[len("backbone.") :]: value for key, value in weights.items() if key.startswith("backbone.")}
    family = _family(backbone)
    if family not in ("resnet", *source.layouts):
        identify(source, backbone)  # says whose it is
    expects = agreed(stated_preprocessing(contents), preprocessing) or (IMAGENET_BGR if family == "regnet" else IMAGENET_RGB)
    # Caffe's ResNets have the stride in the 1x1 convolution; MMDetection's of that style leave images undivided
    style = re.search(r"\bstyle\s*=\s*['\"](caffe|pytorch)['\"]", _config_text(contents))
    caffe = style[1] == "caffe" if style else set(expects.pixel_std) == {1.0}
    base, overrides = _base(weights, family)
    name, more, ours = _resnet(backbone, caffe) if family == "resnet" else _FAMILIES[family](backbone, source)
    overrides += more
    given = zoo.get_config(config or base)
    cfg = given.clone()
    merge_overrides(cfg, overrides)
    anchors = _boxes(_config_text(contents), _kind(cfg))
    merge_overrides(cfg, anchors)
    overrides += anchors
    for key in overrides[::2] if config else ():
        if get(given, key) != get(cfg, key):
            raise UserError(f"{config} has {key} {get(given, key)}, but the file's detector needs {get(cfg, key)}")
    cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "cpu", "BGR"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(expects.in_bgr().pixel_mean), list(expects.in_bgr().pixel_std)
    if expects.format == "RGB":
        first = "stem.conv1.weight" if family == "resnet" else "stem.conv.weight"
        ours[first] = ours[first].flip(1)
    kind = _kind(cfg)
    model = {**under_bottom_up(ours), **{head_key(key, kind): value for key, value in weights.items() if not key.startswith("backbone.")}}
    _reorder(model, cfg)
    check_fit(model, cfg, "the detector")
    provenance = {
        "source": source.title + (f" {version}" if version and source is SOURCE else ""),
        "network": name,
        "licence": "Apache-2.0",
        "channel_order": expects.order_in_bgr(),
        "config": config or base,
        "overrides": [] if config else overrides,
        "detector": kind,
        "proof": _prove(cfg, name, weights, model, flipped=expects.format == "RGB"),
    }
    notes = [f"left out: {len(copies)} tensors of the hook that averages weights ({copies[0]}, ...)"] if copies else []
    if not _is_python(_config_text(contents)):
        notes.append("anchors and the coding of boxes as usual: the config's text in the file cannot be parsed")
    if notes:
        provenance["taken"] = "; ".join(notes)
    number = next(int(value) for key, value in zip(overrides[::2], overrides[1::2]) if key.endswith(".NUM_CLASSES"))
    names = _class_names(meta)
    return Converted(model, expects.in_bgr(), provenance, names if len(names) == number else [])


def _class_names(meta: Any) -> list[str]:
    about = meta.get("dataset_meta", meta) if isinstance(meta, dict) else None
    names = about.get("classes", about.get("CLASSES")) if isinstance(about, dict) else None
    return list(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else []


def _boxes(text: str, kind: str) -> list[str]:
    """Overrides for the anchors that a config's text states. Raises UserError for anchors and codings of boxes that have no counterpart.

    No weight has another shape because of them.
    """
    cnn, overrides = "R-CNN" in kind, []
    usual = _ANCHORS["R-CNN" if cnn else "GFL" if "GFL" in kind else kind]
    for made in _stated(text, "AnchorGenerator"):
        wanted = {"type": "AnchorGenerator", **usual, **_PLAIN}
        for key, value in made.items():
            if key in wanted and value == wanted[key]:
                continue
            values = value if isinstance(value, list) else []
            if cnn and key == "scales" and len(values) == 1 and isinstance(values[0], (int, float)):
                overrides += ["MODEL.ANCHOR_GENERATOR.SIZES", str([[stride * values[0]] for stride in usual["strides"]])]
            elif cnn and key == "ratios" and values and all(isinstance(ratio, (int, float)) for ratio in values):
                overrides += ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", str([values])]
            else:
                usually = f"; usual is {wanted[key]}" if key in wanted else ""
                raise UserError(f"anchors with {key} {value} are not supported for a {kind}{usually}", "unsupported")
    _check_coders(list(_stated(text, "DeltaXYWHBBoxCoder")), kind)
    return overrides


def _check_coders(coders: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Raises UserError if boxes are coded in another way than MMDetection's own detectors of this kind do it."""
    stds = [made["target_stds"] for made in coders if "target_stds" in made]
    means = [made["target_means"] for made in coders if made.get("target_means", [0.0] * 4) != [0.0] * 4]
    cnn = 3 if "Cascade" in kind else 1 if "R-CNN" in kind else 0
    usual = [[1.0] * 4, *map(list, _CASCADE_DEVIATIONS[:cnn])]
    other = any(each not in usual for each in stds)
    moved = len(stds) == len(usual) and sorted(stds, key=str) != sorted(usual, key=str)  # such as the RPN's in the heads
    if means or other or moved:
        said = f"target_means {means[0]}" if means else f"target_stds {', '.join(map(str, stds))}"
        raise UserError(f"boxes coded with {said} are not supported for a {kind}; usual are {', '.join(map(str, usual))}", "unsupported")


def _is_python(text: str) -> bool:
    try:
        return bool(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _stated(text: str, kind: str) -> Iterator[dict[str, Any]]:
    """The literal arguments of each ``dict(type="...kind")`` in a config's text, tuples as lists. The text is not run."""
    for node in ast.walk(ast.parse(text)) if _is_python(text) else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            pairs: list[tuple[Any, ast.expr]] = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
        else:
            continue
        found = {}
        for key, value in pairs:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                literal = ast.literal_eval(value)
                found[key] = list(literal) if isinstance(literal, tuple) else literal
        if str(found.get("type", "")).endswith(kind):
            yield found


_STRIDES = [4, 8, 16, 32, 64, 128]
_ANCHORS: dict[str, dict[str, Any]] = {  # of MMDetection's own detectors
    "R-CNN": {"scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": _STRIDES[:5]},
    "RetinaNet": {"octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0], "strides": _STRIDES[1:]},
    "GFL": {"octave_base_scale": 8, "scales_per_octave": 1, "ratios": [1.0], "strides": _STRIDES[1:]},
}
_PLAIN = {"base_sizes": None, "scale_major": True, "centers": None, "center_offset": 0.0, "use_box_type": False}


def _kind(cfg: CfgNode) -> str:
    """The kind of detector, as people call it."""
    if cfg.MODEL.META_ARCHITECTURE == "GFL":
        return "GFLV2" if cfg.MODEL.GFL.QUALITY else "GFL"
    if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE:
        return "RetinaNet"
    return f"{'Cascade ' * ('Cascade' in cfg.MODEL.ROI_HEADS.NAME)}{'Mask' if cfg.MODEL.MASK_ON else 'Faster'} R-CNN"


def _dims(key: str) -> int:
    """How many dimensions a weight has, by its name."""
    if not key.endswith(".weight") or re.search(r"\.(bn\d*|gn|downsample\.1)\.", key):
        return 0 if key.endswith(".scale") else 1
    return 2 if re.search(r"\.(fc_cls|fc_reg|shared_fcs\.\d)\.", key) else 4


def _prove(cfg: CfgNode, name: str, weights: Mapping[str, Tensor], model: dict[str, Tensor], flipped: bool) -> dict[str, Any]:
    """Backbone and FPN against MMDetection's own, where it is installed; heads are held to their places and shapes."""
    if name.startswith("DetNAS"):
        return {"run": False, "why": "MMRazor's networks cannot be installed; this project's tests hold ours to outputs recorded from them"}
    mmdet = _library()
    deformable = any("conv_offset" in key for key in weights)
    if mmdet is None or deformable:
        return {"run": False, "why": "MMDetection is not installed here" if mmdet is None else "it is not run for deformable networks"}
    if name.startswith("R-"):
        resnets = cfg.MODEL.RESNETS
        groups = {"groups": resnets.NUM_GROUPS, "base_width": resnets.WIDTH_PER_GROUP} if resnets.NUM_GROUPS > 1 else {}
        kind = mmdet.models.backbones.ResNeXt if groups else mmdet.models.backbones.ResNet
        backbone = kind(depth=resnets.DEPTH, style="caffe" if resnets.STRIDE_IN_1X1 else "pytorch", **groups)
    else:
        own_network = network(name, {})
        if own_network is None:
            return {"run": False, "why": f"MMDetection has no {name}"}
        backbone = own_network[0].module
    channels = [value.shape[1] for key, value in weights.items() if re.match(r"neck\.lateral_convs\.\d\.conv\.weight", key)]
    source = {"RetinaNet": "on_input", "GFL": "on_output", "GFLV2": "on_output"}.get(_kind(cfg))
    extra = {"start_level": 1, "add_extra_convs": source} if source else {}
    neck = mmdet.models.necks.FPN(in_channels=([0] if source else []) + channels, out_channels=256, num_outs=5, **extra)
    module = nn.ModuleDict({"backbone": backbone, "neck": neck})
    own = {key: value for key, value in weights.items() if key.startswith(("backbone.", "neck."))}
    ours = build_model(cfg).backbone
    ours.load_state_dict({key[len("backbone.") :]: value for key, value in model.items() if key.startswith("backbone.")}, strict=False)
    return compare(Network(module, lambda image: neck(backbone(image))), f"mmdet {mmdet.__version__}", own, ours, flipped)


def _family(backbone: Mapping[str, Tensor]) -> str:
    if "conv1.conv.weight" in backbone:
        return "shufflenetv2"
    first = backbone.get("conv1.weight", torch.empty(0))
    return "regnet" if "layer1.0.conv1.weight" in backbone and first.shape[-1:] == (3,) else "resnet"


def _base(weights: Mapping[str, Tensor], family: str) -> tuple[str, list[str]]:
    """(config, overrides) of the heads: kind of detector and number of classes."""
    if "bbox_head.retina_cls.weight" in weights and family != "shufflenetv2":
        classes = weights["bbox_head.retina_cls.weight"].shape[0] // 9
        overrides = ["MODEL.RETINANET.NUM_CLASSES", str(classes), "MODEL.META_ARCHITECTURE", "MMDetRetinaNet", "MODEL.FPN.P6_RELU", "False"]
        if family == "resnet":
            overrides += ["MODEL.BACKBONE.NAME", "build_retinanet_resnet_p6p7_backbone"]
        return "Base-RetinaNet.yaml" if family == "resnet" else "Base-RetinaNet-RegNet-FPN.yaml", overrides
    if "bbox_head.gfl_cls.bias" in weights and family == "resnet":
        classes, quality = len(weights["bbox_head.gfl_cls.bias"]), any(key.startswith("bbox_head.reg_conf.") for key in weights)
        overrides = ["MODEL.GFL.NUM_CLASSES", str(classes), "MODEL.GFL.QUALITY", str(quality), "MODEL.RESNETS.NORM", "FrozenBN"]
        return "COCO-Detection/gfl_R_50_FPN_73e.yaml", overrides
    heads = sorted({key.split(".")[2] for key in weights if key.startswith("roi_head.bbox_head.")})
    if "rpn_head.rpn_conv.weight" not in weights or not heads:
        kinds = sorted({".".join(key.split(".")[:2]) for key in weights if not key.startswith(("backbone.", "neck."))})
        raise UserError(
            f"this detector is not supported: its heads are {', '.join(kinds)}. "
            "Supported: Faster, Mask, Cascade R-CNN, RetinaNet, and GFL with a ResNet"
        )
    cascade = heads == ["0", "1", "2"]
    cls = weights.get("roi_head.bbox_head.0.fc_cls.weight" if cascade else "roi_head.bbox_head.fc_cls.weight")
    if cls is None:
        raise UserError("this detector is not supported: its box head has no fc_cls")
    masks = any(key.startswith("roi_head.mask_head.") for key in weights)
    overrides = ["MODEL.ROI_HEADS.NUM_CLASSES", str(cls.shape[0] - 1), "MODEL.MASK_ON", str(masks), "MODEL.PROPOSAL_GENERATOR.NAME", "MMDetRPN"]
    if cascade:
        overrides += ["MODEL.ROI_HEADS.NAME", "MMDetCascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    return _RCNN[family], overrides


_RCNN = {
    "regnet": "Base-RCNN-RegNet-FPN.yaml",
    "resnet": "Base-RCNN-FPN.yaml",
    "shufflenetv2": "DetNAS/faster_rcnn_DetNAS_MMRazor_FPN_1x.yaml",
}


def _regnet(backbone: dict[str, Tensor], source: Source = SOURCE) -> tuple[str, list[str], dict[str, Tensor]]:
    """(name, overrides, state dict)"""
    deformable = [f"layer{i}.0.conv2.conv_offset.weight" in backbone for i in (1, 2, 3, 4)]
    options: dict[str, Any] = {}
    overrides = []
    if any(deformable):
        offsets = backbone[f"layer{deformable.index(True) + 1}.0.conv2.conv_offset.weight"].shape[0]
        if offsets % 18 and offsets % 27:
            raise UserError(f"the file's deformable convolutions are of an unknown kind: their offsets have {offsets} channels")
        modulated = offsets % 27 == 0
        options = {"deform_on_per_stage": deformable, "deform_modulated": modulated, "deform_num_groups": offsets // (27 if modulated else 18)}
        overrides = [item for key, value in options.items() for item in (f"MODEL.REGNET.{key.upper()}", str(value))]
    name, _, ours = identify(source, backbone, options=(options,))
    return name, ["MODEL.REGNET.NAME", name, *overrides], ours


def _shufflenet(backbone: dict[str, Tensor], source: Source) -> tuple[str, list[str], dict[str, Tensor]]:
    """(name, overrides, state dict) of a found network of MMRazor's, whose choices its keys name."""
    name = "DetNAS-MMRazor"
    spec = registry.get_spec(name)
    named = (re.match(r"layers\.(\d)\.(\d+)\.\w+\.(shuffle_\w+)\.", key) for key in backbone)
    found = sorted({(int(m[1]), int(m[2]), m[3]) for m in named if m})
    choices = tuple(CHOICES.index(choice) for _, _, choice in found if choice in CHOICES)
    if len(choices) != sum(spec.blocks):
        raise UserError(f"the file names {len(choices)} choices for {sum(spec.blocks)} blocks: it is a supernet, or incomplete", "unsupported")
    ours, wrong = registry.attempt(name, backbone, source.layouts["shufflenetv2"], {"choices": choices})
    if wrong:
        raise UserError(f"the file does not fit {name} with the choices {list(choices)}, {listed(wrong, 8)}", "misfit-weights")
    return name, [] if choices == spec.choices else ["MODEL.SHUFFLENETV2.CHOICES", str(list(choices))], ours


_FAMILIES = {"regnet": _regnet, "shufflenetv2": _shufflenet}


def _resnet(backbone: dict[str, Tensor], caffe: bool) -> tuple[str, list[str], dict[str, Tensor]]:
    counts = tuple(len({key.split(".")[1] for key in backbone if key.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
    depth = _BLOCKS_OF_DEPTH.get(counts)
    conv2 = backbone.get("layer1.0.conv2.weight")
    if depth is None or conv2 is None or "conv1.weight" not in backbone:
        raise UserError(f"this backbone is neither a RegNet nor a ResNet of 18, 50, 101 or 152 layers: its stages have {counts} blocks")
    overrides = ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.STRIDE_IN_1X1", str(caffe)]
    if depth == 18:
        overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    elif conv2.shape[1] != conv2.shape[0]:
        groups = conv2.shape[0] // conv2.shape[1]
        overrides += ["MODEL.RESNETS.NUM_GROUPS", str(groups), "MODEL.RESNETS.WIDTH_PER_GROUP", str(conv2.shape[1])]
    ours = {}
    for key, value in backbone.items():
        for pattern, replacement in _RESNET:
            key = re.sub(pattern, replacement, key)
        ours[key] = value
    return f"R-{depth}", overrides, ours


def head_key(key: str, kind: str) -> str:
    """Our name of a key outside the backbone, in a detector of that `_kind`; an unknown key is returned unchanged."""
    first = 2 if "R-CNN" in kind else 3

    def neck(m: re.Match[str]) -> str:
        level = int(m[2]) + first
        place = "fpn_lateral" if m[1] == "lateral" else "fpn_output" if level <= 5 else "top_block.p"
        return f"backbone.{place}{level}.{'norm.' * (m[3] == 'bn')}"

    return renamed(key, [(r"neck\.(lateral|fpn)_convs\.(\d)\.(conv|bn)\.", neck), *(_GFL_HEAD if "GFL" in kind else _HEADS)])


def _reorder(model: dict[str, Tensor], cfg: CfgNode) -> None:
    if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE:
        for key, value in model.items():
            if key.startswith(("head.cls_score.", "head.bbox_pred.")) and value.shape[0] % 9 == 0:
                # ratio, size, channels of one anchor -> size, ratio, ...
                model[key] = value.reshape(3, 3, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
    if cfg.MODEL.ROI_HEADS.NAME == "MMDetCascadeROIHeads":
        # deltas are multiplied by these deviations there, and divided by detectron2's weights here
        for stage, (deviations, coders) in enumerate(zip(_CASCADE_DEVIATIONS, cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS)):
            for leaf in ("weight", "bias"):
                key = f"roi_heads.box_predictor.{stage}.bbox_pred.{leaf}"
                if key in model and model[key].shape[0] == 4:
                    factor = torch.tensor([d * c for d, c in zip(deviations, coders)], dtype=torch.float64)
                    model[key] = (model[key].double() * factor.reshape(-1, *[1] * (model[key].dim() - 1))).float()


_CASCADE_DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
