"""Released weights by name: from a stand-in server, with files of the true layouts and random weights."""

import io
import json
import logging
import os

import pytest
import timm
import torch
import torchvision
from conftest import ROOT, few_digits, fill, load_record, warm
from detectron2.data.detection_utils import read_image
from detectron2.modeling.backbone import regnet
from PIL import Image
from safetensors.torch import save
from test_fetching import server, shared  # noqa: F401  fixtures

import backbones
from backbones import UserError, registry, zoo
from backbones.checkpoint import GatedCheckpointer, read_checkpoint
from backbones.checkpoint.fetching import place
from backbones.engine import open_config
from backbones.tools import train
from backbones.tools import zoo as zoo_tool
from backbones.zoo import weights

FREE = ("Apache-2.0", "MIT", "BSD-3-Clause")
# in double precision, of a feature's largest value
TOLERANCE = 1e-5


def alive(module):
    """Random weights, and norms with the statistics of noise, with which every feature depends on the image."""
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 1.0
            torch.nn.init.uniform_(m.weight, 0.1, 0.3, generator=generator)
            torch.nn.init.uniform_(m.bias, -0.1, 0.1, generator=generator)
    with torch.no_grad():
        module.train()(torch.randn(4, 3, 96, 96, generator=generator))
    return module.eval()


def pth(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def put(server, name, spec, content, **behaviour):  # noqa: F811
    """Serves a state dict as that release of a network."""
    release = next(release for release in weights.releases(name) if release.spec == spec)
    if release.hub:
        return server.put_hub(release.hub, {"model.safetensors": save(content)}, **behaviour)
    whole = {"model_state": content} if release.source == "pycls" else content
    return server.put(release.url.partition("://")[2].partition("?")[0], pth(whole), **behaviour)


@pytest.fixture
def any_hash(monkeypatch):
    """Random weights have another hash than the true ones, which the data are to say then."""

    def of(name, content):
        import hashlib

        for row in weights.data()["weights"].get(name, [weights.models().get(f"{name}.yaml")]):
            if "sha256" in row:
                monkeypatch.setitem(row, "sha256", hashlib.sha256(pth(content)).hexdigest()[:8])

    return of


@pytest.fixture
def no_own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path / "none"))


pytestmark = pytest.mark.usefixtures("no_own_files")


# the data


def test_every_network_has_a_list_of_sources():
    """Those that are free to use first, then better ones first; the rows say all there is to say."""
    names = registry.list_backbones()
    assert len(names) == 40 and set(weights.data()["weights"]) <= set(names)
    for name in names:
        releases = weights.releases(name)
        assert len({release.spec for release in releases}) == len(releases)
        for release in releases:
            assert bool(release.hub) != bool(release.url) and release.licence in weights.data()["licences"], release
            assert (release.licence in FREE) != bool(release.restricted)
            assert release.source != "torchvision" or len(release.sha256) == 8
            assert set(release.preprocessing) == {"format", "pixel_mean", "pixel_std"} and release.preprocessing["format"] == "BGR"
        free = [release for release in releases if not release.restricted and not release.gone]
        assert free == releases[: len(free)]
        same = [release.top1 for release in free if release.top1 and not release.overrides]
        assert same == sorted(same, reverse=True)
    without = {name for name in names if weights.released(name) is None}
    assert without == {n for n in names if n.startswith(("MAE-DET", "DetNAS"))} | {
        "V-19-eSE", "V-19-slim-eSE", "V-19-slim-dw-eSE", "V-99-eSE"
    }  # fmt: skip


@pytest.mark.parametrize(
    "address, name, wanted",
    [
        ("backbones://V-39-eSE", "V-39-eSE", ""),
        ("backbones://V-39-eSE@timm:ese_vovnet39b.ra_in1k", "V-39-eSE", "timm:ese_vovnet39b.ra_in1k"),
        ("timm://ese_vovnet39b.ra_in1k", "V-39-eSE", "timm:ese_vovnet39b.ra_in1k"),
        ("torchvision://regnet_y_3_2gf.IMAGENET1K_V2", "RegNetY-3.2GF", "torchvision:regnet_y_3_2gf.IMAGENET1K_V2"),
        ("pycls://RegNetX-3.2GF", "RegNetX-3.2GF", "pycls:RegNetX-3.2GF"),
        ("timm://convnext_atto.d2_in1k", "timm/convnext_atto.d2_in1k", "timm:convnext_atto.d2_in1k"),
    ],
)
def test_addresses(address, name, wanted):
    assert weights.parsed(address) == (name, wanted)
    take, others = weights._candidates(name, wanted, ())
    assert take and (not wanted or [release.spec for release in take] == [wanted])


@pytest.mark.parametrize("address", ["https://example.org/x.pth", "weights/x.pth", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"])
def test_other_addresses_are_not_ours(address):
    assert weights.parsed(address) is None


@pytest.mark.parametrize(
    "address, message",
    [
        ("timm://ese_vovnet39", "Did you mean 'ese_vovnet39b.ra_in1k'"),
        ("backbones://V-39", "Did you mean 'V-39-eSE'"),
        ("backbones://V-39-eSE@tim", "Did you mean 'timm'|Allowed: 'timm:ese_vovnet39b.ra_in1k'"),
        (
            "backbones://V-99-eSE",
            "vovnet99_ese_detectron2 is on a file-sharing host.*'.*V-99-eSE.pth'; from scratch: set MODEL.WEIGHTS ''",
        ),
        ("backbones://faster_rcnn_V_39_FPN_3x", "faster_V_39_eSE_ms_3x is on a file-sharing host"),
        ("backbones://V-39-eSE@vovnet-detectron2", "Set MODEL.WEIGHTS to your own file, converted by .* another project's; from scratch"),
        ("backbones://MAE-DET-S", "no weights of MAE-DET-S are known: save .*MAE-DET-S.pth', or train from scratch: set MODEL.WEIGHTS ''"),
    ],
)
def test_what_cannot_be_had_is_said(address, message):
    with pytest.raises(UserError, match=message) as caught:
        weights.find(address)
    assert caught.value.code == "missing-weights" and "\n" not in str(caught.value)


# from a server to a network

LIBRARIES = {
    "timm": ("V-39-eSE", "timm:ese_vovnet39b.ra_in1k"),
    "timm, another mean": ("V-57-eSE", "timm:ese_vovnet57b.ra4_e3600_r256_in1k"),
    "timm, MobileNetV2": ("MobileNetV2", "timm:mobilenetv2_100.ra_in1k"),
    "torchvision": ("RegNetY-3.2GF", "torchvision:regnet_y_3_2gf.IMAGENET1K_V2"),
    "torchvision, other widths": ("RegNetX-400MF", "torchvision:regnet_x_400mf.IMAGENET1K_V2"),
    "torchvision, MobileNetV2": ("MobileNetV2", "torchvision:mobilenet_v2.IMAGENET1K_V2"),
    "pycls": ("RegNetX-400MF", "pycls:RegNetX-400MF"),
    "pycls, RegNetY": ("RegNetY-800MF", "pycls:RegNetY-800MF"),
}
CONFIGS = {
    "V-39-eSE": "faster_rcnn_V_39_FPN_3x.yaml",
    "V-57-eSE": "faster_rcnn_V_57_FPN_3x.yaml",
    "MobileNetV2": "faster_rcnn_Mv2_FPN_3x.yaml",
    "RegNetY-3.2GF": "mask_rcnn_RegNetY_3.2GF_FPN_3x.yaml",
    "RegNetX-400MF": "faster_rcnn_RegNetX_400MF_FPN_3x.yaml",
    "RegNetY-800MF": "faster_rcnn_RegNetY_800MF_FPN_3x.yaml",
}
# of pycls's dds_baselines, whose networks detectron2 has under the same key names
PYCLS = {
    "RegNetX-400MF": {"depth": 22, "w_0": 24, "w_a": 24.48, "w_m": 2.54, "group_width": 16},
    "RegNetY-800MF": {"depth": 14, "w_0": 56, "w_a": 38.84, "w_m": 2.4, "group_width": 16, "se_ratio": 0.25},
}


@pytest.fixture
def photo(tmp_path):
    """A file of a picture whose sides the networks' strides divide."""
    path = str(tmp_path / "photo.png")
    noise = fill("photo", (7, 5, 3)).add(3).mul(40).clamp(0, 255).byte().numpy()
    Image.fromarray(noise).resize((160, 224), Image.Resampling.BICUBIC).save(path)
    return path


def by_library(spec, photo):
    """(the library's own network, the features that its own transform of the picture gives, those of the picture upside down)"""
    source, own = spec.split(":")
    exact = lambda picture: torchvision.transforms.functional.pil_to_tensor(picture).double() / 255
    torch.manual_seed(0)
    if source == "timm":
        net = alive(timm.create_model(own, pretrained=False))
        about = net.pretrained_cfg
        transform = timm.data.create_transform(
            (3, 224, 160), mean=about["mean"], std=about["std"], interpolation=about["interpolation"], crop_pct=1.0
        )
        features = lambda image: net.forward_intermediates(image, intermediates_only=True)[-4:]
    elif source == "pycls":
        kinds = {"stem_class": regnet.SimpleStem, "stem_width": 32, "block_class": regnet.ResBottleneckBlock, "norm": "BN"}
        net = alive(regnet.RegNet(**kinds, **PYCLS[own], out_features=["s1", "s2", "s3", "s4"]))
        net.head = torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 1000)})  # of the file; detection has no use for it
        normalized = torchvision.transforms.Normalize([0.406, 0.456, 0.485], [0.225, 0.224, 0.229])  # of BGR, as pycls reads images
        transform = lambda picture: normalized(exact(picture).flip(0))
        features = lambda image: list(net(image).values())
    else:
        name, which = own.split(".")
        about = torchvision.models.get_model_weights(name)[which].transforms()
        net = alive(torchvision.models.get_model(name))
        transform = lambda picture: torchvision.transforms.functional.normalize(exact(picture), about.mean, about.std)
        nodes = [f"trunk_output.block{i}" for i in (1, 2, 3, 4)] if "regnet" in name else [f"features.{i}" for i in (3, 6, 13, 17)]
        extractor = torchvision.models.feature_extraction.create_feature_extractor(net, nodes)
        features = lambda image: list(extractor(image).values())
    content = {key: value.clone() for key, value in net.state_dict().items()}
    image = transform(Image.open(photo).convert("RGB"))[None].double()
    with torch.no_grad():
        net.double()
        return content, features(image), features(image.flip(2))


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.whole) if "another" in case else case for case in LIBRARIES])
def test_a_config_gets_the_librarys_features(case, server, photo, any_hash, caplog):  # noqa: F811
    """From nothing, by the config as it stands: the same picture gives the features of the library's own network and transform."""
    caplog.set_level(logging.INFO, "backbones")
    name, spec = LIBRARIES[case]
    content, expected, others = by_library(spec, photo)
    put(server, name, spec, content)
    any_hash(name, content)
    narrow = ["MODEL.ROI_BOX_HEAD.FC_DIM", "64"]  # the head is not what is tried
    front = open_config(CONFIGS[name], ["MODEL.DEVICE", "cpu", *narrow, "MODEL.WEIGHTS", f"backbones://{name}@{spec}"])
    front.follow_weights()
    assert front.settings.MODEL.WEIGHTS == f"backbones://{name}@{spec}" and front.settings.INPUT.NORMALIZATION == "config"
    model = front.build_model()
    GatedCheckpointer(model).load(front.settings.MODEL.WEIGHTS, checkpointables=[])
    image = torch.as_tensor(read_image(photo, front.settings.INPUT.FORMAT).transpose(2, 0, 1).copy())
    model.double().eval()
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}]).tensor
        assert images.shape[2:] == (224, 160)
        actual = list(model.backbone.bottom_up(images).values())
    for ours, theirs, other in zip(actual, expected, others, strict=True):
        assert (theirs - other.flip(2)).abs().max() > 0.1 * theirs.abs().max()  # a feature that depends on the picture
        assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
    assert f"weights of {name}: {spec}, licence " in caplog.text and "equal to " in caplog.text


def served(server, name, specs, **behaviour):  # noqa: F811
    """Serves the same random network as several releases; returns its state dict."""
    net = alive(timm.create_model({"RegNetX-200MF": "regnetx_002", "V-19-dw-eSE": "ese_vovnet19b_dw", "V-39-eSE": "ese_vovnet39b"}[name]))
    for spec in specs:
        put(server, name, spec, net.state_dict(), **behaviour)
    return net.state_dict()


def test_the_next_source_is_taken(server, caplog):  # noqa: F811
    """Where the first does not answer. What was taken is said, kept, and found again without the server."""
    caplog.set_level(logging.INFO, "backbones")
    served(server, "RegNetX-200MF", ["timm:regnetx_002.pycls_in1k"])
    address, images, overrides = weights.follow("backbones://RegNetX-200MF")
    assert address == "backbones://RegNetX-200MF@timm:regnetx_002.pycls_in1k" and overrides == []
    assert images == {"format": "BGR", "pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [57.375, 57.12, 58.395]}
    said = "weights of RegNetX-200MF come from timm:regnetx_002.pycls_in1k, because another source cannot be used: pycls:RegNetX-200MF: "
    assert caplog.text.count(said) == 1
    assert "RegNetX-200MF: timm:regnetx_002.pycls_in1k, licence MIT" in caplog.text
    server.files.clear()
    assert weights.is_here(address) and weights.follow(address)[0] == address
    provenance = read_checkpoint(weights.find(address)[0])["provenance"]
    assert provenance["licence"] == "MIT" and provenance["proof"]["run"] and len(provenance["sha256"]) == 64


def test_a_detectors_file_that_is_used_as_it_is_is_here(server):  # noqa: F811
    address = "backbones://COCO-Detection/faster_rcnn_R_50_FPN_1x"
    (release,) = weights.releases("COCO-Detection/faster_rcnn_R_50_FPN_1x")
    assert not weights.is_here(address)
    os.makedirs(os.path.dirname(place(release.url)))
    with open(place(release.url), "w"):
        assert weights.is_here(address)


def test_a_network_of_timm_comes_from_the_hub(server):  # noqa: F811
    """As timm itself has it, which knows an older address beside it; what is loaded is its file."""
    net = timm.create_model("convnext_atto.d2_in1k")
    server.put_hub("timm/convnext_atto.d2_in1k", {"model.safetensors": save(net.state_dict())})
    address, images, _ = weights.follow("backbones://timm/convnext_atto.d2_in1k")
    ours = backbones.create("timm/convnext_atto.d2_in1k")
    GatedCheckpointer(ours, require="all").load(address)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs = net.eval().forward_intermediates(x, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(ours.eval()(x).values(), theirs, strict=True))
    assert images["format"] == "RGB" and all("/timm/" in path or "/cdn/" in path for _, path, _ in server.log)


def test_a_file_of_another_network_is_not_taken(server):  # noqa: F811
    """Nothing of it is kept."""
    served(server, "V-19-dw-eSE", [])
    put(server, "RegNetX-200MF", "pycls:RegNetX-200MF", alive(timm.create_model("ese_vovnet19b_dw")).state_dict())
    with pytest.raises(UserError, match="pycls:RegNetX-200MF: .*; timm:regnetx_002.pycls_in1k: "):
        weights.find("backbones://RegNetX-200MF")
    release = weights.releases("RegNetX-200MF")[0]
    assert not os.path.exists(weights._kept(release))


def test_restricted_licences_are_named_and_wait_for_consent(server):  # noqa: F811
    """SWAG's and SEER's are asked for where their licence is accepted or their file is named, and never else."""
    name, swag = "RegNetY-32GF", "regnety_320.swag_ft_in1k"
    for accepted, asked in (((), set()), (("CC-BY-NC-4.0",), {"swag"}), (("CC-BY-NC-4.0", "SEER"), {"swag", "seer"})):
        server.log.clear()
        with pytest.raises(UserError, match="missing-weights|no weights for") as caught:
            weights.find(f"backbones://{name}", accepted)
        places = " ".join(path for _, path, _ in server.log)
        assert {what for what in ("swag", "seer") if what in places} == asked
        if not accepted:
            assert f"timm:{swag}, " in str(
                caught.value
            ) and "CC-BY-NC-4.0, not for commercial use: --accept-licence CC-BY-NC-4.0, or name" in str(caught.value)
    server.log.clear()
    with pytest.raises(UserError, match="no weights for"):
        weights.find(f"timm://{swag}")
    assert {path.split("/")[2] for _, path, _ in server.log} == {swag}


def test_a_source_that_is_gone_can_be_named(server, any_hash, caplog):  # noqa: F811
    """The file of vovnet-detectron2, as its authors released it, expects other images."""
    record = load_record("vovnet", "V-19-slim-dw.json")
    spec = "vovnet-detectron2:vovnet19_ese_slim_dw_detectron2"
    put(server, "V-19-slim-dw-eSE", spec, {key: fill(key, shape) for key, shape in record["state_dict"]})
    address, images, _ = weights.follow(f"backbones://V-19-slim-dw-eSE@{spec}")
    assert images["pixel_std"] == [1.0, 1.0, 1.0] and "CC-BY-NC-4.0, not for commercial use" in caplog.text
    net = backbones.create("V-19-slim-dw-eSE")
    GatedCheckpointer(net, require="all").load(address)


@pytest.mark.parametrize(
    "address, said, suggestion",
    [
        (
            "https://www.dropbox.com/s/q98pypf96rhtd8y/vovnet39_ese_detectron2.pth",
            "timm:ese_vovnet39b.ra_in1k .Apache-2.0",
            "backbones://V-39-eSE",
        ),
        ("https://dl.dropbox.com/s/q98pypf96rhtd8y/vovnet39_ese_detectron2.pth?dl=1", "timm:ese_vovnet39b.ra_in1k", "backbones://V-39-eSE"),
        (
            "https://dl.fbaipublicfiles.com/pycls/dds_baselines/160905981/RegNetX-200MF_dds_8gpu.pyth",
            "timm:regnetx_002",
            "backbones://RegNetX-200MF",
        ),
        ("https://www.dropbox.com/s/1mlv31coewx8trd/vovnet99_ese_detectron2.pth", "no other source of V-99-eSE is known", None),
        ("https://example.org/x.pth", "HTTP 403 Forbidden$", None),
    ],
)
def test_a_dead_address_names_living_ones(address, said, suggestion, server):  # noqa: F811
    server.put(address.partition("://")[2].partition("?")[0], status=403)
    front = open_config("faster_rcnn_V_39_FPN_3x.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", address])
    with pytest.raises(UserError, match=said) as caught:
        front.follow_weights()
    assert "HTTP 403 Forbidden" in str(caught.value) and caught.value.suggestion == suggestion


# images follow the weights


def written(path, images=None, name="V-19-slim-dw-eSE"):
    content = {"model": {f"backbone.bottom_up.{key}": value for key, value in backbones.create(name).state_dict().items()}}
    torch.save({**content, **({"preprocessing": images} if images else {})}, path)
    return str(path)


RGB = {"format": "RGB", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]}
CONFIG = "faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml"


def images_of(front):
    s = front.settings
    return {"format": s.INPUT.FORMAT, "pixel_mean": list(s.MODEL.PIXEL_MEAN), "pixel_std": list(s.MODEL.PIXEL_STD)}


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, "lazy/retinanet_V_39_FPN_1x.py"])
def test_images_follow_the_weights(config, tmp_path):
    """Where the config leaves them; what the weights do not say stays the config's, and both is said."""
    python = config.endswith(".py")
    path = written(tmp_path / "stated.pth", RGB, "V-39-eSE" if python else "V-19-slim-dw-eSE")
    opts = ["train.device=cpu", f"train.init_checkpoint={path}"] if python else ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", path]
    front = open_config(config, opts)
    before = images_of(front)
    front.follow_weights()
    assert images_of(front) == RGB and front.settings.INPUT.NORMALIZATION == "config"
    assert any("images: RGB, mean [1.0, 2.0, 3.0], standard deviation [4.0, 5.0, 6.0], as the weights say" in line for line in front.said)
    GatedCheckpointer(front.build_model()).load(path, checkpointables=[])
    if python:
        mapper = front.cfg.dataloader.train.mapper
        assert front.cfg.model.input_format == mapper.image_format == front.cfg.dataloader.test.mapper.image_format == "RGB"
    silent = written(tmp_path / "silent.pth", None, "V-39-eSE" if python else "V-19-slim-dw-eSE")
    front = open_config(config, [opt.replace(path, silent) for opt in opts])
    front.follow_weights()
    assert images_of(front) == before and any("do not state what images they expect" in line for line in front.said)


def test_a_model_by_its_configs_name_follows_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    written(tmp_path / "V-19-slim-dw-eSE.pth", RGB)
    model = zoo.get(CONFIG, device="cpu")
    assert model.pixel_mean.flatten().tolist() == RGB["pixel_mean"] and model.input_format == "RGB"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["override", "file", "python"])
def test_images_set_by_hand_are_kept_and_compared(how, tmp_path):
    python = how == "python"
    path = written(tmp_path / "stated.pth", RGB, "V-39-eSE" if python else "V-19-slim-dw-eSE")
    if python:
        opts = ["train.device=cpu", f"train.init_checkpoint={path}", "model.pixel_std=[7,8,9]"]
        front = open_config("lazy/retinanet_V_39_FPN_1x.py", opts)
    elif how == "override":
        front = open_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", path, "MODEL.PIXEL_STD", "[7.0,8.0,9.0]"])
    else:
        own = tmp_path / "own.yaml"
        own.write_text(f"_BASE_: {zoo.get_config_file(CONFIG)}\nMODEL: {{PIXEL_STD: [7.0, 8.0, 9.0], WEIGHTS: {path}, DEVICE: cpu}}\n")
        front = open_config(str(own))
    assert front.settings.INPUT.NORMALIZATION == "config"
    front.follow_weights()
    assert list(front.settings.MODEL.PIXEL_STD) == [7, 8, 9]
    with pytest.raises(UserError, match="expects images of another format than the config states: set INPUT.FORMAT"):
        GatedCheckpointer(front.build_model()).load(path, checkpointables=[])


@pytest.mark.slow
@pytest.mark.parametrize("config", ["COCO-Detection/fcos_R_50_FPN_1x.py", "Misc/semantic_R_50_FPN_1x.yaml"])
def test_models_that_do_not_state_their_order_of_channels(config, tmp_path):
    """Which their checkpoints state all the same, as the config, or in a Python config the mapper, does; older ones state none, and load."""
    python = config.endswith(".py")
    opts = ["train.device=cpu", "train.init_checkpoint="] if python else ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    front = open_config(config, opts, backbone="timm/resnet18.a1_in1k")
    assert front.settings.INPUT.FORMAT == "RGB"
    model = front.build_model()
    GatedCheckpointer(model, str(tmp_path)).save("model")
    path = str(tmp_path / "model.pth")
    content = read_checkpoint(path)
    assert content["preprocessing"].pop("format") == "RGB"
    front.set("INPUT.FORMAT", "BGR")
    other = front.build_model()
    with pytest.raises(UserError, match='set INPUT.FORMAT "RGB"'):
        GatedCheckpointer(other).load(path)
    torch.save(content, path)
    GatedCheckpointer(other).load(path)


def test_images_set_by_hand_in_any_way_are_kept(tmp_path):
    """A Python config's overrides may begin with signs, and its mapper may be what says the order of channels."""
    path = written(tmp_path / "stated.pth", RGB, "V-39-eSE")
    for config, item in (
        ("COCO-Detection/retinanet_R_50_FPN_1x.py", "++model.pixel_mean=[1.0,2.0,3.5]"),
        ("COCO-Detection/fcos_R_50_FPN_1x.py", "dataloader.test.mapper.image_format=L"),
    ):
        front = open_config(config, ["train.device=cpu", item], weights=path)
        assert front.settings.INPUT.NORMALIZATION == "config"
        front.follow_weights()
        assert images_of(front) != RGB and front.stated("MODEL.PIXEL_MEAN") == item.startswith("++")


def test_the_flag_names_a_source(tmp_path):
    """Of the config's own network, or any address; it leaves the images to the weights in any config."""
    for config, backbone, source, address in (
        ("faster_rcnn_RegNetX_400MF_FPN_3x.yaml", "", "pycls", "backbones://RegNetX-400MF@pycls"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "V-39-eSE", "timm", "backbones://V-39-eSE@timm"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.py", "V-39-eSE", "timm", "backbones://V-39-eSE@timm"),
        (
            "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
            "V-39-eSE",
            "timm:ese_vovnet39b.ra_in1k",
            "backbones://V-39-eSE@timm:ese_vovnet39b.ra_in1k",
        ),
        (CONFIG, "", "own.pth", "own.pth"),
    ):
        front = open_config(config, [], backbone, source)
        assert front.settings.MODEL.WEIGHTS == address and front.settings.INPUT.NORMALIZATION == "weights"
    for config in ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.py"):
        with pytest.raises(UserError, match="none of this project's, so it has no named sources.*a file or an address, or add --backbone"):
            open_config(config, [], "", "timm")


def test_own_weights_leave_the_norm_alone():
    """A network whose only source is gone begins from scratch, unless the user has weights."""
    scratch = open_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", [], "V-99-eSE").cfg
    assert scratch.MODEL.WEIGHTS == "" and scratch.MODEL.VOVNET.NORM == "SyncBN"
    own = open_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", ["MODEL.WEIGHTS", "v99.pth"], "V-99-eSE").cfg
    assert own.MODEL.WEIGHTS == "v99.pth" and own.MODEL.VOVNET.NORM == "FrozenBN" and own.MODEL.BACKBONE.FREEZE_AT == 2


@pytest.mark.slow
def test_from_nothing_to_a_run(server, tmp_path):  # noqa: F811
    """The first command a user types: it trains with timm's weights; what the run leaves says all, and evaluates by the same config."""
    config, name, spec = "faster_rcnn_V_39_FPN_3x.yaml", "V-39-eSE", "timm:ese_vovnet39b.ra_in1k"
    content = served(server, name, [spec])
    output = tmp_path / "run"
    common = [
        "MODEL.DEVICE", "cpu", "OUTPUT_DIR", output, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "64", "TEST.PICTURES", "0",
    ]  # fmt: skip
    made = few_digits(tmp_path, {"train": 4, "val": 2})
    data = [item for split, (file, folder) in made.items() for item in (f"--{split}", file, f"--{split}-images", folder)]
    env = {**os.environ, "PYTHONPATH": ROOT, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}

    def run(*arguments):
        done = warm("train_net.py", "--config-file", config, *arguments, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = run(*data, *common)
    hub = next(release.hub for release in weights.releases(name) if release.spec == spec)
    assert any(f"/{hub}/" in path for _, path, _ in server.log) and f"weights of {name}: {spec}, licence Apache-2.0" in said
    left = open_config(str(output / "config.yaml"))
    assert left.settings.MODEL.WEIGHTS == f"backbones://{name}@{spec}" and left.settings.INPUT.NORMALIZATION == "config"
    images = images_of(left)
    assert images["format"] == "BGR" and images["pixel_std"] == [57.375, 57.12, 58.395]
    final = read_checkpoint(str(output / "model_final.pth"))
    assert final["preprocessing"]["format"] == "BGR" and final["preprocessing"]["pixel_std"] == pytest.approx(images["pixel_std"])
    first = final["model"]["backbone.bottom_up.stem.0.conv.weight"]  # the order of channels is turned; two steps move it by a thousandth
    torch.testing.assert_close(first, content["stem.0.conv.weight"].flip(1), rtol=0, atol=0.01)
    server.files.clear()
    said = run("--eval-only", *data[4:], *common, "MODEL.WEIGHTS", output / "model_final.pth")
    assert "as the weights say" in said and "bbox" in said


@pytest.mark.slow
def test_a_published_row_from_its_address_to_its_figures(server, tmp_path, any_hash, capfd, own_logs):  # noqa: F811
    """A detector of MMDetection's: a file of another hash is refused, the right one converted; evaluation needs nothing else."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    record = load_record("detectors", "faster-rcnn_regnetx-3.2GF_fpn_1x.json")
    content = {"state_dict": {key: fill(key, shape) for key, shape in record["keys"]}}
    name = "COCO-Detection/faster_rcnn_RegNetX_3.2GF_FPN_1x"
    url = weights.releases(name)[0].url
    server.put(url.partition("://")[2], pth(content))
    with pytest.raises(UserError, match="126fd9bf"):
        zoo_tool.download("faster_rcnn_RegNetX_3.2GF_FPN_1x")
    any_hash(name, content)
    path = zoo_tool.download("faster_rcnn_RegNetX_3.2GF_FPN_1x")
    assert read_checkpoint(path)["provenance"]["licence"] == "Apache-2.0"
    categories = [{"id": row["id"], "name": row["name"]} for row in COCO_CATEGORIES if row["isthing"]]
    Image.new("RGB", (96, 64), (90, 120, 60)).save(tmp_path / "one.png")
    image = {"id": 1, "file_name": "one.png", "width": 96, "height": 64}
    truth = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30], "area": 900, "iscrowd": 0}
    (tmp_path / "val.json").write_text(json.dumps({"images": [image], "annotations": [truth], "categories": categories}))
    train.command_line(
        ["--config-file", "reproduce/faster_rcnn_RegNetX_3.2GF_FPN_1x.yaml", "--eval-only", "--val", str(tmp_path / "val.json")]
        + ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path / "run"), "TEST.EXPECTED_RESULTS", "[]"]
        + ["DATALOADER.NUM_WORKERS", "0"]
    )
    said = capfd.readouterr().out
    assert "bbox" in said and "| backbone | " in said
    assert server.asked[url.partition("://")[2]] == 2  # once with each hash


@pytest.mark.parametrize("config", ["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py", "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["MODEL.REGNET.NORM", "{_target_: builtins.open, file: opened, mode: w}"],
        ["MODEL.REGNET.ROUNDING", {"_target_": "builtins.open"}],
        ["MODEL.REGNET.ROUNDING", "${oc.env:HOME}"],
        ["MODEL.REGNET._TARGET_", "os.getcwd"],
        ["OUTPUT_DIR", "elsewhere"],
        ["MODEL.REGNET.ROUNDING", "torchvision", "SOLVER.MAX_ITER", "1"],
        ["MODEL.REGNET.ROUNDING"],
        "MODEL.REGNET.ROUNDING torchvision",
    ],
)
def test_a_file_cannot_set_what_it_likes(config, overrides, tmp_path, monkeypatch):
    """By its address or as the user's own file of a network's name: a config gets nothing from it but its network's rounding."""
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    path = str(tmp_path / "RegNetX-400MF.pth")
    torch.save({"model": {}, "provenance": {"overrides": overrides}}, path)
    with pytest.raises(UserError, match="weights can set only MODEL.REGNET.ROUNDING, to pycls or torchvision") as caught:
        open_config(config, weights=path).follow_weights()
    assert caught.value.code == "bad-file" and path in str(caught.value)
    with pytest.raises(UserError, match="weights can set only MODEL.REGNET.ROUNDING"):
        open_config(config, backbone="RegNetX-400MF")


@pytest.mark.parametrize(
    "wrong",
    [{"format": ["BGR"]}, {"format": "RGBA"}, {"pixel_mean": 5}, {"pixel_std": None}, {"pixel_std": [1.0, 0.0, 1.0]}, {"pixel_mean": [1.0]},
     {"pixel_mean": [float("nan")] * 3}, {"pixel_mean": "abc"}],
)  # fmt: skip
def test_images_that_cannot_be_are_refused(wrong, tmp_path):
    path = str(tmp_path / "x.pth")
    torch.save({"model": {}, "preprocessing": {**RGB, **wrong}}, path)
    with pytest.raises(UserError, match="states images that cannot be") as caught:
        open_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", weights=path).follow_weights()
    assert caught.value.code == "bad-file" and path in str(caught.value)


def test_a_damaged_file_is_had_anew(server):  # noqa: F811
    """Downloaded again, or converted again, where the images follow the weights, which are read first then."""
    url, good = "https://download.example.org/m.pth", pth({"model": {}, "preprocessing": RGB})
    server.put(url.partition("://")[2], good[:-40])
    with pytest.raises(UserError, match=f"cannot be read .* .downloaded from {url}"):
        weights.follow(url)
    server.put(url.partition("://")[2], good)
    assert weights.follow(url)[1] == RGB
    release = weights.releases("RegNetX-200MF")[0]
    os.makedirs(os.path.dirname(weights._kept(release)))
    with open(weights._kept(release), "wb") as f:
        f.write(b"PK\3\4")
    with pytest.raises(UserError, match="cannot be read"):
        weights.follow(release.address)
    assert not weights.is_here(release.address)


def test_the_users_own_file_of_a_networks_name_is_named(tmp_path, monkeypatch):
    """In the config of a run, which another folder, or none, of such files would lead elsewhere."""
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    path = str(tmp_path / "V-39-eSE.pth")
    torch.save({"model": {}, "preprocessing": RGB}, path)
    front = open_config("faster_rcnn_V_39_FPN_3x.yaml", ["MODEL.DEVICE", "cpu"])
    front.follow_weights()
    assert front.settings.MODEL.WEIGHTS == path and images_of(front) == RGB


@pytest.mark.slow
@pytest.mark.parametrize("config", ["COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.py"])
def test_an_accepted_licence_serves_another_backbone(config):
    """Whose weights are then as those of any other; without it the network begins from scratch."""
    name, licence = "timm/convnextv2_tiny.fcmae_ft_in1k", "CC-BY-NC-4.0"
    assert open_config(config, backbone=name).settings.MODEL.WEIGHTS == ""
    front = open_config(config, backbone=name, accepted=[licence])
    assert front.settings.MODEL.WEIGHTS == f"backbones://{name}"
    assert images_of(front) == weights.released(name, [licence]).preprocessing


def test_licences_are_known_names():
    """In any case of letters; what no weights have is refused, with the nearest that some have."""
    front = open_config("digits/faster_rcnn_digits.yaml", accepted=["cc-by-nc-4.0", "gemma"])
    assert front.accepted == front.clone("MODEL.DEVICE", "cpu").accepted == ["CC-BY-NC-4.0", "gemma"]
    with pytest.raises(UserError, match="unknown licence: 'CC-BY-NC4.0'. Did you mean 'CC-BY-NC-4.0'") as caught:
        open_config("digits/faster_rcnn_digits.yaml", accepted=["CC-BY-NC4.0"])
    assert caught.value.key == "--accept-licence"


def test_weights_that_are_not_there_are_said_at_once(tmp_path, monkeypatch):
    """Before data are read: a file's neighbour, a source, or one of timm's names stands in the line."""
    (tmp_path / "model_best.pth").write_bytes(b"")
    for given, near in (
        (tmp_path / "model_bset.pth", tmp_path / "model_best.pth"),
        ("vovnet", "vovnet-detectron2"),
        ("timm://resnet18", "resnet18."),
    ):
        front = open_config("digits/faster_rcnn_digits.yaml", ["MODEL.WEIGHTS", str(given), "MODEL.DEVICE", "cpu"])
        with pytest.raises(UserError, match="Did you mean") as caught:
            front.follow_weights()
        assert f"'{near}" in str(caught.value) and caught.value.key == "MODEL.WEIGHTS"


def test_a_source_that_is_gone_is_asked_where_it_is_named():
    """A restricted one only by its licence or its whole address."""
    (release,) = weights.releases("V-19-slim-dw-eSE")
    assert release.gone and release.licence == "CC-BY-NC-4.0"
    for wanted, accepted, taken in (
        ("", (), []),
        ("", ("CC-BY-NC-4.0",), []),
        (release.source, (), []),
        (release.source, ("CC-BY-NC-4.0",), [release]),
        (release.spec, (), [release]),
    ):
        assert weights._candidates(release.name, wanted, accepted)[0] == taken


def test_show_says_what_cannot_be_a_backbone():
    assert "it cannot serve as a backbone: timm/vit_base_patch16_224 has features at strides 16, 16, 16" in zoo_tool.show(
        "timm/vit_base_patch16_224"
    )
    assert "--backbone timm/resnet18 " in zoo_tool.show("timm/resnet18")
