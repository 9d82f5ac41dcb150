"""Draws one question solved before and after training, as docs/solve.svg: an animated SVG.

    python -m tests.experiments.cast --workdir=runs/quickstart --out=docs/solve.svg \\
        --query="What is the atomic number of Neptunium plus that of Oxygen?"

Both columns are what `experiments.solve` prints, line by line; only the pace is made. Above the
second stand the steps of the run.
"""

import argparse
import html
import pathlib
import subprocess
import sys
import textwrap

from flow_grpo_jax import metrics

COLUMN, LINE, TOP = 490, 17, 84  # pixels
WIDTH = 60  # characters of a line
SECONDS = 0.45  # between two lines
PAUSE = 6.0  # at the end, before it starts again
SHADES = {"planner": "plan", "tool": "result", "generator": "answer"}
STYLE = """
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre }
.page { fill: #fbfbf9; stroke: #d9d9d4 } .plain { fill: #5c6270 } .title { fill: #1d2026 }
.plan { fill: #2f50c8 } .result { fill: #12805c } .answer { fill: #1d2026; font-weight: bold }
@media (prefers-color-scheme: dark) {
  .page { fill: #16181d; stroke: #343841 } .plain { fill: #9aa1ae } .title { fill: #eceef2 }
  .plan { fill: #8fa6ff } .result { fill: #5fd0a5 } .answer { fill: #eceef2 }
}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run folder of the quickstart")
    parser.add_argument("--query", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    values = parser.parse_args()
    before, after = solve(values.query), solve(values.query, f"--workdir={values.workdir}")
    steps = metrics.read(pathlib.Path(values.workdir, "metrics.jsonl"))[-1]["step"]
    title = f"after {steps} steps of training"
    values.out.write_text(draw(values.query, before, after, title), encoding="utf-8")


def solve(query, *flags):
    """Returns the lines that `experiments.solve` shows of a question, without those of loading."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.solve", f"--query={query}", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    start = next(n for n, line in enumerate(lines) if "analyst │" in line)
    return [part for line in lines[start:] for part in wrap(line)]


def wrap(line):
    """Returns a line as parts that fit a column, each beginning with who speaks."""
    who, bar, text = line.partition(" │ ")
    return [f"{who}{bar}{part}" for part in textwrap.wrap(text, WIDTH - len(who))] or [line]


def draw(query, before, after, trained):
    """Returns the SVG of two columns of lines that appear one after another, again and again."""
    longest = max(len(before), len(after))
    whole = longest * SECONDS + PAUSE
    rules, parts = [], []
    for n in range(longest):
        shown = 100 * n * SECONDS / whole
        rules.append(
            f"@keyframes k{n} {{ 0%, {shown:.2f}% {{ opacity: 0 }} "
            f"{shown + 0.01:.2f}%, 100% {{ opacity: 1 }} }}"
            f" .n{n} {{ animation: k{n} {whole:.1f}s infinite }}"
        )
    columns = (("before training", before), (trained, after))
    for column, (title, lines) in enumerate(columns):
        left = 20 + column * COLUMN
        parts.append(f'<text class="title" x="{left}" y="62">{title}</text>')
        for n, line in enumerate(lines):
            shade = SHADES.get(line.split("│")[0].strip(), "plain")
            place = f'x="{left}" y="{TOP + LINE * n}"'
            parts.append(f'<text class="{shade} n{n}" {place}>{html.escape(line)}</text>')
    height = TOP + LINE * longest
    command = f'$ flow-grpo solve --query="{query}"'
    motion = f"@media (prefers-reduced-motion: no-preference) {{ {' '.join(rules)} }}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * COLUMN} {height}">',
            f"<style>{STYLE}{motion}</style>",
            f'<rect class="page" x=".5" y=".5" width="{2 * COLUMN - 1}" height="{height - 1}"/>',
            f'<text class="title" x="20" y="30">{html.escape(command)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    main()
