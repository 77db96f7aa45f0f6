"""Other projects' files: each network that an installed library shares with us converts to the same features; what cannot be is refused."""

import contextlib
import json
import os
import pickle
import re
import sys

import pytest
import torch
import torchvision
from choices import cases, share
from conftest import fill, load_record, warm
from detectron2.modeling import build_model

import backbones
from backbones import use_backbone, zoo
from backbones.checkpoint import GatedCheckpointer, names_in, read_checkpoint
from backbones.config import merge_overrides
from backbones.errors import UserError
from backbones.layers import DeformConv2d
from convert import __main__ as cli
from convert import mmdet, timm

RNG = torch.Generator()


def randomize(module: torch.nn.Module) -> dict:
    """Random weights and statistics that keep features neither zero nor huge."""
    RNG.manual_seed(0)
    state = module.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = torch.rand(value.shape, generator=RNG) + 0.5
        elif key.endswith(("running_mean", "bias")):
            state[key] = 0.1 * torch.randn(value.shape, generator=RNG)
        elif value.dim() == 1:
            state[key] = torch.rand(value.shape, generator=RNG) * 0.4 + 0.8
        elif value.dim() > 1:
            state[key] = torch.randn(value.shape, generator=RNG) * (2 / value[0].numel()) ** 0.5
    module.load_state_dict(state)
    return state


def run(*args) -> cli.Converted:
    arguments = cli.argument_parser().parse_intermixed_args([str(a) for a in args])
    result = cli.convert(arguments)
    cli.write(result, arguments.dst)
    return result


TORCHVISION = ["regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf", "regnet_x_32gf"]
TORCHVISION += [name.replace("_x_", "_y_") for name in TORCHVISION] + ["mobilenet_v2"]
ROUNDED = {"regnet_x_400mf", "regnet_y_800mf", "regnet_y_8gf"}
DAILY = {"regnet_x_400mf", "regnet_y_400mf", "mobilenet_v2", "regnetx_004", "regnety_008_tv", "ese_vovnet19b_slim_dw"}


def ours_of_torchvision(name: str) -> str:
    if name == "mobilenet_v2":
        return "MobileNetV2"
    letter, size = name[len("regnet_") :].split("_", 1)
    size = size.upper().replace("_", ".")
    return f"RegNet{letter.upper()}-{'8.0GF' if size == '8GF' else size}"


def timm_names() -> dict:
    """timm's name -> (ours, options), of every network that both have."""
    timm_library = pytest.importorskip("timm")
    names = {}
    for ours in backbones.list_backbones():
        for options in ({}, {"rounding": "torchvision"}):
            own = timm.own_name(ours, options)
            if own and timm_library.is_model(own) and (not options or "RegNet" in ours):
                names[own] = (ours, options)
    return names


def some(names):
    """Every second of those that do not take long for their size alone: the others are the same classes with other numbers."""
    small = [name for name in names if not re.search(r"_(3_2|8|16|32)gf$|_?(08|12|16|32)0|_0(32|40|64)$|57b|99b", name)]
    return cases(names, tried=DAILY | set(share(small, 0, of=2)), daily=DAILY)


@pytest.mark.parametrize("name", some(TORCHVISION))
def test_torchvision(name, tmp_path):
    module = getattr(torchvision.models, name)().eval()
    torch.save(randomize(module), tmp_path / "theirs.pth")
    ours, options = ours_of_torchvision(name), {"rounding": "torchvision"} if name in ROUNDED else {}
    result = run("torchvision", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    about = result.provenance
    assert about["network"] == ours and about["proof"]["run"] and "torchvision" in about["proof"]["library"]
    assert about.get("overrides") == (["MODEL.REGNET.ROUNDING", "torchvision"] if options else None)
    differences = about["proof"]["largest_relative_difference"]
    assert len(differences) == 4 and max(differences.values()) <= 1e-5
    # not by the proof's own word alone: the written file in double precision, with the names of torchvision's own nodes
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = [f"trunk_output.block{i}" for i in (1, 2, 3, 4)] if name != "mobilenet_v2" else [f"features.{i}" for i in (3, 6, 13, 17)]
    extractor = create_feature_extractor(module.double(), nodes)
    compare(tmp_path / "ours.pth", ours, options, lambda image: extractor(image).values())


def compare(path, name, options, reference):
    net = backbones.create(name, **options)
    missing, unexpected = net.load_state_dict(read_checkpoint(str(path))["model"], strict=False)
    assert not missing and not unexpected
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        for (feature, a), b in zip(net.double().eval()(image.flip(1)).items(), reference(image)):
            assert a.shape == b.shape and b.abs().max() > 1e-3
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), feature


def all_timm_names():
    try:
        return sorted(timm_names())
    except pytest.skip.Exception:
        return []


def test_timm_shares_what_is_known():
    names = timm_names()
    assert len([n for n in names if n.startswith("regnet")]) == 24 + 3 and len([n for n in names if "vovnet" in n]) == 6


@pytest.mark.parametrize("name", some(all_timm_names()))
def test_timm(name, tmp_path):
    import timm as library
    from safetensors.torch import save_file

    ours, options = timm_names()[name]
    module = library.create_model(name).eval()
    save_file(randomize(module), str(tmp_path / "theirs.safetensors"))
    result = run("timm", tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")
    assert result.provenance["network"] == ours and result.provenance["proof"]["run"]
    assert max(result.provenance["proof"]["largest_relative_difference"].values()) <= 1e-5
    module.double()
    compare(tmp_path / "ours.safetensors", ours, options, lambda image: module.forward_intermediates(image, intermediates_only=True)[-4:])


@pytest.mark.parametrize("name, prefix", [("RegNetX-400MF", ""), ("RegNetY-800MF", "module.")])
def test_pycls(name, tmp_path, prefix):
    record = load_record("regnet", f"{name}.json")
    weights = {prefix + key: fill(key, shape) for key, shape in record["state_dict"]}
    # as pycls saves it: beside the model what training needs
    torch.save({"epoch": 99, "model_state": weights, "optimizer_state": {"state": {}}, "cfg": "MODEL: regnet"}, tmp_path / "theirs.pyth")
    result = run("pycls", tmp_path / "theirs.pyth", tmp_path / "ours.pth")
    assert result.provenance["network"] == name and result.provenance["channel_order"] == "BGR, as in the source"
    assert max(result.provenance["proof"]["largest_relative_difference"].values()) <= 1e-5
    # released files load as they are, too, to the same weights
    cfg = zoo.get_config("faster_rcnn_RegNetX_400MF_FPN_3x.yaml")
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "MODEL.REGNET.NAME", name])
    models = [build_model(cfg), build_model(cfg)]
    for model, file in zip(models, ("theirs.pyth", "ours.pth")):
        GatedCheckpointer(model).load(str(tmp_path / file))
    for (key, a), b in zip(models[0].backbone.bottom_up.state_dict().items(), models[1].backbone.bottom_up.state_dict().values()):
        assert torch.equal(a, b), key


def test_pycls_takes_the_better_average(tmp_path):
    record = load_record("regnet", "RegNetX-400MF.json")
    weights = {key: fill(key, shape) for key, shape in record["state_dict"]}
    average = {key: value * 0.5 if key == "stem.conv.weight" else value for key, value in weights.items()}
    for errors, expected in (({"test_err": 30.0, "ema_err": 29.0}, average), ({"test_err": 30.0, "ema_err": 31.0}, weights)):
        torch.save({"model_state": weights, "ema_state": average, **errors}, tmp_path / "theirs.pyth")
        result = run("pycls", tmp_path / "theirs.pyth", tmp_path / "ours.pth")
        assert torch.equal(result.model["backbone.bottom_up.stem.conv.weight"], expected["stem.conv.weight"])


@pytest.mark.parametrize("filename", ["V-19-slim-dw.json", "MobileNetV2.json"])
def test_vovnet_detectron2(filename, tmp_path):
    record = load_record("vovnet", filename)
    torch.save({"backbone.bottom_up." + key: fill(key, shape) for key, shape in record["state_dict"]}, tmp_path / "theirs.pth")
    result = run("vovnet-detectron2", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    assert "CC BY-NC" in result.provenance["licence"] and not result.provenance["proof"]["run"]
    assert result.preprocessing.pixel_std == (1.0, 1.0, 1.0)
    net = backbones.create(result.provenance["network"])
    assert not any(net.load_state_dict(read_checkpoint(str(tmp_path / "ours.pth"))["model"], strict=True))


def test_what_stands_in_a_file(tmp_path):
    """Tensors, and beside them where they are from; the same in both formats, loadable by torch's safe loader."""
    import hashlib

    module = torchvision.models.regnet_y_400mf()
    torch.save(randomize(module), tmp_path / "regnet_y_400mf-c65dace8.pth")
    contents = []
    for ending in (".pth", ".safetensors"):
        run("torchvision", tmp_path / "regnet_y_400mf-c65dace8.pth", tmp_path / f"ours{ending}")
        contents.append(read_checkpoint(str(tmp_path / f"ours{ending}")))
    torch.load(tmp_path / "ours.pth", weights_only=True)
    first, second = contents
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(value, second["model"][key]) for key, value in first["model"].items())
    assert first["provenance"] == second["provenance"]
    about = first["provenance"]
    assert about["file"] == "regnet_y_400mf-c65dace8.pth" and about["licence"] == "BSD-3-Clause"
    assert about["sha256"] == hashlib.sha256((tmp_path / "regnet_y_400mf-c65dace8.pth").read_bytes()).hexdigest()
    assert about["converted_by"] == f"backbones {backbones.__version__}" and "turned from RGB" in about["channel_order"]
    assert first["preprocessing"] == {"format": "BGR", "pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [57.375, 57.12, 58.395]}
    assert sorted(os.listdir(tmp_path)) == ["ours.pth", "ours.safetensors", "regnet_y_400mf-c65dace8.pth"]
    assert all(key.startswith("backbone.bottom_up.") for key in first["model"])


def test_configs_take_converted_files_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    net = backbones.create("RegNetX-400MF", norm="BN")
    torch.save({"model_state": pycls_names(net), "epoch": 1}, tmp_path / "x.pyth")
    cfg = zoo.get_config("faster_rcnn_RegNetX_400MF_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.MODEL.WEIGHTS == "backbones://RegNetX-400MF"
    for ending in (".pth", ".safetensors"):
        run("pycls", tmp_path / "x.pyth", tmp_path / f"RegNetX-400MF{ending}")
        model = build_model(cfg)
        GatedCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        assert torch.equal(model.backbone.bottom_up.stem.conv.weight, net.stem.conv.weight)
        (tmp_path / f"RegNetX-400MF{ending}").rename(tmp_path / "set-aside")
    (tmp_path / "set-aside").rename(tmp_path / "RegNetX-400MF.pth")
    with pytest.raises(UserError, match="weights, neither released nor in .*'RegNetX-400MG'. Did you mean 'RegNetX-400MF'"):
        GatedCheckpointer(model).load("backbones://RegNetX-400MG")


def pycls_names(net) -> dict:
    from convert import pycls

    reference, _ = pycls.network("RegNetX-400MF", {})
    names = {net.translate_key(key, "pycls"): key for key in reference.module.state_dict()}
    return {names[key]: value for key, value in net.state_dict().items()}


@pytest.mark.slow
def test_other_preprocessing_is_refused(tmp_path):
    """The silent error of the field: weights that expect other images than the config gives."""
    torch.save(randomize(torchvision.models.regnet_x_800mf()), tmp_path / "theirs.pth")
    run("torchvision", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    cfg = zoo.get_config("faster_rcnn_RegNetX_800MF_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    GatedCheckpointer(build_model(cfg)).load(str(tmp_path / "ours.pth"))
    for key, value in (("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"), ("INPUT.FORMAT", "RGB"), ("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]")):
        other = cfg.clone()
        merge_overrides(other, [key, value])
        with pytest.raises(UserError, match=f"expects images of another format than the config states: set {key}"):
            GatedCheckpointer(build_model(other)).load(str(tmp_path / "ours.pth"))
        GatedCheckpointer(build_model(other), require="nothing").load(str(tmp_path / "ours.pth"))


def test_safetensors_load_everywhere(tmp_path):
    """A checkpoint of the whole detector, too."""
    from safetensors.torch import save_file

    cfg = zoo.get_config("faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model, other = build_model(cfg), build_model(cfg)
    save_file(model.state_dict(), str(tmp_path / "whole.safetensors"))
    GatedCheckpointer(other, require="all").load(str(tmp_path / "whole.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("length", [316, 347, 379])  # whose first byte is <, [ or {, as of a page or of JSON
def test_safetensors_of_any_length(length, tmp_path):
    from safetensors.torch import save

    data = save({"weight": torch.ones(2)})
    size = int.from_bytes(data[:8], "little")
    (tmp_path / "net.pth").write_bytes(length.to_bytes(8, "little") + data[8 : 8 + size].ljust(length) + data[8 + size :])
    assert torch.equal(read_checkpoint(str(tmp_path / "net.pth"))["model"]["weight"], torch.ones(2))


class TestDetectron2:
    @pytest.mark.slow
    def test_whole_detectors_of_the_zoo(self, tmp_path):
        """A pickled file of arrays becomes tensors that detectron2's own checkpointer loads."""
        config = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
        cfg = zoo.get_config(config)
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg)
        arrays = {key: value.numpy() for key, value in model.state_dict().items()}
        (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
        result = run("detectron2", tmp_path / "model_final.pkl", tmp_path / "ours.pth", "--config-file", config)
        assert result.preprocessing.pixel_std == (1.0, 1.0, 1.0) and result.provenance["config"] == config
        assert result.provenance["detector"] == "GeneralizedRCNN"
        other = build_model(cfg)
        GatedCheckpointer(other, require="all").load(str(tmp_path / "ours.pth"))
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
        del arrays["roi_heads.box_predictor.cls_score.bias"]
        (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
        with pytest.raises(UserError, match="1 weights missing .*missing roi_heads.box_predictor.cls_score.bias"):
            run("detectron2", tmp_path / "model_final.pkl", tmp_path / "never.pth", "--config-file", config)
        assert not (tmp_path / "never.pth").exists()

    def test_its_regnets(self, tmp_path):
        net = backbones.create("RegNetX-400MF", norm="BN")
        torch.save({"model": {f"backbone.bottom_up.{k}": v for k, v in pycls_names(net).items()}}, tmp_path / "theirs.pth")
        result = run("detectron2", tmp_path / "theirs.pth", tmp_path / "ours.pth")
        assert result.provenance["network"] == "RegNetX-400MF" and result.provenance["proof"]["run"]
        assert torch.equal(result.model["backbone.bottom_up.res5.block2.conv2.conv.weight"], net.res5.block2.conv2.conv.weight)

    def test_a_config_is_needed(self, tmp_path):
        torch.save({"model": {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "theirs.pth")
        with pytest.raises(UserError, match="--config-file"):
            run("detectron2", tmp_path / "theirs.pth", tmp_path / "ours.pth")
        with pytest.raises(UserError, match="'new_baselines/a.py' is a Python config: name the YAML config of this model"):
            run("detectron2", tmp_path / "theirs.pth", tmp_path / "ours.pth", "--config-file", "new_baselines/a.py")


class TestMMDetection:
    SOME = {"backbone.conv1.weight": torch.zeros(1)}

    def backbone(self, name="RegNetX-400MF", **options):
        """A file of MMDetection's, from a network of ours with the keys turned round."""
        net = backbones.create(name, norm="BN", **options)
        names = {}
        for i, stage in enumerate(("res2", "res3", "res4", "res5"), 1):
            for j in range(len(getattr(net, stage))):
                for k in (1, 2, 3):
                    names[f"{stage}.block{j + 1}.conv{k}.conv"] = f"layer{i}.{j}.conv{k}"
                    names[f"{stage}.block{j + 1}.conv{k}.norm"] = f"layer{i}.{j}.bn{k}"
                names[f"{stage}.block{j + 1}.shortcut.conv"] = f"layer{i}.{j}.downsample.0"
                names[f"{stage}.block{j + 1}.shortcut.norm"] = f"layer{i}.{j}.downsample.1"
                names[f"{stage}.block{j + 1}.conv2.conv.offset"] = f"layer{i}.{j}.conv2.conv_offset"
        names.update({"stem.conv": "conv1", "stem.norm": "bn1"})
        return net, {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in net.state_dict().items()}

    @pytest.mark.parametrize("prefix", ["", "backbone."])
    def test_backbones(self, tmp_path, prefix):
        net, weights = self.backbone()
        torch.save({"state_dict": {prefix + key: value for key, value in weights.items()}}, tmp_path / "theirs.pth")
        result = run("mmdet", tmp_path / "theirs.pth", tmp_path / "ours.pth")
        assert result.provenance["network"] == "RegNetX-400MF"
        assert all(
            torch.equal(value, result.model[f"backbone.bottom_up.{k}"]) for k, value in net.state_dict().items() if "num_batches" not in k
        )

    @pytest.mark.skipif(mmdet._library() is None, reason="MMDetection with its operators is not installed")
    @pytest.mark.parametrize("filename", ["faster-rcnn_regnetx-3.2GF_fpn_1x.json", "retinanet_r50_fpn_1x.json"])
    def test_proof_against_mmdetection(self, filename):
        """Backbone and FPN; a tensor out of place is found out."""
        record = load_record("detectors", filename)
        weights = {key: fill(key, shape) for key, shape in record["keys"]}
        proof = mmdet.convert_detector({"state_dict": weights}).provenance["proof"]
        assert len(proof["largest_relative_difference"]) == 5 and max(proof["largest_relative_difference"].values()) <= 1e-10

    def test_objects_beside_the_weights_are_passed_over(self, tmp_path):
        """Its files hold a history of its own classes; any other object is refused."""
        from types import ModuleType

        _, weights = self.backbone()
        names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
        modules = {name: ModuleType(name) for name in names}
        module = modules[names[-1]]
        module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
        sys.modules.update(modules)
        try:
            history = module.HistoryBuffer()
            history.values = [1.0, 2.0]
            torch.save({"message_hub": {"loss": history}, "state_dict": weights}, tmp_path / "theirs.pth")
        finally:
            for name in names:
                del sys.modules[name]
        assert run("mmdet", tmp_path / "theirs.pth", tmp_path / "ours.pth").provenance["network"] == "RegNetX-400MF"
        with pytest.raises(UserError, match="cannot be read"):
            run("pycls", tmp_path / "theirs.pth", tmp_path / "never.pth")

    @pytest.mark.parametrize(
        "text, expected",
        [
            ("data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False)", ("BGR", 103.53, 57.375)),
            ("img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)", ("RGB", 123.675, 58.395)),
            ("mean=[103.530, 116.280, 123.675],\n std=[1.0, 1.0, 1.0]", ("BGR", 103.53, 1.0)),
        ],
    )
    def test_what_the_file_says_of_its_images(self, text, expected):
        found = mmdet.stated_preprocessing({"state_dict": self.SOME, "meta": {"cfg": text}})
        assert (found.format, found.pixel_mean[0], found.pixel_std[0]) == expected

    def test_what_a_bare_state_dict_says_of_its_images(self):
        """MMDetection 3's models keep it in buffers; an entry that is no state dict says nothing."""
        values = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
        weights = {**self.SOME, **{f"data_preprocessor.{key}": torch.tensor(value) for key, value in values.items()}}
        for contents in (weights, {"state_dict": weights}, {f"module.{key}": value for key, value in weights.items()}):
            found = mmdet.stated_preprocessing(contents)
            assert (found.format, found.pixel_mean[0]) == ("RGB", 123.675)
        assert mmdet.stated_preprocessing({"state_dict": 3, "ema_state_dict": self.SOME}) is None

    def test_silent_files(self):
        assert mmdet.stated_preprocessing({"state_dict": self.SOME}) is None
        for text in ("nothing", "mean=[1..2, 1, 1], std=[1, 1, 1]", "mean=[0, 0, 0, 0], std=[1, 1, 1, 1]"):
            assert mmdet.stated_preprocessing({"state_dict": self.SOME, "meta": {"cfg": text}}) is None

    RGB = "data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)"

    def test_bare_networks_too_say_what_they_expect(self, tmp_path):
        """The first layer is turned; an option that differs is refused."""
        net, weights = self.backbone()
        torch.save(
            {"state_dict": {f"backbone.{key}": value for key, value in weights.items()}, "meta": {"cfg": self.RGB}}, tmp_path / "theirs.pth"
        )
        result = run("mmdet", tmp_path / "theirs.pth", tmp_path / "ours.pth")
        assert "turned from RGB" in result.provenance["channel_order"]
        assert torch.equal(result.model["backbone.bottom_up.stem.conv.weight"], net.stem.conv.weight.flip(1))
        with pytest.raises(UserError, match="the file says that it expects RGB images .* omit the option"):
            run("mmdet", tmp_path / "theirs.pth", tmp_path / "ours.pth", "--channels", "BGR")

    ANCHORS = "dict(type='AnchorGenerator', {})"
    FASTER = "scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]"

    @pytest.mark.parametrize(
        "kind, changed, overrides",
        [
            ("Faster R-CNN", FASTER, []),
            ("Mask R-CNN", FASTER.replace("[8]", "(2,)"), ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"]),
            ("Cascade R-CNN", FASTER.replace("0.5, 1.0", "0.3"), ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.3, 2.0]]"]),
            ("RetinaNet", "octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]", []),
            ("GFLV2", "ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]", []),
            ("GFL", "octave_base_scale=4", "anchors with octave_base_scale 4 are not supported for a GFL; usual is 8"),
            ("RetinaNet", "scales=[4]", "anchors with scales [4] are not supported for a RetinaNet"),
            ("Faster R-CNN", FASTER.replace("[8]", "[4, 8]"), "anchors with scales [4, 8] are not supported for a Faster R-CNN; usual is [8]"),
            ("Faster R-CNN", "strides=[8, 16, 32, 64, 128]", "anchors with strides [8, 16, 32, 64, 128] are not supported"),
            ("Faster R-CNN", "center_offset=0.5", "anchors with center_offset 0.5 are not supported"),
        ],
    )
    def test_anchors_of_their_own(self, kind, changed, overrides):
        """They change no weight's shape: what has no counterpart is refused."""
        text = "model = dict(rpn_head=dict(anchor_generator=" + self.ANCHORS.format(changed) + "))\ndata = dict(type='x', scales=[1])"
        if isinstance(overrides, str):
            with pytest.raises(UserError, match=re.escape(overrides)):
                mmdet._boxes(text, kind)
        else:
            assert mmdet._boxes(text, kind) == overrides and mmdet._boxes("a = (", kind) == []

    @pytest.mark.parametrize(
        "kind, stds, fine",
        [
            ("Faster R-CNN", [[1.0] * 4, [0.1, 0.1, 0.2, 0.2]], True),
            ("Faster R-CNN", [[0.1, 0.1, 0.2, 0.2]], True),
            ("Faster R-CNN", [[1, 1, 1, 1], [1, 1, 1, 1]], False),
            ("Faster R-CNN", [[0.5] * 4], False),
            ("RetinaNet", [[1.0] * 4], True),
            ("RetinaNet", [[0.1, 0.1, 0.2, 0.2]], False),
            ("Cascade R-CNN", [[1.0] * 4, [0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]], True),
            ("Cascade R-CNN", [[1.0] * 4, [0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.03, 0.03, 0.07, 0.07]], False),
        ],
    )
    def test_codings_of_boxes_of_their_own(self, kind, stds, fine):
        coders = [f"dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds={each})" for each in stds]
        with contextlib.nullcontext() if fine else pytest.raises(UserError, match=f"target_stds .* are not supported for a {kind}; usual are"):
            mmdet._boxes(f"model = dict(coders=[{', '.join(coders)}])", kind)
        with pytest.raises(UserError, match="boxes coded with target_means"):
            mmdet._boxes("dict(type='DeltaXYWHBBoxCoder', target_means=[1, 0, 0, 0])", kind)

    @pytest.mark.slow
    def test_averages_anchors_and_names_of_classes(self, tmp_path):
        """--key takes a whole detector's average, with what the config beside it says; MMDetection 2's second copy is left out and said."""
        record = load_record("detectors", "faster-rcnn_regnetx-3.2GF_fpn_1x.json")
        weights = {key: fill(key, shape) for key, shape in record["keys"]}
        average = {f"module.{key}": value + 1 if key == "roi_head.bbox_head.fc_cls.bias" else value for key, value in weights.items()}
        names = [f"thing {i}" for i in range(80)]
        text = f"{self.RGB}\nmodel = {self.ANCHORS.format(self.FASTER.replace('[8]', '[4]'))}"
        copies = {f"ema_{key.replace('.', '_')}": value for key, value in weights.items()}
        contents = {
            "state_dict": {**weights, **copies},
            "ema_state_dict": {**average, "steps": torch.tensor(3)},
            "meta": {"cfg": text, "dataset_meta": {"classes": tuple(names)}},
        }
        torch.save(contents, tmp_path / "theirs.pth")
        plain = run("mmdet", tmp_path / "theirs.pth", tmp_path / "plain.pth")
        assert plain.provenance["taken"].startswith(f"left out: {len(copies)} tensors of the hook that averages weights (ema_")
        result = run("mmdet", tmp_path / "theirs.pth", tmp_path / "ours.pth", "--key", "ema_state_dict")
        assert result.provenance["detector"] == "Faster R-CNN" and "turned from RGB" in result.provenance["channel_order"]
        overrides = result.provenance["overrides"]
        assert overrides[overrides.index("MODEL.ANCHOR_GENERATOR.SIZES") + 1] == "[[16], [32], [64], [128], [256]]"
        bias = "roi_heads.box_predictor.cls_score.bias"
        assert torch.equal(result.model[bias], plain.model[bias] + 1)
        assert names_in(read_checkpoint(str(tmp_path / "ours.pth"))) == {"classes": names}
        contents["meta"]["cfg"] = "model = dict("
        torch.save(contents, tmp_path / "theirs.pth")
        taken = run("mmdet", tmp_path / "theirs.pth", tmp_path / "other.pth").provenance["taken"]
        assert taken.endswith("; anchors and the coding of boxes as usual: the config's text in the file cannot be parsed")
        with pytest.raises(UserError, match="unknown state dict in the file: 'ema'"):
            run("mmdet", tmp_path / "theirs.pth", tmp_path / "never.pth", "--key", "ema")

    def test_the_file_and_the_option_agree(self):
        said = {"state_dict": self.detector(), "meta": {"cfg": "mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False"}}
        with pytest.raises(UserError, match="the file says that it expects BGR images .* omit the option"):
            mmdet.convert_detector(said, mmdet.IMAGENET_RGB)

    def test_a_config_that_computes_something_else_is_refused(self):
        record = load_record("detectors", "retinanet_regnetx-800MF_fpn_1x.json")
        weights = {key: fill(key, shape) for key, shape in record["keys"]}
        name = "COCO-Detection/retinanet_RegNetX_800MF_FPN_1x.yaml"
        assert mmdet.convert_detector({"state_dict": weights}, config=name).provenance["config"] == name
        with pytest.raises(UserError, match="has MODEL.REGNET.NAME RegNetX-1.6GF, but the file's detector needs RegNetX-800MF"):
            mmdet.convert_detector({"state_dict": weights}, config=name.replace("800MF", "1.6GF"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "text, stride_in_1x1",
        [("", False), ("style='caffe'", True), ("mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False", True)]
        + [("mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False, style='pytorch'", False)],
    )
    def test_where_a_resnet_has_its_stride(self, text, stride_in_1x1):
        record = load_record("detectors", "retinanet_r50_fpn_1x.json")
        weights = {key: fill(key, shape) for key, shape in record["keys"]}
        overrides = mmdet.convert_detector({"state_dict": weights, "meta": {"cfg": text}}).provenance["overrides"]
        assert overrides[overrides.index("MODEL.RESNETS.STRIDE_IN_1X1") + 1] == str(stride_in_1x1)

    @pytest.mark.slow
    @pytest.mark.parametrize("key", ["roi_head.bbox_head.fc_cls.weight", "backbone.layer1.0.conv2.weight", "rpn_head.rpn_cls.bias"])
    @pytest.mark.parametrize("shape", [(), (0,), (0, 5), (2, 2, 2)])
    def test_odd_shapes(self, key, shape):
        with pytest.raises(UserError, match="is not a detector"):
            mmdet.convert_detector({"state_dict": {**self.detector(), key: torch.zeros(shape)}})

    def test_old_versions_are_refused(self):
        with pytest.raises(UserError, match="1.2.0.*upgrade"):
            mmdet.convert_detector({"meta": {"mmdet_version": "1.2.0"}, "state_dict": {"neck.x": torch.zeros(1)}})

    def detector(self):
        record = load_record("detectors", "faster-rcnn_regnetx-3.2GF_fpn_1x.json")
        return {key: torch.zeros(shape) for key, shape in record["keys"]}

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "change, words",
        [
            (lambda w: w.pop("neck.fpn_convs.2.conv.bias"), "missing backbone.fpn_output4.bias"),
            (lambda w: w.update({"roi_head.extra.weight": torch.zeros(3, 1, 1, 1)}), "unknown roi_head.extra.weight"),
            (lambda w: w.update({"rpn_head.rpn_conv.weight": torch.zeros(8, 256, 3, 3)}), "rpn_head.conv.weight is \\(8, 256, 3, 3\\), not"),
            (lambda w: w.pop("backbone.layer3.4.conv2.weight"), "with RegNetX-3.2GF, the nearest, 1 entries differ: missing res4.block5.conv2"),
            (lambda w: [w.pop(k) for k in list(w) if k.startswith("roi_head")], "not supported: its heads are rpn_head.rpn_cls"),
        ],
    )
    def test_misfits_are_listed(self, change, words):
        weights = self.detector()
        change(weights)
        with pytest.raises(UserError, match=words) as error:
            mmdet.convert_detector({"state_dict": weights})
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("modulated, offsets", [(True, 27), (False, 18)])
    def test_deformable_stages_are_seen(self, modulated, offsets):
        net, weights = self.backbone(deform_on_per_stage=(False, True, True, True), deform_modulated=modulated)
        assert net.res3.block1.conv2.conv.offset.out_channels == offsets and isinstance(net.res3.block1.conv2.conv, DeformConv2d)
        name, overrides, ours = mmdet._regnet(weights)
        assert name == "RegNetX-400MF" and overrides[2:6] == [
            "MODEL.REGNET.DEFORM_ON_PER_STAGE",
            "[False, True, True, True]",
            "MODEL.REGNET.DEFORM_MODULATED",
            str(modulated),
        ]
        assert torch.equal(ours["res5.block1.conv2.conv.offset.weight"], net.res5.block1.conv2.conv.offset.weight)


class Trap:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BACKBONES_TRAP"],))


def bad_files(folder):
    good = {key: fill(key, shape) for key, shape in load_record("regnet", "RegNetX-400MF.json")["state_dict"]}
    torch.save({"model_state": good}, folder / "good.pyth")
    whole = (folder / "good.pyth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    torch.save({"model_state": good, "state_dict": good, "extra": Trap()}, folder / "code.pth")
    (folder / "code.pkl").write_bytes(pickle.dumps({"model_state": {}, "extra": Trap()}))
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet.pth")
    torch.save({**good, "extra.weight": torch.zeros(1)}, folder / "extra.pth")
    torch.save({k: v for k, v in good.items() if k != "s2.b1.f.a.weight"}, folder / "missing.pth")
    torch.save({**good, "stem.conv.weight": torch.zeros(64, 3, 3, 3)}, folder / "wide.pth")
    yield ["pycl", "good.pyth", "ours.pth"], ["'pycl'", "Did you mean 'pycls'"]
    yield ["pycls", "nowhere.pyth", "ours.pth"], ["nowhere.pyth", "does not exist"]
    yield ["pycls", "truncated.pth", "ours.pth"], ["truncated.pth", "cannot be read"]
    yield ["pycls", "page.pth", "ours.pth"], ["page.pth", "web page"]
    for source in ("pycls", "mmdet", "torchvision", "timm", "detectron2"):
        yield [source, "code.pth", "ours.pth"], ["code.pth", "cannot be read"]
    yield ["pycls", "code.pkl", "ours.pth"], ["code.pkl", "it holds code: posix.mkdir"]
    yield ["pycls", "resnet.pth", "ours.pth"], ["none of the networks that pycls and this project share"]
    yield ["timm", "good.pyth", "ours.pth"], ["the file is not from timm: it holds RegNetX-400MF with the key names of pycls"]
    yield ["timm", "resnet.pth", "ours.pth", "--name", "timm/resnet18"], ["need no conversion: set MODEL.WEIGHTS to the file"]
    yield ["pycls", "extra.pth", "ours.pth"], ["RegNetX-400MF", "1 entries differ: unknown extra.weight"]
    yield ["pycls", "missing.pth", "ours.pth"], ["1 entries differ: missing res3.block1.conv1.conv.weight"]
    yield ["pycls", "wide.pth", "ours.pth"], ["stem.conv.weight is (64, 3, 3, 3), not (32, 3, 3, 3)"]
    yield ["pycls", "good.pyth", "ours.bin"], ["'ours.bin' must end in .pth or .safetensors"]
    yield ["pycls", "good.pyth", "ours.pth", "--name", "RegNetX-800MG"], ["Did you mean 'RegNetX-800MF'"]
    yield ["pycls", "good.pyth", "ours.pth", "--name", "RegNetX-800MF"], ["with RegNetX-800MF"]
    yield ["pycls", "good.pyth", "good.pyth/ours.pth"], ["cannot be written"]
    yield ["pycls", "good.pyth", f"{'o' * 300}.pth"], ["cannot be written"]
    yield ["pycls", "good.pyth", "ours.pth", "--name", "V-39-eSE"], ["pycls has no V-39-eSE"]
    yield ["pycls", "good.pyth", "ours.pth", "--config-file", "x.yaml"], ["--config-file x.yaml does not apply to bare networks"]
    yield ["pycls", "good.pyth", "ours.pth", "MODEL.REGNET.NORM", "BN"], ["MODEL.REGNET.NORM BN does not apply"]
    for std in (["0", "1", "1"], ["nan", "1", "1"]):
        yield ["pycls", "good.pyth", "ours.pth", "--channels", "RGB", "--pixel-std", *std], ["deviation", "above 0"]
    torch.save({"model_state": good}, folder / "same.pth")
    yield ["pycls", "same.pth", "same.pth"], ["DST 'same.pth' is the same file as SRC"]
    last = [key for key in good if key.startswith("s4.") and key.endswith("f.c.weight")][-1]
    variance = [key for key in good if key.startswith("s4.") and key.endswith("running_var")][-1]
    nan, negative = good[last].clone(), good[variance].clone()
    nan.view(-1)[0], negative[0] = float("nan"), -1
    for name, change, words in (
        ("nan", {last: nan}, [last, "NaN"]),
        ("negative", {variance: negative}, [variance, "negative"]),
        ("whole", {last: good[last].to(torch.int8)}, [last, "int8"]),
        ("sparse", {last: good[last].to_sparse()}, [last, "sparse"]),
        ("twice", {f"module.{last}": good[last]}, [last, "twice"]),
        ("average", {}, ["none of the networks"]),
    ):
        extra = {"ema_state": {"x": torch.zeros(1)}, "ema_err": 1.0, "test_err": 2} if name == "average" else {}
        torch.save({"model_state": {**good, **change}, **extra}, folder / f"{name}.pyth")
        yield ["pycls", f"{name}.pyth", "ours.pth"], words
    torch.save({key: value * 0 if "num_batches" not in key else value for key, value in good.items()}, folder / "zeros.pth")
    yield ["pycls", "zeros.pth", "ours.pth"], ["the proof failed", "0 everywhere"]
    for name, content in {"none": None, "list": [1], "number": {"x": 1}, "keys": {1: torch.zeros(1)}}.items():
        torch.save({"state_dict": content, "meta": {}}, folder / f"{name}.pth")
        yield ["mmdet", f"{name}.pth", "ours.pth"], ["not a state dict"]


@pytest.mark.slow
def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBONES_TRAP", str(tmp_path / "sprung"))
    monkeypatch.chdir(tmp_path)
    count, before = 0, set()
    for arguments, words in bad_files(tmp_path):
        before |= set(os.listdir(tmp_path))  # the files that the next case needs
        with pytest.raises(UserError) as error:
            run(*arguments)
        message = str(error.value)
        assert "\n" not in message and all(word in message for word in words), (arguments, message)
        assert not [name for name in os.listdir(tmp_path) if name not in before | set(arguments)], arguments
        assert not (tmp_path / "ours.pth").exists()
        before = set(os.listdir(tmp_path))
        count += 1
    assert (tmp_path / "same.pth").stat().st_size > 1000
    assert count >= 35 and not (tmp_path / "sprung").exists()


def command(*args):
    return warm("-m", "convert", *args)


@pytest.mark.slow
def test_command_line(tmp_path):
    assert "backbones convert pycls" in command("--help").stdout
    torch.save(randomize(torchvision.models.regnet_y_800mf()), tmp_path / "theirs.pth")
    result = command("torchvision", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    assert result.returncode == 0, result.stderr
    for words in ("RegNetY-800MF", "BSD-3-Clause", "turned from RGB to BGR", "| res5", "MODEL.REGNET.ROUNDING torchvision"):
        assert words in result.stdout
    (tmp_path / "page.pth").write_text("<html>")
    for source, file in (("torchvison", "theirs.pth"), ("pycls", "page.pth"), ("pycls", "theirs.pth")):
        result = command(source, tmp_path / file, tmp_path / "never.pth")
        assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
        assert [line for line in result.stderr.splitlines() if "error:" in line][0].startswith("convert: error: ")
        assert not (tmp_path / "never.pth").exists()


@pytest.mark.slow
def test_a_failing_proof_writes_nothing(tmp_path, monkeypatch):
    """A conversion that mixes two tensors up is found out by the numbers alone."""
    module = torchvision.models.regnet_x_800mf()
    torch.save(randomize(module), tmp_path / "theirs.pth")
    translate = backbones.regnet.RegNet.translate_key
    swap = {"conv1.norm": "conv2.norm", "conv2.norm": "conv1.norm"}

    def mixed_up(self, key, layout):
        key = translate(self, key, layout)
        return next((key.replace(a, b) for a, b in swap.items() if a in key), key)

    monkeypatch.setattr(backbones.regnet.RegNet, "translate_key", mixed_up)
    with pytest.raises(UserError, match="the proof failed: features differ from those of torchvision .*, res2 by"):
        run("torchvision", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    assert not (tmp_path / "ours.pth").exists()


def test_a_full_disk(tmp_path):
    """What torch and safetensors have of their own to say of it is one line all the same."""
    import resource

    torch.save(
        {"model_state": {key: fill(key, shape) for key, shape in load_record("regnet", "RegNetX-400MF.json")["state_dict"]}},
        tmp_path / "x.pyth",
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for ending in (".pth", ".safetensors"):
        arguments = cli.argument_parser().parse_intermixed_args(["pycls", str(tmp_path / "x.pyth"), str(tmp_path / f"ours{ending}")])
        result = cli.convert(arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
        try:
            with pytest.raises(UserError, match="cannot be written"):
                cli.write(result, arguments.dst)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["x.pyth"]


def test_converted_files_say_what_they_need(tmp_path, monkeypatch):
    """use_backbone takes images and structure from the file at hand, and a config that lacks them is told."""
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    torch.save(randomize(torchvision.models.regnet_y_800mf()), tmp_path / "theirs.pt")
    run("torchvision", tmp_path / "theirs.pt", tmp_path / "RegNetY-800MF.safetensors", "--channels", "RGB", "--pixel-mean", "1", "2", "3")
    cfg = zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    use_backbone(cfg, "RegNetY-800MF")
    assert cfg.MODEL.REGNET.ROUNDING == "torchvision" and cfg.MODEL.PIXEL_MEAN == [3.0, 2.0, 1.0]
    GatedCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)
    cfg.MODEL.REGNET.ROUNDING = "pycls"
    with pytest.raises(UserError, match="its config needs MODEL.REGNET.ROUNDING torchvision"):
        GatedCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)
    use_backbone(cfg, "RegNetY-400MF")  # of which nothing lies there
    assert cfg.MODEL.REGNET.ROUNDING == "pycls" and cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    (tmp_path / "RegNetY-800MF.pth").write_bytes(b"")
    with pytest.raises(UserError, match="could be any of"):
        use_backbone(cfg, "RegNetY-800MF")


def test_provenance_is_json(tmp_path):
    torch.save(randomize(torchvision.models.mobilenet_v2()), tmp_path / "theirs.pth")
    json.dumps(run("torchvision", tmp_path / "theirs.pth", tmp_path / "ours.pth").provenance)


class TestLightNAS:
    """MAE-DET's project: files in its layout, made here, as the released ones cannot be had offline."""

    def contents(self, classes=80, width=192):
        keys = load_record("maedet", "maedet_s.json")["keys"]
        weights = {f"backbone.body.{key}": fill(key, shape) for key, shape in keys}
        for i, channels in enumerate((272, 1024, 2048)):
            weights[f"neck.lateral_convs.{i}.conv.weight"] = fill(f"lateral{i}.weight", (width, channels, 1, 1))
            weights[f"neck.lateral_convs.{i}.conv.bias"] = fill(f"lateral{i}.bias", (width,))
        for i in range(5):
            weights[f"neck.fpn_convs.{i}.conv.weight"] = fill(f"fpn{i}.weight", (width, width, 3, 3))
            weights[f"neck.fpn_convs.{i}.conv.bias"] = fill(f"fpn{i}.bias", (width,))
        sizes = {256: width, 80: classes}
        for key, shape in load_record("maedet", "gflv2_pieces.json")["full_head_keys"]:
            value = torch.arange(17.0) if key == "integral.project" else fill(key, [sizes.get(n, n) for n in shape])
            weights[f"bbox_head.{key}"] = value if shape else torch.tensor(1.0)
        return {"meta": {"epoch": 73}, "state_dict": weights, "optimizer": {}}

    @pytest.mark.parametrize("classes", [pytest.param(80, marks=pytest.mark.slow), 3])
    def test_whole_detector(self, classes, tmp_path):
        """Every entry is used, every weight filled, and FPN and head compute what the original's names say."""
        contents = self.contents(classes)
        torch.save(contents, tmp_path / "latest.pth")
        about = run("lightnas", tmp_path / "latest.pth", tmp_path / "ours.pth").provenance
        assert about["network"] == "MAE-DET-S" and about["config"] == "COCO-Detection/gfl_MAE_DET_S_FPN_73e.yaml"
        cfg = zoo.get_config(about["config"])
        merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "MODEL.MAEDET.NORM", "BN", *about["overrides"]])
        model = build_model(cfg).eval()
        GatedCheckpointer(model, require="all").load(str(tmp_path / "ours.pth"))
        theirs = contents["state_dict"]
        x = torch.rand(1, 3, 64, 96)
        conv = torch.nn.functional.conv2d
        with torch.no_grad():
            bottom_up, levels = model.backbone.bottom_up(x), model.backbone(x)

            def neck(kind, i, feature, **options):
                name = f"neck.{kind}.{i}.conv"
                return conv(feature, theirs[f"{name}.weight"], theirs[f"{name}.bias"], **options)

            merged = [neck("lateral_convs", 2, bottom_up["res5"])]
            for i, name in ((1, "res4"), (0, "res3")):
                below = torch.nn.functional.interpolate(merged[0], scale_factor=2, mode="nearest")
                merged.insert(0, neck("lateral_convs", i, bottom_up[name]) + below)
            expected = [neck("fpn_convs", i, feature, padding=1) for i, feature in enumerate(merged)]
            for i in (3, 4):
                expected.append(neck("fpn_convs", i, expected[-1], padding=1, stride=2))
            for value, level in zip(expected, levels.values()):
                torch.testing.assert_close(level, value, rtol=1e-4, atol=1e-4 * value.abs().max().item())
            scores, distributions = model.head([torch.randn(1, 192, 4, 4)] * 5)
            assert scores[0].shape[1] == classes and scores[0].max() <= 1
            assert torch.equal(model.head.bbox_pred.weight, theirs["bbox_head.gfl_reg.weight"])
            assert torch.equal(model.head.cls_subnet[10].bias, theirs["bbox_head.cls_convs.3.gn.bias"])
            assert "instances" in model([{"image": torch.rand(3, 70, 90) * 255}])[0]

    def test_its_images_are_rgb(self, tmp_path):
        torch.save(self.contents(), tmp_path / "latest.pth")
        result = run("lightnas", tmp_path / "latest.pth", tmp_path / "ours.pth")
        assert result.preprocessing.format == "RGB"
        cfg = zoo.get_config("gfl_MAE_DET_S_FPN_73e.yaml")
        merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "MODEL.MAEDET.NORM", "BN", "INPUT.FORMAT", "BGR"])
        with pytest.raises(UserError, match='expects images of another format.*INPUT.FORMAT "RGB"'):
            GatedCheckpointer(build_model(cfg), require="all").load(str(tmp_path / "ours.pth"))

    @pytest.mark.slow
    @pytest.mark.parametrize("whole", [True, False])
    def test_its_backbone_alone(self, whole, tmp_path):
        """Turned to BGR, like every bare network."""
        weights = {key: value for key, value in self.contents()["state_dict"].items() if key.startswith("backbone.")}
        torch.save(
            {"state_dict": weights} if whole else {key[len("backbone.body.") :]: value for key, value in weights.items()}, tmp_path / "b.pth"
        )
        result = run("lightnas", tmp_path / "b.pth", tmp_path / "ours.pth")
        assert result.provenance["network"] == "MAE-DET-S" and result.preprocessing.format == "BGR"
        compare_first = result.model["backbone.bottom_up.stem.block1.conv.weight"]
        assert torch.equal(compare_first, weights["backbone.body.block_list.0.conv1.weight"].flip(1))

    @pytest.mark.parametrize(
        "change, words",
        [
            (lambda w: w.pop("bbox_head.reg_conf.0.bias"), "missing head.quality.0.bias"),
            (lambda w: w.update({"bbox_head.extra.weight": torch.zeros(1)}), "unknown bbox_head.extra.weight"),
            (lambda w: w.pop("backbone.body.block_list.2.block_list.0.conv1.conv1.weight"), "with MAE-DET-S, the nearest, 1 entries differ"),
            (lambda w: w.update({"neck.fpn_convs.4.conv.weight": torch.zeros(192, 192, 1, 1)}), r"top_block.p7.weight is \(192, 192, 1, 1\)"),
            (lambda w: w.update({"bbox_head.gfl_reg.bias": torch.full((68,), float("nan"))}), "infinite numbers or NaN"),
        ],
    )
    @pytest.mark.slow
    def test_what_is_not_whole_is_refused(self, change, words, tmp_path):
        contents = self.contents()
        change(contents["state_dict"])
        torch.save(contents, tmp_path / "latest.pth")
        with pytest.raises(UserError, match=words):
            run("lightnas", tmp_path / "latest.pth", tmp_path / "ours.pth")
        assert not (tmp_path / "ours.pth").exists()

    @pytest.mark.slow
    def test_another_config(self, tmp_path):
        torch.save(self.contents(), tmp_path / "latest.pth")
        with pytest.raises(UserError, match="not a GFL detector with MAE-DET-S"):
            run("lightnas", tmp_path / "latest.pth", tmp_path / "ours.pth", "--config-file", "faster_rcnn_V_39_FPN_3x.yaml")
