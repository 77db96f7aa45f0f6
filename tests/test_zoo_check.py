"""`zoo check` against a server that is in the place of every host and of the hub."""

import hashlib
import json
import os

import pytest
from stand_in import everywhere, serve

from backbones import UserError
from backbones.tools import zoo as tool
from backbones.zoo import checking, weights

PYCLS = "dl.fbaipublicfiles.com/pycls/dds_baselines/160905981/RegNetX-200MF_dds_8gpu.pyth"
HUB = "timm/regnetx_002.pycls_in1k"
DATA = b"weights" * 100


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serve() as server:
        everywhere(server, monkeypatch, tmp_path)
        yield server


def rows(pattern, **options) -> dict[str, dict]:
    return {row["source"]: row for row in tool.check(pattern, timeout=5, **options)}


def command(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["zoo", "check", *arguments])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    return int(stop.value.code), capsys.readouterr().out


def test_every_address_has_a_release():
    """Each address of the data files is among those that are asked, a detector's by the name of its config."""
    asked = {release.place for release in checking.addresses(tool.entries("*"))}
    expected = {row.get("url") or f"hub:{row['hub']}" for found in weights.data()["weights"].values() for row in found}
    assert len(expected) > 100 and expected <= asked
    detectors = {row["checkpoint"] for row in weights.models().values() if "checkpoint" in row}
    assert len(detectors) > 50 and detectors <= asked
    assert not any(release.package for release in checking.addresses(tool.entries("timm/tf_efficientnet_lite0")))  # it has no address


@pytest.mark.parametrize(
    "behaviour, state, why, asked",
    [
        ({}, "alive", "", ["HEAD"]),
        ({"head": False}, "alive", "", ["HEAD", "GET"]),
        ({"head": False, "ranges": False}, "alive", "", ["HEAD", "GET"]),
        ({"first": [403]}, "alive", "", ["HEAD", "GET"]),  # a host that refuses HEAD with it
        ({"first": [503, 429]}, "alive", "", ["HEAD"] * 3),
        ({"status": 404}, "dead", "HTTP 404 Not Found", ["HEAD"]),
        ({"status": 403}, "dead", "HTTP 403 Forbidden", ["HEAD", "GET"]),
        ({"status": 500}, "dead", "HTTP 500 Internal Server Error", ["HEAD"] * 3),
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "dead", "a web page instead", ["HEAD"]),
    ],
)
def test_answers(server, behaviour, state, why, asked):
    server.put_hub(HUB, {"model.safetensors": DATA})
    server.put(PYCLS, DATA, **behaviour)
    found = rows("RegNetX-200MF")
    row = found["pycls:RegNetX-200MF"]
    assert (row["state"], row["why"], row["size"]) == (state, why, len(DATA) if state == "alive" else None)
    assert [method for method, path, _ in server.log if path == "/" + PYCLS] == asked
    row = found["timm:regnetx_002.pycls_in1k"]
    assert (row["state"], row["size"], row["sha256"]) == ("alive", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert server.asked[f"cdn/{row['sha256']}"] == 0  # nothing is downloaded


@pytest.mark.parametrize("code, state", [(301, "moved"), (308, "moved"), (302, "alive"), (307, "alive")])
def test_redirects(server, code, state):
    server.put_hub(HUB, {"model.safetensors": DATA})
    to = server.put("elsewhere/x.pyth", DATA)
    server.put(PYCLS, to=to, code=code)
    row = rows("RegNetX-200MF")["pycls:RegNetX-200MF"]
    assert (row["state"], row["to"], row["size"]) == (state, to if state == "moved" else "", len(DATA))
    assert "GET" not in [method for method, _, _ in server.log]


def test_what_the_hub_says(server):
    server.put_hub(HUB, {"pytorch_model.bin": DATA})
    assert rows("RegNetX-200MF")["timm:regnetx_002.pycls_in1k"]["state"] == "alive"
    server.put_hub(HUB, {"README.md": DATA})
    del server.files[f"/{HUB}/resolve/main/pytorch_model.bin"]
    assert "no model.safetensors and no pytorch_model.bin" in rows("RegNetX-200MF")["timm:regnetx_002.pycls_in1k"]["why"]
    server.files.clear()
    assert "the repository does not exist" in rows("RegNetX-200MF")["timm:regnetx_002.pycls_in1k"]["why"]


def test_command(server, monkeypatch, capsys):
    """The table, its last line and the exit code: 1 for what is dead and was not known to be."""
    server.put_hub(HUB, {"model.safetensors": DATA})
    server.put(PYCLS, DATA)
    others = [release for release in weights.releases("RegNetX-200MF") if release.spec not in ("pycls:RegNetX-200MF", f"timm:{HUB[5:]}")]
    assert all(release.gone for release in others) or not others
    code, out = command(monkeypatch, capsys, "RegNetX-200MF")
    assert (
        code == 0
        and "| pycls:RegNetX-200MF " in out
        and "| alive " in out
        and "| not known" in out
        and out.rstrip().endswith("2 addresses: 2 alive")
    )
    server.put(PYCLS, status=410)
    code, out = command(monkeypatch, capsys, "RegNetX-200MF")
    assert code == 1 and "dead: HTTP 410 Gone" in out and out.rstrip().endswith("2 addresses: 1 alive, 1 dead")
    code, out = command(monkeypatch, capsys, "RegNetX-200MF", "--json", "--jobs", "1")
    assert code == 1 and [row["state"] for row in json.loads(out)] == ["dead", "alive"]
    assert {"name", "source", "address", "state", "why", "to", "size", "sha256", "gone"} <= set(json.loads(out)[0])


def test_what_was_known_to_be_gone_is_no_news(server, monkeypatch, capsys):
    gone = [release for release in weights.releases("V-39-eSE") if release.gone]
    for release in weights.releases("V-39-eSE"):
        if release.hub:
            server.put_hub(release.hub, {"model.safetensors": DATA})
        elif not release.gone:
            server.put(release.url.partition("://")[2].partition("?")[0], DATA)
    code, out = command(monkeypatch, capsys, "V-39-eSE")
    assert gone and code == 0 and out.count("| dead, as known: HTTP 404 Not Found") == len(gone)


def test_last_seen(server, tmp_path, monkeypatch):
    server.put(PYCLS, DATA)
    place = "https://" + PYCLS
    assert checking.last_seen(place) is None
    rows("RegNetX-200MF")
    state, date = checking.last_seen(place)
    assert state == "alive" and date[:2] == "20" and checking.last_seen(f"hub:{HUB}")[0] == "dead"
    server.put(PYCLS, status=404)
    rows("RegNetX-200MF")
    assert checking.last_seen(place)[0] == "dead"
    (release,) = [r for r in weights.releases("RegNetX-400MF") if r.source == "pycls"]
    checking.check([release], timeout=0.3)
    assert checking.last_seen(place)[0] == "dead" and checking.last_seen(release.place)[0] == "dead"  # what was found before is kept
    seen = checking.last_seen(place)
    monkeypatch.setattr(checking, "_ask", lambda asked, timeout: checking.Answer("alive", host=asked is release))
    # the other hosts cannot be reached just now
    checking.check([release, *weights.releases("RegNetX-200MF")])
    assert checking.last_seen(place) == seen
    (tmp_path / "backbones" / "checked.json").write_text("{")
    assert checking.last_seen(place) is None


def test_a_full_disk_takes_nothing_from_the_answers(server, tmp_path, caplog):
    server.put(PYCLS, DATA)
    (tmp_path / "backbones").mkdir()
    os.symlink("/dev/full", tmp_path / "backbones" / "checked.json.partial")
    assert rows("RegNetX-200MF")["pycls:RegNetX-200MF"]["state"] == "alive"
    assert "the answers cannot be saved" in caplog.text and "No space left on device" in caplog.text


def test_no_network(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("BACKBONES_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(
        UserError, match="^no internet connection: cannot reach any of .*dl.fbaipublicfiles.com, the hub .connection refused"
    ) as error:
        tool.check("RegNetX-200MF")
    assert error.value.code == "download" and not (tmp_path / "backbones" / "checked.json").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("BACKBONES_MIRROR", server.url)
    found = rows("RegNetX-200MF")
    assert found["timm:regnetx_002.pycls_in1k"]["state"] == "not asked" and found["pycls:RegNetX-200MF"]["state"] == "dead"
    assert checking.last_seen(f"hub:{HUB}") is None
    with pytest.raises(UserError, match="no released weights match 'digits'"):
        tool.check("digits")


def test_servers_that_do_not_answer(server):
    server.put(PYCLS, silent=True)
    server.put(f"{HUB}/resolve/main/model.safetensors", silent=True)
    other = server.put("dl.fbaipublicfiles.com/" + weights.released("RegNetX-400MF").url.split("/", 3)[3], DATA)
    found = {row["address"]: row for row in tool.check("RegNetX-[24]00MF", timeout=0.2)}
    assert [found[place]["why"] for place in (f"https://{PYCLS}", f"hub:{HUB}")] == ["timed out: no data for 0.2 s"] * 2
    assert found["https://" + other.split("/", 3)[3]]["state"] == "alive"  # others are not held up
