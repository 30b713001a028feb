"""Measure the trained network in PyTorch, before any export."""

import time

import numpy as np
import torch

from pipeline import metrics
from pipeline.records import Evaluated
from pipeline.runfolder import RunFolder
from pipeline.served import Served
from pipeline.specs import Split


def evaluate(served: Served, test: Split, labels: tuple[str, ...], batch_size: int, folder: RunFolder) -> Evaluated:
    """Over the whole test set. The probabilities are kept: `verify` holds each exported file against them."""
    started = time.perf_counter()
    with torch.inference_mode():
        parts = [served(torch.from_numpy(images)).numpy() for images in test.batches(batch_size)]
    probabilities = np.concatenate(parts)
    folder.reference.parent.mkdir(exist_ok=True)
    np.save(folder.reference, probabilities)
    return Evaluated(metrics=metrics.measure(probabilities, test.labels, labels), seconds=time.perf_counter() - started)
