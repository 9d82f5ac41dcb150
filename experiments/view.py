"""Turn a run folder into one self-contained HTML page: curves, and every trajectory turn by turn.

    python -m experiments.view --workdir=runs/quickstart [--out=report.html]

Exit codes: 0 done, 1 error, 2 bad flags.
"""

from absl import flags, logging

from experiments.reporting.report import write_report
from experiments.running import exits

__all__ = ["write_report"]


def define_flags():
    """The flags, not defined on import: experiments.train imports this module and has a workdir."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "File to write; report.html in the workdir by default.")
    flags.DEFINE_float(
        "text_megabytes", 12.0, "Size of the trajectory texts on the page.", lower_bound=0.0
    )


def main(_):
    values = flags.FLAGS
    budget = round(1e6 * values.text_megabytes)
    out = write_report(values.workdir, values.out, text_budget=budget)
    logging.info("Wrote %s (%.1f MB).", out, out.stat().st_size / 1e6)


if __name__ == "__main__":
    define_flags()
    exits.run(main, required=["workdir"])
