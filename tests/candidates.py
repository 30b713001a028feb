"""Further candidates from one run: other weights, another format, another name, or a fault, without training again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import registry
from pipeline.config import RunConfig
from pipeline.records import Assembled, Benchmarked, Carded, DataInfo, Record, ServedFormat, Trained
from pipeline.runfolder import RunFolder
from pipeline.served import Served, build_served
from pipeline.stages.assemble import assemble
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.gate import gate
from pipeline.stages.prepare import prepare
from pipeline.stages.validate import starting_server, validate
from pipeline.stages.verify import verify
from pipeline.triton import repository


def softened(run: Path, target: Path, share: float, served_format: ServedFormat = "onnx") -> Path:
    """A run whose network is less sure: its scores are multiplied. It answers with the same classes.

    Its accuracy is the same, and so is its speed, which is not measured again. Everything else is.
    """
    folder = _copy(run, target)
    config = _keep(folder, "config", _config(folder).model_copy(update={"served_format": served_format}))
    data = DataInfo.load(folder.record("data"))
    served = build_served(config.train.model_id, data)
    weights = torch.load(folder.model(data.short_name, "pytorch"), map_location="cpu", weights_only=True)
    served.load_state_dict(weights)
    _soften(served.eval(), share)
    test = prepare(config.train, config.data_dir, fallback=False).test
    _keep(folder, "evaluated", evaluate(served, test, data.labels, config.test_batch_size, folder))
    exported = _keep(folder, "exported", export(served, data, config.export_formats, folder))
    verified = _keep(
        folder, "verified", verify(exported, config.train.model_id, data, test, config.judged_format, folder)
    )
    benchmarked = Benchmarked.load(folder.record("benchmarked"))
    gated = gate(exported, verified, benchmarked, config.judged_format, config.gates, config.default_gates)
    _keep(folder, "gated", gated)
    return _validated(folder)


def renamed(run: Path, target: Path, name: str) -> Path:
    """The same under another name."""
    folder = _copy(run, target)
    _keep(folder, "config", _config(folder).model_copy(update={"release_name": name}))
    return _validated(folder)


def spoiled(run: Path, target: Path, spoil: Callable[[Path], None]) -> Path:
    """A run whose version is altered before the server sees it; `spoil` takes the version's folder."""
    return _validated(_copy(run, target), spoil)
