"""A training step replayed as one CUDA graph: the host queues it in one call.

A ResNet-50's step is some 1 500 kernels, which Python takes longer to launch than an H200 to run.
"""

from collections.abc import Callable

import torch

from maskco_fast.loaders import Batch

Step = Callable[[Batch], dict[str, torch.Tensor]]

WARM = 3
"""Steps before the capture: they compile kernels, let cuDNN choose its algorithms, and make the
optimiser's state, none of which a graph may hold."""


class GraphedStep:
    """Calls `step` for the first batches, then replays what it did.

    `step` takes a batch on the device, trains, and returns scalars. It must do the same work for
    every batch: all that changes from step to step is read from tensors that keep their addresses.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        # Capturing on the default stream is not allowed; and gradients are summed on the stream
        # that first used a parameter, which must be the graph's.
        self._stream = torch.cuda.Stream(device)
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._scalars: dict[str, torch.Tensor] = {}

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train on a batch; every batch must have the first one's shapes."""
        if self._warm < WARM:
            self._warm += 1
            current = torch.cuda.current_stream(self._stream.device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                scalars = self._step(batch)
            current.wait_stream(self._stream)
            return scalars
        if self._graph is None:
            self._capture(batch)
        assert self._graph is not None
        assert self._batch is not None
        self._batch.copy_(batch)
        self._graph.replay()
        # The next replay writes to the same memory.
        return {name: scalar.clone() for name, scalar in self._scalars.items()}

    def _capture(self, batch: Batch) -> None:
        """Record the step on a copy of `batch`, without training on it."""
        self._batch = batch.clone()
        graph = torch.cuda.CUDAGraph()
        # The loader's threads may allocate meanwhile; only this one must not wait for the device.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._scalars = self._step(self._batch)
        self._graph = graph
