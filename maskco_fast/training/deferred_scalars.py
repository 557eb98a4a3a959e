"""The steps' scalars, from the device to the host and from all ranks to one figure, without a wait
a step."""

from dataclasses import dataclass

import torch

from maskco_fast.training.distributed import World

Line = dict[str, float | int]


@dataclass(frozen=True)
class Reading:
    """One step, of all ranks."""

    line: Line
    """As metrics.jsonl has it."""
    sample_ids: list[int]
    """Of the step's images, in the order of the epoch."""


class DeferredScalars:
    """The last steps' scalars, still on the device, with what is known of those steps on the host.

    Reading a CUDA tensor waits for the device, and other ranks' figures for the slowest of them: so
    `every` steps are read together where there is either.
    """

    def __init__(self, every: int, world: World) -> None:
        self.every = every
        self._world = world
        self._names: list[str] = []
        self._scalars: list[torch.Tensor] = []
        self._lines: list[Line] = []
        self._sample_ids: list[torch.Tensor] = []

    @property
    def full(self) -> bool:
        """Whether it is time to read."""
        return len(self._lines) >= self.every

    def add(self, line: Line, scalars: dict[str, torch.Tensor], sample_id: torch.Tensor) -> None:
        """Keep one step: `line` without the method's scalars, the scalars, the batch's sample ids."""
        self._names = list(scalars)
        self._scalars.append(torch.stack([value.detach() for value in scalars.values()]))
        self._lines.append(line)
        self._sample_ids.append(sample_id)

    def read(self) -> list[Reading]:
        """The kept steps, with the scalars in their lines; forgets them.

        Waits for the device and for all ranks. The scalars are means over the ranks; `data_wait` is
        that of the rank that waited longest, for which the others waited in their turn.
        """
        if not self._lines:
            return []
        waits = torch.tensor([line["data_wait"] for line in self._lines], dtype=torch.float64)
        mine = torch.cat((torch.stack(self._scalars).cpu().double(), waits.unsqueeze(1)), 1)
        all_ranks = self._world.gather(mine)
        sample_ids = self._world.gather(torch.stack(self._sample_ids).cpu())
        read = [
            Reading({**line, "data_wait": waited, **dict(zip(self._names, row))}, ids)
            for line, row, waited, ids in zip(
                self._lines,
                all_ranks[..., :-1].mean(0).tolist(),
                all_ranks[..., -1].amax(0).tolist(),
                sample_ids.transpose(0, 1).flatten(1).tolist(),
            )
        ]
        self._scalars, self._lines, self._sample_ids = [], [], []
        return read
