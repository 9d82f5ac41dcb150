"""Charts of `analyses` as PNG and SVG files; needs the extra `plots`."""

import pathlib
import re

from flow_grpo_jax import files

SIZE = (7.4, 4.0)  # inches, with the legend
DOTS = 150  # an inch of a PNG
COLOURS = ("#3554d1", "#d9730d", "#0f8a6a", "#a33ea1", "#b8860b", "#0b7fab", "#b3324b", "#6b7280")


def write(charts, folder):
    """Draws each chart to folder/NAME.png and .svg; returns the paths."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder, paths = pathlib.Path(folder), []
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Texts of others are never read as formulas; the same chart gives the same file.
    matplotlib.rcParams |= {"text.parse_math": False, "svg.hashsalt": "flow_grpo_jax"}
    for number, chart in enumerate(charts, start=1):
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        draw = _draw_bars if "bars" in chart else _draw_lines
        draw(axes, chart)
        axes.set_title(chart["title"], loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        if chart["unit"] == "share":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            # An interval may end above 1; a share does not.
            axes.set_ylim(0.0, min(axes.get_ylim()[1], 1.02))
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        name = re.sub(r"\W+", "_", chart["title"]).strip("_").lower()
        for kind, how in (("png", {"dpi": DOTS}), ("svg", {"metadata": {"Date": None}})):
            paths.append(folder / f"{number:02}_{name}.{kind}")
            with files.writing(paths[-1]):
                figure.savefig(paths[-1], **how)
        pyplot.close(figure)
    return paths


def _draw_lines(axes, chart):
    for line, colour in zip(chart["series"], _colours(chart), strict=True):
        mark = {"marker": "o", "markersize": 4} if line["points"] else {}
        axes.plot(line["x"], line["y"], label=line["label"], color=colour, **mark)
        if "low" in line:
            axes.fill_between(line["x"], line["low"], line["high"], alpha=0.15, color=colour)
    if all(isinstance(x, int) for line in chart["series"] for x in line["x"]):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(chart["axis"])


def _draw_bars(axes, chart):
    width = 0.8 / len(chart["series"])
    for place, (line, colour) in enumerate(zip(chart["series"], _colours(chart), strict=True)):
        kept = [i for i, y in enumerate(line["y"]) if y is not None]
        x = [i - 0.4 + (place + 0.5) * width for i in kept]
        y = [line["y"][i] for i in kept]
        axes.bar(x, y, width, label=line["label"], color=colour)
        if "low" in line:
            below = [max(0.0, line["y"][i] - line["low"][i]) for i in kept]
            above = [max(0.0, line["high"][i] - line["y"][i]) for i in kept]
            axes.errorbar(x, y, (below, above), fmt="none", ecolor="#1c1f23", linewidth=0.8)
    axes.set_xticks(range(len(chart["bars"])), chart["bars"], rotation=30, ha="right", fontsize=8)


def _colours(chart):
    return [COLOURS[i % len(COLOURS)] for i in range(len(chart["series"]))]
