"""The spool: no row is lost, doubled or half, whatever is killed when."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.run.asynchronous import spool as module
from reverie.run.asynchronous.spool import Intake, Spool, SpoolFull, segments
from reverie.types import ActionSpace, ReverieError, Space, Step

OBS = {"vector": Space((2,)), "image": Space((2, 2, 3), "uint8")}
ACT = ActionSpace(3)
BIG = 10**9


def row(i: int, first: bool = False, last: bool = False) -> tuple[Step, np.ndarray]:
    obs = {"vector": np.full(2, i, np.float32), "image": np.full((2, 2, 3), i % 256, np.uint8)}
    flags = dict(is_first=np.array(first), is_last=np.array(last), is_terminal=np.array(False))
    step = Step(obs, np.array(0.5 * i, np.float32), **flags, env_steps=np.array(not first, np.int64))
    return step, np.full(3, i, np.float32)


def fill(spool: Spool, n: int) -> None:
    for i in range(spool.number, spool.number + n):
        spool.add(*row(i, first=i % 10 == 0, last=i % 10 == 9))


def open_spool(folder, size: int = BIG) -> Spool:
    return Spool(folder, OBS, ACT, 20.0, size)


def numbers(folder, first: int = 0) -> list[int]:
    return [int(step.obs["vector"][0]) for step, _, _ in Intake(folder).rows(first)]


def test_rows_come_out_as_they_went_in(tmp_path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 25)
    intake = Intake(tmp_path)
    assert intake.obs_space == OBS and intake.act_space == ACT and intake.rate == 20.0
    for i, (step, action, decisions) in enumerate(intake.rows(0)):
        expected, chosen = row(i, first=i % 10 == 0, last=i % 10 == 9)
        for key in OBS:
            assert np.array_equal(step.obs[key], expected.obs[key]) and step.obs[key].dtype == OBS[key].dtype
        for flag in ("reward", "is_first", "is_last", "is_terminal", "env_steps"):
            assert getattr(step, flag) == getattr(expected, flag)
        assert np.array_equal(action, chosen)
        assert decisions == i - i // 10  # a last row decides nothing
    assert i == 24 and spool.decisions == 23
    assert numbers(tmp_path, first=20) == [20, 21, 22, 23, 24]


def test_a_second_sitting_goes_on_where_the_first_was_killed(tmp_path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 13)
    decisions = spool.decisions
    again = open_spool(tmp_path)  # the first was not closed
    assert again.number == 13 and again.decisions == decisions
    fill(again, 7)
    assert numbers(tmp_path) == list(range(20))


@given(cut=st.integers(1, 400))
def test_a_half_written_row_is_cut_off(tmp_path_factory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = open_spool(folder)
    fill(spool, 8)
    (_, path), size = segments(folder)[0], spool.dtype.itemsize
    os.truncate(path, max(0, 8 * size - cut))
    left = max(0, 8 * size - cut) // size
    assert numbers(folder) == list(range(left))  # the learner sees whole rows only
    again = open_spool(folder)
    assert again.number == left
    fill(again, 3)
    assert numbers(folder) == list(range(left + 3))


def test_a_damaged_row_is_not_given_out(tmp_path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 5)
    (_, path) = segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[3 * spool.dtype.itemsize + 2] ^= 255
    path.write_bytes(data)
    assert numbers(tmp_path) == [0, 1, 2]


def test_what_is_taken_is_removed_and_numbers_go_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 8)
    spool = open_spool(tmp_path)
    fill(spool, 30)
    assert [first for first, _ in segments(tmp_path)] == [0, 8, 16, 24]
    Intake(tmp_path).say_taken(20)
    spool.tidy()
    assert [first for first, _ in segments(tmp_path)] == [16, 24]
    assert numbers(tmp_path, first=20) == list(range(20, 30))
    Intake(tmp_path).say_taken(30)
    spool.tidy()
    assert [first for first, _ in segments(tmp_path)] == [24]  # the newest tells where to go on
    again = open_spool(tmp_path)
    assert again.number == 30 and again.room == again.most
    fill(again, 2)
    assert numbers(tmp_path, first=30) == [30, 31]


def test_rows_that_are_gone_are_not_passed_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 8)
    spool = open_spool(tmp_path)
    fill(spool, 30)
    segments(tmp_path)[1][1].unlink()
    with pytest.raises(ReverieError, match="no row 8"):
        numbers(tmp_path)
    segments(tmp_path)[0][1].unlink()
    with pytest.raises(ReverieError, match="gone"):
        numbers(tmp_path)


def test_a_full_spool_refuses_and_has_room_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 8)
    size = module.row_dtype(OBS, ACT).itemsize
    spool = open_spool(tmp_path, 20 * size)
    fill(spool, 20)
    with pytest.raises(SpoolFull, match="full"):
        spool.add(*row(20))
    assert spool.number == 20 and numbers(tmp_path) == list(range(20))
    Intake(tmp_path).say_taken(16)
    spool.tidy()
    assert spool.room == 16
    fill(spool, 16)
    assert numbers(tmp_path, first=16) == list(range(16, 36))


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 4)
    whole, write = spool.dtype.itemsize, os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[: whole // 2], at))
    with pytest.raises(SpoolFull, match="disk"):
        spool.add(*row(4))
    monkeypatch.undo()
    fill(spool, 2)
    assert numbers(tmp_path) == list(range(6))


def test_another_robots_spool_is_refused(tmp_path) -> None:
    open_spool(tmp_path)
    with pytest.raises(ReverieError, match="another robot"):
        Spool(tmp_path, OBS, ActionSpace(2), 20.0, BIG)
    with pytest.raises(ReverieError, match="too small"):
        open_spool(tmp_path, 1000)
    with pytest.raises(ReverieError, match="start the robot"):
        Intake(tmp_path / "nothing")
