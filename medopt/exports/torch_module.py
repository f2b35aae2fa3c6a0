"""A release's model as a torch module: an ONNX file in its engine, or the float network as a PT2 program."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.export import Dim, export, load, save

from medopt.core.records import FloatArray
from medopt.inference.engines import open_engine

# The exporter's notes on each step: paths of this machine, of no use to the program.
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


class OnnxNetwork(nn.Module):
    """An ONNX file, run by the engine that passed the release's gate, as a torch module."""

    def __init__(self, path: str, engine: str = "onnxruntime") -> None:
        super().__init__()
        self.engine = open_engine(engine, Path(path))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *size) to logits (N, K), float32 on the CPU."""
        batch = torch.as_tensor(image).detach().cpu().float().contiguous()
        return torch.from_numpy(self.engine.run(batch.numpy())).float()


def save_program(network: nn.Module, examples: FloatArray, path: Path) -> None:
    """Write the network as a PT2 program with a free batch: its graph as JSON and its weights as they are, no pickle.

    `examples` are prepared images (N, C, *size).
    """
    batch = torch.from_numpy(examples[:1]).repeat(2, *[1] * (examples.ndim - 1))  # a batch of one could be baked in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(network.eval(), (batch,), dynamic_shapes=({0: Dim("batch")},))
        for node in program.graph.nodes:
            for note in _NOTES:
                node.meta.pop(note, None)
        program._example_inputs = None  # else they are pickled into the file
        save(program, path)


class ProgramNetwork(nn.Module):
    """The network of a PT2 program. It can only evaluate: an exported program raises an error on `train` and `eval`."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.program = load(path).module()

    def train(self, mode: bool = True) -> Self:
        """Nothing changes."""
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *size) to logits (N, K)."""
        logits: Tensor = self.program(image)
        return logits
