"""The engine: resumed as if never stopped, alike from one seed, honest about bad checkpoints and numbers."""

import errno
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIG, environment
from sklearn import metrics as reference

from pipeline import metrics, registry
from pipeline.commands.train import command
from pipeline.config import Criterion, RunConfig
from pipeline.errors import CheckpointError, InputError, NonFiniteLossError, StorageError
from pipeline.records import Epoch
from pipeline.runfolder import RunFolder
from pipeline.served import build_network
from pipeline.settings import configure
from pipeline.specs import OptimizerOptions, Prepared, Split
from pipeline.stages.prepare import prepare
from pipeline.stages.train import train
from pipeline.training import checkpoint, precision, tensorboard
from pipeline.training.batches import Batches, Normalise
from pipeline.training.engine import Engine
from pipeline.training.group import ALONE, Group
from pipeline.training.loop import Training
from pipeline.training.progress import Progress
from pipeline.training.sampler import Sampler
from pipeline.training.validation import validate

IDENTITY = {"seed": 1}
CPU = torch.device("cpu")

# In a process of its own, as other tests may have loaded the compiler. Last, so that torch's optimizers may load it.
STEP = """
import sys
import torch
from pipeline import registry
from pipeline.specs import OptimizerOptions

def steps(build):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = build([{"params": [weight], "weight_decay": 0.1}])
    for number in range(3):
        optimizer.zero_grad()
        (weight * torch.arange(4.0)).square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return weight.tolist()

names, betas = ("adam", "adamw", "sgd"), (0.8, 0.9)
options = OptimizerOptions(betas=betas, momentum=0.9)
found = [steps(lambda groups: registry.optimizer(name).build(groups, 0.1, options)) for name in names]
assert "torch._dynamo" not in sys.modules
assert found == [
    steps(lambda groups: torch.optim.Adam(groups, lr=0.1, betas=betas, fused=True)),
    steps(lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=betas, fused=True)),
    steps(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)),
]
assert found[0] != found[1] != found[2]
"""


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepare(CONFIG, Path(), fallback=False)


def training(digits: Prepared, *, num_processes: int = 1, group: Group = ALONE, **changes: Any) -> Training:
    config = CONFIG.model_copy(update=changes)
    few = digits.train.take(slice(320))
    network = build_network(config.model_id, digits.info, config.seed)
    return Training(
        network,
        Normalise(digits.info.mean, digits.info.std),
        (few, digits.validation),
        config,
        CPU,
        log_interval=2,
        num_processes=num_processes,
        group=group,
    )


def weights_after(run: Training) -> str:
    run.run(lambda: None)
    return checkpoint.weights_sha256(run.network)


def test_optimizers_step_as_torch_s_own_and_load_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_id": "adam", "scheduler_id": "none"},
        {"optimizer_id": "sgd", "scheduler_id": "step"},
        {"optimizer_id": "adamw", "scheduler_id": "one_cycle", "hard_fraction": 0.3},
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    digits: Prepared, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = training(digits, **changes)
    expected = weights_after(whole)

    path = tmp_path / "last.pt"
    stopped = training(digits, **changes)

    def save_and_stop() -> None:
        stopped.save(path, IDENTITY)
        if len(stopped.progress.epochs) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(save_and_stop)
    resumed = training(digits, **changes)
    assert resumed.restore(path, IDENTITY)
    assert len(resumed.progress.epochs) == 3
    assert weights_after(resumed) == expected
    assert resumed.progress.batches == whole.progress.batches


def test_the_seed_decides(digits: Prepared) -> None:
    first, second = (weights_after(training(digits, epochs=1)) for _ in range(2))
    assert first == second
    assert weights_after(training(digits, epochs=1, seed=2)) != first


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:99] + b"?" + content[100:]])
def test_a_damaged_checkpoint_is_refused(digits: Prepared, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "last.pt"
    training(digits).save(path, IDENTITY)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged"):
        training(digits).restore(path, IDENTITY)


def test_a_checkpoint_of_another_run_is_refused_by_name(digits: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    training(digits).save(path, IDENTITY)
    with pytest.raises(CheckpointError, match="seed was 1 and is now 2"):
        training(digits).restore(path, {"seed": 2})


def configured(*typed: str) -> RunConfig:
    context = command.make_context("bin/train", ["--dataset-id", "digits_v1", *typed])
    flags = {**context.params, "typed": frozenset[str]()}
    return configure(flags, "digits_v1", fallback=False, started=time.localtime())


def test_a_layer_that_is_asked_twice_is_told_once(digits: Prepared, tmp_path: Path) -> None:
    config = configured("--model-id", "fashion_cnn_v1", "--dry-run", "--output-dir", str(tmp_path))
    trained, _ = train(digits, config, RunFolder(tmp_path))
    assert sum(layer.parameters for layer in trained.layers) == trained.parameters


def test_a_run_that_begins_anew_leaves_no_checkpoint_that_a_restart_would_take_up(
    digits: Prepared, tmp_path: Path
) -> None:
    config = configured("--epochs", "1", "--no-resume", "--output-dir", str(tmp_path))
    folder, found = RunFolder(tmp_path), []
    folder.checkpoint.parent.mkdir()
    folder.checkpoint.write_bytes(b"of an earlier run")
    train(digits, config, folder, begin=lambda: found.append(folder.checkpoint.exists()))
    assert found == [False]
    assert checkpoint.epochs(folder.checkpoint) == 1


def test_a_full_disk_is_not_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(StorageError, match=r"last\.pt cannot be written \(No space left on device\)"):
        checkpoint.save(tmp_path / "last.pt", {})


def test_some_images_of_a_sorted_set_are_of_all_classes(digits: Prepared) -> None:
    images = Split.whole(digits.test.images(slice(10)), np.arange(10))
    assert images.spread(4).labels.tolist() == [0, 2, 5, 7]
    assert images.spread(20).labels.tolist() == list(range(10))


def test_more_epochs_go_on_only_where_the_schedule_stays_the_same(digits: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for scheduler_id in ("none", "one_cycle"):
        short = training(digits, epochs=1, scheduler_id=scheduler_id)
        short.run(lambda run=short: run.save(path, IDENTITY))  # type: ignore[misc]
        longer = training(digits, epochs=2, scheduler_id=scheduler_id)
        if scheduler_id == "none":
            assert longer.restore(path, IDENTITY)
        else:
            with pytest.raises(CheckpointError, match="cannot be made one of 2"):
                longer.restore(path, IDENTITY)


@pytest.mark.parametrize(("max_steps", "steps"), [(3, [3]), (7, [5, 2]), (99, [5, 5])])
def test_max_steps_ends_a_run_within_an_epoch_and_its_schedule_with_it(
    digits: Prepared, max_steps: int, steps: list[int]
) -> None:
    run = training(digits, epochs=2, scheduler_id="one_cycle", max_steps=max_steps)
    progress = run.run(lambda: None)
    done = [int(np.ceil(row[0])) for row in progress.batches]
    assert [done.count(epoch + 1) for epoch in range(len(progress.epochs))] == steps
    assert progress.images_seen == 64 * sum(steps)
    factors = [row[3] / CONFIG.learning_rate for row in progress.batches]
    total, schedule = sum(steps), run.engine.schedule
    assert factors == [pytest.approx(schedule.factor(step, step // 5, total, 0)) for step in range(total)]


def test_a_loss_that_is_no_number_stops_and_names_the_batch(digits: Prepared) -> None:
    with pytest.raises(NonFiniteLossError, match=r"batch \d+ of epoch 1: .* there is no checkpoint yet"):
        training(digits, optimizer_id="sgd", learning_rate=1e30).run(lambda: None)


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(digits: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    run = training(digits)

    def save_then_spoil() -> None:
        run.save(path, IDENTITY)
        next(run.network.parameters()).data.fill_(math.nan)

    with pytest.raises(NonFiniteLossError, match=rf"batch 1 of epoch 2: .* last good checkpoint is {path};"):
        run.run(save_then_spoil)
    resumed = training(digits)
    assert resumed.restore(path, IDENTITY)
    assert weights_after(resumed) == weights_after(training(digits))


def test_a_gradient_that_is_no_number_stops_before_it_is_saved(digits: Prepared) -> None:
    run = training(digits)
    next(run.network.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLossError, match="gradient's norm became"):
        run.run(lambda: pytest.fail("an epoch ended"))


@pytest.mark.parametrize("patience", [0, 2])
def test_the_weights_of_the_best_epoch_are_restored(digits: Prepared, patience: int) -> None:
    run = training(digits, epochs=7, early_stopping_patience=patience)

    def forget_after_three_epochs() -> None:
        if len(run.progress.epochs) == 3:
            for parameter in run.network.parameters():
                parameter.data.zero_()

    progress = run.run(forget_after_three_epochs)
    accuracies = [epoch.validation_accuracy or 0 for epoch in progress.epochs]
    best, later = max(accuracies[:3]), accuracies[3:]
    error = math.sqrt(2 * best * (1 - best) / len(digits.validation))
    assert max(later) < best - error
    kept = max(number for number, accuracy in enumerate(accuracies) if accuracy >= best - error)
    assert progress.best_epoch == kept + 1
    assert progress.stopped_early == bool(patience)
    assert len(accuracies) == (accuracies.index(best) + 1 + patience if patience else 7)
    assert validate(run.engine, digits.validation)[1] == pytest.approx(accuracies[kept], rel=1e-5)


def test_a_later_epoch_is_kept_unless_it_is_worse_by_more_than_chance() -> None:
    progress, kept = Progress(), []
    for accuracy in (0.90, 0.95, 0.941, 0.94, 0.96):  # of 1,000 images; 0.0097 is the error at 0.95
        progress.epochs.append(
            Epoch(
                epoch=len(progress.epochs) + 1,
                train_loss=1,
                train_accuracy=0.9,
                validation_loss=1,
                validation_accuracy=accuracy,
                learning_rate=0.1,
                seconds=1,
            )
        )
        progress.keep_best(torch.nn.Linear(1, 1), images=1000)
        kept.append((progress.best_epoch, progress.epochs_without_better()))
    assert kept == [(1, 0), (2, 0), (3, 1), (3, 2), (5, 0)]


def test_without_validation_images_the_last_weights_stay(digits: Prepared) -> None:
    run = training(digits._replace(validation=digits.train.take(slice(0))), epochs=2)
    saved: list[str] = []
    progress = run.run(lambda: saved.append(checkpoint.weights_sha256(run.network)))
    assert progress.best_epoch is None
    assert saved[-1] == checkpoint.weights_sha256(run.network) != saved[0]


def test_bf16_trains_otherwise_than_fp32_and_goes_on_in_bf16(digits: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    run = training(digits, epochs=2, precision="bf16")
    progress = run.run(lambda: run.save(path, IDENTITY))
    assert progress.epochs[-1].train_loss < progress.epochs[0].train_loss
    assert {parameter.dtype for parameter in run.network.parameters()} == {torch.float32}
    assert checkpoint.weights_sha256(run.network) != weights_after(training(digits, epochs=2))
    resumed = training(digits, epochs=3, precision="auto")
    assert resumed.restore(path, IDENTITY)
    resumed.run(lambda: None)
    assert resumed.engine.precision == "bf16"


def test_fp16_is_for_cuda(digits: Prepared) -> None:
    with pytest.raises(InputError, match="--precision fp16 is not to be had on cpu"):
        training(digits, precision="fp16").run(lambda: None)


@pytest.mark.parametrize(("native", "possible"), [(False, {"fp32"}), (True, {"fp32", "bf16"})])
def test_auto_measures_only_where_bf16_is_native_and_changes_nothing(
    digits: Prepared, native: bool, possible: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native, "amx_bf16": False})
    run = training(digits, epochs=1, precision="auto")
    expected = training(digits, epochs=1, precision="fp32"), training(digits, epochs=1, precision="bf16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = weights_after(run)
    assert run.engine.precision in possible
    assert weights == weights_after(expected[run.engine.precision == "bf16"])


@pytest.mark.parametrize(("fp32", "bf16", "faster"), [(2.0, 1.0, "bf16"), (1.0, 2.0, "fp32"), (1.1, 1.0, "fp32")])
def test_auto_measures_which_is_clearly_faster(
    digits: Prepared, fp32: float, bf16: float, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def step(engine: Engine, *arguments: Any) -> tuple[None, torch.Tensor]:
        clock[0] += fp32 if engine.precision == "fp32" else bf16
        return None, torch.zeros(4)

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert precision._measured(training(digits).engine) == faster


def test_early_stopping_needs_a_validation_image() -> None:
    config = CONFIG.model_copy(update={"early_stopping_patience": 1, "validation_fraction": 0.0001})
    with pytest.raises(InputError, match="--early-stopping-patience needs validation images"):
        prepare(config, Path(), fallback=False)


def test_auto_takes_what_it_once_measured_on_this_machine(
    digits: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = training(digits, epochs=1, precision="auto")
    run.run(lambda: None)
    (kept,) = tmp_path.rglob("precision-*")
    assert kept.read_text() == run.engine.precision
    for known in ("fp32", "bf16"):
        kept.write_text(known)
        again = training(digits, epochs=1, precision="auto")
        again.run(lambda: None)
        assert again.engine.precision == known
    for damaged in (b"", b"\xff"):
        kept.write_bytes(damaged)
        training(digits, epochs=1, precision="auto").run(lambda: None)
        assert kept.read_text() in {"fp32", "bf16"}
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    training(digits, epochs=1, precision="auto").run(lambda: None)


def test_tensorboard_gets_each_batch_and_epoch_once(digits: Prepared, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = training(digits, epochs=2)
    for _ in range(2):  # a run that is resumed writes its log again
        with tensorboard.log(tmp_path / "tensorboard") as log:
            run.run(lambda: None)
            log(run.progress)
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    losses = [event.value for event in written.Scalars("batch/loss")]
    assert losses == pytest.approx([row[1] for row in run.progress.batches])
    assert [event.step for event in written.Scalars("epoch/validation_loss")] == [1, 2]


def test_losses_are_summed_with_their_weights_and_smooth_the_labels(digits: Prepared) -> None:
    criteria = (Criterion(loss_id="nll", weight=0.7), Criterion(loss_id="mse", weight=0.3))
    engine = training(digits, criteria=criteria, model_id="mnist_fcn_v1").engine
    scores, labels = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)), torch.arange(8)
    for smoothing in (0.0, 0.2):
        likelihood = torch.nn.functional.cross_entropy(scores, labels, label_smoothing=smoothing)
        wanted = torch.eye(10)[labels] * (1 - smoothing) + smoothing / 10
        brier = (scores.softmax(1) - wanted).square().mean()
        torch.testing.assert_close(engine.loss(scores, labels, smoothing), 0.7 * likelihood + 0.3 * brier)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_step_tells_the_gradient_s_norm_and_clips_it(digits: Prepared, clip: float) -> None:
    run = training(
        digits, model_id="mnist_fcn_v1", optimizer_id="sgd", momentum=0.0, learning_rate=0.5, gradient_clip_norm=clip
    )
    engine = run.engine
    images, labels = engine.batches.draw(torch.arange(64), torch.Generator().manual_seed(1))
    parameters = list(run.network.parameters())
    loss = torch.nn.functional.cross_entropy(run.network(engine.pixels(images)), labels)
    norm = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)]).norm()
    before = [parameter.detach().clone() for parameter in parameters]
    _, metrics = engine.step(images, labels, 0, 0)
    torch.testing.assert_close(metrics[[0, 2, 3]], torch.stack([loss.detach(), torch.tensor(0.5), norm]))
    moves = [(then - now.detach()).flatten() for then, now in zip(before, parameters, strict=True)]
    assert norm > 0.01
    assert torch.cat(moves).norm().item() == pytest.approx(0.5 * (clip or norm.item()), rel=1e-3)


@pytest.mark.parametrize("loss_id", registry.ids("losses"))
def test_each_loss_falls(digits: Prepared, loss_id: str) -> None:
    # A network whose scores every loss has a meaning for.
    run = training(digits, model_id="mnist_capsule_v1", epochs=3, criteria=(Criterion(loss_id=loss_id, weight=2.0),))
    progress = run.run(lambda: None)
    assert progress.epochs[-1].train_loss < progress.epochs[0].train_loss


@pytest.mark.parametrize("optimizer_id", registry.ids("optimizers"))
def test_each_optimizer_finds_the_bottom_of_a_bowl(optimizer_id: str) -> None:
    point = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    groups = [{"params": [point], "weight_decay": 0.0}]
    optimizer = registry.optimizer(optimizer_id).build(groups, 0.05, OptimizerOptions((0.9, 0.999), 0.9))
    for _ in range(300):
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
    assert point.detach().abs().max() < 0.05


@pytest.mark.parametrize("scheduler_id", registry.ids("schedules"))
def test_each_schedule_stays_between_zero_and_the_peak(scheduler_id: str) -> None:
    schedule = registry.schedule(scheduler_id)
    factors = [schedule.factor(step, step // 10, 100, 0.7) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    assert (factors[-1] < 0.05) == (scheduler_id != "none")


@pytest.mark.parametrize("augmentation", ["none", "shift", "flip", "flip_shift"])
def test_every_image_comes_once_an_epoch(digits: Prepared, augmentation: Any) -> None:
    originals = digits.train.images(slice(100))
    split = Split.whole(originals, np.arange(100))
    sampler, batches = Sampler(100, 32, 1.0, 0, CPU), Batches(split, augmentation, CPU)
    order, generator = sampler.order(0), torch.Generator().manual_seed(0)
    drawn = [batches.draw(order[chosen], generator) for chosen in sampler.batches(0)]
    assert len(drawn) == 4
    assert sorted(torch.cat([labels for _, labels in drawn]).tolist()) == list(range(100))
    assert all(np.array_equal(images, originals[labels]) for images, labels in drawn) == (augmentation == "none")
    padded = np.pad(originals, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for images, labels in drawn:
        for image, index in zip(images.numpy(), labels.tolist(), strict=True):
            allowed = [originals[index]]
            if "shift" in augmentation:
                allowed = [padded[index][:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)]
            if "flip" in augmentation:
                allowed += [candidate[..., ::-1] for candidate in allowed]
            assert any(np.array_equal(image, candidate) for candidate in allowed)


def test_every_second_epoch_has_the_images_of_the_highest_loss_in_each_batch() -> None:
    sampler = Sampler(100, 30, 0.2, 7, CPU)
    sampler.losses = torch.rand(100, generator=torch.Generator().manual_seed(1))
    assert [len(set(sampler.order(epoch).tolist())) for epoch in range(4)] == [100, 20, 100, 20]
    assert sampler.batches(1) == [slice(0, 20)]
    for epoch in (1, 3):
        before, hard = sampler.order(epoch - 1), set(sampler.order(epoch).tolist())
        for batch, count in zip(sampler.batches(epoch - 1), (6, 6, 6, 2), strict=True):
            hardest = sorted(before[batch].tolist(), key=lambda image: -sampler.losses[image])[:count]
            assert hard & set(before[batch].tolist()) == set(hardest)
    assert sampler.order(1).tolist() != sampler.order(3).tolist()


def test_a_single_image_is_no_batch_of_its_own() -> None:
    sampler = Sampler(33, 16, 0.5, 1, CPU)
    assert sampler.batches(0) == [slice(0, 16), slice(16, 32)]
    assert sampler.batches(1) == [slice(0, 16)]
    assert (sampler.steps(0), sampler.steps(1)) == (2, 1)
    assert Sampler(34, 16, 0.5, 1, CPU).batches(1) == [slice(0, 16)]  # of 17 images
    assert Sampler(1, 16, 0.5, 1, CPU).batches(0) == [slice(0, 1)]


@pytest.mark.parametrize("hard_fraction", [0.5, 0.001])
def test_the_losses_of_an_epoch_choose_the_images_of_the_next(digits: Prepared, hard_fraction: float) -> None:
    run = training(digits, epochs=3, hard_fraction=hard_fraction, learning_rate=1e-9, model_id="mnist_fcn_v1")
    progress = run.run(lambda: None)
    hard = 5 * math.ceil(64 * hard_fraction)
    assert progress.images_seen == 320 + hard + 320
    assert [int(np.ceil(row[0])) for row in progress.batches].count(2) == math.ceil(hard / 64)
    full, hardest, again = (epoch.train_loss for epoch in progress.epochs)
    assert hardest > full
    assert again == pytest.approx(full, rel=0.1)


def test_affine_images_are_turned_and_moved_a_little(digits: Prepared) -> None:
    """Ink keeps its amount, and its centre moves by at most the shift and what turning about the middle adds."""
    originals = digits.train.images(slice(100))
    split = Split.whole(originals, np.arange(100))
    after, labels = Batches(split, "affine", CPU).draw(torch.randperm(100), torch.Generator().manual_seed(0))
    before = torch.from_numpy(originals)[labels].float()
    assert after.shape == before.shape
    assert (after.sum((1, 2, 3)) / before.sum((1, 2, 3))).mean().item() == pytest.approx(1, abs=0.05)
    moved = (_centre(after) - _centre(before)).norm(dim=1)
    assert 0.5 < moved.mean() < 2.5
    assert moved.max() < 5


def _centre(images: torch.Tensor) -> torch.Tensor:
    """Row and column of the centre of mass, [N, 2]."""
    mass = images[:, 0] / images.sum((1, 2, 3)).view(-1, 1, 1)
    places = torch.arange(28.0)
    return torch.stack([(mass.sum(2) * places).sum(1), (mass.sum(1) * places).sum(1)], dim=1)


def test_measures_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), size=500).astype(np.float32)
    labels = generator.integers(0, 4, 500)
    measured = metrics.measure(probabilities, labels, ("a", "b", "c", "d"))
    answers = probabilities.argmax(axis=1)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, answers)
    assert measured.accuracy == reference.accuracy_score(labels, answers)
    assert measured.loss == pytest.approx(reference.log_loss(labels, exact), rel=1e-4)
    assert np.array_equal(measured.confusion, reference.confusion_matrix(labels, answers))
    for index, entry in enumerate(measured.per_class):
        assert (entry.precision, entry.recall, entry.f1, entry.images) == pytest.approx(
            (precision[index], recall[index], f1[index], support[index])
        )
