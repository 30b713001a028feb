"""Hogwild: two real processes on one network, and nothing left of them however they end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG, processes, run_command, running, wait_until
from test_training import IDENTITY, training

from pipeline.errors import InputError
from pipeline.specs import Prepared
from pipeline.stages.prepare import prepare

HOGWILD: dict[str, Any] = {"trainer": "hogwild", "model_id": "mnist_cnn_v1", "hard_fraction": 0.5}


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepare(CONFIG, Path(), fallback=False)


def test_two_processes_train_one_network_and_go_on_where_they_were(digits: Prepared, tmp_path: Path) -> None:
    run = training(digits, num_processes=2, epochs=2, **HOGWILD)
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    progress = run.run(lambda: run.save(tmp_path / "last.pt", IDENTITY))
    assert [row[0] for row in progress.batches] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 4 / 3, 5 / 3, 2])
    assert progress.images_seen == 320 + 160
    assert run.engine.sampler.losses.min() > 0, "both tell the losses of their images"
    changed = run.network.state_dict()
    # The stem is not learned.
    assert [name for name in before if torch.equal(before[name], changed[name])] == ["features.0.weight"]

    longer = training(digits, num_processes=2, epochs=3, **HOGWILD)
    assert longer.restore(tmp_path / "last.pt", IDENTITY)
    steps: list[int] = []

    def look() -> None:
        states = longer._steps.state()["workers"]
        steps.extend(int(state["optimizer"]["state"][0]["step"]) for state in states)

    longer.run(look)
    assert steps == [8, 5], "of five batches one process has three, the other two; of three, two and one"


def test_more_processes_than_batches_are_refused(digits: Prepared) -> None:
    with pytest.raises(InputError, match="--num-processes 6 is more than the 5 batches"):
        training(digits, num_processes=6, **HOGWILD).run(lambda: None)


COMMAND = (
    "train", "--dataset-id", "digits_v1", "--model-id", "mnist_fcn_v1", "--trainer", "hogwild",
    "--num-processes", "2", "--epochs", "10000", "--quiet", "--output-dir", "run",
)  # fmt: skip


def interrupt(parent: int, workers: list[int]) -> None:
    """What Ctrl-C does: the whole group gets the signal."""
    os.killpg(parent, signal.SIGINT)


def kill_a_worker(parent: int, workers: list[int]) -> None:
    os.kill(workers[0], signal.SIGKILL)


def kill_the_parent(parent: int, workers: list[int]) -> None:
    os.kill(parent, signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (interrupt, 130, "error: interrupted"),
        (kill_a_worker, 4, "of 2 was killed by signal 9"),
        (kill_the_parent, -9, ""),
    ],
)
def test_nothing_is_left_however_it_ends(
    tmp_path: Path, end: Callable[[int, list[int]], None], status: int, said: str
) -> None:
    with running(*COMMAND, cwd=tmp_path) as process:
        wait_until((tmp_path / "run" / "checkpoints" / "last.pt").exists)
        everyone, workers = processes(tmp_path), processes(tmp_path, "spawn_main")
        assert len(workers) == 2
        end(process.pid, workers)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == status
        assert said in output
        assert len([line for line in output.splitlines() if line]) == bool(said)
        wait_until(lambda: processes(tmp_path) == [])
    owners = [f"_{number}_" for number in everyone]
    assert [path for path in Path("/dev/shm").glob("torch_*") if any(owner in path.name for owner in owners)] == []


def test_several_processes_need_a_trainer_for_them(tmp_path: Path) -> None:
    done = run_command("train", "--dataset-id", "digits_v1", "--num-processes", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "--num-processes 2 needs --trainer hogwild or ddp" in done.stderr
