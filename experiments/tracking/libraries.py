"""One class for each tracker's library: it opens or continues a run, logs steps, ends it.

Settings of a library that are no fields of the config are its own variables of the environment,
such as WANDB_MODE=offline, WANDB_ENTITY or TRACKIO_SPACE_ID.
"""

import json
import pathlib

from experiments.tracking import tables


class TensorBoard:
    """Event files in the run folder. Steps of before that are trained again are taken back."""

    def __init__(self, about, *, id, first_step, config):
        import tensorboardX

        folder = pathlib.Path(about["folder"]) / "tensorboard"
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=first_step)
        rows = [[name, json.dumps(value)] for name, value in config.items()]
        self._writer.add_text("config", _markdown(("field", "value"), rows), max(first_step, 0))

    def log(self, step, values, found):
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for name, rows in found.items():
            self._writer.add_text(name, _markdown(tables.COLUMNS, rows), step)
        self._writer.flush()

    def close(self):
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B with its own system metrics, those of the training's process.

    Its files are where the library has them, in WANDB_DIR or ./wandb: they hold links that lead
    elsewhere, which a run folder may not.
    """

    def __init__(self, about, *, id, first_step, config):
        import wandb

        self._table = wandb.Table
        self._run = wandb.init(
            project=about["project"],
            name=about["name"],
            id=id,
            resume="allow",
            config=config,
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                disable_code=True,
                init_timeout=about["seconds"],
                finish_timeout=about["seconds"],
                x_stats_pid=about["process"],
            ),
        )

    def log(self, step, values, found):
        as_table = lambda rows: self._table(columns=list(tables.COLUMNS), data=rows)
        shown = {name: as_table(rows) for name, rows in found.items()}
        self._run.log(values | shown, step=step)

    def close(self):
        self._run.finish()


class Trackio:
    """A run of trackio, which knows it by its name; the name therefore holds the id."""

    def __init__(self, about, *, id, first_step, config):
        import trackio

        self._library = trackio
        self._run = trackio.init(
            project=about["project"],
            name=f"{about['name']}-{id[:6]}",
            resume="allow",
            config=config,
            embed=False,
        )

    def log(self, step, values, found):
        as_table = lambda rows: self._library.Table(columns=list(tables.COLUMNS), data=rows)
        shown = {name: as_table(rows) for name, rows in found.items()}
        self._run.log(values | shown, step=step)

    def close(self):
        self._run.finish()


BOARDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}
# Whether a tracker can take steps back: those after the checkpoint that a run goes on from.
FORGETS = {"tensorboard": True, "wandb": False, "trackio": False}


def _markdown(columns, rows):
    cell = lambda value: str(value).replace("|", "\\|").replace("\n", "<br>")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
