"""Sweeps: the points, their trainings and how these stop, scripts, the table by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments import sweep
from experiments.configs import smoke
from experiments.running import command, places, signals, stored
from experiments.sweeping import jobs, points, results, scripts

# ml_collections loads the config's file in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SMOKE = "experiments/configs/smoke.py"


def test_values_are_lists_and_ranges_and_may_hold_commas_in_brackets():
    found = points.parse("optim.lr=1e-6, 3e-6 ;seed=0:3;batch.rows=(1,2),(3,);data.train='a;b,c';")
    assert found == {
        "optim.lr": ["1e-6", "3e-6"],
        "seed": ["0", "1", "2"],
        "batch.rows": ["(1,2)", "(3,)"],
        "data.train": ["a;b,c"],
    }
    assert points.parse("a='0:3',\"b\",'c'd'e'")["a"] == ["0:3", "b", "'c'd'e'"]
    assert points.parse("a=-1:6:3,9")["a"] == ["-1", "2", "5", "9"]
    assert points.parse("a=http://h:80")["a"] == ["http://h:80"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no field"),
        ("lr", "'lr' must be FIELD=VALUE"),
        ("a b=1", "'a b=1' must be FIELD=VALUE"),
        ("seed=", "'seed=' has an empty value"),
        ("seed=1,,2", "has an empty value"),
        ("seed=3:3", "has an empty value or range"),
        ("seed=1;seed=2", "names seed twice"),
        ("seed=0:1000000000000", "1,000,000,000,000 values; at most 1,000"),
        (f"seed=0:{10**30}:10", "values; at most 1,000"),  # too long a range for len
        ("a=0:100;b=0:100", "10,000 points or more; at most 1,000"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_refused(text, told):
    with pytest.raises(command.ConfigError, match=told):
        points.parse(text)


def test_points_are_checked_as_trainings_check_them_and_named_by_their_values():
    text = "optim.lr=0.000001,3e-6;tools.names=('python_coder', 'base_generator');seed=5"
    found = points.make(SMOKE, {"steps": "2"}, text)
    tools = "tools.names=python_coder+base_generator,seed=5"
    assert [point.name for point in found] == [f"optim.lr=1e-06,{tools}", f"optim.lr=3e-06,{tools}"]
    assert [point.config.optim.lr for point in found] == [1e-6, 3e-6]
    assert found[0].changes["steps"] == "2" and found[0].config.steps == 2
    (odd,) = points.make(SMOKE, {}, "compile_cache=/a b/~")
    assert odd.name.startswith("compile_cache=_a_b_-") and len(odd.name) < 40
    flags = points.overrides(found[0].changes)
    assert flags[:2] == ["--config.steps=2", "--config.optim.lr=0.000001"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim.rate=1", "point optim.rate=1: The configuration has no field 'rate'"),
        ("seed=1,x", "point seed=x: flag --config.seed=x: "),
        ("optim.lr=1e-6,-1", r"point optim.lr=-1: optim.lr=-1.0 must be 0 or more"),
        ("rollout.group=4,1", "point rollout.group=1: rollout.group=1 must be 2 or more"),
        ("trackers=mlflow", "point trackers=mlflow: trackers=mlflow must name"),
        ("optim.lr=1e-6,0.000001", "are the same: optim.lr=1e-6 and optim.lr=0.000001"),
        ("steps=1", "steps stands in --sweep and as --config.steps"),
    ],
)
def test_a_point_that_could_not_be_trained_is_refused_before_the_first_starts(text, told):
    with pytest.raises(command.ConfigError, match=told):
        points.make(SMOKE, {"steps": "2"}, text)


# ---- trainings -----------------------------------------------------------------------------------


def as_run(workdir, config, *, steps, **values):
    workdir.mkdir(parents=True)
    stored.write_config(config, workdir)
    lines = [{"step": step, "eval/success": 0.1 * step, **values} for step in range(steps + 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    (workdir / "checkpoints" / f"step_{steps}").mkdir(parents=True)


def test_a_run_is_finished_when_its_last_step_is_evaluated_and_saved(tmp_path):
    config = smoke.get_config()
    assert not results.is_finished(tmp_path / "none", config)
    as_run(tmp_path / "a", config, steps=3)
    assert results.is_finished(tmp_path / "a", config)
    (tmp_path / "a" / "checkpoints" / "step_3").rmdir()
    assert not results.is_finished(tmp_path / "a", config)
    as_run(tmp_path / "b", config, steps=2)
    assert not results.is_finished(tmp_path / "b", config)
    config.steps = 2
    assert results.is_finished(tmp_path / "b", config)
    path = tmp_path / "b" / "metrics.jsonl"
    path.write_text(path.read_text().rpartition('{"step": 2')[0] + '{"step": 2}\n')
    assert not results.is_finished(tmp_path / "b", config)  # the last evaluation was cut off
    config.optim.lr = 1.0
    with pytest.raises(command.ConfigError, match="another config"):
        results.is_finished(tmp_path / "b", config)


def job(tmp_path, name, code):
    return jobs.Job(name, [sys.executable, "-c", code], tmp_path / "logs" / f"{name}.log")


@pytest.fixture
def handlers():
    kept = {number: signal.getsignal(number) for number in signals.STOPPING}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_jobs_run_some_at_a_time_and_one_that_fails_stops_no_other(tmp_path, handlers):
    note = f"import pathlib, time; f = pathlib.Path({str(tmp_path)!r}) / 'order'; "
    say = note + "f.open('a').write('{}\\n'); time.sleep(0.2); f.open('a').write('-{}\\n')"
    fails = "import sys; sys.stderr.write('error: it is so.\\n'); sys.exit(1)"
    wanted = [
        job(tmp_path, "a", say.format("a", "a")),
        job(tmp_path, "b", fails),
        job(tmp_path, "c", say.format("c", "c")),
    ]
    codes = jobs.run(wanted, parallel=1)
    assert codes == {"a": 0, "b": 1, "c": 0} and jobs.exit_code(codes, "abc") == 1
    assert (tmp_path / "order").read_text().split() == ["a", "-a", "c", "-c"]
    assert (tmp_path / "logs" / "b.log").read_text() == "error: it is so.\n"
    assert jobs.exit_code({"a": 0}, ["a"]) == 0 and jobs.exit_code({"a": 0}, ["a", "b"]) == 75


SWEEP = """
import pathlib, sys
from experiments.sweeping import jobs
child = '''
import os, signal, sys, time
def stop(number, frame):
    if {patient}:
        print("saved", flush=True)
        sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", os.getpid(), flush=True)
time.sleep(60)
'''
names = ("a", "b", "c")
wanted = [jobs.Job(n, [sys.executable, "-c", child], pathlib.Path({out!r}) / n) for n in names]
codes = jobs.run(wanted, parallel=2)
sys.exit(jobs.exit_code(codes, names))
"""


@pytest.mark.parametrize("patient", [True, False])
def test_a_signal_stops_the_trainings_and_a_second_kills_them(patient, tmp_path):
    code = SWEEP.format(out=str(tmp_path), patient=patient)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    logs = [tmp_path / "a", tmp_path / "b"]
    wait_for(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
    process.send_signal(signal.SIGINT)
    if not patient:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert not (tmp_path / "c").exists()
    for log in logs:
        assert ("saved" in log.read_text()) == patient
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text().split()[1]), 0)


def wait_for(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_the_command_trains_the_points_and_leaves_those_alone_that_are_done(tmp_path):
    out = tmp_path / "out"
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    small = ("rollout.questions=2", "rollout.group=2", "rollout.max_turns=1", "engine.slots=4")
    small += ("batch.rows=(4,)", "data.held_out=", "steps=1")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "experiments.sweep", f"--out={out}", *arguments],
            cwd=places.ROOT,
            env=os.environ | quick,
            capture_output=True,
            text=True,
            timeout=300,
        )

    train = ["--config=smoke", "--sweep=seed=0:2", *(f"--config.{field}" for field in small)]
    first = run(*train, "--parallel=2")
    assert first.returncode == 0, first.stderr
    written = [out / name / "metrics.jsonl" for name in ("seed=0", "seed=1")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in written]
    assert "2 done, 0 failed, 0 stopped" in first.stderr
    assert "step 1/1" in (out / "logs" / "seed=1.log").read_text()
    again = run(*train)
    assert again.returncode == 0 and "0 of 2 points are to be trained" in again.stderr
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in written] == before
    pytest.importorskip("matplotlib")
    table = run("--table", "--metric=reward/mean")
    assert re.search(r"^\| all \| 2 \| 1 \| .*\(0\), .*\(1\) \|", table.stdout, re.MULTILINE)


# ---- scripts -------------------------------------------------------------------------------------

HOSTILE = "a b'$(touch x)"


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def slurm_task(tmp_path, monkeypatch):
    """Returns what runs a script as one task, with stand-ins for SLURM and Python.

    It takes (script, task, exit code of the training) and returns (finished process, calls).
    """
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "an environment" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    executable(python, 'printf "%s\\n" "$@"\nexit "$ENDS"\n')
    said = 'echo "srun ${SRUN_CPUS_PER_TASK-unset}" >> calls\n"$@"\n'
    executable(tmp_path / "bin" / "srun", said)
    queue = 'echo "scontrol $*" >> calls\nexit "${REFUSES:-0}"\n'
    executable(tmp_path / "bin" / "scontrol", queue)

    def run(script, task, ends=0, **environment):
        environment |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": "70", "ENDS": str(ends)}
        environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash"], input=script, env=environment, capture_output=True, text=True, cwd="/"
        )
        return done, (tmp_path / "calls").read_text().splitlines()

    return run


def test_a_slurm_script_gives_each_task_its_point(tmp_path, slurm_task):
    flags = [["--config.seed=0"], [f"--config.data.train={HOSTILE}"]]
    how = dict(name="a/b c", config="--config=c d.py", workdirs=["runs/0", f"runs/{HOSTILE}"])
    text = scripts.slurm(flags, **how, parallel=4)
    assert "#SBATCH --job-name=sweep-a-b-c\n#SBATCH --array=0-1%4\n" in text
    assert "--array=0-1\n" in scripts.slurm(flags, **how, parallel=None)
    for task in (0, 1):
        done, calls = slurm_task(text, task)
        told = ["-m", "experiments.train", "--config=c d.py", *flags[task]]
        assert done.stdout.splitlines() == [*told, f"--workdir={how['workdirs'][task]}"]
        assert calls == ["srun unset"]
    assert not (tmp_path / "x").exists()
    none, calls = slurm_task(text, 2)
    assert none.returncode == 2 and not calls


@pytest.mark.parametrize(("ends", "queued"), [(75, True), (0, False), (1, False), (143, False)])
def test_a_task_that_was_stopped_goes_back_into_the_queue(ends, queued, slurm_task):
    text = scripts.slurm([[]], name="a", config="--config=c", workdirs=["w"], parallel=None)
    assert "#SBATCH --signal=TERM@300\n#SBATCH --requeue\n" in text
    long = text.replace("code=0\n", "code=0\nSECONDS=300\n")  # since the shell began
    again = ["srun 8", *["scontrol requeue 70"] * queued]
    for script, told, wanted, environment in (
        (long, "", again, {}),
        (long, "it could not be requeued", again, {"REFUSES": "1"}),
        (long, "this was restart 100", ["srun 8"], {"SLURM_RESTART_COUNT": "100"}),
        (long, "", again, {"SLURM_RESTART_COUNT": "99"}),
        (text, "give --time much more than 5 minutes", ["srun 8"], {}),
    ):
        done, calls = slurm_task(script, 0, ends, SLURM_CPUS_PER_TASK="8", **environment)
        assert (done.returncode, calls) == (ends, wanted)
        assert told in done.stderr if queued and told else not done.stderr


GCLOUD = """
echo "$4" >> calls
[ "$4" != describe ] || echo "$(cat state)"
case "$4" in
create) echo READY > state ;;
delete) echo > state ;;
ssh)
  for last; do :; done
  remote=${last#--command=}
  [ "$remote" != setup ] || exit 0
  bash -c "$remote" || exit
  if [ ! -f preempted ]; then touch preempted; echo PREEMPTED > state; exit 255; fi
  ;;
esac
"""


def test_the_loop_for_a_tpu_goes_on_after_a_preemption_and_past_a_point_that_fails(tmp_path):
    fake = tmp_path / "bin" / "gcloud"
    executable(fake, GCLOUD)
    executable(
        tmp_path / "flow_grpo_jax" / ".venv" / "bin" / "python",
        'printf "%s\\n" "$@" >> ../said; [[ "$*" != *seed=1* ]]\n',
    )
    flags = [[f"--config.data.train={HOSTILE}"], ["--config.seed=1"]]
    how = dict(name="a", config="--config=c d.py", workdirs=["/mnt/0", "/mnt/1"])
    text = scripts.gcloud(flags, **how)
    settings = {"ZONE": "z", "TYPE": "v6e-8", "VERSION": "v", "SETUP": "setup", "WAIT": "0"}
    environment = os.environ | settings | {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash"], input=text, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "/mnt/1 failed with exit code 1\n")
    first = ["-m", "experiments.train", "--config=c d.py", *flags[0], "--workdir=/mnt/0"]
    second = ["-m", "experiments.train", "--config=c d.py", *flags[1], "--workdir=/mnt/1"]
    assert (tmp_path / "said").read_text().splitlines() == first + first + second
    calls = (tmp_path / "calls").read_text().split()
    assert calls.count("create") == 2 and not (tmp_path / "flow_grpo_jax" / "x").exists()
    assert subprocess.run(["bash"], input=text, text=True, capture_output=True).returncode


def test_a_tpu_is_told_a_config_by_its_place_in_the_repository(tmp_path):
    file, point = f"{places.CONFIGS / 'paper_7b.py'}:v6e8", points.Point("a", {"seed": "1"}, None)
    text = sweep.script("gcloud", file, [point], tmp_path)
    assert "--config=experiments/configs/paper_7b.py:v6e8" in text
    assert str(places.ROOT) not in text


# ---- table ---------------------------------------------------------------------------------------

TABLE = """\
| setting | runs | step | eval/success at first | last, by seed | mean ± 95 % |
| --- | --- | --- | --- | --- | --- |
| optim.lr=0.1 | 1 | 3 | 0.000 | 0.300 (0) | 0.300 |
| optim.lr=0.001 | 3 | 1 to 3 (2 unfinished) | 0.000 | 0.200 (0), 0.300 (1), 0.100 (2) | 0.200 ± 0.248 |
"""  # noqa: E501  0.248 = 4.303 * 0.1 / sqrt(3)


def test_the_table_has_means_over_seeds_by_setting(tmp_path):
    pytest.importorskip("matplotlib")
    config = smoke.get_config()
    for seed, steps in enumerate((2, 3, 1)):
        config.seed, config.optim.lr = seed, 1e-3
        as_run(tmp_path / f"s{seed}", config, steps=steps)
    config.seed, config.optim.lr = 0, 0.1
    as_run(tmp_path / "other", config, steps=3)
    (tmp_path / "logs").mkdir()
    text = sweep.tabulate(tmp_path, "eval/success")
    assert text == TABLE == (tmp_path / "table.md").read_text()
    assert len([*(tmp_path / "plots").glob("*.png")]) == 2
    first = results.settings(results.read(tmp_path, "eval/success"))
    lines, bars = results.charts(first, "eval/success")
    assert [line["x"] for line in lines["series"]] == [[0, 1, 2, 3], [0, 1]]
    assert bars["bars"] == ["optim.lr=0.1", "optim.lr=0.001"]
    assert bars["series"][0]["y"] == pytest.approx([0.3, 0.2])
    with pytest.raises(command.ConfigError, match="No run in .* has --metric=no; there are eval"):
        sweep.tabulate(tmp_path, "no")
    with pytest.raises(command.ConfigError, match="holds no folder with a run"):
        sweep.tabulate(tmp_path / "plots", "eval/success")


def test_runs_of_other_lengths_are_other_settings(tmp_path):
    config = smoke.get_config()
    for config.steps in (2, 3):
        as_run(tmp_path / str(config.steps), config, steps=config.steps)
    assert [*results.settings(results.read(tmp_path, "eval/success"))] == ["steps=2", "steps=3"]


def test_a_table_takes_runs_of_others_as_data(tmp_path):
    config = smoke.get_config()
    as_run(tmp_path / "a", config, steps=2)
    config.model.path = "\x1b]0;x\x07\n| a |"
    as_run(tmp_path / "b", config, steps=2)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        for step, value in enumerate(("1", None, [1], True), start=3):
            file.write(json.dumps({"step": step, "eval/success": value}) + "\n")
    text = results.table(results.settings(results.read(tmp_path, "eval/success")), "eval/success")
    assert len(text.splitlines()) == 4 and text.count("| 0.200 |") == 2
    assert r"model.path=\x1b]0;x\x07 \| a \| |" in text
    outside = tmp_path / "outside.jsonl"
    (tmp_path / "b" / "metrics.jsonl").rename(outside)
    (tmp_path / "b" / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(command.ConfigError, match="b leads elsewhere"):
        results.read(tmp_path, "eval/success")
    assert len(results.read(tmp_path, "eval/success", trusted=True)) == 2
