"""Shows runs: did they learn, what did they learn, can they be trusted; every trajectory.

    python -m experiments.view --workdir=runs/quickstart [--out=report.html]
    python -m experiments.view --workdir=runs/a --workdir=runs/b      # beside each other
    python -m experiments.view --workdir=runs/quickstart --text       # in the terminal
    python -m experiments.view --workdir=runs/quickstart --serve      # follows a running training

Exit codes: 0 done, 1 error, 2 bad flags or a folder without a run.
"""

import os
import sys

from absl import flags, logging

from experiments.reporting import live, report, terminal
from experiments.running import command, trust

MOST_RUNS = 2


def define_flags():
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; give two to compare them.")
    flags.DEFINE_string("out", None, "File to write; report.html in the first workdir by default.")
    flags.DEFINE_bool("text", False, "Write a summary to standard output instead of a page.")
    flags.DEFINE_bool("serve", False, "Show the page on a local address, and follow the run.")
    flags.DEFINE_integer("port", 8420, "Of --serve; 0 takes any free one.", 0, 65535)
    flags.DEFINE_bool("trust", False, trust.HELP)
    flags.DEFINE_float(
        "text_megabytes", 12.0, "Size of the trajectory texts on the page, packed.", lower_bound=0.0
    )


def main():
    values = flags.FLAGS
    if len(values.workdir) > MOST_RUNS:
        raise command.ConfigError(
            f"--workdir is given {len(values.workdir)} times; a page compares at most {MOST_RUNS} "
            "runs. experiments.evaluate --analyse plots any number."
        )
    ways = [name for name in ("text", "serve", "out") if values[name].value]
    if len(ways) > 1:
        raise command.ConfigError(f"--{ways[0]} and --{ways[1]} exclude each other; leave one out.")

    def check():
        for folder in values.workdir:
            trust.check_links(folder, trusted=values.trust)

    check()
    budget = round(1e6 * values.text_megabytes)
    with command.checking_config():
        if values.text:
            sys.stdout.write(terminal.text(values.workdir))
        elif values.serve:
            _serve(values, budget, check)
        else:
            _write(values, budget)


def _write(values, budget):
    first = values.workdir[0]
    if values.out or os.path.isdir(first):
        command.check_out(values.out or f"{first}/report.html", folder=False)
    out = report.write_report(values.workdir, values.out, text_budget=budget)
    logging.info("Wrote %s (%.1f MB).", out, out.stat().st_size / 1e6)


def _serve(values, budget, check):
    for folder in values.workdir:
        if not os.path.isdir(folder):
            raise command.ConfigError(f"{folder} is no folder; give the --workdir of a training.")
    follower = live.Follower(values.workdir, text_budget=budget, check=check)
    try:
        server = live.Server(follower, port=values.port)
    except OSError as error:
        raise command.ConfigError(
            f"Cannot listen on {live.HOST} port {values.port}: {error.strerror}. Use another "
            "--port, or 0 for any."
        ) from error
    logging.info("Open %s   (Ctrl-C ends)", server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        logging.info("ended")
    finally:
        server.server_close()


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["workdir"])
