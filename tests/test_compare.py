"""`python -m backbones.tools.compare`: COCO's numbers of weighted images, what its intervals are worth, and its mistakes in one line."""

import copy
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import pytest
from conftest import warm
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backbones import UserError
from backbones.benchmark.evaluation import made_up, official
from backbones.data import digits
from backbones.evaluation import comparison
from backbones.evaluation.results import TASKS, check_keypoints, check_results, read_truth
from backbones.tools import compare

SIZES = {"bbox": 4, "segm": 4, "keypoints": 3}  # ranges of areas


def few_classes(images, detections, task, classes=6, seed=0):
    """`made_up` data with well filled classes, and B's results: A's with other scores, none of which stands twice."""
    dataset, a = made_up(images, detections, task, seed)
    for entry in dataset["annotations"] + a:
        entry["category_id"] = entry["category_id"] % classes + 1
    dataset["categories"] = [{"id": i, "name": f"kind {i}"} for i in range(1, classes + 2)]  # the last one has no objects
    rng = np.random.default_rng(seed + 1)
    for result in a:
        result["score"] = float(rng.random())
    b = [{**result, "score": float(rng.random())} for result in a]
    return dataset, a, b


def classes_of(dataset, results, task, weights):
    """(A, K, T, S) from the tool's parts."""
    results = check_results(results, dataset, task, "results.json")
    images = {image["id"]: image for image in dataset["images"]}
    places = {image: place for place, image in enumerate(sorted(images))}
    found = []
    for category in dataset["categories"]:
        own = [[dict(e) for e in entries if e["category_id"] == category["id"]] for entries in (dataset["annotations"], results)]
        if not own[0]:
            found.append(np.full((SIZES[task], 10, weights.shape[1]), np.nan))
            continue
        found.append([comparison.average_precision(m, weights) for m in comparison.match(images, places, category, *own, task)])
    return np.array(found).swapaxes(0, 1)


def official_classes(evaluation):
    """(A, K, T), NaN where pycocotools has -1."""
    ap = evaluation.eval["precision"][..., -1].mean(1).transpose(2, 1, 0)
    return np.where(ap < -0.5, np.nan, ap)


def repeated(dataset, results, weights):
    """The data in which image i really stands weights[i] times, copies beside each other, under new ids throughout."""
    copies = {image["id"]: [1000 * image["id"] + n for n in range(w)] for image, w in zip(dataset["images"], weights)}
    images = [{**image, "id": i} for image in dataset["images"] for i in copies[image["id"]]]
    annotations, found = (
        [{**e, "image_id": i} for e in entries for i in copies[e["image_id"]]] for entries in (dataset["annotations"], results)
    )
    annotations = [{**a, "id": i} for i, a in enumerate(annotations, 1)]
    return {**dataset, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize("task", TASKS)
def test_weights_of_one_give_pycocotools_numbers(task):
    """Every area, class and IoU threshold to 1e-12; scores with many ties too."""
    dataset, a, _ = few_classes(40, 30, task)
    for result in a:
        result["score"] = round(result["score"], 1)
    expected = official_classes(official(copy.deepcopy(dataset), a, task))
    found = classes_of(dataset, a, task, np.ones((40, 2), np.int16))
    assert found.shape == (SIZES[task], 7, 10, 2) and (np.nanmax(expected, (1, 2)) > 0.01).all()
    for sample in range(2):
        np.testing.assert_allclose(found[..., sample], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objects", [90, 130])
def test_images_with_more_than_100_objects(objects):
    """All their detections count, as where a training evaluates; else COCO's 100."""
    boxes = [[10.0 * (i % 20), 10.0 * (i // 20), 8.0, 8.0] for i in range(130)]
    dataset = {"images": [{"id": 1, "width": 200, "height": 80}], "categories": [{"id": 1, "name": "cup"}]}
    fields = {"image_id": 1, "category_id": 1}
    dataset["annotations"] = [{"id": i + 1, **fields, "bbox": box, "area": 64, "iscrowd": 0} for i, box in enumerate(boxes[-objects:])]
    results = [{**fields, "bbox": box, "score": 0.9 - i / 1000} for i, box in enumerate(boxes)]  # the last boxes score lowest
    expected = official(copy.deepcopy(dataset), results, "bbox").stats[0] if objects < 100 else 1.0
    row = comparison.compare(copy.deepcopy(dataset), [results, results], samples=10)["metrics"][0]
    assert row["a"] == row["b"] == pytest.approx(100 * expected, abs=1e-9) and (expected == 1) == (objects > 100)


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_copies_of_images(task):
    """Every area, class and IoU threshold to 1e-12, also where a sample lacks a class."""
    dataset, a, _ = few_classes(30, 20, task)
    weights = comparison.draw(30, 3, seed=5)
    kept = sorted({e["image_id"] for e in dataset["annotations"] if e["category_id"] == 2})
    weights[np.array(kept) - 1, 2] = 0
    found = classes_of(dataset, a, task, weights)
    for sample in range(3):
        expected = official_classes(official(*repeated(dataset, a, weights[:, sample]), task))
        np.testing.assert_allclose(found[..., sample], expected, rtol=0, atol=1e-12)
    assert np.isnan(found[0, 1, :, 2]).all() and not np.isnan(found[0, 1, :, :2]).any()


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_pycocotools_summary(task, monkeypatch):
    """A, B and their difference on the data, and on samples, which here are all the same one, so that the interval is a point."""
    dataset, a, b = few_classes(30, 20, task)
    weights = comparison.draw(30, 1, seed=1)
    monkeypatch.setattr(comparison, "draw", lambda images, samples, seed: np.repeat(weights, samples, axis=1))
    results = [check_results(r, dataset, task, "results.json") for r in (a, b)]
    result = comparison.compare(copy.deepcopy(dataset), results, task, samples=100)
    count = SIZES[task] + 2
    on_data, on_sample = (
        [100 * official(*repeated(dataset, results, w), task).stats[:count] for results in (a, b)] for w in (np.ones(30, int), weights[:, 0])
    )
    assert [row["name"] for row in result["metrics"]] == ["AP", "AP50", "AP75", *["APs", "APm", "APl"][3 - SIZES[task] + 1 :]]
    for i, row in enumerate(result["metrics"]):
        expected = [on_data[0][i], on_data[1][i], on_data[1][i] - on_data[0][i], *[on_sample[1][i] - on_sample[0][i]] * 2]
        assert [row[key] for key in ("a", "b", "difference", "low", "high")] == pytest.approx(expected, abs=1e-10)
        assert row["b_better"] == (expected[3] > 0) and row["samples"] == 100
    assert [row["samples"] for row in result["classes"]] == [100] * 6 + [0] and result["classes"][-1]["difference"] is None


def test_the_draws():
    weights = comparison.draw(50, 400, seed=0)
    assert weights.shape == (50, 400) and (weights.sum(0) == 50).all()
    assert weights.var() == pytest.approx(1 - 1 / 50, abs=0.05)  # of a multinomial
    assert (comparison.draw(50, 400, seed=0) == weights).all() and (comparison.draw(50, 400, seed=1) != weights).any()
    assert (comparison.draw(50, 100, seed=0) == weights[:, :100]).all()


def test_pairs():
    """The same results differ by exactly 0; exchanged, A and B give the negative; the seed and the confidence do what they say."""
    dataset, a, b = few_classes(20, 20, "bbox")
    forth, back, wide, other = (
        comparison.compare(dataset, results, samples=100, **options)["metrics"]
        for results, options in (([a, b], {}), ([b, a], {}), ([a, b], {"confidence": 99}), ([a, b], {"seed": 1}))
    )
    for f, r, w in zip(forth, back, wide):
        assert [f["difference"], f["low"], f["high"]] == pytest.approx([-r["difference"], -r["high"], -r["low"]], abs=1e-10)
        assert f["b_better"] + r["b_better"] <= 1 and w["low"] < f["low"] < f["high"] < w["high"]
    assert forth != other and [row["difference"] for row in forth] == [row["difference"] for row in other]
    same = comparison.compare(dataset, [a, list(a)], samples=100)
    for row in same["metrics"] + same["classes"][:-1]:
        assert row["difference"] == row["low"] == row["high"] == row["b_better"] == 0
    assert "there is no difference" in compare.verdict(same["metrics"][0], 95)


def detector(rng, truth, noise):
    """One detection an object, off by ``noise`` pixels, scores that know a little of it, and one false detection in each image."""
    results = []
    for annotation in truth:
        off = rng.normal(0, noise, 4)
        box = (np.array(annotation["bbox"]) + off).tolist()
        results.append({**annotation, "bbox": box, "score": float(rng.random() - 0.02 * np.abs(off).sum())})
    for image in sorted({annotation["image_id"] for annotation in truth}):
        results.append({"image_id": image, "category_id": 1, "bbox": [300.0, 300.0, 50.0, 50.0], "score": float(rng.random())})
    return results


def world(rng, images=40):
    truth = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(1, 5)):
            box = [*rng.uniform(0, 200, 2).tolist(), 50.0, 50.0]
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": 1, "bbox": box, "area": 2500.0})
    return {"images": [{"id": i} for i in range(1, images + 1)], "annotations": truth, "categories": [{"id": 1, "name": "it"}]}


def share_that_holds_zero(noise_a, noise_b, repetitions, confidence):
    held = 0
    for repetition in range(repetitions):
        rng = np.random.default_rng(repetition)
        dataset = world(rng)
        results = [detector(rng, dataset["annotations"], noise) for noise in (noise_a, noise_b)]
        row = comparison.compare(dataset, results, samples=200, seed=repetition, confidence=confidence)["metrics"][0]
        held += not comparison.beyond_chance(row)
    return held / repetitions


@pytest.mark.slow
def test_chance_is_told_as_chance():
    """Two detectors of one quality, on new data each time: 80% intervals hold 0 in 80% of cases; of 100, within 3 standard deviations."""
    assert share_that_holds_zero(5, 5, 100, 80) == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 100))


@pytest.mark.slow
def test_a_gain_is_told_as_a_gain():
    """A detector that lies clearly better is beyond chance every time."""
    assert share_that_holds_zero(7, 4, 10, 95) == 0


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, args)])
    compare.main()


@pytest.fixture
def files(tmp_path):
    dataset, a, b = few_classes(12, 10, "bbox")
    return [write(tmp_path / name, content) for name, content in (("a.json", a), ("b.json", b), ("truth.json", dataset))]


def test_the_command(files, tmp_path, monkeypatch, capsys):
    a, b, truth = files
    call(
        monkeypatch, a, b, "--annotations", truth, "--samples", 100, "--json", tmp_path / "out" / "c.json", "--plot", tmp_path / "new" / "c.png"
    )
    out, err = capsys.readouterr()
    result = json.loads((tmp_path / "out" / "c.json").read_text())
    about = {"a": a, "b": b, "annotations": truth, "task": "bbox", "images": 12, "samples": 100, "seed": 0, "confidence": 95.0}
    assert {key: result[key] for key in about} == about and result["interval"] == "percentile"
    for row in result["metrics"]:
        assert f"| {row['a']:.2f} | {row['b']:.2f} | {row['difference']:+.2f} |".replace(" ", "") in out.replace(" ", "")
    assert compare.verdict(result["metrics"][0], 95) in out and "percentiles of 100 bootstrap samples of 12 images" in out and "7/7" in err
    assert sorted(os.listdir(tmp_path / "new")) == ["c.png"]
    call(monkeypatch, a, b, "--annotations", truth, "--samples", 100, "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == result


def test_results_in_few_images_give_no_verdict(files, tmp_path, monkeypatch, capsys):
    """They may be of a part of the data: that is said in place of the verdict, with the part that the run held out."""
    a, b, truth = files
    (tmp_path / "config.yaml").write_text("DATASETS: {TEST: [own_train_held_out], HOLD_OUT: [[own_train, 3]]}\nVERSION: 2\n")
    some = [
        entry
        for entry in json.loads(open(a).read())
        if entry["image_id"] in [image["id"] for image in few_classes(12, 10, "bbox")[0]["images"][:3]]
    ]
    part = write(tmp_path / "inference" / "coco_instances_results.json", some)
    call(monkeypatch, part, b, "--annotations", truth, "--samples", 100)
    out = capsys.readouterr().out
    assert "A has detections in 3 of 12 images: was it evaluated on these annotations? Its config evaluates a part" in out
    assert "--dataset own_train_held_out\nSo there is no verdict" in out and "beyond chance:" not in out and "B has" not in out
    data = {"images": [{"id": i} for i in range(8)], "annotations": [{"image_id": i} for i in range(4)]}  # half are of the background
    for seen, doubted in ((range(4), False), (range(2), True), (range(4, 8), True)):
        assert bool(compare._doubt("A", [{"image_id": i} for i in seen], data, None, truth)) == doubted


def test_keypoints_without_a_first_detection(tmp_path, monkeypatch):
    """Results that are empty, or no results, end in one line, also where the task follows from them."""
    dataset, a, _ = few_classes(4, 3, "keypoints")
    truth, b = write(tmp_path / "truth.json", dataset), write(tmp_path / "b.json", a)
    for content, words in (([], "has no detections"), ({}, "is not a list"), ([{"keypoints": 3}], "has no image_id|entry 0")):
        with pytest.raises(UserError, match=words):
            call(monkeypatch, write(tmp_path / "a.json", content), b, "--annotations", truth)


def test_sigmas_of_the_config(tmp_path, monkeypatch, capsys):
    """Of --config-file, or of the run that left the results, also where the task is named."""
    dataset, a, b = few_classes(12, 10, "keypoints")
    for entry in (*dataset["annotations"], *a, *b):
        entry["keypoints"] = entry["keypoints"][:12]
    for category in dataset["categories"]:
        category["keypoints"] = list("abcd")
    for entry in dataset["annotations"]:
        entry["num_keypoints"] = sum(v > 0 for v in entry["keypoints"][2::3])
    truth, other = write(tmp_path / "truth.json", dataset), write(tmp_path / "b.json", b)
    (tmp_path / "config.yaml").write_text("TEST:\n  KEYPOINT_OKS_SIGMAS: [0.05, 0.05, 0.05, 0.05]\nVERSION: 2\n")
    own = write(tmp_path / "inference" / "coco_instances_results.json", a)
    for first, flags in (
        (own, []),
        (own, ["--task", "keypoints"]),
        (write(tmp_path / "else" / "deep" / "a.json", a), ["--config-file", tmp_path / "config.yaml"]),
    ):
        call(monkeypatch, first, other, "--annotations", truth, "--samples", 100, *flags)
        assert "boxes are compared" not in capsys.readouterr().out, flags


def run_of(folder, content, results, *overrides, several=""):
    """The folder of a run that was evaluated on ``content``, with its config and results."""
    from backbones.engine import open_config

    for image in content["images"]:
        image["file_name"] = f"{image['id']}.png"
        Image.new("L", (image["width"], image["height"])).save(folder / image["file_name"])
    truth = write(folder / "data.json", content)
    entries = [["own_val", truth, str(folder)], *([[several, write(folder / "more.json", content), str(folder)]] if several else [])]
    tests = [entry[0] for entry in entries]
    front = open_config("digits/faster_rcnn_digits.yaml", ["DATASETS.TEST", str(tuple(tests)), "DATASETS.TRAIN", "()", *overrides])
    front.cfg.DATASETS.REGISTER = entries
    (folder / "config.yaml").write_text(front.cfg.dump())
    for name in tests if several else [""]:
        write(folder / "inference" / name / "coco_instances_results.json", results)
    return truth


def test_runs_on_different_data_are_not_compared(tmp_path, monkeypatch, capsys, catalogue):
    """Both are called own_val, and their images have the same ids."""
    dataset, a, b = few_classes(6, 10, "bbox")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    truth = run_of(tmp_path / "one", dataset, a)
    run_of(tmp_path / "two", dataset, b)
    with pytest.raises(
        UserError, match="A was evaluated on 'own_val' .*one/data.json.*, B on 'own_val' .*two/data.json.* those of A: --dataset own_val"
    ):
        call(monkeypatch, tmp_path / "one", tmp_path / "two")
    for flags in (["--annotations", truth], ["--dataset", "own_val"]):
        call(monkeypatch, tmp_path / "one", tmp_path / "two", *flags, "--samples", 100)
    (tmp_path / "three").mkdir()
    renamed = {**dataset, "images": [{**image, "height": image["height"]} for image in dataset["images"]]}
    other = run_of(tmp_path / "three", renamed, b)
    content = json.loads(open(other).read())
    for image in content["images"]:  # as of tools that number each part from 1
        os.rename(tmp_path / "three" / image["file_name"], tmp_path / "three" / f"other{image['file_name']}")
        image["file_name"] = f"other{image['file_name']}"
    write(tmp_path / "three" / "data.json", content)
    with pytest.raises(UserError, match="evaluate both on the same data$"):
        call(monkeypatch, tmp_path / "one", tmp_path / "three")
    for flags in (["--annotations", truth], ["--dataset", "own_val"]):
        with pytest.raises(UserError, match=r"B was evaluated on other images: its image \d+ is 'other\d+.png', not '\d+.png'"):
            call(monkeypatch, tmp_path / "one", tmp_path / "three", *flags, "--samples", 100)
    (tmp_path / "two" / "config.yaml").write_text("DATASETS: {TEST: [of_code]}\n")  # registered where nobody knows
    call(monkeypatch, tmp_path / "one", tmp_path / "two", "--samples", 100)
    (tmp_path / "two" / "config.yaml").write_text("MODEL: {NOTHING: 1}\n")
    call(monkeypatch, tmp_path / "one", tmp_path / "two", "--annotations", truth, "--samples", 100)
    assert "B's config is left out, and its data are not checked" in capsys.readouterr().out


def test_annotations_of_one_of_several_data_sets(tmp_path, monkeypatch, capsys, catalogue):
    """The results on that file are compared; of a file that the runs do not know the results must be named."""
    dataset, a, b = few_classes(6, 10, "bbox")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run_of(tmp_path / name, dataset, a, several="more_val")
    more = tmp_path / "one" / "more.json"
    write(tmp_path / "two" / "inference" / "own_val" / "coco_instances_results.json", [])
    with pytest.raises(
        UserError, match="two' has results on own_val, more_val, none of which is of .*one/more.json': name the results, such as"
    ):
        call(monkeypatch, tmp_path / "one", tmp_path / "two", "--annotations", more, "--samples", 100)
    named = tmp_path / "two" / "inference" / "more_val" / "coco_instances_results.json"
    call(monkeypatch, tmp_path / "one", named, "--annotations", more, "--samples", 100)
    assert "one/inference/more_val/" in capsys.readouterr().out


def test_annotations_are_read_as_the_run_reads_them(tmp_path, monkeypatch, capsys, catalogue):
    """Boxes as corners, with and without --annotations."""
    dataset, a, _ = few_classes(6, 10, "bbox")
    corners = copy.deepcopy(dataset)
    for entry in corners["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    figures = []
    for name, content, form in (("plain", dataset, "xywh"), ("corners", corners, "xyxy")):
        (tmp_path / name).mkdir()
        truth = run_of(tmp_path / name, content, a, "DATASETS.BOX_FORMAT", form)
        call(monkeypatch, *[tmp_path / name] * 2, "--annotations", truth, "--samples", 100, "--json", tmp_path / "c.json")
        figures.append(json.loads((tmp_path / "c.json").read_text())["metrics"][0]["a"])
    assert figures[0] == figures[1] > 1


def test_a_model_that_knows_more_classes(tmp_path, monkeypatch, capsys, catalogue):
    """In the place of A or of B: what it finds of classes that the data lack changes no AP."""
    dataset, a, b = few_classes(6, 10, "bbox")
    names = [category["name"] for category in dataset["categories"]]
    free = 1 + max(category["id"] for category in dataset["categories"])
    figures = []
    for name, results, classes in (("few", a, names), ("many", [*b, {**b[0], "category_id": free}], [*names, "another"])):
        (tmp_path / name).mkdir()
        run_of(tmp_path / name, dataset, results)
        path = tmp_path / name / "config.yaml"
        text = path.read_text().replace("CLASSES: []", f"CLASSES: {classes}", 1).replace(str(tmp_path / name), str(tmp_path / "few"))
        path.write_text(text)
    for order in (("few", "many"), ("many", "few")):
        call(monkeypatch, *(tmp_path / name for name in order), "--samples", 100, "--json", tmp_path / "c.json")
        row = json.loads((tmp_path / "c.json").read_text())["metrics"][0]
        figures.append(sorted((row["a"], row["b"])))
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_digits_and_run_folders(task, tmp_path, monkeypatch, capsys):
    """The truth itself as A, and shifted by two pixels as B, which is worse in every sample."""
    from pycocotools import mask as mask_util

    with open(digits._paths(digits.generate(), "val")["instances"]) as f:
        annotations = json.load(f)["annotations"]
    for who, shift in (("A", 0), ("B", 2)):
        results = []
        for i, a in enumerate(annotations):
            x, y, w, h = a["bbox"]
            result = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": [x + shift, y, w, h], "score": 0.5 + i / 10000}
            if task == "segm":
                polygons = [[v + shift * (j % 2 == 0) for j, v in enumerate(p)] for p in a["segmentation"]]
                rle = mask_util.merge(mask_util.frPyObjects(polygons, *2 * [digits.SETS["digits"].size]))
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            if task == "keypoints":
                result["keypoints"] = [v + shift * (j % 3 == 0) for j, v in enumerate(a["keypoints"])]
            results.append(result)
        write(tmp_path / who / "inference" / "coco_instances_results.json", results)
    extra = ["--oks-sigmas", *[0.05] * 4] if task == "keypoints" else []
    call(monkeypatch, tmp_path / "A", tmp_path / "B", "--dataset", "digits_val", "--task", task, "--samples", 100, *extra)
    out = capsys.readouterr().out
    assert "B is worse than A" in out and "beyond chance" in out and out.splitlines()[5].split()[3] == "100.00"
    assert "Classes whose interval does not contain 0: 10 of 10" in out
    if task == "keypoints":
        with pytest.raises(UserError, match="objects have 4 keypoints, but there are 17 OKS sigmas. Set your own with --oks-sigmas"):
            call(monkeypatch, tmp_path / "A", tmp_path / "B", "--dataset", "digits_val", "--task", task)


def row(name, low, high, samples=100):
    return {
        "name": name,
        "a": 40.0,
        "b": 40 + (low + high) / 2,
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "b_better": 0.7,
        "samples": samples,
    }


def test_words():
    assert compare.verdict(row("AP", 0.5, 1.5), 95).startswith("B is better than A by 1.00 AP, beyond chance: the 95% interval")
    assert compare.verdict(row("AP", -1.5, -0.5), 90).startswith("B is worse than A by 1.00 AP, beyond chance: the 90% interval")
    assert "cannot be told" in compare.verdict(row("AP", -0.5, 1.5), 95) and "may be chance" in compare.verdict(row("AP", 0, 1.5), 95)
    nothing = {**row("AP", 0, 0, samples=0), **dict.fromkeys(("a", "b", "difference", "low", "high", "b_better"))}
    assert "no objects" in compare.verdict(nothing, 95) and not comparison.beyond_chance(nothing)
    assert compare.table([nothing], 95).splitlines()[-1].count(" - ") == 5
    classes = [row(f"kind {i}", i - 29.5, i - 28.5) for i in range(60)]
    text = compare.report({"confidence": 95.0, "samples": 100, "images": 5, "metrics": [row("AP", 0.5, 1.5)], "classes": classes})
    assert "does not contain 0: 59 of 60; expected by chance alone: about 3." in text and "The 20 largest" in text
    assert "| kind 59 |" in text and "| kind 0 " in text and "| kind 30 |" not in text


@pytest.mark.parametrize("count", [1, 80, 500])
def test_plot(tmp_path, count):
    """As high as its classes need; names of any characters."""
    names = ["$x_{", "line\nbreak", "100%", "_" * 99]
    classes = [row(names[i] if i < 4 else f"kind {i}", i - 3.0, i - 1.0) for i in range(count)]
    about = {"a": "a" * 200, "b": "b$", "confidence": 95.0, "metrics": [row("AP", 0.5, 1.5)], "classes": classes}
    compare.plot(about, str(tmp_path / "c.png"))
    picture = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    assert picture.shape[1] == 880 and picture.shape[0] > 17 * min(count, compare.DRAWN) and (picture < 100).mean() > 0.002
    assert os.listdir(tmp_path) == ["c.png"]


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 5.0, 5.0], "score": 0.5}


@pytest.mark.parametrize(
    "args, words",
    [
        (["none.json", "{b}", "--annotations", "{truth}"], "result file 'none.json' does not exist"),
        (["{a}", "{b}", "--annotations", "none.json"], "annotation file 'none.json' does not exist"),
        (["{a}", "{b}", "--dataset", "digits_vall"], "unknown data set: 'digits_vall'. Did you mean 'digits_val'"),
        (["{a}", "{b}", "--dataset", "digits_val_panoptic_stuffonly"], "has no annotations in COCO's format"),
        (["{a}", "{b}", "--dataset", "coco_2014_val"], "json_file .* does not exist"),
        (["{a}", "{b}", "--annotations", "{truth}", "--task", "box"], "unknown --task: 'box'. Did you mean 'bbox'"),
        (
            ["{a}", "{b}", "--annotations", "{truth}", "--task", "segm"],
            "not for task 'segm': a detection has no segmentation; the file is for bbox",
        ),
        (["{a}", "{b}", "--annotations", "{truth}", "--samples", "99"], "--samples 99: it must be from 100"),
        (["{a}", "{b}", "--annotations", "{truth}", "--confidence", "100"], "--confidence 100: it must be a percentage"),
        (["{a}", "{b}", "--annotations", "{truth}", "--confidence", "nan"], "--confidence nan"),
        (["{a}", "{b}", "--annotations", "{truth}", "--seed", "-1"], "--seed -1"),
        (["{a}", "{b}", "--annotations", "{truth}", "--oks-sigmas", "0"], "--oks-sigmas"),
        (["{a}", "{b}", "--annotations", "{truth}", "--plot", "c.txt"], "--plot 'c.txt' must end in .png, "),
        (["{a}", "{b}", "--annotations", "{truth}", "--json", "{folder}"], "is a folder"),
        (["{a}", "{b}", "--annotations", "{truth}", "--json", "{b}"], "is read, and would be overwritten"),
        (["{a}", "{b}", "--annotations", "{truth}", "--json", "{truth}"], "is read, and would be overwritten"),
        (["{folder}", "{b}", "--annotations", "{truth}"], "coco_instances_results.json' does not exist"),
        (["{truth}", "{b}", "--annotations", "{truth}"], "it is not a list of detections"),
        (["{a}", "{b}", "--annotations", "{a}"], "is COCO results: detections without images and classes"),
    ],
)
def test_mistakes(args, words, files, tmp_path, monkeypatch):
    names = {"a": files[0], "b": files[1], "truth": files[2], "folder": tmp_path}
    with pytest.raises(UserError, match=words) as caught:
        call(monkeypatch, *(arg.format(**names) for arg in args))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ([], "has no detections"),
        ({}, "it is not a list of detections"),
        ([3], "entry 0 is 3, not an object"),
        ([{**GOOD, "image_id": 999}], "entry 0 has image_id 999, which is not among the 'images'"),
        ([{**GOOD, "category_id": 999}], "entry 0 has category_id 999"),
        ([GOOD, {**GOOD, "image_id": "1"}], "entry 1 has image_id '1': it must be an integer"),
        ([{**GOOD, "image_id": True}], "image_id True"),
        ([{**GOOD, "score": float("nan")}], "score nan: it must be a number"),
        ([{**GOOD, "score": 10**400}], "has score 1000.*: it must be a number"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"bbox \[1, 2, 3\]: it must be \[x, y, width, height\] in numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, None]}], "it must be"),
        ([{**GOOD, "bbox": "wide"}], "bbox 'wide'"),
        ([GOOD, {key: value for key, value in GOOD.items() if key != "score"}], "entry 1 has no score"),
        ([{"caption": "a cup"}], "the file is for none of the tasks"),
    ],
)
def test_mistakes_in_results(content, words, files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=words) as caught:
        call(monkeypatch, files[0], write(tmp_path / "bad.json", content), "--annotations", files[2])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


RUNS = {"size": [480, 640], "counts": ""}


@pytest.mark.parametrize("counts", ["", "0", "PPYo9", "PPYo9PPYo9", "o", "oooooooooo0", "\u20ac", "\x00", " ", [307200], 5, None])
def test_run_lengths_that_do_not_fit(counts):
    """pycocotools reads on behind such, or does not come to an end."""
    from pycocotools import mask as mask_util

    good = mask_util.encode(np.asfortranarray(np.eye(480, 640, dtype=np.uint8)))["counts"].decode()
    blank = mask_util.encode(np.zeros((480, 640), np.uint8, order="F"))["counts"].decode()
    dataset, results = made_up(2, 3, "segm")
    for fine in (good, blank):
        results[1]["segmentation"] = {**RUNS, "counts": fine}
        check_results(results, dataset, "segm", "x.json")
    if counts == "PPYo9":
        counts = blank
        results[1]["segmentation"] = {"size": [640, 480], "counts": counts}
    else:
        results[1]["segmentation"] = {**RUNS, "counts": counts}
    with pytest.raises(UserError, match="entry 1 has a segmentation that is not compressed RLE"):
        check_results(results, dataset, "segm", "x.json")


@pytest.mark.parametrize(
    "key, change, words",
    [
        ("annotations", {"image_id": 99}, ""),
        ("annotations", {"category_id": 99}, ""),
        ("annotations", {"area": None}, ""),
        ("annotations", {"bbox": [1]}, ""),
        ("categories", {"name": {}}, "malformed category"),
    ],
)
def test_oddities_of_annotations(key, change, words, files, tmp_path, monkeypatch, capsys):
    """They are read as training reads them: what is repaired there is compared here, and said."""
    with open(files[2]) as f:
        truth = json.load(f)
    truth[key][0].update(change)
    arguments = *files[:2], "--annotations", write(tmp_path / "odd.json", truth), "--samples", "100"
    if words:
        with pytest.raises(UserError, match=words):
            call(monkeypatch, *arguments)
    else:
        call(monkeypatch, *arguments)
        said = capsys.readouterr().out
        assert "left out: 1" in said or "repaired: 1" in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data())
def test_anything_in_the_place_of_a_field(data):
    """It is refused in one line, or evaluated."""
    task = data.draw(st.sampled_from(sorted(TASKS)))
    dataset, results = made_up(2, 4, task)
    dataset, results = copy.deepcopy((dataset, results))
    place = data.draw(st.sampled_from(["images", "annotations", "categories", "results"]))
    entries = results if place == "results" else dataset[place]
    entry = entries[data.draw(st.integers(0, min(len(entries), 3) - 1))]
    key = data.draw(st.sampled_from(sorted(entry)))
    if key == "segmentation" and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(["size", "counts"]))
        entry = entry["segmentation"]
    entry[key] = data.draw(JSON)
    try:
        with tempfile.TemporaryDirectory() as folder:
            dataset = read_truth(write(pathlib.Path(folder) / "truth.json", dataset), "", task)
        kept = [check_results(copy.deepcopy(results), dataset, task, "x.json") for _ in range(2)]
        if task == "keypoints":
            check_keypoints(dataset, kept, ())
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        found = comparison.compare(dataset, kept, task, samples=100)
        json.dumps(found, allow_nan=False)
        assert all(not row["samples"] or row["difference"] == 0 for row in found["metrics"])


@pytest.mark.slow
def test_as_a_module(files):
    """A mistake ends in exit code 2 and one line."""
    result = warm("-m", "backbones.tools.compare", files[0], "none.json", "--annotations", files[2], timeout=120)
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "error: result file 'none.json' does not exist"
