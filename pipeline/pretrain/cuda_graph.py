"""A CUDA graph for work that repeats exactly, down to the addresses of its tensors."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

PLAIN_CALLS = 3  # to compile, choose algorithms and create the optimizer's state


class CudaGraph:
    """A function without arguments that, after some plain calls, runs as one CUDA graph.

    Every call does the work once, so results equal those of the plain function. The function must
    read and write tensors that stay in place and must not wait for the GPU. A call overwrites the
    result of the one before. `generator` is drawn from in addition to the default generator.
    """

    def __init__(self, function: Callable[[], Tensor], generator: Generator) -> None:
        self.function = function
        self.generator = generator
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor

    def __call__(self) -> Tensor:
        """Do the work and return its result, without waiting for the GPU."""
        if self.calls < PLAIN_CALLS:
            self.calls += 1
            return self._call_on_a_side_stream()
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()
        return self.result

    def _call_on_a_side_stream(self) -> Tensor:
        """Call as a capture does: autograd remembers the stream that made the gradients."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self.function()
        current.wait_stream(side)
        return result

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.result = self.function()
        return graph
