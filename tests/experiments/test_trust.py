"""A run folder can be opened without trusting its maker: it is data, and so are data folders."""

import inspect
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from experiments import export, rescore, solve, train, view
from experiments.configs import common, quickstart
from experiments.running import command, dotted, sessions, stored, trust
from flow_grpo_jax import data, files

ROOT = pathlib.Path(__file__).parents[2]
ELSEWHERE = "/elsewhere/file"
SERVER = {"kind": "server", "url": "http://127.0.0.1:9/v1", "model": "m"}
# What the maker of a folder may write, and the field that must be named when it is refused.
HOSTILE = [
    ({"tools.mcp": ["touch {evil}"]}, "tools.mcp"),
    ({"tools.mcp": ["http://127.0.0.1:9/mcp"]}, "tools.mcp"),
    (
        {f"backends.verifier.{name}": value for name, value in SERVER.items()},
        "backends.verifier.url",
    ),
    (
        {f"backends.judge.{name}": value for name, value in SERVER.items()}
        | {"backends.judge.api_key_variable": "HOME"},
        "backends.judge.api_key_variable",
    ),
    (
        {"backends.judge.kind": "server", "backends.judge.cache": ELSEWHERE},
        "backends.judge.cache",
    ),
    ({"compile_cache": "{folder}/cache"}, "compile_cache"),
    ({"model.path": "/"}, "model.path"),
    ({"model.path": "gs://bucket/model"}, "model.path"),
    ({"model.path": "a\0"}, "model.path"),
    ({"model.path": "../model"}, "model.path"),
    ({"model.path": "experiments/data/../../tests"}, "model.path"),
    ({"model.path": "{folder}/../other"}, "model.path"),
    ({"tools.record": ELSEWHERE}, "tools.record"),
    ({"tools.knowledge_search.index": ELSEWHERE}, "tools.knowledge_search.index"),
    ({"tools.knowledge_search.url": "http://127.0.0.1:9"}, "tools.knowledge_search.url"),
    ({"tools.names": ["web_search"]}, "tools.names"),
    ({"tools.names": ["knowledge_search", "google_search"]}, "tools.names"),
    ({"tools.names": ["wikipedia_search"]}, "tools.names"),
    (
        {"tools.names": ["wikipedia_search"], "tools.wikipedia_search.url": "http://127.0.0.1:9"},
        "tools.wikipedia_search.url",
    ),
    (
        {"tools.names": ["google_search"], "tools.google_search.key_variable": "HOME"},
        "tools.google_search.key_variable",
    ),
    (
        {"tools.names": ["web_search"], "tools.web_search.private_hosts": ["10.0.0.1"]},
        "tools.web_search.private_hosts",
    ),
    (
        {"tools.names": ["web_search"], "tools.web_search.embeddings_url": "http://127.0.0.1:9"},
        "tools.web_search.embeddings_url",
    ),
    (
        {"tools.names": ["web_search"], "tools.web_search.embeddings_key_variable": "HOME"},
        "tools.web_search.embeddings_key_variable",
    ),
    ({"tools.python_coder.sandbox": "minimal"}, "tools.python_coder.sandbox"),
    ({"tools.python_coder.seconds": 61.0}, "tools.python_coder.seconds"),
    ({"tools.python_coder.seconds": float("nan")}, "tools.python_coder.seconds"),
    ({"tools.python_coder.memory_bytes": 2**33}, "tools.python_coder.memory_bytes"),
    ({"tools.python_coder.max_output_bytes": 2**21}, "tools.python_coder.max_output_bytes"),
    ({"data.train": "/etc/passwd"}, "data.train"),
    ({"data.held_out": "gs://bucket/x.jsonl"}, "data.held_out"),
]
HARMLESS = {  # text fields by which nothing is run, asked, read or written
    *("model.dtype", "model.date", "model.remat", "model.attention", "model.lora.targets"),
    *("data.format", "data.held_out_format", "data.index_base", "data.bad_rows", "data.too_long"),
    *("tools.wikipedia_search.contact", "tools.google_search.engine", "tools.google_search.model"),
    *("tools.web_search.embeddings_model", "rollout.prompts", "engine.stop_ids", "engine.layers"),
    *("reward.qa", "reward.math", "reward.gameof24", "reward.choice", "batch.layout"),
    *("loss.variant", "loss.old_logprobs", "optim.moment_dtype"),
    # Only a training acts on these, by the user's own config.
    *("trackers", "tracking.project", "tracking.run_name", "trace.steps", "profile.steps"),
    # Only `experiments.warmstart` reads this section, and from the user's own config.
    *(f"warmstart.{name}" for name in ("start", "worlds", "data", "held_out", "modules")),
    *(f"warmstart.{name}" for name in ("replies", "bad_rows", "too_long")),
}
OF_A_SERVER = ("kind", "model", "token_field", "extra")  # without its url they do nothing


def foreign(folder, changes=None, *, base=quickstart):
    """A run folder that somebody else made: its config was never given here."""
    config = base.get_config() if base is quickstart else base
    values = json.loads(config.to_json_best_effort())
    values["steps"] = 1_000_000 + len(folder.name)
    for name, value in (changes or {}).items():
        *sections, field = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        fill = lambda text: text.replace("{folder}", str(folder)).replace(
            "{evil}", str(folder.parent / "evil")
        )
        if isinstance(value, list | str):
            value = [fill(v) for v in value] if isinstance(value, list) else fill(value)
        section[field] = value
    folder.mkdir(parents=True, exist_ok=True)
    content = {"hash": stored.hash_of(values), "config": values}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def with_trajectories(folder):
    (folder / "trajectories").mkdir()
    line = {"question_id": "a", "question": "?", "answer": "", "status": "ok"}
    line |= {"reward": 0.0, "reward_source": "qa/exact_match"}
    (folder / "trajectories" / "step_000001.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def choose(folder, **how):
    names = ("model", "url", "api_key_variable")
    return solve.choose_config(None, workdir=str(folder), **dict.fromkeys(names), **how)


def refusal(work):
    with pytest.raises(command.ConfigError) as caught:
        work()
    assert command.exit_code(caught.value) == 2
    return str(caught.value)


# ---------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(("changes", "field"), HOSTILE, ids=[field for _, field in HOSTILE])
def test_what_a_stored_config_may_not_decide_alone(tmp_path, monkeypatch, changes, field):
    monkeypatch.setattr(sessions, "build", lambda *_, **__: pytest.fail("it was acted on"))
    folder = with_trajectories(foreign(tmp_path / "run", changes))
    section = field.split(".")[0]
    uses = {
        lambda: choose(folder): ("model", "tools", "backends", "compile_cache"),
        lambda: rescore.rescore(folder, tmp_path / "out"): ("data", "backends"),
        lambda: export.export(folder, tmp_path / "out"): ("model",),
    }
    before = sorted(tmp_path.rglob("*"))
    for work, sections in uses.items():
        if section in sections:
            text = refusal(work)
            assert f"\n  {field}=" in text and "add --trust" in text
    assert sorted(tmp_path.rglob("*")) == before
    assert choose(folder, trusted=True).to_dict() == stored.read_config(folder)[0].to_dict()


def test_all_that_is_refused_is_listed_and_cannot_steer_the_terminal(tmp_path):
    changes = {"compile_cache": "\x1b[2J\nno", "tools.mcp": ["x" * 5_000], "model.path": "/a"}
    text = refusal(lambda: choose(foreign(tmp_path / "run", changes)))
    assert [line.split("=")[0] for line in text.splitlines()[1:-1]] == [
        "  compile_cache",
        "  model.path",
        "  tools.mcp",
    ]
    assert "\x1b" not in text and r"'\x1b[2J\nno'" in text and len(text) < 2_000
    assert text.endswith("Or give a config of your own instead: --config=FILE.")


def test_no_error_steers_the_terminal(capsys):
    with pytest.raises(SystemExit) as ended:
        command._stop("a\x1b[2J\r\n\tb\x9b\u202e é", 2)
    error = capsys.readouterr().err
    assert error == "error: a\\x1b[2J\\r\n\tb\\x9b\\u202e é\n" and ended.value.code == 2


def test_every_text_of_a_config_is_harmless_or_needs_the_users_word():
    texts = {
        name
        for name, value in dotted.flat(common.base().to_dict())
        if isinstance(value, str | tuple)
        and not (value and isinstance(value[0], int))
        and not (name.startswith("backends.") and name.split(".")[2] in OF_A_SERVER)
    }
    decided = {
        name
        for name in texts
        if trust._matching(trust.PATHS, name) or trust._matching(trust.VALUES, name)
    } | {"tools.names", "tools.python_coder.sandbox"}
    assert texts - decided == HARMLESS
    assert not decided & HARMLESS


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.path": "Qwen/Qwen2.5-0.5B-Instruct"},
        {"model.path": "{folder}/model"},
        {"tools.names": ["python_coder"], "tools.python_coder.sandbox": "strict"},
        {"tools.names": ["wikipedia_search"], "tools.wikipedia_search.index": "{folder}/index"},
        {"tools.google_search.url": "http://127.0.0.1:9"},  # the tool is not among the names
        {"backends.judge.url": "http://127.0.0.1:9"},  # of kind none
        {"compile_cache": ""},
        {"rollout.prompts": "instruct", "loss.variant": "gspo"},
    ],
)
def test_an_ordinary_run_of_somebody_else_is_opened_as_before(tmp_path, changes):
    folder = foreign(tmp_path / "run", changes)
    assert choose(folder) == stored.read_config(folder)[0]


def test_what_the_user_gives_needs_no_word(tmp_path, monkeypatch):
    """A config by --config, question files by --data; the rest is still refused."""
    changes = {"data.train": ELSEWHERE, "tools.mcp": ["x"]} | HOSTILE[3][0]
    folder = with_trajectories(foreign(tmp_path / "run", changes))
    questions = tmp_path / "questions.jsonl"
    row = {"id": "a", "question": "?", "answer": "b", "kind": "qa", "source": "s"}
    questions.write_text(json.dumps(row) + "\n")
    own = common.base()
    found = rescore.rescore(folder, tmp_path / "out", config=own, question_files=[str(questions)])
    assert found["kinds"]["qa"]["trajectories"] == 1
    text = refusal(lambda: rescore.rescore(folder, tmp_path / "out", config=own))
    assert "data.train" in text and "--data=FILE" in text and "backends" not in text
    own.backends.judge.kind, own.reward.qa = "frozen", "judge"  # now a model and tools are started
    given = dict(config=own, question_files=[str(questions)])
    assert "tools.mcp" in refusal(lambda: rescore.rescore(folder, tmp_path / "out", **given))
    flags = dict(model=None, url=None, api_key_variable=None)
    chosen = solve.choose_config(quickstart.get_config(), workdir=str(folder), **flags)
    assert chosen == quickstart.get_config()


def test_ones_own_runs_need_no_word_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    config = quickstart.get_config()
    config.tools.mcp, config.compile_cache = ("my server",), "/my/cache"
    (tmp_path / "run").mkdir()
    stored.write_config(config, tmp_path / "run", sandbox={})
    assert choose(tmp_path / "run") == config
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert choose(tmp_path / "moved") == config
    kept = tmp_path / "home" / "flow_grpo_jax" / "given"
    assert len(list(kept.iterdir())) == 1 and kept.stat().st_mode & 0o777 == 0o700
    path = tmp_path / "moved" / "config.json"
    path.write_text(path.read_text().replace("my server", "another"))
    assert "tools.mcp=('another',)" in refusal(lambda: choose(tmp_path / "moved"))
    path.write_text(path.read_text().replace("another", "my server"))
    assert choose(tmp_path / "moved") == config
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path))  # it cannot be written
    stored.write_config(config, tmp_path / "moved")
    assert "tools.mcp" in refusal(lambda: choose(tmp_path / "moved"))


# ---------------------------------------------------------------------------------------- links


def test_links_out_of_a_folder_are_refused_by_every_command(tmp_path, monkeypatch):
    secret = tmp_path / "secret.jsonl"
    secret.write_text(json.dumps({"question_id": "a", "key": "s3cr3t"}) + "\n")
    folder = foreign(tmp_path / "run")
    (folder / "trajectories").mkdir()
    (folder / "trajectories" / "step_000001.jsonl").symlink_to(secret)
    (folder / "checkpoints").symlink_to(tmp_path / "nowhere")
    (folder / "inside").symlink_to("config.json")
    config = quickstart.get_config()
    given = dict(model=None, url=None, api_key_variable=None)
    for work in (
        lambda: choose(folder),
        lambda: solve.choose_config(config, workdir=str(folder), **given),
        lambda: rescore.rescore(folder, tmp_path / "out"),
        lambda: export.export(folder, tmp_path / "out"),
        lambda: train.train(config, folder),
        lambda: train.train(config, folder, force=True),
        lambda: trust.check_links(folder, trusted=False),  # as view does
    ):
        text = refusal(work)
        assert f"is a link to '{secret}'" in text and "checkpoints' is a link" in text
        assert "inside" not in text and "add --trust" in text
    assert not (tmp_path / "nowhere").exists() and not (folder / "metrics.jsonl").exists()
    assert "s3cr3t" in secret.read_text()
    assert choose(folder, trusted=True)


def test_pipes_are_refused_and_many_links_are_counted(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert "neither a file nor a folder" in refusal(
        lambda: trust.check_links(tmp_path, trusted=False)
    )
    for number in range(8):
        (tmp_path / f"{number}\x1b").symlink_to("/")
    text = refusal(lambda: trust.check_links(tmp_path, trusted=False))
    assert "\n  and 4 more\n" in text and "\x1b" not in text
    trust.check_links(tmp_path / "absent", trusted=False)


def test_a_folder_that_cannot_be_listed_hides_links_and_is_refused(tmp_path, monkeypatch):
    hidden = tmp_path / "run" / "trajectories"
    hidden.mkdir(parents=True)
    scan = os.scandir

    def denied(path):  # root may list all
        if str(path) == str(hidden):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    text = refusal(lambda: trust.check_links(tmp_path / "run", trusted=False))
    assert f"'{hidden}' cannot be listed (Permission denied)" in text and "add --trust" in text
    trust.check_links(tmp_path / "run", trusted=True)


def test_a_link_that_training_would_write_through_makes_a_folder_a_run(tmp_path):
    (tmp_path / "tensorboard").symlink_to("/elsewhere")
    text = refusal(lambda: trust.check_links(tmp_path, trusted=False))
    assert "is a link to '/elsewhere'" in text


def test_a_file_is_not_written_through_a_link_that_waits_for_it(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    run = tmp_path / "run"
    run.mkdir()
    (run / f".report.html.{os.getpid()}").symlink_to(outside)
    files.replace_text(run / "report.html", "new")
    assert (run / "report.html").read_text() == "new" and outside.read_text() == "as it was"


@pytest.mark.parametrize("module", [solve, export, rescore, train, view])
def test_every_command_that_opens_a_run_has_the_flag(module):
    source = inspect.getsource(module)
    assert "trust.HELP" in source and "values.trust" in source
    assert "stored.read_config" not in source  # it asks for no word


@pytest.mark.slow
def test_a_refusal_ends_a_command_with_exit_code_2_and_the_word_lets_it_go_on(tmp_path):
    folder = with_trajectories(foreign(tmp_path / "run", {"tools.mcp": ["touch {evil}"]}))

    def run(name, *arguments):
        ended = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", f"--workdir={folder}", *arguments],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return ended.returncode, ended.stderr

    code, error = run("solve", "--query=?")
    assert code == 2 and error.startswith(f"error: {folder}/config.json asks for more than")
    assert "Traceback" not in error and not (tmp_path / "evil").exists()
    assert run("view")[0] == 0
    (folder / "link").symlink_to("/etc")
    code, error = run("view")
    assert code == 2 and "link' is a link to '/etc'" in error
    assert run("view", "--trust")[0] == 0


# ----------------------------------------------------------------------------- folders with data


def tfds_folder(folder, features):
    folder.mkdir(exist_ok=True)
    (folder / "dataset_info.json").write_text(
        json.dumps({"fileFormat": "array_record", "name": "q", "version": "1.0.0"})
    )
    (folder / "features.json").write_text(json.dumps(features))
    return folder


HOME = "tensorflow_datasets.core.features."
TEXT = {"pythonClassName": f"{HOME}text_feature.Text", "text": {}}
EVIL = {"pythonClassName": "evil_features.Text", "text": {}}
LEGACY = {"type": "evil_features.Text", "content": {}}


def feature(name, inner, **more):
    names = {"featuresDict": "features_dict.FeaturesDict", "sequence": "sequence_feature.Sequence"}
    return {"pythonClassName": HOME + names[name], name: inner} | more


@pytest.mark.parametrize(
    "features",
    [
        EVIL,
        LEGACY,
        feature("featuresDict", {"features": {"a": TEXT, "b": EVIL}}),
        feature("featuresDict", {"features": {"a": LEGACY}}),
        feature("featuresDict", {"features": {"a": feature("sequence", {"feature": EVIL})}}),
        feature("sequence", {"feature": TEXT}, type="evil_features.Text", content={}),
        {"pythonClassName": f"{HOME}features_dict.FeaturesDict"}
        | {"jsonFeature": {"json": json.dumps({"a": LEGACY})}},
        feature("featuresDict", {"features": {"a": TEXT}}, jsonFeature={"json": "{}"}),
        {"python_class_name": "evil_features.Text", "text": {}},
        feature("featuresDict", {"features": {"a": TEXT}}, python_class_name="evil_features.Text"),
        [EVIL],
        "evil_features.Text",
    ],
)
def test_a_data_folder_imports_no_class_that_it_names(tmp_path, monkeypatch, features):
    (tmp_path / "evil_features.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="features.json has features that are not read"):
        data.read_questions(tfds_folder(tmp_path / "data", features))
    assert "evil_features" not in sys.modules


@pytest.mark.parametrize("template", ["/etc/{SPLIT}", "../{SPLIT}", "{SPLIT}/a"])
@pytest.mark.parametrize("split", ["train", "../../train"])
def test_a_data_folder_names_no_file_elsewhere(tmp_path, template, split):
    folder = tfds_folder(tmp_path / "data", feature("featuresDict", {"features": {"id": TEXT}}))
    path = folder / "dataset_info.json"
    shards = {"shardLengths": ["1"], "numBytes": "1"}
    shards |= {"name": split, "filepathTemplate": template + ".array_record-{SHARD_X_OF_Y}"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": [shards]}))
    with pytest.raises(ValueError, match="dataset_info.json names .* not in that folder"):
        data.read_questions(folder)


def test_code_of_a_models_folder_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    from models import tokenizer

    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\nclass T: pass")
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text('{"model_type": "evil"}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"})
    )
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    with pytest.raises((ValueError, OSError)):
        tokenizer.Tokenizer.load(tmp_path)
    assert not asked


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "cycler.__init__.__globals__.os.popen('touch {evil}').read()",
        "self.__init__.__globals__['__builtins__']['open']('{evil}', 'w')",
        "messages.append(1)",
        "messages[0].__setitem__('role', 'x')",
    ],
)
def test_a_chat_template_reaches_no_python(tmp_path, expression):
    from models import tokenizer

    model = shutil.copytree(ROOT / quickstart.get_config().model.path, tmp_path / "model")
    (model / "model.safetensors").unlink()
    template = "{{ " + expression.replace("{evil}", str(tmp_path / "evil")) + " }}"
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="The chat template .*(refuses|leaves out)"):
        tokenizer.Tokenizer.load(model).check_conversation(("system", "user"))
    assert not (tmp_path / "evil").exists()
