"""MAE-DET against recorded outputs of its project's networks, its published sizes, and structure files of both dialects."""

import ast
import itertools

import pytest
import torch
from choices import cases, turns
from conftest import fill, filled_input, load_record
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from fvcore.nn import FlopCountAnalysis
from hypothesis import given
from hypothesis import strategies as st

import backbones
from backbones.config import add_backbones_config, merge_file
from backbones.maedet import Block, check_structure, format_structure, parse_structure, read_structure, scaled
from backbones.meta import on_meta

NAMES = {"MAE-DET-S": "maedet_s", "MAE-DET-M": "maedet_m", "MAE-DET-L": "maedet_l"}
RECORDED = ["MAE-DET-S", "MAE-DET-M"]
PREFIXES = ["", "body.", "backbone.body.", "module.backbone.body.", "backbone.bottom_up."]


def released(record):
    return {key: fill(key, shape) for key, shape in record["keys"]}


@pytest.mark.parametrize(
    "prefix, name",
    cases(itertools.product(PREFIXES, RECORDED), tried=turns(PREFIXES, RECORDED), daily=[(PREFIXES[0], "MAE-DET-S")]),
)
def test_released_weights_give_the_recorded_features(prefix, name):
    """1e-4 of each feature's deviation; values grow to 1e7, as nothing is normalized by data."""
    record = load_record("maedet", f"{NAMES[name]}.json")
    net = backbones.create(name).eval()
    net.load_state_dict({prefix + key: value for key, value in released(record).items()}, strict=True)
    with torch.no_grad():
        outputs = net(filled_input(record["input"]["shape"]))
    for value, expected in zip(outputs.values(), record["features"]):
        assert list(value.shape) == expected["shape"]
        tolerance = 1e-4 * expected["std_float64"]
        values = torch.tensor(expected["values_float64"])
        torch.testing.assert_close(value.flatten()[expected["indices"]], values, rtol=0, atol=tolerance)
        assert value.mean().item() == pytest.approx(expected["mean_float64"], abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_translate(name):
    record = load_record("maedet", f"{NAMES[name]}.json")
    ours = backbones.translate(name, {"backbone.body." + key: value for key, value in released(record).items()})
    backbones.create(name, norm="BN").load_state_dict(ours, strict=True)
    with pytest.raises(backbones.UserError, match="not a state dict of MAE-DET-L"):
        backbones.translate("MAE-DET-L", released(record))


@pytest.mark.parametrize("name", cases(NAMES, tried=["MAE-DET-S"], daily=[]))
def test_sizes(name):
    """Parameters, and multiply-adds by fvcore's count, of the source's table: exactly, and to its last digit."""
    expected = load_record("maedet", "params_flops_800x1280.json")[NAMES[name]]
    net = backbones.create(name, norm="BN").eval()
    assert sum(p.numel() for p in net.parameters()) == expected["params_all"]
    counts = FlopCountAnalysis(net, torch.zeros(1, 3, 800, 1280)).unsupported_ops_warnings(False)
    counts = counts.uncalled_modules_warnings(False).by_operator()
    assert counts["conv"] == expected["counts"]["conv_macs"]
    assert round((counts["conv"] + counts["batch_norm"]) / 1e9, 3) == expected["conv_bn2"]


STRUCTURE = backbones.get_spec("MAE-DET-S").structure
LIST = load_record("maedet", "scores_analytic.json")["maedet_s"]["structure"]


def test_both_dialects(tmp_path):
    old = [{**entry, "class": entry["class"].replace("SuperRes", "SuperResConv")} for entry in LIST]
    for i, text in enumerate((repr(old), repr({"space_arch": "MasterNet", "best_structures": [LIST]}) + "  \n ", format_structure(STRUCTURE))):
        path = tmp_path / f"{i}.txt"
        path.write_text(text)
        assert read_structure(str(path)) == STRUCTURE


def test_the_search_of_the_source_writes_what_is_read():
    """Six blocks, one of them of stride 1: its stage is the one before."""
    entries = load_record("maedet", "scores_analytic.json")["search_init"]["structure"]
    structure = parse_structure(entries)
    net = backbones.create("MAE-DET-S", structure=structure)
    assert [(s.channels, s.stride) for s in net.output_shape().values()] == [(256, 4), (512, 8), (1024, 16), (2048, 32)]
    assert len(net.res4) == 2 and isinstance(net.res4.block2.pool, torch.nn.Identity)


blocks = st.builds(
    Block,
    channels=st.integers(1, 40).map(lambda n: 8 * n),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.just(2),
    layers=st.integers(1, 4),
    bottleneck=st.integers(1, 20).map(lambda n: 8 * n),
    relu=st.just(True),
    forced=st.booleans(),
).map(lambda b: b if b.forced else b._replace(layers=1))


@pytest.mark.slow
@given(stem=st.integers(1, 80), rest=st.lists(blocks, min_size=4, max_size=4), relu=st.booleans())
def test_what_is_written_is_read(stem, rest, relu):
    """And builds, with every released key finding a place of its own."""
    structure = check_structure((Block(stem, 3, 2, relu=relu), *rest))
    assert parse_structure(ast.literal_eval(format_structure(structure))) == structure
    with on_meta():
        net = backbones.create("MAE-DET-S", structure=structure)
    assert len(set(net._released.values())) == len(net._released) == 1 + sum(b.layers for b in rest)
    assert [s.channels for s in net.output_shape().values()] == [b.channels for b in rest]


def changed(block, **fields):
    entries = [dict(entry) for entry in LIST]
    entries[block].update(fields)
    return {"best_structures": [entries]}


@pytest.mark.parametrize(
    "content, words",
    [
        ("{'best_structures': []}", "is a dict without 'best_structures'"),
        ("{}", "is a dict without 'best_structures'"),
        ("[]", "not a list of blocks"),
        ("3", "not a list of blocks"),
        ("__import__('os').system('true')", "not a Python literal"),
        ("[{'class': 'ConvKXBNRELU'", "not a Python literal"),
        ("(" * 5000, "not a Python literal"),
        (" " * (1 << 21), "too many for a structure"),
        ("\x00", "not a Python literal"),
        ("[3]", "block 0 is 3, not a dict"),
        ("{[1]: 2}", "not a Python literal"),
        ("[{'class': ['a']}]", "class in .*block 0"),
        (changed(0, **{"in": 1}), "block 0: field 'in' is 1, but images have 3"),
        (changed(2, dropout_channel=0.5), "field in .*block 2: 'dropout_channel'"),
        (changed(2, **{"class": "SuperResK1KXK"}), "class in .*block 2: 'SuperResK1KXK'. Did you mean 'SuperResK1KXK1'"),
        (changed(2, **{"class": "SuperQuantResK1KXK1", "nbitsA": [8]}), "block 2 belongs to a quantized network"),
        (changed(1, k="5"), "block 1: field 'k' is '5'"),
        (changed(1, k=True), "block 1: field 'k' is True"),
        (changed(1, k=4), "field 'k' in .*block 1: 4"),
        (changed(1, out=0), "block 1: field 'out' is 0"),
        (changed(1, L=10**9), "block 1: field 'L' is 1000000000"),
        (changed(3, s=3), "field 's' in .*block 3: 3"),
        (changed(3, s=1), "has 4 stages, to stride 16"),
        (changed(0, s=1), "must begin with a convolution of stride 2"),
        (changed(1, out=56), "block 2: field 'in' is 48, but the previous block gives 56"),
        (changed(2, act="swish"), "field 'act' in .*block 2: 'swish'"),
        (changed(2, g=2), "field 'g' in .*block 2: 2"),
        (changed(2, inner_class="ResK1DWK1"), "field 'inner_class' in .*block 2"),
    ],
)
def test_broken_files(content, words, tmp_path):
    path = tmp_path / "structure.txt"
    path.write_text(content if isinstance(content, str) else repr(content))
    with pytest.raises(backbones.UserError, match=words) as error:
        read_structure(str(path))
    assert "\n" not in str(error.value)


def test_released_weights_are_for_rgb(tmp_path):
    """As released they go into configs that give RGB, and into no others; the gate knows them by their names."""
    from detectron2.modeling import build_model

    from backbones import use_backbone, zoo
    from backbones.checkpoint import GatedCheckpointer

    torch.save(released(load_record("maedet", "maedet_s.json")), tmp_path / "released.pth")
    cfg = zoo.get_config("gfl_MAE_DET_S_FPN_73e.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.MAEDET.NORM = "cpu", "BN"
    GatedCheckpointer(build_model(cfg)).load(str(tmp_path / "released.pth"))
    other = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
    use_backbone(other, "MAE-DET-S")
    other.MODEL.DEVICE = "cpu"
    with pytest.raises(backbones.UserError, match="for RGB images, but INPUT.FORMAT is 'BGR'"):
        GatedCheckpointer(build_model(other)).load(str(tmp_path / "released.pth"))


def test_missing_fields_and_files(tmp_path):
    entries = [dict(entry) for entry in LIST]
    del entries[2]["btn"]
    with pytest.raises(backbones.UserError, match="block 2: field 'btn' is missing"):
        parse_structure(entries)
    with pytest.raises(backbones.UserError, match="does not exist"):
        read_structure(str(tmp_path / "none.txt"))


def test_a_structure_file_in_a_config(tmp_path, monkeypatch):
    """Beside the config, wherever that is started from."""
    (tmp_path / "small.txt").write_text(format_structure(scaled(STRUCTURE, 0.25)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "small.txt").write_text(format_structure(STRUCTURE))
    monkeypatch.chdir(tmp_path / "elsewhere")  # where there is another of that name
    (tmp_path / "elsewhere" / "derived.yaml").write_text('_BASE_: "../small.yaml"\n')
    (tmp_path / "small.yaml").write_text('MODEL: {BACKBONE: {NAME: build_maedet_backbone}, MAEDET: {STRUCTURE: "small.txt"}}\n')
    cfg = get_cfg()
    add_backbones_config(cfg)
    merge_file(cfg, "derived.yaml")
    cfg.MODEL.DEVICE = "meta"
    with on_meta():
        widths = [shape.channels for shape in build_backbone(cfg).output_shape().values()]
        cfg.MODEL.MAEDET.STRUCTURE, cfg.MODEL.MAEDET.NAME, cfg.MODEL.MAEDET.WIDTH = "", "MAE-DET-S", 0.25
        assert widths == [16, 72, 256, 512] == [shape.channels for shape in build_backbone(cfg).output_shape().values()]
        cfg.MODEL.MAEDET.NAME = "MAE-DET-XL"
        with pytest.raises(backbones.UserError, match="MODEL.MAEDET.NAME: 'MAE-DET-XL'.*'MAE-DET-M'"):
            build_backbone(cfg)
    with pytest.raises(backbones.UserError, match="width is 0"):
        backbones.create("MAE-DET-S", width=0)
