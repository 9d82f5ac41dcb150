"""Writes one self-contained HTML page of a run: curves, and every trajectory turn by turn.

    python -m experiments.view --workdir=runs/quickstart [--out=report.html]

Exit codes: 0 done, 1 error, 2 bad flags or a folder without a run.
"""

import os

from absl import flags, logging

from experiments.reporting import report
from experiments.running import command, trust


def define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "File to write; report.html in the workdir by default.")
    flags.DEFINE_bool("trust", False, trust.HELP)
    flags.DEFINE_float(
        "text_megabytes", 12.0, "Size of the trajectory texts on the page.", lower_bound=0.0
    )


def main():
    values = flags.FLAGS
    trust.check_links(values.workdir, trusted=values.trust)
    budget = round(1e6 * values.text_megabytes)
    if values.out or os.path.isdir(values.workdir):
        command.check_out(values.out or f"{values.workdir}/report.html", folder=False)
    with command.checking_config():
        out = report.write_report(values.workdir, values.out, text_budget=budget)
    logging.info("Wrote %s (%.1f MB).", out, out.stat().st_size / 1e6)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["workdir"])
