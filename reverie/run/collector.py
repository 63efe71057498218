"""A collector: one process that acts while the learner learns, one burst of updates behind (``--collector``).

::

    learner      takes in 1 | burst 1   | takes in 2 | burst 2   | takes in 3 | burst 3
    collector    collects 1 | collects 2             | collects 3             | collects 4
    acts with            w0          w0                       w1                       w2

Burst k is the updates that fall due together, w_k the weights after it, and stretch k the rows between burst k - 1
and burst k. Without a collector stretch k + 1 waits for burst k and acts with w_k; here it is collected during burst
k, with w_{k-1}. What is made when follows from counts alone, never from the clock: rows are handed over one by one,
in order, and taken in between two bursts. So two runs of a seed are the same run.

The collector is a ``Driver`` in a process of its own, on the CPU with one thread. It keeps nothing that could be lost:
with every row comes all it needs to go on after that row (what the agent remembers, its generators, the counts), and
the environments are brought back as after any stop, by their seed and the recorded actions. A checkpoint holds this
state of the last row taken in, and the weights that it acted with; a collector that died is started from the same.
Rows it had made and not handed over are made again.

Weights travel in shared memory, everything else through a pipe between the two.
"""

import contextlib
import copyreg
import io
import os
import pickle
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reverie.data.replay import Replay, Tail
from reverie.envs import Envs
from reverie.envs.vector import (
    PATIENCE,
    end_process,
    follow_parent,
    portable,
    process_context,
    settings_of_parent,
)
from reverie.machine import prepare
from reverie.run.driver import Driver, Episode, Record
from reverie.types import ActionSpace, Agent, ObsSpace, ReverieError, Step

Make = Callable[[], tuple[Agent, Envs]]
RANDOM = ("generators", "rngs")  # of an agent: acting in mode "train" changes their "train", and nothing else
UNREAD = ("opt", "ring", *RANDOM)  # ends of the names of those parts of its state that acting does not read
ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Streams:
    """What a learner knows of environments that are elsewhere."""

    n: int
    obs_space: ObsSpace
    act_space: ActionSpace


class Begin(NamedTuple):
    """Where a collector stands before its first row. Each list has an entry for every stream."""

    state: bytes | None  # as ``Made.state``; None before the first row
    tails: list[Tail | ReverieError]
    journals: list[list[Record]]  # rows that are recorded beyond that


class Order(NamedTuple):
    """Learner to collector: act with these weights until so many env steps are taken."""

    weights: Any
    until: int
    begin: Begin | None = None  # else go on from where the last order ended


class Made(NamedTuple):
    """Collector to learner: one row of every stream."""

    rows: list[tuple[int, Step, np.ndarray, Mapping[str, np.ndarray] | None]]  # stream, row, action, memory
    finished: list[Episode]
    env_steps: int
    state: bytes  # of the driver, and "random" of the agent, after this row


class Said(NamedTuple):
    """Collector to learner: a warning."""

    text: str
    category: type[Warning]


class Collector:
    """Takes the place of a ``Driver``: a call is one row of every stream, which the collector has made or is making.

    ``make`` makes the agent and the environments in the collector's process; it must be picklable, and the
    environments may have no processes of their own if it is ``alone``. Of ``config``, the agent's, steps, prefill and
    train_every are read: they tell where stretches end. A collector that dies is started again with a warning when
    its next row is missed; one that dies three times without a row between raises ``ReverieError``. Whatever is
    raised in it is raised here, after the rows before.
    """

    def __init__(
        self,
        make: Make,
        config: Any,
        agent: Agent,
        envs: Any,
        replay: Replay,
        prefill: int,
        seed: int,
        alone: bool = True,
    ):
        self.make, self.config, self.prefill, self.seed = make, config, prefill, seed
        self.alone = alone
        self.agent, self.envs, self.replay = agent, envs, replay
        self.env_steps = 0
        self.goal = config.prefill  # env steps at which the next burst falls due
        self.restarts = 0
        self._deaths = 0  # since the last row
        self._state: bytes | None = None  # after the last row
        self._weights = Weights(room(to_act(agent.state_dict())))
        self._held: Any = None  # the weights acted with, as ``Weights.put`` gave them
        self._process: Any = None
        self._pipe: Any = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self) -> list[Episode]:
        """One row in every stream. Returns the episodes that ended with it."""
        made = self._receive()
        self._deaths = 0
        for stream, row, action, memory in made.rows:
            self.replay.add(row, action, stream, **({} if memory is None else {"context": memory}))
        self.env_steps, self._state = made.env_steps, made.state
        if self.env_steps >= self.goal:  # a burst falls due: the next stretch is made beside it
            while self.env_steps >= self.goal:
                self.goal += self.config.train_every
            self._held = self._weights.put(to_act(self.agent.state_dict()))
            if not self.through:
                self._send(Order(self._held, self.until))
        return made.finished

    @property
    def until(self) -> int:
        return min(self.goal, self.config.steps)

    @property
    def through(self) -> bool:
        return self.env_steps >= self.config.steps

    # Stopping and going on

    def state_dict(self) -> dict[str, Any]:
        last = {"driver": None, "random": {}} if self._state is None else pickle.loads(self._state)
        weights = to_act(self.agent.state_dict()) if self._held is None else self._weights.get(self._held)
        return {"weights": weights, "goal": self.goal, **last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that moment, after the replay has; what it recorded since becomes the journal."""
        self._end()
        driver = state["driver"]
        self.env_steps, self.goal = 0 if driver is None else driver["env_steps"], state["goal"]
        self._state = None if driver is None else packed({"driver": driver, "random": state["random"]})
        self._held = self._weights.put(state["weights"])
        self.go_on()

    def go_on(self) -> None:
        """Start the collector where the replay's (rewound) counts are, with what is recorded beyond them."""
        self._end()
        if self._held is None:
            self._held = self._weights.put(to_act(self.agent.state_dict()))
        if not self.through:
            self._start()

    def close(self) -> None:
        self._end()

    # The process

    def _start(self) -> None:
        context = process_context()
        self._pipe, theirs = context.Pipe()
        self._process = self._launch(context, theirs)
        streams = range(self.envs.n)
        journals = [list(self.replay.journal(i)) for i in streams]
        begin = Begin(self._state, [tail_of(self.replay, i) for i in streams], journals)
        self._send(Order(self._held, self.until, begin))

    def _launch(self, context: Any, theirs: Any) -> Any:
        work = (self.make, self.prefill, self.seed, self._weights.memory, theirs, settings_of_parent())
        process = context.Process(target=_work, args=work, name="reverie-collector", daemon=self.alone)
        process.start()
        theirs.close()
        return process

    def _send(self, order: Order | None) -> None:
        with contextlib.suppress(OSError):  # a dead collector is noticed where its next row is missed
            self._pipe.send_bytes(packed(order))

    def _receive(self) -> Made:
        while True:
            try:
                told = pickle.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                self._revive()
                continue
            if isinstance(told, Made):
                return told
            if isinstance(told, Exception):
                raise told
            warnings.warn(told.text, told.category, stacklevel=3)

    def _revive(self) -> None:
        self._process.join(5)
        code = self._process.exitcode
        self._end()
        self._deaths += 1
        if self._deaths >= PATIENCE:
            raise ReverieError(
                f"the collector died {PATIENCE} times without one row between (exit code {code}); its own message, if "
                f'there is one, is above. A script must start it under `if __name__ == "__main__":`'
            )
        self.restarts += 1
        warnings.warn(
            f"the collector died with exit code {code}; it is started again where its rows end "
            f"(restart {self.restarts})",
            RuntimeWarning,
            stacklevel=4,
        )
        self._start()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._send(None)
        self._pipe.close()
        end_process(process, 5.0)


def tail_of(replay: Replay, stream: int) -> Tail | ReverieError:
    """The running episode, or why it can not be had: that matters only if nothing recorded ends it."""
    try:
        return replay.tail(stream)
    except ReverieError as error:
        return error


# In the collector's process


@dataclass
class Running:
    """An episode as far as it has come: its actions, and what was seen before the last of them."""

    actions: list[np.ndarray]
    obs: dict[str, np.ndarray] | None  # None between two episodes


class Recorder:
    """The replay of the driver there: rows leave as they are added, and what is recorded was sent along."""

    def __init__(self, begin: Begin):
        self.journals = begin.journals
        # The running episode of every stream, until its environment has been brought back there.
        self.running: list[Running | ReverieError | None] = [
            tail if isinstance(tail, ReverieError) else Running(list(tail.actions), tail.obs)
            for tail in begin.tails
        ]
        self.rows: list[Any] = []

    def add(
        self,
        step: Step,
        action: np.ndarray,
        stream: int,
        context: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.rows.append((stream, step, action, context))
        known = self.running[stream]
        if known is not None and step.is_last:
            self.running[stream] = Running([], None)
        elif known is not None and step.is_first:
            self.running[stream] = Running([action], step.obs)
        elif isinstance(known, Running):
            known.actions.append(action)
            known.obs = step.obs

    def journal(self, stream: int) -> Iterator[Record]:
        return iter(self.journals[stream])

    def tail(self, stream: int) -> Tail:
        """Asked for once: the environment is brought back there, and its episode need not be kept any longer."""
        known, self.running[stream] = self.running[stream], None
        if isinstance(known, ReverieError):
            raise known
        assert known is not None
        return Tail(np.array(known.actions, np.float32), known.obs)


class Outbox:
    """Sends in a thread: the collector goes on while nobody takes its rows."""

    def __init__(self, pipe: Any):
        self._pipe, self._waiting = pipe, queue.SimpleQueue[bytes | None]()
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def put(self, told: Made | Said | Exception) -> None:
        self._waiting.put(packed(told))

    def warn(self, message: Warning | str, category: type[Warning], *_: Any) -> None:
        """In place of ``warnings.showwarning``."""
        self.put(Said(str(message), category if category.__module__ == "builtins" else UserWarning))

    def close(self) -> None:
        """Wait until all is sent, or the learner is gone."""
        self._waiting.put(None)
        self._thread.join()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._waiting.get()) is not None:
                self._pipe.send_bytes(message)


def _work(make: Make, prefill: int, seed: int, memory: Any, pipe: Any, settings: Mapping[str, str]) -> None:
    """The life of a collector."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the learner, which then closes us
    os.environ.update(settings)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL stays on this core
    threading.Thread(target=follow_parent, daemon=True).start()
    prepare(1)
    outbox = Outbox(pipe)
    warnings.showwarning = outbox.warn  # type: ignore[assignment]
    serve(make, prefill, seed, Weights(memory), pipe, outbox)


def serve(make: Make, prefill: int, seed: int, weights: "Weights", pipe: Any, outbox: Outbox) -> None:
    """Carry out orders until there are none; what goes wrong is told, and is the end."""
    envs: Envs | None = None
    try:
        agent, envs = make()
        usual = agent.state_dict()  # for the parts that acting does not read
        for order in orders(pipe):
            state = {**usual, **weights.get(order.weights)}
            if order.begin is None:
                agent.load_state_dict(with_random(state, random_of(agent)))
            else:
                recorder = Recorder(order.begin)
                driver = Driver(agent, envs, recorder, prefill, seed)
                if order.begin.state is None:
                    agent.load_state_dict(state)
                    driver.go_on()
                else:
                    last = pickle.loads(order.begin.state)
                    agent.load_state_dict(with_random(state, last["random"]))
                    driver.load_state_dict(last["driver"])
            collecting = True
            while collecting:
                finished = driver()
                after = packed({"driver": driver.state_dict(), "random": random_of(agent)})
                outbox.put(Made(recorder.rows, finished, driver.env_steps, after))
                recorder.rows = []
                # What comes before an order is carried out can only be the end.
                collecting = driver.env_steps < order.until and not pipe.poll()
    except ReverieError as error:
        outbox.put(ReverieError(str(error)))
    except Exception as error:
        outbox.put(portable(error))
    finally:
        if envs is not None:
            envs.close()
        outbox.close()


def orders(pipe: Any) -> Iterator[Order]:
    """Until the learner says that there are no more, or is gone."""
    with contextlib.suppress(EOFError, OSError):
        while (message := pickle.loads(pipe.recv_bytes())) is not None:
            yield message


# What travels


def to_act(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an agent's state that acting reads: no optimisers, nothing to learn from, and no generators, which
    whoever acts has of its own."""
    return {name: part for name, part in state.items() if not name.endswith(UNREAD)}


def random_of(agent: Any) -> dict[str, Any]:
    """The states of the generators that it acts with."""
    generator = {name: getattr(agent, name)["train"] for name in RANDOM if hasattr(agent, name)}
    return {
        name: own.get_state() if isinstance(own, torch.Generator) else own.bit_generator.state
        for name, own in generator.items()
    }


def with_random(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` with those generators in place of its own."""
    return {**state, **{name: {**state[name], "train": one} for name, one in own.items()}}


class Held(NamedTuple):
    """A tensor in shared memory."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights:
    """Nested states in a block of shared memory, one at a time; ``memory`` is the block, or how many bytes to take."""

    def __init__(self, memory: Any):
        self.memory = process_context().RawArray("b", max(memory, 1)) if isinstance(memory, int) else memory
        self._bytes = torch.from_numpy(np.frombuffer(self.memory, np.uint8))

    def put(self, state: Any) -> Any:
        """Copy the tensors there, as far as there is room; the state with their places instead."""
        at = 0

        def place(tensor: Tensor) -> Any:
            nonlocal at
            tensor, start = tensor.detach().cpu().contiguous(), at
            if start + tensor.nbytes > len(self._bytes):  # it has grown since: it travels with the order
                return tensor.clone()
            self._bytes[start : start + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
            at += aligned(tensor.nbytes)
            return Held(start, tuple(tensor.shape), tensor.dtype)

        return each(state, Tensor, place)

    def get(self, placed: Any) -> Any:
        """The state, with tensors of its own."""

        def fetch(held: Held) -> Tensor:
            size = int(np.prod(held.shape)) * held.dtype.itemsize
            own = self._bytes[held.start : held.start + size].clone()
            return own.view(held.dtype).reshape(held.shape)

        return each(placed, Held, fetch)


def room(state: Any) -> int:
    """Bytes that the tensors of a nested state take."""
    sizes: list[int] = []
    each(state, Tensor, lambda tensor: sizes.append(aligned(tensor.nbytes)))
    return sum(sizes)


def aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A nested state with everything of that kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each(item, kind, change) for key, item in value.items()}
    if isinstance(value, tuple | list) and not isinstance(value, Held):
        parts = [each(item, kind, change) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _as_array(tensor: Tensor) -> tuple[Any, tuple[np.ndarray]]:
    return torch.from_numpy, (tensor.detach().cpu().numpy(),)


AS_ARRAYS: Any = {**copyreg.dispatch_table, Tensor: _as_array, nn.Parameter: _as_array}


def packed(value: Any) -> bytes:
    """As bytes for the other process. Tensors go as arrays: the usual way opens a file for each."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=5)
    pickler.dispatch_table = AS_ARRAYS
    pickler.dump(value)
    return out.getvalue()
