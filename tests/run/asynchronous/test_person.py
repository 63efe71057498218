"""The person's endpoint: this machine only, with the token only."""

import http.client
import json
import stat

import pytest

from reverie.run.asynchronous.person import Person


@pytest.fixture
def served(tmp_path):
    person = Person(lambda: {"decisions": 7})
    port, token = person.listen(tmp_path, 0)
    yield person, port, token, tmp_path
    person.close()


def ask(port: int, method: str, path: str, token: str = "", host: str = "") -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Host": host or f"127.0.0.1:{port}"} | ({"Authorization": f"Bearer {token}"} if token else {})
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_wishes_arrive_in_order(served) -> None:
    person, port, token, _ = served
    assert person.wish() is None
    for wish in ("pause", "continue", "reset"):
        assert ask(port, "POST", f"/{wish}", token) == (202, {"wish": wish})
    assert [person.wish() for _ in range(4)] == ["pause", "continue", "reset", None]
    assert ask(port, "GET", "/status", token) == (200, {"decisions": 7})


def test_nobody_else_is_let_in(served) -> None:
    person, port, token, _ = served
    assert ask(port, "POST", "/pause")[0] == 403
    assert ask(port, "POST", "/pause", "wrong")[0] == 403
    assert ask(port, "GET", "/status")[0] == 403
    assert ask(port, "POST", "/pause", token, host="evil.example:80")[0] == 403  # a page that was rebound
    assert person.wish() is None


def test_other_paths_are_told_what_there_is(served) -> None:
    _, port, token, _ = served
    assert ask(port, "POST", "/jump", token)[0] == 404 and ask(port, "GET", "/pause", token)[0] == 404


def test_the_token_is_the_owners_alone_and_goes_with_the_run(served) -> None:
    person, port, token, folder = served
    path = folder / "control.json"
    assert json.loads(path.read_text()) == {"url": f"http://127.0.0.1:{port}", "token": token}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    person.close()
    assert not path.exists()
