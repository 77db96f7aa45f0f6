"""Downloads weights: complete and with the right hash, or not at all."""

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import socket
import ssl
import time
import urllib.request
from email.message import Message
from functools import partial
from typing import Any, Callable, Iterator, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from ..errors import UserError, one_line
from ..files import sha256 as digest
from .reading import HEURISTICS, is_page

TIMEOUT = 30.0  # seconds to wait for a connection, and for more data
TRIES = 4
PAUSE = 1.0  # seconds before the second try, doubled before each one after it
_LARGE = 8 << 20  # bytes from which a terminal shows progress
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"  # what detectron2:// stands for
# errors of a disk that cannot be written
_DISK = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS)
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Broken(OSError):
    """A download that failed. Another try may help if it is ``passing``."""

    def __init__(self, why: str, passing: bool = False):
        super().__init__(why)
        self.passing = passing


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Records redirects, repeats the request with the same method, and handles 308, which Python 3.10 does not."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def __init__(self, seen: list[tuple[int, str]]):
        self.seen = seen

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        again: Any = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        again.method = req.get_method()
        self.seen.append((code, newurl))
        return again


def mirrored(url: str) -> str:
    """The address to request for an http(s) address: ``<BACKBONES_MIRROR>/<host>/<path>`` if that variable is set."""
    mirror = os.getenv("BACKBONES_MIRROR", "").rstrip("/")
    if mirror and not mirror.startswith(("http://", "https://")):
        said = f"BACKBONES_MIRROR is {mirror!r}: it must be an address, such as https://mirror.example.org/weights"
        raise UserError(said, key="BACKBONES_MIRROR")
    return f"{mirror}/{url.partition('://')[2]}" if mirror and not url.startswith(mirror + "/") else url


def request(url: str, headers: dict[str, str], method: str = "GET", timeout: float = 0, seen: list[tuple[int, str]] | None = None) -> Any:
    """The response of a server, or of its mirror, after all redirects, which are added to ``seen``. Raises urllib's errors."""
    asked = urllib.request.Request(mirrored(url), method=method, headers={"User-Agent": "backbones", **headers})
    return urllib.request.build_opener(_Redirects([] if seen is None else seen)).open(asked, timeout=timeout or TIMEOUT)


def reason(error: BaseException, timeout: float = 0) -> tuple[str, bool]:
    """What went wrong with a request, in plain words, and whether another try may help."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {http.client.responses.get(error.code, error.reason)}", error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        return reason(error.reason, timeout)
    text = getattr(error, "strerror", None) or one_line(error)
    if isinstance(error, Broken):
        return str(error), error.passing
    if isinstance(error, TimeoutError):
        return f"timed out: no data for {timeout or TIMEOUT:g} s", True
    if isinstance(error, socket.gaierror):
        return f"unknown host, or no internet connection ({text})", False
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate was rejected: {error.verify_message}", False
    if isinstance(error, ConnectionRefusedError):
        return "connection refused", False
    if isinstance(error, (ConnectionError, http.client.HTTPException, ssl.SSLError)):
        return f"the connection broke ({text})", True
    return text, False


def patiently(call: Callable[[], T], what: str = "", explain: Callable[[Exception], tuple[str, bool]] = reason) -> T:
    """The result of a request, repeated if that may help; each retry is logged under the name ``what``. ``explain`` is like `reason`."""
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            why, again = explain(error)
            if not again or tried == TRIES:
                raise
            asked = error.headers.get("Retry-After", "") if isinstance(error, HTTPError) else ""
            pause = min(float(asked), TIMEOUT) if asked.isdigit() else PAUSE * 2 ** (tried - 1)
            if what:
                _log.warning(f"{what}: {why}. Trying again in {pause:g} s ({tried} of {TRIES - 1})")
            time.sleep(pause)
    raise AssertionError


def fetch(url: str, path_manager: Any, sha256: str = "") -> str:
    """Downloads a file into detectron2's cache, once, and returns its path.

    An interrupted download resumes where it stopped, if the server says that its file is the same. The server receives the query of its address
    (``?dl=1``), which detectron2 would drop. BACKBONES_MIRROR names another server, see `mirrored`.

    Args:
        path_manager: detectron2's, for addresses other than http(s) and detectron2://.
        sha256: of the file, or its first digits, in hex. A cached file that differs is downloaded again.

    Raises UserError if the file cannot be downloaded, ends early, is a web page, or has another hash.
    """
    bare, _, query = url.partition("?")
    try:
        path = place(url)
        if path:
            asked = bare if query == HEURISTICS else url
            _fetch(asked.replace("detectron2://", _DETECTRON2), path, sha256.lower())
            return path
        path = str(path_manager.get_local_path(bare))
        if not os.path.isfile(path):
            raise Broken("the file does not exist, or its kind of address is unknown")
        if sha256 and not digest(path).startswith(sha256.lower()):
            raise Broken(f"{path!r} has the sha256 {digest(path)}, not {sha256}")
        return path
    except UserError:
        raise
    except Exception as error:  # each of iopath's handlers raises its own errors
        mirror = os.getenv("BACKBONES_MIRROR") if place(url) else ""
        via = f" from {mirror}" if mirror else ""
        why = _of_disk(error, get_cache_dir(), "FVCORE_CACHE") or reason(error)[0]
        raise UserError(f"checkpoint {url!r} cannot be downloaded{via}: {why}", "download") from error


def _of_disk(error: Exception, folder: str, variable: str) -> str:
    """The message if the cache cannot be written; "" for other errors."""
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return ""
    return f"cannot write to {folder!r} ({error.strerror}); to use another folder, set the variable {variable}"


def cached(*parts: str) -> str:
    """The path of a file in detectron2's cache: files in a read-only cache are found, others go where detectron2 puts them."""
    there = os.path.join(os.path.expanduser(os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache")), *parts)
    return there if os.path.isfile(there) else os.path.join(get_cache_dir(), *parts)


def place(url: str) -> str:
    """Where `fetch` keeps the file of an address, which may not exist yet; "" for addresses that `fetch` does not handle itself."""
    parsed = urlparse(url)
    if parsed.scheme == "detectron2":  # detectron2's own server, which detectron2:// stands for
        return cached("detectron2", parsed.netloc, parsed.path.lstrip("/"))
    if parsed.scheme not in ("http", "https"):
        return ""
    path, ending = os.path.splitext(parsed.path.lstrip("/"))
    if parsed.query not in ("", HEURISTICS, "dl=1"):  # a server may choose the file by it; Dropbox's dl=1 chooses nothing
        path += "-" + hashlib.sha256(parsed.query.encode()).hexdigest()[:8]
    return cached(parsed.netloc, path + ending)


@contextlib.contextmanager
def kept_if_whole(path: str, address: str) -> Iterator[None]:
    """For reading the file of an address: where that shows that the file is bad, removes it from the cache, to be downloaded again."""
    try:
        yield
    except UserError as error:
        if "://" not in address:
            raise
        if error.code in ("bad-file", "download") and os.path.abspath(path).startswith(os.path.join(os.path.abspath(get_cache_dir()), "")):
            with contextlib.suppress(OSError):  # of a cache that is read-only
                os.remove(path)
        raise UserError(f"{error} (downloaded from {address})", error.code, error.key, error.suggestion) from error


def _fetch(url: str, path: str, sha256: str) -> None:
    if not os.path.basename(path):
        raise Broken("the address does not name a file")

    def there() -> bool:
        return os.path.isfile(path) and (not sha256 or digest(path).startswith(sha256))

    if there():  # without a lock: a file gets its name only when it is complete, and the cache may be read-only
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with file_lock(path):  # one process downloads, the others wait and find it
        if not there():
            if os.path.isfile(path):
                _log.warning(f"{path} has the sha256 {digest(path)}, not {sha256}: it is downloaded again")
                os.remove(path)
            _download(url, path, sha256)


def _download(url: str, path: str, sha256: str) -> None:
    begun, tag = path + ".partial", path + ".partial.tag"
    patiently(lambda: _receive(url, begun, tag), url)
    found = digest(begun)
    with open(begun, "rb") as file:
        page = is_page(file.read(512))
    if found.startswith(sha256) and not page:
        os.replace(begun, path)
    for left in (begun, tag):
        if os.path.exists(left):
            os.remove(left)
    if page:
        raise Broken("the server sent a web page instead")
    if not found.startswith(sha256):
        raise Broken(f"the download has the sha256 {found}, not {sha256}, and was removed")
    _log.info(f"downloaded {url} to {path} ({os.path.getsize(path) / 1e6:.1f} MB, sha256 {'checked' if sha256 else 'not known beforehand'})")


def _receive(url: str, begun: str, tag: str) -> None:
    """Completes the partial download ``begun``. The file ``tag`` says which version of the server's file it comes from."""
    have, version = 0, ""
    if os.path.isfile(begun) and os.path.isfile(tag):
        have = os.path.getsize(begun)
        with open(tag, encoding="latin1") as file:
            version = file.read()
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    try:
        response = request(url, headers)
    except HTTPError as error:
        if error.code != 416 or not headers:
            raise
        response = request(url, {})
    with response:
        part = response.status == 206
        goes_on = part and _version(response) == version and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if part and not goes_on:  # not the file or the part that was requested
            response.close()
            response = request(url, {})
        if goes_on:
            _log.info(f"{url}: resuming at byte {have}")
        else:
            have = 0
            if os.path.exists(begun):
                os.remove(begun)
            with open(tag, "w", encoding="latin1") as file:
                file.write(_version(response))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with response, open(begun, "ab") as file, _progress(url, have, total) as bar:
            while (total is None or have < total) and (block := response.read1(1 << 18)):  # read1: what is there, so that a stall is seen
                file.write(block)
                have += len(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise Broken(f"the server stopped at {have} of {total} bytes", passing=True)
    if not have:
        raise Broken("the server sent an empty file")


def _version(response: Any) -> str:
    """What identifies the version of a server's file: a strong ETag, else the time of its last change, else nothing."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _progress(url: str, have: int, total: int | None) -> Any:
    hidden = True if total is not None and total < _LARGE else None  # None: hidden if there is no terminal
    return tqdm(desc=os.path.basename(urlparse(url).path), initial=have, total=total, unit="B", unit_scale=True, disable=hidden)


def fetch_hub(repo_id: str, filename: str = "model.safetensors", revision: str | None = None) -> str:
    """Downloads a file of a Hugging Face repository into that hub's cache, once, and returns its path there.

    Cached files are used without another request. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME and their like are the hub's own.
    A repository without ``model.safetensors`` is asked for its ``pytorch_model.bin``. Raises UserError if the file cannot be downloaded, or has
    a sha256 that differs from the hub's.
    """
    from huggingface_hub import constants, hf_hub_download, utils

    try:
        for name in _names(filename):
            try:
                path = hf_hub_download(repo_id, name, revision=revision, local_files_only=True)
            except utils.EntryNotFoundError:  # also raised for local files
                continue
            if not _differs(path):
                return path
            _log.warning(f"{path} has the sha256 {_differs(path)}, which does not match its name: it is downloaded again")
            _remove(path)
        # asked separately first: hf_hub_download does not say why it cannot reach the hub, and retries for long
        path = hf_hub_download(repo_id, ask_hub(repo_id, filename, revision)[0], revision=revision)
        found, wanted = _differs(path), os.path.basename(os.path.realpath(path))
        if found:
            _remove(path)
            raise Broken(f"the download has the sha256 {found}, not {wanted} as the hub states, and was removed")
        return path
    except Exception as error:  # errors of the hub, and of its HTTP client, which differs between major versions
        what = f"{repo_id}/{filename}" + (f"@{revision}" if revision else "")
        why = _of_disk(error, constants.HF_HUB_CACHE, "HF_HOME") or hub_reason(error)[0]
        raise UserError(f"checkpoint {what!r} of {constants.ENDPOINT} cannot be downloaded: {why}", "download") from error


def ask_hub(repo_id: str, filename: str = "model.safetensors", revision: str | None = None, timeout: float = 0) -> tuple[str, Any]:
    """(name, size and sha256 as ``HfFileMetadata``) of a file as `fetch_hub` would take it. Raises what the hub's client does."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, utils

    for name in _names(filename):
        url = hf_hub_url(repo_id, name, revision=revision)
        try:
            return name, patiently(partial(get_hf_file_metadata, url, timeout=timeout or constants.HF_HUB_ETAG_TIMEOUT), explain=hub_reason)
        except utils.EntryNotFoundError:
            pass
    raise Broken(f"the repository has no {' and no '.join(_names(filename))}")


def _names(filename: str) -> list[str]:
    return [filename, "pytorch_model.bin"] if filename == "model.safetensors" else [filename]


def _differs(path: str) -> str:
    """The sha256 of a file in the hub's cache, if it differs from the one in its name; small files have names of another kind."""
    name = os.path.basename(os.path.realpath(path))
    found = digest(path) if len(name) == 64 else name
    return found if found != name else ""


def _remove(path: str) -> None:
    for each in {os.path.realpath(path), path}:
        os.remove(each)


def hub_reason(error: BaseException, timeout: float = 0) -> tuple[str, bool]:
    """Like `reason`, for the errors of huggingface_hub."""
    from huggingface_hub import constants, utils

    if isinstance(error, utils.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and the file is not in {constants.HF_HUB_CACHE!r}", False
    if isinstance(error, utils.GatedRepoError):
        return (
            "its owners require you to accept an agreement (HTTP 403): accept it on its page, then log in with HF_TOKEN or `hf auth login`",
            False,
        )
    if isinstance(error, utils.RepositoryNotFoundError):
        return "the repository does not exist, or it is private and needs HF_TOKEN or `hf auth login`", False
    if isinstance(error, utils.RevisionNotFoundError):
        return "the repository does not have this revision", False
    if isinstance(error, utils.LocalEntryNotFoundError) and error.__cause__:  # the cause of the failed connection to the hub
        return hub_reason(error.__cause__, timeout)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        said, again = reason(HTTPError("", status, "", Message(), None))
        return f"{said}: HF_TOKEN is missing or was rejected" if status in (401, 403) else said, again
    cause: BaseException | None = error
    while cause and not isinstance(cause, (socket.gaierror, ConnectionError, TimeoutError, ssl.SSLError)):
        cause = cause.__cause__ or cause.__context__
    return reason(cause or error, timeout or constants.HF_HUB_DOWNLOAD_TIMEOUT)
