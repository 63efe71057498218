"""The journal: what was added is there, and a torn line costs itself alone."""

from pathlib import Path

import pytest

from reverie.run.population import Journal, Result


def test_the_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    journal = Journal(path)
    assert journal.read(0) == []
    results = [Result(1, 0, 0.1 + 0.2, 5, 10), Result(0, 1, -1.5, 3, 3), Result(0, 0, 2e-7, 1, 1)]
    for result in results:
        journal.add(7, result)
        assert result in Journal(path).read(7), "at once, for a process that is killed"
    journal.add(8, results[0])
    assert journal.read(7) == sorted(results) and journal.read(8) == results[:1] and journal.read(9) == []
    journal.forget(8)
    assert journal.read(7) == [] and journal.read(8) == results[:1]
    journal.forget(9)
    journal.forget(9)
    assert journal.read(8) == [] and not path.exists()
    journal.add(9, results[1])
    assert journal.read(9) == [results[1]]
    journal.close()


@pytest.mark.parametrize("kept", range(1, 75, 6))
def test_a_torn_line_costs_its_rollout_alone(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "journal.jsonl"
    results = [Result(i, 0, i / 3, 5, 10) for i in range(4)]
    journal = Journal(path)
    for result in results[:2]:
        journal.add(0, result)
    journal.close()
    whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole + last[:kept])
    again = Journal(path)
    assert again.read(0) == results[:1]
    for result in results[2:]:
        again.add(0, result)
    again.close()
    assert Journal(path).read(0) == [results[0], *results[2:]]
