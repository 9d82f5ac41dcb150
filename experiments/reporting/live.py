"""A server on this machine's own address whose page follows runs that are being trained.

It only reads. Its address holds a secret, so that other users of the machine cannot read along, and
it answers only to local names, so that no web page can by a name of its own for 127.0.0.1.
"""

import hashlib
import hmac
import http
import http.server
import json
import pathlib
import secrets
import threading
import urllib.parse

from absl import logging

from experiments.reporting import report
from experiments.running import addresses, command

HOST = "127.0.0.1"
CLIENT_SECONDS = 10  # in which a client must send its request, and take each part of the answer
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
WAITING = """<!doctype html>
<meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'">
<title>waiting</title>
<p>The run has no step yet. This page looks again every two seconds.</p>
"""


class Follower:
    """The newest page of runs; made when somebody asks for it, and again when files changed.

    Args:
      workdirs: run folders.
      text_budget: of `report.html`.
      check: is called before the folders are read; raises if they may not be.
    """

    def __init__(self, workdirs, *, text_budget, check):
        self._folders = [pathlib.Path(folder) for folder in workdirs]
        self._budget, self._check = text_budget, check
        self._lock, self._made, self._page = threading.Lock(), None, ""

    def state(self):
        """Returns {"version": of the files, "label": the last step of each run in words}."""
        digest = hashlib.sha256()
        labels = []
        for folder in self._folders:
            for path in _files(folder):
                try:
                    found = path.stat()
                except OSError:  # replaced at this moment: the next look sees it
                    continue
                digest.update(
                    f"{path} {found.st_size} {found.st_mtime_ns}\n".encode("utf-8", "replace")
                )
            labels.append(_label(folder))
        return {"version": digest.hexdigest()[:16], "label": " · ".join(labels)}

    def page(self):
        """Returns the page of the files as they are."""
        with self._lock:
            state = self.state()
            if self._made != state["version"]:
                self._check()
                try:
                    self._page = report.html(self._folders, text_budget=self._budget, live=state)
                except ValueError:  # no step yet
                    return WAITING
                self._made = state["version"]
            return self._page


def _files(folder):
    return [
        folder / "config.json",
        folder / "metrics.jsonl",
        *sorted(folder.glob("trajectories/*.jsonl")),
    ]


def _label(folder):
    metrics = folder / "metrics.jsonl"
    steps = report.read_metrics(metrics)[0] if metrics.exists() else []
    config = report.read_config(folder / "config.json")
    last = steps[-1]["step"] if steps else 0
    return f"step {last} of {config.get('config.steps', '?')}"


class Server(http.server.ThreadingHTTPServer):
    """Listens on HOST; `serve_forever` runs it.

    Args:
      follower: `Follower`.
      port: 0 takes any free one.

    Attributes:
      url: address of the page.

    Raises:
      OSError: it cannot be bound.
    """

    daemon_threads = True

    def __init__(self, follower, *, port):
        super().__init__((HOST, port), _Handler)
        self.follower, self.secret = follower, secrets.token_urlsafe(16)
        self.url = f"http://{HOST}:{self.server_address[1]}/{self.secret}/"

    def handle_error(self, request, client_address):
        logging.debug("report: a client left", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server_version, sys_version = "flow_grpo_jax", ""

    def do_GET(self):
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not addresses.names_this_machine(hosts[0]):
            self._answer(http.HTTPStatus.FORBIDDEN, "text/plain", "Local names only.\n")
            return
        path = urllib.parse.urlsplit(self.path).path.encode("utf-8", "replace")
        secret, slash, name = path.removeprefix(b"/").partition(b"/")
        known = hmac.compare_digest(secret, self.server.secret.encode()) and bool(slash)
        if not known or name not in (b"", b"state"):
            self._answer(http.HTTPStatus.NOT_FOUND, "text/plain", "Nothing is here.\n")
        elif name:
            found = json.dumps(self.server.follower.state())
            self._answer(http.HTTPStatus.OK, "application/json", found)
        else:
            try:
                self._answer(http.HTTPStatus.OK, "text/html", self.server.follower.page())
            except command.ConfigError as error:  # links that lead out of the folder by now
                self._answer(http.HTTPStatus.CONFLICT, "text/plain", f"{error}\n")

    def _answer(self, status, kind, text):
        body = text.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text, *values):
        logging.debug("report: %s", ascii(text % values)[1:-1])
