"""Deferred scalars: losses stay on the device until those of several steps are read together."""

from dataclasses import dataclass

import torch

from maskco_fast.training.distributed import World
from maskco_fast.training.meter import StepTiming
from maskco_fast.training.metrics import Line


@dataclass(frozen=True)
class StepRecord:
    """The metrics and sample ids of one step, over all ranks."""

    line: Line
    """The step's line of metrics.jsonl."""
    sample_ids: list[int]
    """Ids of the step's images, in the order of the epoch."""


class DeferredScalars:
    """Collects the scalars of the last steps on the device and reads them every `every` steps.

    Reading a CUDA tensor waits for the device, and gathering over ranks waits for the slowest one.
    On CUDA or with several ranks the trainer therefore reads many steps at a time.
    """

    def __init__(self, every: int, world: World) -> None:
        self.every = every
        self._world = world
        self._names: list[str] = []
        self._scalars: list[torch.Tensor] = []
        self._lines: list[Line] = []
        self._sample_ids: list[torch.Tensor] = []
        self._timings: list[StepTiming] = []

    @property
    def full(self) -> bool:
        """Whether `every` steps have been added since the last `read`."""
        return len(self._lines) >= self.every

    def add(
        self,
        line: Line,
        scalars: dict[str, torch.Tensor],
        sample_id: torch.Tensor,
        timing: StepTiming,
    ) -> None:
        """Keep a step: the metrics known on the host, the method's scalars, the sample ids.

        `scalars`: 0-dimensional tensors, the same names every step. `sample_id`: (B,) int64, this
        rank's share of the batch. `timing`: the step's marks, which need not have passed yet.
        """
        self._names = list(scalars)
        self._scalars.append(torch.stack([value.detach() for value in scalars.values()]))
        self._lines.append(line)
        self._sample_ids.append(sample_id)
        self._timings.append(timing)

    def annotate(self, values: dict[str, float]) -> None:
        """Add further metrics, known on the host, to the line of the last step that was added."""
        self._lines[-1].update(values)

    def read(self) -> list[StepRecord]:
        """Return the kept steps in order and forget them. Waits for the device and for all ranks.

        Scalars are means over the ranks. `data_wait` is that of the rank that waited longest, for
        which the others wait in the next exchange.
        """
        if not self._lines:
            return []
        # S steps, K scalars, R ranks, B images of a rank; the last column is data_wait.
        scalars_SK = torch.stack(self._scalars).cpu().double()
        # The copy has waited for the steps, so their marks have passed.
        times = [timing.read() for timing in self._timings]
        waits_S = torch.tensor([one["data_wait"] for one in times], dtype=torch.float64)
        all_RSK = self._world.gather(torch.cat((scalars_SK, waits_S.unsqueeze(1)), 1))
        ids_RSB = self._world.gather(torch.stack(self._sample_ids).cpu())
        means = all_RSK[..., :-1].mean(0).tolist()
        longest_waits = all_RSK[..., -1].amax(0).tolist()
        sample_ids = ids_RSB.transpose(0, 1).flatten(1).tolist()
        records = [
            StepRecord({**line, **one, "data_wait": wait, **dict(zip(self._names, values))}, ids)
            for line, one, values, wait, ids in zip(
                self._lines, times, means, longest_waits, sample_ids
            )
        ]
        self.forget()
        return records

    def forget(self) -> None:
        """Drop the kept steps."""
        self._scalars.clear()
        self._lines.clear()
        self._sample_ids.clear()
        self._timings.clear()
