"""The pages of docs/: their commands and code run, and their links, paths, flags and config keys exist.

A page's blocks run from top to bottom in a folder that looks like a checkout, with few digits. `shrunk` alone changes what is typed there.
"""

import glob
import json
import os
import pkgutil
import re
import shlex
import shutil

import prose
import pytest
import yaml
from conftest import HERE, ROOT, Warm, few_digits

from backbones.cli import VERBS

DOCS = os.path.join(ROOT, "docs")
PAGES = sorted(os.path.relpath(path, DOCS) for path in glob.glob(os.path.join(DOCS, "**", "*.md"), recursive=True))
BESIDE = ("README.md", "model_zoo.md", "CONTRIBUTING.md", "CHANGELOG.md")
FROM_PARSERS = "reference/commands.md"  # texts of detectron2's too
SCENES = {"train": 24, "val": 4}

# added to the end of commands that take overrides: seconds in the place of minutes, no GPU, and detections of what has learned nothing
SMALL = """
    MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 INPUT.CLASSIFICATION.SIZE 32 TEST.PICTURES 0
    DATALOADER.NUM_WORKERS 0 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.001 ONE_SHOT.GENERATIONS 1 ONE_SHOT.POPULATION 2 ONE_SHOT.PARENTS 1
    ONE_SHOT.MUTATIONS 1 ONE_SHOT.CROSSOVERS 0 ONE_SHOT.CALIBRATION_IMAGES 4 ONE_SHOT.CALIBRATION_BATCH 2
""".split()
TAKES_OVERRIDES = ("train_net.py", "backbones.tools.train", "backbones.tools.doctor", "backbones.search.one_shot")


def shrunk(words):
    """The words of a command, so that it takes seconds."""
    name = tool(words)
    if name in TAKES_OVERRIDES:
        held_out = ["DATASETS.HOLD_OUT", "[['digits_train', 4]]"] if "digits/detnas_supernet_digits.yaml" in words else []
        return [*words, *SMALL, *held_out, "SOLVER.MAX_ITER", "3" if "--resume" in words else "2"]
    if "--minutes" in words:
        words[words.index("--minutes") + 1] = "0.1"
    if "--batch" in words:
        words[words.index("--batch") + 1] = "2"
    if "--severities" in words:  # the last of them
        words[words.index("--severities") + 1 :] = words[-1:]
    if words[:3] == ["backbones", "search", "search"]:
        return [*words, "--candidates", "2000", "--workers", "1"]
    if words[:2] == ["backbones", "export"] and "int8" in words:  # a detector trained for seconds loses what it has by chance
        words[words.index("--num") + 1] = "4"
        return [*words[:2], "--max-drop", "100", *words[2:]]
    return words


def shrunk_code(code):
    """Python code, without downloads: random weights in the place of pretrained ones."""
    return code.replace('weights="DEFAULT"', "weights=None").replace("pretrained=True", "pretrained=False")


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as f:
        return f.read()


def blocks(page):
    """(language, content) of the fenced blocks of a page, or of the cells of a notebook."""
    if page.endswith(".ipynb"):
        code = ["".join(cell["source"]) for cell in json.loads(read(os.path.join("docs", page)))["cells"] if cell["cell_type"] == "code"]
        return [("bash", text.removeprefix("%%bash\nset -e\n")) if text.startswith("%%bash") else ("python", text) for text in code]
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(os.path.join("docs", page)), re.M | re.S)


def needs_more(content):
    return content.startswith("# needs ")


def commands(content):
    """The commands of a shell block, as lists of words."""
    return [words for line in content.replace("\\\n", " ").splitlines() for words in [shlex.split(line, comments=True)] if words]


def tool(words):
    """train_net.py, or the module of ``python -m`` or of a verb of ``backbones``; "" of other commands."""
    if "train_net.py" in words:
        return "train_net.py"
    if words[0] == "backbones":
        return VERBS[words[1]][0].partition(":")[0]
    return words[2] if words[:2] == ["python", "-m"] else ""


def steps(page):
    """What a page has to run: ["python", ...] words, other words, or a string of Python code."""
    for language, content in blocks(page):
        if language == "python":
            yield shrunk_code(content)
        elif language == "bash" and not needs_more(content):
            for words in map(shrunk, commands(content)):
                yield ["python", "-m", *words] if words[0] == "backbones" else words


def every_command():
    """(page, words) of all shell blocks, those too that cannot run here, and of the project's README."""
    for page in PAGES:
        for language, content in blocks(page):
            if language == "bash":
                yield from ((page, words) for words in commands(content))
    indented = re.findall(r"^    \.venv/bin/((?:.*\\\n)*.*)$", read("README.md"), re.M)
    yield from (("README.md", words) for words in commands("\n".join(indented)))


# a page that is a notebook too runs as that: `test_generated_pages_are_up_to_date` shows that both are the same
ALSO_NOTEBOOKS = [os.path.splitext(page)[0] + ".ipynb" if page == "tutorial.md" else page for page in PAGES]
_env = {key: value for key, value in os.environ.items() if key != "BACKBONES_WEIGHTS"}
warm = Warm(env={**_env, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": "datasets", "PYTHONPATH": ROOT, "PYTHONWARNINGS": "ignore"})


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like a checkout, with a few digits in datasets/."""
    from backbones.data import digits

    for name in ("backbones", "convert", "configs", "train_net.py"):
        os.symlink(os.path.join(ROOT, name), tmp_path / name)
    whole, few = digits.generate(), tmp_path / "datasets" / "digits"
    few.mkdir(parents=True)
    shutil.copy(os.path.join(whole, "version.json"), few)
    (few / "annotations").mkdir()
    for split, (_, images) in few_digits(few / "annotations", SCENES).items():
        path = few / "annotations" / f"instances_{split}.json"
        os.rename(few / "annotations" / f"{split}.json", path)
        (few / split).mkdir()
        for image in json.loads(path.read_text())["images"]:
            shutil.copy(os.path.join(images, image["file_name"]), few / split)
    return tmp_path


def run_steps(every, folder):
    """(exit code, what was printed) of each step."""
    result = warm(os.path.join(HERE, "steps.py"), json.dumps(every), cwd=folder, env={**warm.env, "PYTHONPATH": str(folder)}, timeout=550)
    assert result.returncode == 0, result.stderr
    return [(code, (folder / f"{i}.txt").read_text(errors="replace")) for i, code in enumerate(json.loads(result.stdout))]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in ALSO_NOTEBOOKS if list(steps(page))])
def test_page_runs(page, checkout):
    every = list(steps(page))
    for step, (code, output) in zip(every, run_steps(every, checkout)):
        assert code == 0, f"{page}: {step}\n{output[-5000:]}"
    ran = [content for language, content in blocks(page) if language in ("bash", "python") and not needs_more(content)]
    for path in re.findall(r"\b(?:output|weights)/[\w./-]*\w", "\n".join(ran)):
        assert (checkout / path).exists(), f"{page}: {path} was not made"


@pytest.mark.slow
def test_a_wrong_page_fails(checkout):
    """Each kind of step: code, a tool, train_net.py, another command; and what is right beside it does not."""
    tool, script = ["python", "-m", "backbones.tools.plot"], ["python", "train_net.py"]
    wrong = ["1 / 0", [*tool, "nowhere"], [*script, "--config-file", "x"], ["ls", "nowhere"]]
    right = ["print(1)", [*tool, "--help"], [*script, "--help"], ["ls", "datasets"]]
    results = run_steps([*wrong, *right], checkout)
    assert [code for code, _ in results] == [1, 2, 2, 2, 0, 0, 0, 0]
    for (_, output), words in zip(results, ("ZeroDivisionError", "no metrics.json in 'nowhere'", "unknown config", "nowhere")):
        assert words in output


def test_all_tasks_have_a_page_and_all_pages_are_listed():
    index = read("docs/README.md")
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in index, page
    assert "](docs/README.md)" in read("README.md")
    assert len([page for page in PAGES if list(steps(page))]) >= 6


def test_the_site_has_every_page():
    """mkdocs.yml: pages in the navigation, each once. `make site` builds it, and is no part of the tests."""
    site = yaml.safe_load(read("mkdocs.yml"))
    beside = site["extra"]["beside"]
    named = [page for part in site["nav"] for pages in part.values() for row in pages for page in row.values()]
    assert sorted(named) == sorted([*(page for page in PAGES if f"docs/{page}" not in beside), *beside.values()])
    assert {*BESIDE, "docs/README.md"} == set(beside)


def test_the_site_has_a_docstring_for_every_public_name():
    import backbones

    named = re.findall(r"^::: ([\w.]+)(?:\n    options:\n      members: \[(.*)\])?", read("docs/reference/api.md"), re.M)
    assert {f"backbones.{name}" for name in backbones.__all__} - {name for name, _ in named} == {"backbones.add_vovnet_config", "backbones.zoo"}
    for name, members in named:
        found = pkgutil.resolve_name(name)
        assert found.__doc__, name
        assert all(getattr(found, member).__doc__ for member in members.split(", ") if member), name


def test_versions_are_those_of_the_locks():
    rows = dict(re.findall(r"^\| (\w+)(?:, optional)? \| \d.*? \| (.*) \|$", read("docs/install.md"), re.M))
    for package in ("torch", "torchvision", "numpy", "timm"):
        locked = [re.search(rf"^{package}==([\d.]+)", read(f"requirements/{stack}.txt"), re.M)[1] for stack in ("compiled", "current")]
        assert rows[package] == ", ".join(dict.fromkeys(locked))


def anchors(text):
    """GitHub's names of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), *BESIDE])
def test_links_and_paths(page):
    text = read(page)
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", text):
        target = "".join(target)
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert os.path.exists(os.path.join(ROOT, path)), f"{page}: {target}"
        assert not anchor or anchor in anchors(read(path)), f"{page}: {target}"
    if page == "CONTRIBUTING.md":  # of files that are yet to be written
        return
    for path in re.findall(r"(?<![\w/.$:-])(?:backbones|configs|convert|docs|requirements|tests)/[\w./-]*\w", text):
        assert os.path.exists(os.path.join(ROOT, path)), f"{page}: {path}"


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), *BESIDE])
def test_lists_begin_after_an_empty_line(page):
    """The site's Markdown makes no list of others, unlike the code host's."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    item = re.compile(r"\s*(?:[-*]|\d+\.) ")
    for before, line in zip(text.split("\n"), text.split("\n")[1:]):
        assert not item.match(line) or not before.strip() or item.match(before) or before.startswith("  "), f"{page}: {line}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != FROM_PARSERS])
def test_config_keys(page):
    from backbones import zoo
    from backbones.config import all_keys

    known = set(all_keys(zoo.get_config("digits/faster_rcnn_digits.yaml")))
    nodes = {key.rsplit(".", n)[0] for key in known for n in range(1, key.count(".") + 1)}
    for key in re.findall(r"(?<![\w/.-])[A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)+(?![\w.]*[a-z])", read(f"docs/{page}")):
        assert key in known or key in nodes, f"{page}: {key}"


def test_training_commands_can_be_understood(monkeypatch):
    """Those too that cannot run here: flags, config names, networks, and keys and values of overrides."""
    from backbones import registry, zoo
    from backbones.config import merge_overrides

    monkeypatch.syspath_prepend(ROOT)
    from train_net import argument_parser

    count = 0
    for page, words in every_command():
        if tool(words) == "train_net.py":
            args = argument_parser().parse_args(words[words.index("train_net.py") + 1 :])
            assert not [word for word in args.opts if word.startswith("--")], f"{page}: flags behind overrides are not read: {words}"
            assert not args.backbone or registry.family_of(args.backbone), page
            count += 1
            if args.auto:
                continue
            if args.config_file.endswith(".py"):
                zoo.get_config_file(args.config_file)
                continue
            base = "digits/faster_rcnn_digits.yaml" if args.config_file.startswith("output/") else args.config_file
            merge_overrides(zoo.get_config(base), args.opts)
    assert count >= 40


def flags_of(words):
    """(the beginning of a command, whose --help is to be asked, its flags)"""
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", *words[1 : words.index("train_net.py")]]
    if words[0] == "backbones":
        words = ["python", "-m", *words]
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return tuple(words[:first]), {word for word in words if word.startswith("--")}


@pytest.mark.slow
def test_flags(checkout):
    """Every flag of a command is in its --help, and every flag that the text names in one of them."""
    asked = {("python", os.path.join(ROOT, "backbones", "deploy", "run_exported.py")): []}  # what stands beside exported files
    for page, words in every_command():
        if tool(words) or words[0] == "backbones":
            start, flags = flags_of(words)
            asked.setdefault(start, []).append((page, flags))
    helps = run_steps([[*start, "--help"] for start in asked], checkout)
    every = set()
    for (start, uses), (code, text) in zip(asked.items(), helps):
        assert code == 0, text
        flags = set(re.findall(r"--[a-z][\w-]*", text))
        every |= flags
        for page, used in uses:
            assert used <= flags, f"{page}: {' '.join(start)}: {used - flags}"
    for page in {*PAGES} - {FROM_PARSERS}:
        for flag in re.findall(r"`(--[a-z][\w-]*)", read(f"docs/{page}")):
            assert flag in every, f"{page}: {flag}"


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), *BESIDE])
def test_sentences_are_short(page):
    """`python tests/prose.py README.md docs/*.md` lists the longest."""
    lengths = [len(words) for words in prose.sentences(read(page))]
    assert lengths and max(lengths) <= prose.MOST and sum(lengths) / len(lengths) <= prose.MEAN
    assert [len(words) for words in prose.sentences("One `a b` [two](x). Three\nfour, five!\n\n| no |\n")] == [3, 3]
