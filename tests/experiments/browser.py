"""A headless Chromium, spoken to over two pipes by its DevTools protocol; no package is needed."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SHELL = 'exec "$0" "$@" 3<&{read} 4>&{write}'  # where Chromium expects its pipes


class Browser:
    """One tab."""

    def __init__(self, commands, replies):
        self._commands, self._replies, self._ids = commands, replies, itertools.count(1)
        self._session, self._pending = {}, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method, **params):
        """Returns the result of a method of the protocol; AssertionError if it fails."""
        number = next(self._ids)
        request = {"id": number, "method": method, "params": params} | self._session
        os.write(self._commands, json.dumps(request).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def _read(self):
        while b"\0" not in self._pending:
            got = os.read(self._replies, 1 << 20)
            assert got, "Chromium ended"
            self._pending += got
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width, height=900):
        """Loads a file, or an address, in a window of a size in CSS pixels."""
        sizes = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        self.call("Page.navigate", url="about:blank")  # else a new "#…" does not load again
        self.call("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        self.run(
            "new Promise((done) => document.readyState === 'complete' ? done() : onload = done)"
        )
        self.run("typeof ready === 'undefined' ? null : ready")  # of the report's script
        self.settle()

    def settle(self):
        """Waits until what changed is laid out and drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script):
        """Returns the JSON value of a JavaScript expression, which may be a promise."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def hover(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path):
        """Writes the whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def start(profile):
    """Yields a `Browser` with its profile in a new folder."""
    read, commands = os.pipe()
    replies, write = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    flags += ["--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}"]
    command = ["bash", "-c", SHELL.format(read=read, write=write), CHROMIUM, *flags]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command, pass_fds=(read, write), **quiet)
    for end in (read, write):
        os.close(end)
    try:
        yield Browser(commands, replies)
    finally:
        process.terminate()
        process.wait()
        os.close(commands)
        os.close(replies)
