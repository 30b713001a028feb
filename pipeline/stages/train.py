"""Train a network, or take up a training where its last checkpoint left it."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torchinfo import summary

from pipeline.config import RunConfig
from pipeline.errors import InputError
from pipeline.records import DataInfo, Layer, Trained
from pipeline.runfolder import RunFolder
from pipeline.served import Served, build_network
from pipeline.specs import Prepared
from pipeline.training import checkpoint, device, host, tensorboard
from pipeline.training.batches import Normalise
from pipeline.training.engine import Engine
from pipeline.training.group import ALONE, Group
from pipeline.training.loop import Training

_log = logging.getLogger(__name__)


class Result(NamedTuple):
    trained: Trained
    served: Served


def train(
    prepared: Prepared,
    config: RunConfig,
    folder: RunFolder,
    group: Group = ALONE,
    begin: Callable[[], None] = lambda: None,
) -> Result:
    """The network is returned on the CPU, ready to be asked and exported, in each process of the group.

    A finished run is not trained again. `begin` is called when nothing in the folder refuses this one.

    CheckpointError where the folder holds a damaged checkpoint or one of another run; NonFiniteLossError where the
    loss is no longer a number; InputError where the processes were not given the same run; WorkerError where one is
    lost.
    """
    host.set_up()
    data = prepared.info
    network = build_network(config.train.model_id, data, config.train.seed)
    layers = _layers(network, data)
    _log.info("%s on %s", config.train.model_id, config.train.dataset_id)
    for layer in layers:
        shape = "x".join(map(str, layer.output_shape))
        _log.info("  %-24s %-28s %s", layer.kind, shape, f"{layer.parameters:,} parameters")
    training = Training(
        network,
        Normalise(data.mean, data.std),
        (prepared.train, prepared.validation),
        config.train,
        device.choose(config.devices, group.local_rank),
        log_interval=config.log_interval,
        batch_limit=1 if config.dry_run else None,
        num_processes=config.num_processes,
        group=group,
    )
    identity = checkpoint.identity_of(config.train, data)
    path = config.checkpoint or folder.checkpoint
    first = group.from_first(lambda: identity)
    group.in_turn(lambda: _demand_same(first, identity, group))
    save = config.save_model and not config.dry_run
    if (config.resume or group.restarts) and not config.dry_run:
        if training.restore(path, identity):
            _log.info("going on after epoch %d of %d", len(training.progress.epochs), config.train.epochs)
    elif save and group.rank == 0:
        path.unlink(missing_ok=True)  # or a restart before the first epoch's end would take it up
    begin()
    board = config.tensorboard and group.rank == 0
    with tensorboard.log(folder.tensorboard) if board else nullcontext() as log:

        def after_epoch() -> None:
            if save:
                training.save(path, identity)
            if log:
                log(training.progress)

        progress = training.run(after_epoch)
        if log:
            log(progress)  # all of a finished run, of which no epoch has told
    group.leave()
    served = Served(training.network, training.engine.normalise).cpu().eval()
    trained = Trained(
        model_id=config.train.model_id,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        layers=layers,
        device=str(training.engine.device),
        epochs=tuple(progress.epochs),
        stopped_early=progress.stopped_early,
        best_epoch=progress.best_epoch,
        batches=progress.series(),
        images_seen=progress.images_seen,
        seconds=sum(epoch.seconds or 0 for epoch in progress.epochs),
        weights_sha256=checkpoint.weights_sha256(served.network),
        precision=training.engine.precision,
        trainer=config.train.trainer,
        processes=max(group.size, config.num_processes),
        reproducible_with=_reproducible_with(training.engine, group),
    )
    return Result(trained, served)


def _reproducible_with(engine: Engine, group: Group) -> dict[str, str] | None:
    """Each of these changes the order in which sums are taken."""
    if engine.device.type != "cpu" or engine.config.trainer == "hogwild":
        return None
    return {
        "torch": torch.__version__,
        "device": str(engine.device),
        "precision": engine.precision,
        "processes": str(group.size),
        "threads": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }


def _demand_same(first: dict[str, Any], own: dict[str, Any], group: Group) -> None:
    difference = checkpoint.first_difference(first, own)
    if difference is not None:
        raise InputError(
            f"training process {group.rank + 1} of {group.size} has another run than the first one: {difference}; "
            "start all of them with the same command, code and data"
        )


def _layers(network: nn.Module, data: DataInfo) -> tuple[Layer, ...]:
    """Layers in order, for one image; one that is asked twice counts once."""
    found = summary(network, input_size=(1, *data.shape), verbose=0, device="cpu").summary_list
    return tuple(
        Layer(
            name=layer.var_name,
            kind=layer.class_name,
            output_shape=tuple(layer.output_size[1:]),
            parameters=max(0, layer.num_params),
        )
        for layer in found
        if layer.is_leaf_layer and not layer.is_recursive
    )
