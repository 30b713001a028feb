"""The network as it is served: raw pixels in, probabilities out, in one graph."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.records import DataInfo, Format
from pipeline.specs import Classifier, Runner
from pipeline.training.batches import Normalise


class Served(nn.Module):
    """uint8 [N, C, H, W] to probabilities [N, K], each row summing to 1."""

    def __init__(self, network: Classifier, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        scores = self.network(self.normalise(image))
        return self.network.log_probabilities(scores).exp()


def build_network(model_id: str, data: DataInfo, seed: int = 0) -> Classifier:
    """A network with weights drawn by the seed."""
    torch.manual_seed(seed)
    return registry.model(model_id).build(data.shape, len(data.labels))


def build_served(model_id: str, data: DataInfo) -> Served:
    """An untrained served network to load exported weights into."""
    return Served(build_network(model_id, data), Normalise(data.mean, data.std))


def open_file(path: Path, file_format: Format, model_id: str, data: DataInfo) -> Runner:
    """Ask an exported file, on the CPU."""
    return registry.file_format(file_format).open(path, partial(build_served, model_id, data))
