"""Tools are built as the config says."""

import pytest

from experiments.configs import common
from experiments.running import command, sessions
from tools import text_index


def test_every_field_of_the_config_reaches_a_tool(tmp_path):
    path = tmp_path / "index.sqlite"
    text_index.build(path, [("Omul", "A fish.")])
    config = common.base()
    c = config.tools
    c.names = ("knowledge_search", "wikipedia_search", "google_search", "web_search")
    with pytest.raises(command.ConfigError, match="wikipedia_search needs your e-mail address"):
        sessions.make_tools(config)
    c.wikipedia_search.contact = "me@example.org"
    tools = sessions.make_tools(config)
    assert [tool.remote for tool in tools.values()] == [False, True, True, True]
    c.wikipedia_search.index = c.knowledge_search.index = str(path)
    c.google_search.update(engine="searxng", url="http://localhost:1")
    tools = sessions.make_tools(config)
    assert [tool.remote for tool in tools.values()] == [False, False, True, True]
    assert "SearXNG" in tools["google_search"].description
    assert tools["knowledge_search"].run(query="omul") == "A fish."
