"""How a robot is learned on, and where in the run's folder its two sides meet."""

from dataclasses import dataclass

from reverie.run.loop import at_least
from reverie.types import ReverieError

LINK = "robot"  # folder in the run's that both sides share
LOOK = 1.0  # seconds between two looks at what the other side has left there


@dataclass(frozen=True)
class RobotConfig:
    """How a robot is learned on; what is learned, and by which settings, is in the agent's Config."""

    seed: int = 0
    rate: float = 0.0  # decisions a second; 0 for the robot's own
    episode: int = 0  # decisions until the agent's memory begins anew; 0 for the robot's own
    sync_every: float = 20.0  # seconds between two versions of the weights
    stale_after: float = 300.0  # seconds without newer weights after which the robot is stopped; 0: never
    max_ratio: float = 0.0  # updates per decision at most; 0 for as many as the learner can
    virtual_update: float = 0.0  # ms that an update takes on a virtual clock; 0 for the real clock
    max_change: float = 0.0  # of each entry of an action, from one decision to the next; 0 for any
    cutoff: float = 0.0  # Hz, low-pass on actions; 0 for none
    watchdog: float = 2.0  # seconds without a decision after which the robot is stopped; 0: never
    spool_size: str = "500MB"  # rows kept for a learner that can not take them
    port: int = -1  # of the person's HTTP endpoint on this machine; 0 for any, -1 for none
    cluster: str = ""  # Ray cluster that the learner runs on: its address, or "local"; none: this machine
    device: str = "auto"  # of the learner; the actor stays on the CPU
    threads: int = 0  # of the learner; 0 for every core but one, and for every one on a virtual clock
    replay_size: str = "4GB"
    checkpoint_every: float = 300.0  # seconds between checkpoints of the learner
    log_every: int = 1_000  # decisions between two lines of metrics
    video: bool = True  # of a twin, at the end

    def __post_init__(self) -> None:
        least = {"log_every": 1, "port": -1}
        for name, value in vars(self).items():
            if not isinstance(value, str):
                at_least(self, name, least.get(name, 0))
        if self.cluster and self.virtual_update:
            raise ReverieError(
                "a virtual clock is kept in one process: leave out --cluster or --virtual-update"
            )
