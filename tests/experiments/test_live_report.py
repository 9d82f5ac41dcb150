"""The server of the live report: who may read, and what it says of a run that goes on."""

import http.client
import json
import threading
import urllib.parse

import pytest

from experiments.reporting import live
from experiments.running import trust
from tests.experiments.fake_runs import fake_run


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live") / "run"
    folder.mkdir()
    check = lambda: trust.check_links(folder, trusted=False)
    server = live.Server(live.Follower([folder], text_budget=10**6, check=check), port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, *, method="GET", hosts=("127.0.0.1",)):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    reply = connection.getresponse()
    found = reply.status, reply.read().decode(), dict(reply.getheaders())
    connection.close()
    return found


def test_a_run_is_followed_from_before_its_first_step(served):
    folder, server = served
    home = urllib.parse.urlsplit(server.url).path
    assert ask(server, home)[1] == live.WAITING
    _, first, _ = ask(server, f"{home}state")
    assert json.loads(first)["label"] == "step 0 of ?"
    made = fake_run(folder.parent / "made", steps=2, questions=1, group=2)
    for path in made.iterdir():
        path.rename(folder / path.name)
    status, page, headers = ask(server, home)
    assert status == 200 and "connect-src 'self'" in page and "Did it learn?" in page
    assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
    state = json.loads(ask(server, f"{home}state")[1])
    assert state["label"] == "step 2 of 2" and state["version"] != json.loads(first)["version"]
    assert json.loads(ask(server, f"{home}state")[1]) == state  # nothing changed
    with open(folder / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 3, "reward/mean": 0.5}\n{"step": 4, "rew')
    assert json.loads(ask(server, f"{home}state")[1])["label"] == "step 3 of 2"
    outside = folder.parent / "secret.jsonl"
    outside.write_text('{"step": 1}\n')
    (folder / "trajectories" / "step_000009.jsonl").symlink_to(outside)
    status, text, _ = ask(server, home)
    assert status == 409 and "leads elsewhere" in text and "step_000009" in text
    (folder / "trajectories" / "step_000009.jsonl").unlink()
    assert ask(server, home)[0] == 200


@pytest.mark.parametrize(
    "path, how, status",
    [
        ("/", {}, 404),
        ("/state", {}, 404),
        ("/wrong/", {}, 404),
        ("/wrong/state", {}, 404),
        ("HOME", {"hosts": ("evil.example",)}, 403),
        ("HOME", {"hosts": ("127.0.0.1.evil.example",)}, 403),
        ("HOME", {"hosts": ()}, 403),
        ("HOME", {"hosts": ("127.0.0.1", "evil.example")}, 403),
        ("HOME", {"hosts": ("localhost:8420",)}, 200),
        ("HOME", {"method": "POST"}, 501),
        ("HOME", {"method": "OPTIONS"}, 501),
        ("HOMEconfig.json", {}, 404),
        ("HOME../../etc/passwd", {}, 404),
        ("HOME%2e%2e/state", {}, 404),
        ("HOMEstate?x=1", {}, 200),
        ("//evil.example/HOME", {}, 404),
    ],
)
def test_only_the_page_only_for_its_address_only_by_local_names(served, path, how, status):
    _, server = served
    home = urllib.parse.urlsplit(server.url).path
    found, text, _ = ask(server, path.replace("HOME", home), **how)
    assert found == status
    assert "root:" not in text and (status == 200 or server.secret not in text)
