"""Robots: the interface a machine has to follow, and three twins of DayDreamer's robots.

Importing this registers the twins with Gymnasium: ``reverie/A1-v0``, ``reverie/PickPlace-v0``, ``reverie/Ball-v0``.
"""

import gymnasium

from reverie.robots.base import ROBOTS, Played, Reading, Robot, RobotEnv, Twin, make_robot

__all__ = ["ROBOTS", "Played", "Reading", "Robot", "RobotEnv", "Twin", "make_robot"]

for _name, _robot, _decisions in (("A1", "a1", 250), ("PickPlace", "pick_place", 100), ("Ball", "ball", 100)):
    if f"reverie/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"reverie/{_name}-v0",
            "reverie.robots.base:RobotEnv",
            max_episode_steps=_decisions,
            kwargs={"robot": _robot},
        )
