"""Takes a picture of a report page in a headless Chromium, and says how long the page took to open.

    python -m tests.experiments.picture runs/quickstart/report.html docs/report.png --height=1120

docs/report.md has the commands for the pictures in docs/.
"""

import argparse
import base64
import pathlib
import sys
import tempfile
import time

from tests.experiments import browser


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", help="file, and perhaps # and what the page's address says")
    parser.add_argument("out", type=pathlib.Path, help="PNG to write")
    parser.add_argument("--part", default="body", help="CSS selector of what comes first")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    values = parser.parse_args()
    path, hash, place = values.page.partition("#")
    address = f"{pathlib.Path(path).resolve().as_uri()}{hash}{place}"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browser.start(profile) as tab,
    ):
        features = [{"name": "prefers-color-scheme", "value": values.theme}]
        tab.call("Emulation.setEmulatedMedia", features=features)
        start = time.monotonic()
        tab.open(address, width=values.width, height=values.height)
        sys.stderr.write(f"opened in {time.monotonic() - start:.2f} s\n")
        top = f"document.querySelector({values.part!r}).getBoundingClientRect().top + scrollY"
        clip = {"x": 0, "y": tab.run(top), "scale": 1}
        clip |= {"width": values.width, "height": values.height}
        shot = tab.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    values.out.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
