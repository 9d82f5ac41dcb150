"""Question files of a config: formats, bases and kinds that a judge decides."""

import json

import pytest

from experiments.configs import common
from experiments.running import command, dataset, limits

NQ = {"id": "1", "question": "who?", "golden_answers": ["Bob"]}
MMLU = {"question": "Which?", "choices": ["iron", "zinc"], "answer": 0}


def config_of(tmp_path, **files):
    config = common.base()
    for name, rows in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        config.data[name] = str(path)
    return config


def test_each_file_is_read_in_its_format(tmp_path):
    config = config_of(tmp_path, train=[NQ], held_out=[MMLU])
    config.data.held_out_format = "mmlu"
    assert [q["id"] for q in dataset.read(config, config.data.train)] == ["flashrag-1"]
    assert [q["answer"] for q in dataset.read(config, config.data.held_out)] == [("A",)]
    config.data.held_out_format, config.data.format = "", "mmlu"
    assert dataset.read(config, config.data.held_out)[0]["id"] == "mmlu-0"
    with pytest.raises(command.ConfigError, match="is no row of format mmlu"):
        dataset.read(config, config.data.train)
    config.data.bad_rows = "drop"
    with pytest.raises(command.ConfigError, match="holds no questions"):
        dataset.read(config, config.data.train)


def test_numbers_of_choices_count_from_the_base(tmp_path):
    own = {**MMLU, "id": "1", "kind": "choice", "source": "s"}
    config = config_of(tmp_path, train=[own])
    with pytest.raises(command.ConfigError, match="--config.data.index_base=0 or =1"):
        dataset.read(config, config.data.train)
    config.data.index_base = "0"
    assert dataset.read(config, config.data.train)[0]["answer"] == ("A",)


def test_a_judge_reads_golds_that_no_rule_does(tmp_path):
    row = {"id": "1", "question": "Why?", "answer": "One.\nTwo.", "kind": "qa", "source": "s"}
    config = config_of(tmp_path, train=[row])
    with pytest.raises(command.ConfigError, match="has 2 lines"):
        dataset.read(config, config.data.train)
    config.reward.qa = "judge"
    assert dataset.read(config, config.data.train)[0]["answer"] == ("One.\nTwo.",)


@pytest.mark.parametrize("name", ["format", "held_out_format", "index_base", "bad_rows"])
def test_unknown_values_are_refused_before_anything_is_read(name):
    config = common.base()
    with pytest.raises(command.ConfigError, match="data.train is empty"):
        limits.check_data(config.data)
    config.data.train = "absent.jsonl"
    limits.check_data(config.data)
    config.data[name] = "squad"
    with pytest.raises(command.ConfigError, match="='squad' is unknown; valid: '"):
        limits.check_data(config.data)
