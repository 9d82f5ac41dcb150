"""One self-contained HTML page: sections of facts, curves, a browser of trajectories.

The page loads nothing: it contains its styles and scripts, its content security policy admits only
those (by hash), and texts of models and tools reach the document as text nodes.
"""

import base64
import hashlib
import pathlib

from experiments.reporting import markup
from experiments.reporting import trajectories as records
from experiments.reporting.markup import Markup, element, joined

ASSETS = pathlib.Path(__file__).parent / "assets"
COLOURS = 8  # --c0, --c1, … of report.css
SCRIPTS = ("elements", "store", "charts", "turns", "browser", "keys", "live")


def make(name, *, kind, facts, sections, notes, charts, listing, config, runs=(), live=None):
    """Returns the page.

    name: its heading.    kind: what it is, in two words.
    facts: [(value, label)].    sections: [(title, small text beside it, `Markup`)].
    notes: sentences above the trajectories.
    charts: as `curves.of_runs` returns them.    listing: `trajectories.Listing`.
    config: [(name of a run or "", {dotted name: value})].
    runs: names that tell trajectories of several runs apart.
    live: what the server of a page that follows a run says of its state; None for a file.
    """
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    script = "\n".join((ASSETS / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS)
    blocks = {"charts": charts, "steps": listing.steps, "runs": list(runs), "live": live}
    blocks = {key: records.pack(records.dump(value)) for key, value in blocks.items()}
    blocks |= {f"texts-{index}": packed for index, packed in listing.texts.items()}
    parts = {
        "POLICY": policy(style, script, live=live is not None),
        "NAME": markup.escape(name),
        "KIND": markup.escape(kind),
        "FACTS": joined(
            *(element("li", element("b", value), f" {label}") for value, label in facts)
        ),
        "SECTIONS": joined(*(_section(*section) for section in sections)),
        "NOTES": joined(*(element("p", note, class_="note") for note in notes)),
        "CONFIG": joined(*(_config(*one) for one in config)),
        "STYLE": style,
        "DATA": "\n".join(
            f'<script type="text/plain" id="data-{key}">{packed}</script>'
            for key, packed in blocks.items()
        ),
        "SCRIPT": script,
    }
    template = (ASSETS / "report.html").read_text(encoding="utf-8")
    pieces = template.split("@@")  # text, name, text, name, ..., text
    pieces[1::2] = [parts[key] for key in pieces[1::2]]
    return "".join(pieces)


def policy(style, script, *, live):
    """Returns the content security policy of a page; a live one may ask its own server."""
    allowed = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
    allowed += "connect-src 'self'; " if live else ""
    return allowed + "base-uri 'none'; form-action 'none'"


def _hash(content):
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _section(title, small, content):
    heading = element("h2", title, " ", element("small", small) if small else None)
    return element("section", heading, content)


def _config(name, config):
    rows = [(key, records.text(value, 400)) for key, value in config.items()]
    if not rows:
        return element("p", "No config.json.", class_="quiet")
    return joined(element("h3", name) if name else None, markup.table(rows))


def bars(title, note, heads, rows):
    """Returns a card of shares before and after as pairs of bars.

    heads: names of the two.    rows: [(label, share before, share after)].
    """
    lines = [
        element(
            "tr",
            element("th", label, scope="row"),
            element("td", _pair(before, after), class_="pair"),
            element("td", _percent(before), class_="number before"),
            element("td", _percent(after), class_="number"),
        )
        for label, before, after in rows
    ]
    head = element("tr", *(element("th", text) for text in ("", "", *heads)))
    return element(
        "div",
        element("h3", title),
        element("p", note, class_="note"),
        element("table", head, *lines, class_="bars"),
        class_="card",
    )


def grouped_bars(chart):
    """Returns a card with a bar for each group and series that has a value, and its interval.

    chart: one with "bars", as of `experiments.evaluating.analyses`; shares in [0, 1].
    """
    lines = []
    for group, label in enumerate(chart["bars"]):
        having = [(i, s) for i, s in enumerate(chart["series"]) if s["y"][group] is not None]
        for place, (index, series) in enumerate(having):
            bounds = [series[side][group] for side in ("low", "high") if side in series]
            head = element("th", label, class_="group", rowspan=len(having), scope="rowgroup")
            told = series["label"]
            if bounds:
                told += f" ({' – '.join(map(_percent, bounds))})"
            lines.append(
                element(
                    "tr",
                    None if place else head,
                    element("th", told, scope="row"),
                    element("td", _bar(series["y"][group], bounds, index), class_="pair"),
                    element("td", _percent(series["y"][group]), class_="number"),
                )
            )
    return element(
        "div",
        element("h3", chart["title"]),
        element("p", chart["note"], class_="note"),
        element("table", *lines, class_="bars grouped"),
        class_="card",
    )


def _bar(share, bounds, index):
    """Returns a bar in the colour of a series, and a line over its interval."""
    wide = lambda low, high: f'x="{100 * low:.1f}" width="{100 * (high - low):.1f}"'
    shapes = [Markup(f'<rect class="c{index % COLOURS}" {wide(0, share)} height="9"></rect>')]
    if bounds:
        low, high = (min(1.0, max(0.0, bound)) for bound in bounds)
        shapes.append(Markup(f'<rect class="spread" {wide(low, high)} y="4" height="1"></rect>'))
    return element("svg", *shapes, viewBox="0 0 100 9", preserveAspectRatio="none")


def _pair(before, after):
    """Returns two bars; no style is set, since the policy admits none."""
    rectangles = [
        Markup(f'<rect class="{name}" y="{y}" width="{100 * share:.1f}" height="5" rx="0"></rect>')
        for name, share, y in (("before", before, 0), ("after", after, 7))
    ]
    return element("svg", *rectangles, viewBox="0 0 100 12", preserveAspectRatio="none")


def _percent(share):
    return f"{100 * share:.1f} %"
