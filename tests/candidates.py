"""Further candidates from one run: other weights, another format, another name, or a fault, without training again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.config import RunConfig
from pipeline.records import Benchmarked, Carded, DataInfo, Exported, Record, ServedFormat
from pipeline.runfolder import RunFolder
from pipeline.served import Served, build_served
from pipeline.stages.assemble import assemble
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.gate import gate
from pipeline.stages.prepare import prepare
from pipeline.stages.validate import starting_server, validate
from pipeline.stages.verify import verify
from pipeline.triton import model_config, repository

R = TypeVar("R", bound=Record)


def softened(run: Path, target: Path, share: float, served_format: ServedFormat = "onnx") -> Path:
    """A run whose network is less sure: its scores are multiplied, and it answers with the same classes.

    So its accuracy is the same, and its speed, which is not measured again. All else is. It has one format.
    """
    folder = _copy(run, target)
    config = _keep(
        folder,
        "config",
        _config(folder).model_copy(update={"served_format": served_format, "export_formats": (served_format,)}),
    )
    model_id, data = config.train.model_id, DataInfo.load(folder.record("data"))
    served = build_served(model_id, data)
    weights = torch.load(folder.model(data.short_name, ".pth"), map_location="cpu", weights_only=True)
    served.load_state_dict(weights)
    _multiply_scores(served.eval(), share)
    test = prepare(config.train, config.data_dir, fallback=False).test
    _keep(folder, "evaluated", evaluate(served, test, data.labels, config.test_batch_size, folder))
    exported = _keep(folder, "exported", export(served, data, config.export_formats, folder))
    verified = _keep(folder, "verified", verify(exported, model_id, data, test, served_format, folder))
    benchmarked = Benchmarked.load(folder.record("benchmarked"))
    _keep(folder, "gated", gate(exported, verified, benchmarked, served_format, config.gates, config.default_gates))
    return _validated(folder)


def renamed(run: Path, target: Path, name: str) -> Path:
    """The same model under another name."""
    folder = _copy(run, target)
    _keep(folder, "config", _config(folder).model_copy(update={"release_name": name}))
    return _validated(folder)


def spoiled(run: Path, target: Path, spoil: Callable[[Path], None]) -> Path:
    """A run whose version was altered, by a function of its folder, before a server was asked about it."""
    return _validated(_copy(run, target), spoil)


def _validated(folder: RunFolder, alter: Callable[[Path], None] = lambda version: None) -> Path:
    data = DataInfo.load(folder.record("data"))
    exported = Exported.load(folder.record("exported"))
    carded = Carded.load(folder.record("carded"))
    with starting_server(folder, "embedded") as judge:
        assembled = assemble(_config(folder), data, exported, carded, folder)
        version = folder.candidate / assembled.name / str(assembled.version)
        alter(version)
        own = model_config.read(version / repository.CONFIG)
        live = version.parent / repository.CONFIG
        live.write_text(repository.pointing_config(own, assembled.version), encoding="utf-8")
        assembled = assembled.model_copy(update={"hashes": repository.hashes(version)})
        _keep(folder, "assembled", assembled)
        _keep(folder, "validated", validate(assembled, data.labels, folder, judge))
    return folder.root


def _multiply_scores(served: Served, share: float) -> None:
    last = [layer for layer in served.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(share)
        last.bias.mul_(share)


def _config(folder: RunFolder) -> RunConfig:
    return RunConfig.load(folder.record("config"))


def _copy(run: Path, target: Path) -> RunFolder:
    shutil.copytree(run, target)
    return RunFolder(target)


def _keep(folder: RunFolder, name: str, record: R) -> R:
    record.save(folder.record(name))
    return record
