"""Checks whether released weights are still available: requests the headers of each address, and saves the answers."""

import dataclasses
import datetime
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Iterable
from urllib.error import HTTPError
from urllib.parse import urlparse

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from ..checkpoint.fetching import Broken, ask_hub, hub_reason, patiently, reason, request
from ..documents import read_json
from ..errors import UserError
from ..files import write_whole
from . import weights

STATES = ("alive", "moved", "dead", "not asked")
_REFUSED = (403, 405, 501)  # how servers answer HEAD that know GET alone


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an address answered. ``host`` says whether any server did; ``why`` is empty if the file exists."""

    state: str
    why: str = ""
    to: str = ""  # where it has moved
    size: int | None = None  # bytes
    sha256: str = ""  # as the hub tells it
    host: bool = True


def addresses(names: Iterable[str]) -> list[weights.Release]:
    """All releases of these networks and configs."""
    return [release for name in names for release in weights.releases(name) if not release.package]  # which has no address


def check(releases: Iterable[weights.Release], jobs: int = 8, timeout: float = 10) -> dict[str, Answer]:
    """The answer for each release, from ``jobs`` requests at a time, within ``timeout`` seconds each; also saved for `last_seen`.

    Raises UserError, and saves nothing, if no host can be reached.
    """
    places = {release.place: release for release in releases}
    answers: dict[str, Answer] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        asked = {pool.submit(_ask, release, timeout): place for place, release in places.items()}
        for done in tqdm(as_completed(asked), total=len(asked), unit="address", disable=None):
            answers[asked[done]] = done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    heard = {place: answer for place, answer in answers.items() if answer.state != "not asked"}
    if heard and not any(answer.host for answer in heard.values()):
        hosts = {urlparse(place).netloc or "the hub" for place in heard}
        raise UserError(
            f"no internet connection: cannot reach any of {', '.join(sorted(hosts))} ({next(iter(heard.values())).why})", "download"
        )
    _keep({place: answer for place, answer in heard.items() if answer.host})  # a host that cannot be reached just now says nothing of its files
    return {place: answers[place] for place in places}


def _ask(release: weights.Release, timeout: float) -> Answer:
    return _of_url(release.url, timeout) if release.url else _of_hub(release.hub, timeout)


def _of_url(url: str, timeout: float) -> Answer:
    seen: list[tuple[int, str]] = []
    try:
        try:
            response = patiently(lambda: request(url, {}, "HEAD", timeout, seen))
        except HTTPError as error:
            if error.code not in _REFUSED:
                raise
            seen.clear()
            response = patiently(lambda: request(url, {"Range": "bytes=0-0"}, "GET", timeout, seen))
        with response:
            if response.headers.get_content_type() == "text/html":
                raise Broken("a web page instead")
            size = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length") or ""
    except Exception as error:  # an error of one host must not stop the other requests
        return Answer("dead", reason(error, timeout)[0], host=isinstance(error, (HTTPError, Broken)))
    to = next((to for code, to in seen if code in (301, 308)), "")
    return Answer("moved" if to else "alive", to=to, size=int(size) if size.isdigit() else None)


def _of_hub(repo: str, timeout: float) -> Answer:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Answer("not asked", "HF_HUB_OFFLINE is set", host=False)
    try:
        file = ask_hub(repo, timeout=timeout)[1]
    except Exception as error:
        answered = isinstance(error, Broken) or getattr(error, "response", None) is not None
        return Answer("dead", hub_reason(error, timeout)[0], host=answered)
    return Answer("alive", size=file.size, sha256=file.etag if len(file.etag or "") == 64 else "")


def _file() -> str:
    return os.path.join(get_cache_dir(), "backbones", "checked.json")


def _kept() -> dict[str, Any]:
    try:
        content = read_json(_file())
    except ValueError:  # missing or damaged: the next check writes it again
        return {}
    return content if isinstance(content, dict) else {}


def _keep(answers: dict[str, Answer]) -> None:
    today = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    rows = {place: {**dataclasses.asdict(answer), "date": today} for place, answer in answers.items()}
    try:
        with file_lock(_file()):  # so that two checks at once keep the answers of both
            write_whole(_file(), json.dumps({**_kept(), **rows}, indent=1) + "\n")
    except (OSError, UserError) as error:  # a full disk must not lose the answers
        logging.getLogger(__name__).warning(f"the answers cannot be saved for `zoo list` and `show`: {error}")


def last_seen(address: str) -> tuple[str, str] | None:
    """(state, date) of the last check of a `weights.Release`'s ``place``: one of `STATES`, and ISO 8601. None if there was none."""
    row = _kept().get(address)
    if not isinstance(row, dict) or row.get("state") not in STATES or not isinstance(row.get("date"), str):
        return None
    return row["state"], row["date"]
