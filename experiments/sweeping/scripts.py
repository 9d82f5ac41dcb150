"""Scripts that train the points of a sweep elsewhere; printed, never run here."""

import os
import re
import shlex
import sys

PYTHON = ".venv/bin/python"  # in the repository on a TPU, as make leaves it

SHORT = 300  # seconds of an attempt after which it is not tried again
RESTARTS = 100  # most of a task

SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{most}
#SBATCH --output=slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#SBATCH --requeue
# Submit with what a point needs: sbatch --gres=gpu:1 --cpus-per-task=8 --time=08:00:00 FILE
# Five minutes before its time is over a training saves, ends with exit code 75, goes back into the
# queue and resumes, up to {restarts} times. --time must be well over five minutes: an attempt that
# is shorter than {short} seconds does not go back. Submit the same file again for points that
# failed or were stopped: those done end at once.
set -eu
cd {here}
case "$SLURM_ARRAY_TASK_ID" in
{cases}
*) echo "There is no point $SLURM_ARRAY_TASK_ID." >&2; exit 2 ;;
esac
# srun takes --cpus-per-task from here alone.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
code=0
srun {python} -m experiments.train {config} "$@" || code=$?
if [ "$code" = 75 ]; then
  if [ "$SECONDS" -lt {short} ]; then
    echo "Stopped after $SECONDS s and not requeued: give --time much more than 5 minutes." >&2
  elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then
    echo "Stopped and not requeued: this was restart $SLURM_RESTART_COUNT." >&2
  else
    scontrol requeue "$SLURM_JOB_ID" || echo "Stopped; it could not be requeued." >&2
  fi
fi
exit "$code"
"""

GCLOUD = """#!/bin/bash
# Trains the points one after another on a TPU VM or slice, and makes it anew when it is preempted.
# --out must be a path on the TPU that outlives it, such as a bucket mounted by gcsfuse; SETUP is
# the command that mounts it and installs the repository with {python} in ~/flow_grpo_jax.
set -u
: "${{ZONE:?such as us-east5-b}}" "${{TYPE:?such as v6e-8}}" "${{VERSION:?such as v2-alpha-tpuv6e}}"
: "${{SETUP:?a command for each host}}" "${{TPU:={name}}}" "${{WAIT:=60}}"
tpu() {{ verb=$1; shift; gcloud compute tpus tpu-vm "$verb" "$TPU" --zone="$ZONE" "$@"; }}
on_hosts() {{ tpu ssh --worker=all --command="$1"; }}
is_ready() {{ [ "$(tpu describe --format='value(state)' 2>/dev/null)" = READY ]; }}
made() {{
  is_ready && return
  tpu delete --quiet 2>/dev/null
  tpu create --accelerator-type="$TYPE" --version="$VERSION" --spot && on_hosts "$SETUP"
}}
failed=0
point() {{
  while true; do
    until made; do sleep "$WAIT"; done
    on_hosts "$2" && return
    code=$?
    # 75: stopped by a signal after saving; 255: no connection. Both go on where they were.
    if [ "$code" != 75 ] && [ "$code" != 255 ] && is_ready; then
      echo "$1 failed with exit code $code" >&2
      failed=1
      return
    fi
    sleep "$WAIT"
  done
}}
{calls}
[ "$failed" = 1 ] || tpu delete --quiet
exit "$failed"
"""


def slurm(points, *, name, config, workdirs, parallel):
    """Returns a job array: each point is a task.

    Args:
      points: list of lists of flags.
      name: of the job.
      config: flag that names the config.
      workdirs: run folder of each point.
      parallel: most tasks at once; None sets no limit.
    """
    lines = zip(points, workdirs, strict=True)
    return SLURM.format(
        name=_plain(name),
        last=len(points) - 1,
        most=f"%{parallel}" if parallel else "",
        here=shlex.quote(os.getcwd()),
        cases="\n".join(
            f"{number}) set -- {shlex.join([*flags, f'--workdir={workdir}'])} ;;"
            for number, (flags, workdir) in enumerate(lines)
        ),
        python=shlex.quote(sys.executable),
        config=shlex.quote(config),
        short=SHORT,
        restarts=RESTARTS,
    )


def gcloud(points, *, name, config, workdirs):
    """Returns a loop over the points for one TPU; arguments as of `slurm`."""
    calls = []
    for flags, workdir in zip(points, workdirs, strict=True):
        start = [PYTHON, "-m", "experiments.train", config, *flags, f"--workdir={workdir}"]
        remote = f"cd flow_grpo_jax && {shlex.join(start)}"
        calls.append(f"point {shlex.quote(str(workdir))} {shlex.quote(remote)}")
    return GCLOUD.format(name=_plain(name).lower(), python=PYTHON, calls="\n".join(calls))


def _plain(name):
    """Returns a name as job schedulers and clouds take it."""
    return "sweep-" + (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "0")[:40].rstrip("-")
