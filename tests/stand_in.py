"""A server on 127.0.0.1 in the place of those that release weights, with their failings. It counts what it is asked for.

with serve() as server:
    server.put("download.pytorch.org/models/x.pth", data)     # asked as <server.url>/download.pytorch.org/models/x.pth
    server.put_hub("timm/x", {"model.safetensors": data})     # asked by huggingface_hub with HF_ENDPOINT=<server.url>
"""

import contextlib
import hashlib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 1 << 14


@dataclass
class File:
    """What stands at a path.

    ``status`` is answered always, those of ``first`` once each. ``ends`` is the byte at which the connection is closed, ``stalls`` the byte
    after which nothing comes, both for the first so many ``times`` it is asked for. ``pause`` is of a dribble, in seconds before each
    ``CHUNK``. ``to`` redirects, with ``code``. ``careless`` servers look at Range, but not at If-Range; ``silent`` ones never answer.
    """

    data: bytes = b""
    status: int = 0
    first: list[int] = field(default_factory=list)
    ends: int | None = None
    stalls: int | None = None
    times: int = 1000
    pause: float = 0
    ranges: bool = True
    careless: bool = False
    silent: bool = False
    version: bool = True
    head: bool = True  # whether HEAD is answered
    to: str = ""
    code: int = 302
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()}"'


class Server:
    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.asked: Counter[str] = Counter()  # GETs of a path
        self.log: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self.over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": self}))
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def put(self, path: str, data: bytes = b"", **behaviour) -> str:
        """Registers a file; returns its address at the server."""
        self.files["/" + path] = File(data, **behaviour)
        return f"{self.url}/{path}"

    def put_hub(self, repo: str, files: dict[str, bytes], revision: str = "main", served: dict[str, bytes] | None = None, **behaviour) -> None:
        """Registers files of a hub's repository as it keeps large ones: behind a redirect to another host, named by their sha256.

        ``served`` are bytes to send in place of a file's own. ``behaviour`` is of the place that the redirect leads to.
        """
        self.files[f"/{repo}"] = File()
        cdn = self.url.replace("127.0.0.1", "localhost") + "/cdn"
        for name, data in files.items():
            etag = hashlib.sha256(data).hexdigest()
            about = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
            self.files[f"/{repo}/resolve/{revision}/{name}"] = File(to=f"{cdn}/{etag}", headers=about)
            self.files[f"/cdn/{etag}"] = File((served or {}).get(name, data), headers={"ETag": f'"{etag}"'}, **behaviour)

    def ranges(self, path: str) -> list[str]:
        """The Range that each GET of a path has asked for, "" for all of it."""
        return [headers.get("Range", "") for method, asked, headers in self.log if method == "GET" and asked.partition("?")[0] == "/" + path]


class _Handler(BaseHTTPRequestHandler):
    stand_in: Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server, path = self.stand_in, self.path.partition("?")[0]
        server.log.append((self.command, self.path, dict(self.headers)))
        if self.command == "GET":
            server.asked[path[1:]] += 1
        file = server.files.get(path)
        if file is None:
            return self._missing(path)
        if file.silent:
            server.over.wait(60)
            self.close_connection = True
            return
        if self.command == "HEAD" and not file.head:
            return self._end(405)
        status = file.first.pop(0) if file.first else file.status
        if status:
            return self._end(status, file.headers)
        if file.to:
            return self._end(file.code, {"Location": file.to, **file.headers})
        start, failing = 0, server.asked[path[1:]] <= file.times
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept-Ranges": "bytes", **({"ETag": file.etag} if file.version else {}), **file.headers}
        body = file.data
        same = self.headers.get("If-Range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
        if asked and file.ranges and (same or file.careless):
            start = int(asked[1])
            stop = min(int(asked[2]) + 1 if asked[2] else len(body), len(body))
            if start >= len(body):
                return self._end(416)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            body = body[:stop]
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in {**headers, "Content-Length": str(len(body) - start), "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        ends = min([n for n in (file.ends, file.stalls) if n is not None], default=len(body)) if failing else len(body)
        with contextlib.suppress(OSError):  # the client has gone
            while start < min(ends, len(body)) and not server.over.wait(file.pause):
                start += self.wfile.write(body[start : min(start + CHUNK, ends)])
            if failing and file.stalls is not None:
                self.wfile.flush()
                server.over.wait(60)

    def _missing(self, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        known = any(asked.startswith(f"{repo}/resolve/{rest.partition('/')[0]}/") for asked in self.stand_in.files)
        code = "EntryNotFound" if known else "RevisionNotFound" if repo in self.stand_in.files else "RepoNotFound"
        self._end(404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT} if "/resolve/" in path else {})

    def _end(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    server._server.daemon_threads = True
    threading.Thread(target=server._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server._server.shutdown()
        server._server.server_close()


def everywhere(server: Server, monkeypatch, cache) -> None:
    """Puts the server in the place of every host and of the hub, for this process, with an empty ``cache`` and without long waits."""
    from huggingface_hub import constants

    from backbones.checkpoint import fetching

    monkeypatch.setenv("BACKBONES_MIRROR", server.url + "/")
    monkeypatch.setenv("FVCORE_CACHE", str(cache))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    monkeypatch.setattr(fetching, "TIMEOUT", 0.5)
    monkeypatch.setattr(fetching, "TRIES", 3)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DOWNLOAD_TIMEOUT": 0.3,
    }.items():
        monkeypatch.setattr(constants, name, value)
