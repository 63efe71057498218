"""An agent's updates as one recorded CUDA graph, launched whole.

A small update is thousands of operations of a few microseconds each, and Python takes longer to ask for one than the
device takes to do it. Recorded once, all are asked for at once.

::

    update   1 .. WARM     operation by operation, on a stream aside: libraries make their workspaces there
             WARM + 1      recorded, which does nothing yet; then replayed
             later         the batch is copied to where the recording reads it; replayed

Every update is a real one, and in this order it is the same with and without a recording: what an agent changes lies
where it lay, and its random generator goes on with every replay. No GPU was at hand to try it on; what is tested is
this order, on the CPU, with a recording that repeats the operations.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Generator, Tensor

from reverie.types import Batch, Metrics, Recordable

WARM = 3  # updates before the recording

Learn = Callable[[], Metrics]


def graph(learn: Learn, generator: Generator) -> Learn:
    """``learn`` as a CUDA graph. Its metrics are where the next replay writes its own."""
    recording = torch.cuda.CUDAGraph()
    recording.register_generator_state(generator)
    with torch.cuda.graph(recording):
        metrics = learn()

    def replay() -> Metrics:
        recording.replay()
        return metrics

    return replay


class Recorded:
    """Called like ``agent.update``, with batches of one form; one of another form is recorded anew.

    ``record`` makes of an update, and of the generator it draws from, what repeats it.
    """

    def __init__(self, agent: Recordable, record: Callable[[Learn, Generator], Learn] = graph):
        self.agent, self.record = agent, record
        self.batch: Batch | None = None  # where a recording reads
        self.replay: Learn | None = None
        self.warm = 0

    def __call__(self, batch: Batch) -> Metrics:
        agent = self.agent
        if self.batch is None or form(batch) != form(self.batch):
            self.batch = batch.to(agent.device).each(torch.clone)
            self.replay, self.warm = None, 0
        else:
            for place, new in zip(tensors(self.batch), tensors(batch), strict=True):
                place.copy_(new, non_blocking=True)
        if self.replay is None and self.warm == WARM:
            self.replay = self.record(partial(agent.learn_on_device, self.batch), agent.generators["learn"])
        if self.replay is None:
            with aside(agent.device):
                metrics = agent.learn_on_device(self.batch)
            self.warm += 1
        else:
            metrics = self.replay()
        agent.updates += 1
        return metrics


def tensors(batch: Batch) -> list[Tensor]:
    """All of a batch, in one order."""
    parts = [part for part in batch if part is not None]
    return [value for part in parts for value in (part.values() if isinstance(part, dict) else (part,))]


def form(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(value.shape, value.dtype) for value in tensors(batch)]


def aside(device: torch.device) -> AbstractContextManager[None]:
    """On a CUDA stream of its own, in order with what comes before and after."""
    return _on_a_stream() if device.type == "cuda" else nullcontext()


@contextmanager
def _on_a_stream():
    now, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(now)
    with torch.cuda.stream(own):
        yield
    now.wait_stream(own)
