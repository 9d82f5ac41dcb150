"""Model cards: what is taken from a base, and that the hub's own reader understands the result."""

import huggingface_hub
import pytest

from models import model_card

QWEN = """---
license: apache-2.0
license_link: https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/LICENSE
language:
- en
base_model: Qwen/Qwen2.5-7B
tags:
- chat
library_name: transformers
---

# Qwen2.5-7B-Instruct

license: none of this
"""


def test_licence_and_name_come_from_the_base(tmp_path):
    assert model_card.of_base(tmp_path) == {}
    (tmp_path / "README.md").write_text(QWEN)
    licence = {
        "license": "apache-2.0",
        "license_link": "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/LICENSE",
    }
    assert model_card.of_base(tmp_path) == licence
    named = model_card.of_base(tmp_path, name="Qwen/Qwen2.5-7B-Instruct")
    assert named == licence | {"base_model": "Qwen/Qwen2.5-7B-Instruct"}
    cached = tmp_path / "models--Qwen--Qwen2.5-72B-Instruct" / "snapshots" / "0a1b"
    cached.mkdir(parents=True)
    text = "---\nlicense: other\nlicense_name: 'qwen'\n---\n"
    (cached / "README.md").write_text(text)
    assert model_card.of_base(cached) == {
        "base_model": "Qwen/Qwen2.5-72B-Instruct",
        "license": "other",
        "license_name": "qwen",
    }


def test_a_card_names_the_prompts_that_its_model_knows(tmp_path):
    assert model_card.prompts(tmp_path) is None
    text = model_card.render({model_card.PROMPTS: "compact"}, "agent_prompts: none of this")
    (tmp_path / "README.md").write_text(text)
    assert model_card.prompts(tmp_path) == "compact"


@pytest.mark.parametrize(
    "text", ["# No front matter\nlicense: mit\n---\n---", "", "---\nlicense: mit"]
)
def test_cards_without_front_matter_say_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert model_card.of_base(tmp_path) == {}


def test_the_hub_reads_what_is_rendered():
    front = {
        "library_name": "transformers",
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
        "license": "apache-2.0",
        "tags": ["flow-grpo", "yes: no", 'a "quoted" é'],
    }
    card = huggingface_hub.ModelCard(model_card.render(front, "\n# Title\n\ntext --- more\n"))
    assert card.data.to_dict() == front
    assert card.text.strip() == "# Title\n\ntext --- more"
