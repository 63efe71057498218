"""What a robot is learned on with."""

import pytest

from reverie.run.asynchronous.settings import RobotConfig
from reverie.types import ReverieError


def test_settings_that_can_not_be_are_refused() -> None:
    for name in ("rate", "sync_every", "max_change", "virtual_update"):
        with pytest.raises(ReverieError, match=name.replace("_", "-")):
            RobotConfig(**{name: -1.0})
    with pytest.raises(ReverieError, match="one process"):
        RobotConfig(cluster="local", virtual_update=100.0)
