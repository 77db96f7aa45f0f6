"""Downloads against a server that fails in every way: by this project's own client, and by huggingface_hub's."""

import hashlib
import os
import signal
import tempfile
import time

import pytest
from conftest import ROOT, warm
from detectron2.utils.file_io import PathManager
from stand_in import CHUNK, everywhere, serve

from backbones import UserError
from backbones.checkpoint import fetch, fetch_hub, fetching

DATA = hashlib.shake_256(b"weights").digest(40 * CHUNK)
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "download.example.org/models/x.pth"
URL = "https://" + NAME


@pytest.fixture(scope="module")
def shared():
    with serve() as server:
        yield server


@pytest.fixture
def server(shared, tmp_path, monkeypatch):
    shared.files.clear(), shared.asked.clear(), shared.log.clear()
    everywhere(shared, monkeypatch, tmp_path)
    return shared


def cached(tmp_path, name=NAME) -> list[str]:
    """The names of what the cache holds of a file, but for locks."""
    folder = (tmp_path / name).parent
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.is_dir() else []


def content(path) -> bytes:
    with open(path, "rb") as f:
        return f.read()


def refused(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        fetch(*arguments, **options)
    assert error.value.code == "download" and arguments[0] in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_file(server, tmp_path):
    server.put(NAME, DATA)
    path = fetch(URL, PathManager, SHA256[:8])
    assert path == str(tmp_path / NAME) and content(path) == DATA and cached(tmp_path) == ["x.pth"]
    server.files.clear()
    assert fetch(URL, PathManager) == fetch(URL, PathManager, SHA256) == path  # once: the server has nothing now
    assert server.asked == {NAME: 1}


def test_without_a_mirror_the_address_itself_is_asked(server, monkeypatch, tmp_path):
    monkeypatch.delenv("BACKBONES_MIRROR")
    url = server.put("a/x.pth", DATA)
    assert fetch(url, PathManager) == str(tmp_path / server.host / "a" / "x.pth")
    monkeypatch.setenv("BACKBONES_MIRROR", "mirror.example.org")
    assert "it must be an address" in pytest.raises(UserError, fetch, URL, PathManager).value.args[0]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirects(server, code):
    server.put(NAME, to=server.put("cdn/x", DATA), code=code)
    assert content(fetch(URL, PathManager, SHA256)) == DATA


@pytest.mark.parametrize(
    "behaviour, said, asked",
    [
        ({"status": 403}, "HTTP 403 Forbidden", 1),
        ({"status": 404}, "HTTP 404 Not Found", 1),
        ({"status": 410}, "HTTP 410 Gone", 1),
        ({"status": 503}, "HTTP 503 Service Unavailable", 3),
        ({"to": f"/{NAME}"}, "HTTP 302 Found", None),
        ({"ends": 0, "ranges": False}, f"the server stopped at 0 of {len(DATA)} bytes", 3),
        ({"ends": 3 * CHUNK, "ranges": False}, f"the server stopped at {3 * CHUNK} of {len(DATA)} bytes", 3),
        ({"stalls": CHUNK, "ranges": False}, "timed out: no data for 0.5 s", 3),
        ({"data": b""}, "an empty file", 1),
        ({"data": b"\n<!DOCTYPE html>" + DATA}, "a web page instead", 1),
        ({"data": DATA[:-1] + b"?"}, f"not {SHA256[:8]}", 1),
    ],
)
def test_what_cannot_be_had(server, tmp_path, behaviour, said, asked):
    """One line with the reason; three tries at most, one where another cannot help; nothing that counts stays behind."""
    server.put(NAME, **{"data": DATA, **behaviour})
    message = refused(URL, PathManager, "" if said.startswith("a web") else SHA256[:8])
    assert said in message and f"downloaded from {server.url}" in message
    assert asked is None or server.asked[NAME] == asked
    assert "x.pth" not in cached(tmp_path)
    server.put(NAME, DATA)
    assert content(fetch(URL, PathManager, SHA256)) == DATA  # what was left does no harm
    assert cached(tmp_path) == ["x.pth"]


def test_a_wrong_hash_names_both(server):
    server.put(NAME, DATA[1:])
    message = refused(URL, PathManager, SHA256)
    assert SHA256 in message and hashlib.sha256(DATA[1:]).hexdigest() in message


def test_no_network(server, monkeypatch):
    monkeypatch.delenv("BACKBONES_MIRROR")
    assert "connection refused" in refused("http://127.0.0.1:9/x.pth", PathManager)
    assert "unknown host, or no internet connection" in refused("https://nowhere.invalid/x.pth", PathManager)
    assert "does not name a file" in refused("https://nowhere.invalid/", PathManager)


@pytest.mark.parametrize(
    "behaviour, asked", [({"first": [500, 503]}, 3), ({"first": [429], "headers": {"Retry-After": "0"}}, 2), ({"pause": 0.03}, 1)]
)
def test_what_passes(server, behaviour, asked, monkeypatch):
    """The last takes longer, all in all, than a server may between two bytes."""
    monkeypatch.setattr(fetching, "TIMEOUT", 1)
    server.put(NAME, DATA, **behaviour)
    assert content(fetch(URL, PathManager, SHA256)) == DATA
    assert server.asked[NAME] == asked


@pytest.mark.parametrize("how", ["ends", "stalls"])
def test_a_broken_download_goes_on(server, how, monkeypatch):
    """Within one call, and after one that gave up; the server is asked for the rest alone."""
    server.put(NAME, DATA, **{how: 3 * CHUNK}, times=1)
    assert content(fetch(URL, PathManager, SHA256)) == DATA
    assert server.ranges(NAME) == ["", f"bytes={3 * CHUNK}-"]
    other = NAME.replace("x.pth", "y.pth")
    monkeypatch.setattr(fetching, "TRIES", 1)
    server.put(other, DATA, **{how: 5 * CHUNK})
    refused("https://" + other, PathManager, SHA256)
    server.put(other, DATA)
    assert content(fetch("https://" + other, PathManager)) == DATA
    assert server.ranges(other)[-1] == f"bytes={5 * CHUNK}-"


@pytest.mark.parametrize(
    "later, anew",
    [
        ({}, False),
        ({"version": False, "headers": {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}}, True),  # another version than the beginning's
        ({"data": DATA[::-1]}, True),
        ({"data": DATA[::-1], "careless": True}, True),  # a server that sends the rest of another file
        ({"data": DATA[::-1][:CHUNK]}, True),  # shorter than what is there
        ({"data": DATA[::-1][:CHUNK], "careless": True}, True),
        ({"ranges": False}, True),
    ],
)
def test_a_beginning_of_another_file_is_not_kept(server, later, anew):
    server.put(NAME, DATA, ends=3 * CHUNK)
    refused(URL, PathManager)
    later = {"data": DATA, **later}
    server.put(NAME, **later)
    server.log.clear()
    path = fetch(URL, PathManager)
    assert content(path) == later["data"]
    assert server.ranges(NAME)[0] == f"bytes={3 * CHUNK}-" and server.log[0][2]["If-Range"] == f'"{SHA256}"'


def test_a_beginning_without_a_version_is_not_kept(server):
    server.put(NAME, DATA, ends=3 * CHUNK, version=False)
    refused(URL, PathManager)
    server.put(NAME, DATA[::-1])
    assert content(fetch(URL, PathManager)) == DATA[::-1] and server.ranges(NAME)[-1] == ""


def test_a_damaged_file_in_the_cache(server, tmp_path, caplog):
    server.put(NAME, DATA)
    path = fetch(URL, PathManager)
    (tmp_path / NAME).write_bytes(DATA[:-5])
    assert content(fetch(URL, PathManager)) == DATA[:-5]  # its hash is not known
    assert content(fetch(URL, PathManager, SHA256[:12])) == DATA
    assert f"{path} has the sha256" in caplog.text and "downloaded again" in caplog.text
    (tmp_path / NAME).write_bytes(DATA[:-5])
    server.files.clear()
    refused(URL, PathManager, SHA256)
    assert cached(tmp_path) == []


def test_detectron2s_own_addresses(server, tmp_path):
    """They are fetched alike, and kept where detectron2 looks for them, with or without what detectron2's parsers add."""
    server.put("dl.fbaipublicfiles.com/detectron2/A/B/x.pkl", DATA, ends=3 * CHUNK, times=1)
    for url in ("detectron2://A/B/x.pkl", "detectron2://A/B/x.pkl?matching_heuristics=True"):
        assert fetch(url, PathManager, SHA256) == str(tmp_path / "detectron2" / "A" / "B" / "x.pkl")
    assert PathManager.get_local_path("detectron2://A/B/x.pkl") == str(tmp_path / "detectron2" / "A" / "B" / "x.pkl")
    assert server.ranges("dl.fbaipublicfiles.com/detectron2/A/B/x.pkl") == ["", f"bytes={3 * CHUNK}-"]


def test_files_that_a_query_chooses(server, tmp_path):
    """Each has a place of its own; queries that choose nothing share the address's."""
    for number in (1, 2):
        server.put(NAME, DATA[number:])
        assert content(fetch(f"{URL}?export=download&id={number}", PathManager)) == DATA[number:]
    assert len(cached(tmp_path)) == 2 and all(name.startswith("x-") and name.endswith(".pth") for name in cached(tmp_path))
    plain = str(tmp_path / NAME)
    assert {fetching.place(URL + query) for query in ("", "?dl=1", "?matching_heuristics=True")} == {plain}


def test_files_that_are_not_fetched_have_hashes_too(tmp_path):
    (tmp_path / "x.pth").write_bytes(DATA)
    url = str(tmp_path / "x.pth")
    assert content(fetch(url, PathManager, SHA256)) == DATA
    assert "has the sha256" in refused(url, PathManager, "00")
    assert content(tmp_path / "x.pth") == DATA


FETCH = f"""
from detectron2.utils.file_io import PathManager
from backbones.checkpoint import fetch
print(fetch({URL!r}, PathManager, {SHA256!r}))
"""


@pytest.fixture
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "fetch_it.py"
    path.write_text(FETCH)
    return str(path)


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_download_goes_on(server, tmp_path, script):
    """Killed after a quarter: the file is not there; the next call asks for the rest."""
    server.put(NAME, DATA, stalls=10 * CHUNK, times=1)
    partial = tmp_path / (NAME + ".partial")
    pid = warm.start(script)
    wait_for(lambda: partial.is_file() and partial.stat().st_size >= 9 * CHUNK)
    os.kill(pid, signal.SIGKILL)
    assert warm.wait() == -signal.SIGKILL
    have = partial.stat().st_size
    assert 0 < have < len(DATA) and "x.pth" not in cached(tmp_path)
    assert content(fetch(URL, PathManager, SHA256)) == DATA
    assert server.ranges(NAME) == ["", f"bytes={have}-"]


def test_two_processes_download_once(server, tmp_path, script, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 30)
    server.put(NAME, DATA, pause=0.01)
    out = tmp_path / "out.txt"
    out.touch()
    warm.start(script, out=str(out))
    path = fetch(URL, PathManager, SHA256)
    assert warm.wait() == 0 and out.read_text().strip() == path and content(path) == DATA
    assert server.asked[NAME] == 1


def test_a_read_only_cache(server, tmp_path, monkeypatch):
    """What it holds is found; the rest is kept where iopath has its other cache."""
    server.put(NAME, DATA)
    path = fetch(URL, PathManager, SHA256)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert fetch(URL, PathManager, SHA256) == path and server.asked[NAME] == 1
    other = NAME.replace("x.pth", "y.pth")
    server.put(other, DATA)
    assert fetch("https://" + other, PathManager, SHA256) == str(tmp_path / "tmp" / "iopath_cache" / other)
    assert cached(tmp_path) == ["x.pth"]


REPO = "timm/some_net.in1k"
FULL = f"""
import resource
from detectron2.utils.file_io import PathManager
from backbones import UserError
from backbones.checkpoint import fetch, fetch_hub
resource.setrlimit(resource.RLIMIT_FSIZE, ({10 * CHUNK}, {10 * CHUNK}))
for call in (lambda: fetch({URL!r}, PathManager, {SHA256!r}), lambda: fetch_hub({REPO!r})):
    try:
        print(call())
    except UserError as error:
        print(error)
"""


def test_a_disk_that_takes_no_more(server, tmp_path):
    """The folder and the variable that names another are said; with room again, the download goes on."""
    server.put(NAME, DATA)
    server.put_hub(REPO, {"model.safetensors": DATA})
    script = tmp_path / "full.py"
    script.write_text(FULL)
    env = {**os.environ, "PYTHONPATH": ROOT, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    done = warm(script, env=env)
    ours, hubs = done.stdout.splitlines()
    assert f"cannot write to '{tmp_path}' (File too large); to use another folder, set the variable FVCORE_CACHE" in ours
    assert f"cannot write to '{tmp_path / 'home' / 'hub'}' (File too large); to use another folder, set the variable HF_HOME" in hubs
    assert "x.pth" not in cached(tmp_path) and not list((tmp_path / "home").rglob("*.safetensors"))
    assert content(fetch(URL, PathManager, SHA256)) == DATA and server.ranges(NAME) == ["", f"bytes={10 * CHUNK}-"]


def refused_by_hub(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        fetch_hub(*arguments, **options)
    assert error.value.code == "download" and arguments[0] in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_hub(server, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.put_hub(REPO, {"model.safetensors": DATA, "pytorch_model.bin": b"x"})
    path = fetch_hub(REPO)
    assert path.endswith("model.safetensors") and content(path) == DATA
    asked = {path: headers for _, path, headers in server.log}
    assert asked[f"/{REPO}/resolve/main/model.safetensors"]["authorization"] == "Bearer hf_secret"
    assert "authorization" not in asked[f"/cdn/{SHA256}"]  # another host
    before = len(server.log)
    assert fetch_hub(REPO) == path and len(server.log) == before  # what is there is not asked for again
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_hub(REPO) == path
    assert "HF_HUB_OFFLINE is set" in refused_by_hub("timm/other")
    assert len(server.log) == before


def test_hub_without_safetensors(server):
    server.put_hub(REPO, {"pytorch_model.bin": DATA})
    path = fetch_hub(REPO)
    assert path.endswith("pytorch_model.bin") and content(path) == DATA == content(fetch_hub(REPO))
    assert server.asked[f"cdn/{SHA256}"] == 1
    assert "no other.bin" in refused_by_hub(REPO, "other.bin")
    server.put_hub("timm/empty", {"README.md": b"#"})
    assert "no model.safetensors and no pytorch_model.bin" in refused_by_hub("timm/empty")


def test_hub_refuses(server, monkeypatch):
    server.put_hub(REPO, {"model.safetensors": DATA})
    assert "the repository does not exist" in refused_by_hub("timm/nothing")
    assert "does not have this revision" in refused_by_hub(REPO, revision="v2")
    address = f"{REPO}/resolve/main/model.safetensors"
    server.put(address, status=403, headers={"X-Error-Code": "GatedRepo"})
    assert "agreement" in refused_by_hub(REPO)
    server.put(address, status=403)
    assert "HTTP 403 Forbidden" in refused_by_hub(REPO)
    server.put(address, status=401)
    assert "HF_TOKEN" in refused_by_hub(REPO)


def test_hub_passes(server, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # of the hub's own tries
    server.put_hub(REPO, {"model.safetensors": DATA}, ends=3 * CHUNK, times=1)
    server.files[f"/{REPO}/resolve/main/model.safetensors"].first = [503]
    assert content(fetch_hub(REPO)) == DATA


@pytest.mark.slow
def test_hub_files_are_whole_or_not_at_all(server, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    wrong = DATA[:-1] + b"?"
    server.put_hub(REPO, {"model.safetensors": DATA}, served={"model.safetensors": wrong})
    message = refused_by_hub(REPO)
    assert SHA256 in message and hashlib.sha256(wrong).hexdigest() in message
    server.put_hub(REPO, {"model.safetensors": DATA}, stalls=CHUNK)
    assert "timed out" in refused_by_hub(REPO)
    server.put_hub(REPO, {"model.safetensors": DATA}, ends=CHUNK)
    refused_by_hub(REPO)
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    server.put_hub(REPO, {"model.safetensors": DATA})
    path = fetch_hub(REPO)
    with open(path, "r+b") as f:
        f.truncate(5)
    assert content(fetch_hub(REPO)) == DATA  # damaged in the cache since


def test_hub_without_network(server, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    assert "connection refused" in refused_by_hub(REPO)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "https://nowhere.invalid/{repo_id}/resolve/{revision}/{filename}")
    assert "unknown host, or no internet connection" in refused_by_hub(REPO)


@pytest.mark.slow
def test_the_hubs_variables(server, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, in processes of their own, which read them as people set them; the first one is killed half-way."""
    server.put_hub(REPO, {"model.safetensors": DATA}, stalls=3 * CHUNK, times=1)
    env = {**os.environ, "PYTHONPATH": ROOT, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_mine"}
    env.pop("HF_HUB_CACHE", None)
    script = tmp_path / "hub_it.py"
    script.write_text(f"from backbones.checkpoint import fetch_hub\nprint(fetch_hub({REPO!r}))")
    pid = warm.start(script, env=env)
    wait_for(lambda: any(path.is_file() for path in (tmp_path / "home").rglob("*.incomplete")))
    os.kill(pid, signal.SIGKILL)
    assert warm.wait() == -signal.SIGKILL
    done = warm(script, env=env)
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith(str(tmp_path / "home")) and content(path) == DATA
    assert any(headers.get("authorization") == "Bearer hf_mine" for _, _, headers in server.log)
