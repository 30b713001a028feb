"""DistributedDataParallel: two real processes under torchrun do what one does, and nothing of them is left."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, ROOT, children, environment, processes, run_command, running, wait_until
from test_training import training
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline.stages.prepare import prepare
from pipeline.training import torchrun

# Of 320 images the last batch has two: too few for each process to have its own two.
SAME_SUMS: dict[str, Any] = {
    "model_id": "mnist_fcn_v1",
    "optimizer_id": "sgd",
    "augmentation": "none",
    "batch_size": 53,
    "epochs": 3,
    "hard_fraction": 0.5,
}
TRAIN_HERE = f"""
import json
from pathlib import Path
from conftest import CONFIG
from test_training import training
from pipeline.stages.prepare import prepare
from pipeline.training import group

mine = group.join()
run = training(prepare(CONFIG, Path(), fallback=False), group=mine, **{SAME_SUMS})
last = Path(__file__).with_name("last.pt")
progress = run.run(lambda: run.save(last, {{}}))
assert run.checkpoint == last and last.exists()
if mine.rank == 0:
    print(json.dumps([progress.batches, progress.images_seen, [epoch.validation_loss for epoch in progress.epochs]]))
"""
DDP = (
    "train", "--dataset-id", "digits_v1", "--model-id", "mnist_fcn_v1", "--epochs", "20",
    "--batch-size", "256", "--skip-export", "--trainer", "ddp", "--num-processes", "2", "--output-dir", "run",
)  # fmt: skip


def trained(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run" / "records" / "trained.json").read_text())
    return record


def test_two_processes_get_the_numbers_of_one(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN_HERE)
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--log-dir", str(tmp_path), str(script),
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        torchrun, env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    batches, images_seen, validation_losses = json.loads(done.stdout)
    alone = training(prepare(CONFIG, Path(), fallback=False), **SAME_SUMS).run(lambda: None)
    assert len(batches) == len(alone.batches)
    for row, expected in zip(batches, alone.batches, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    assert images_seen == alone.images_seen
    assert validation_losses == pytest.approx([epoch.validation_loss for epoch in alone.epochs], rel=1e-3)


def test_a_process_whose_reader_has_gone_is_not_started_again() -> None:
    """It would be published once more, and end so again."""
    with pytest.raises(BrokenPipeError):
        torchrun._lost({0: ProcessFailure(local_rank=0, pid=1, exitcode=141, error_file="")}, processes=1)


def test_a_lost_process_is_replaced_and_the_weights_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = run_command(*DDP, cwd=whole)
    assert expected.returncode == 0, expected.stderr
    assert expected.stderr.count("epoch  20/20") == 1, "only one process prints"
    with running(*DDP, cwd=broken) as process:
        # The rest of the training takes a fraction of a second.
        wait_until((broken / "run" / "checkpoints" / "last.pt").exists, pause=0.001)
        os.kill(max(children(process.pid)), signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    # Which of both is told depends on whose end is seen first.
    assert re.search(
        "(killed by signal 9|Connection reset by peer|closed by peer).*starting again from the last", output
    )
    assert "going on after epoch" in output
    assert trained(broken)["weights_sha256"] == trained(whole)["weights_sha256"]
    assert trained(whole)["processes"] == 2
    assert trained(whole)["reproducible_with"]["processes"] == "2"


def interrupt(agent: int) -> None:
    os.killpg(agent, signal.SIGINT)


def terminate(agent: int) -> None:
    os.kill(agent, signal.SIGTERM)


def kill(agent: int) -> None:
    os.kill(agent, signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [(interrupt, 130, "error: interrupted"), (terminate, 143, "error: terminated"), (kill, -9, "")],
)
def test_nothing_is_left_however_it_ends(tmp_path: Path, end: Callable[[int], None], status: int, said: str) -> None:
    with running(*DDP, "--epochs", "10000", "--quiet", cwd=tmp_path) as process:
        wait_until((tmp_path / "run" / "checkpoints" / "last.pt").exists)
        assert len(processes(tmp_path)) == 3
        end(process.pid)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == status
        assert said in output
        assert len([line for line in output.splitlines() if line]) == bool(said)
        wait_until(lambda: processes(tmp_path) == [])


def test_an_error_of_the_training_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    done = run_command(*DDP, "--optimizer-id", "sgd", "--lr", "1e30", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    assert "became nan in batch" in done.stderr
    assert "starting again" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--batch-size", "1"], {}, "2 in all are more than the 1 images of a batch"),
        (["--device", "mps"], {}, "--trainer ddp trains on cuda or cpu"),
        (
            [],
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"},
            "torchrun has started 3 on this host",
        ),
        (
            ["--num-processes", "3", "--batch-size", "5"],
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"},
            "6 in all are more than the 5 images of a batch",
        ),
        (
            [],
            {
                "TORCHELASTIC_RUN_ID": "x",
                "LOCAL_WORLD_SIZE": "2",
                "WORLD_SIZE": "2",
                "TORCHELASTIC_MAX_RESTARTS": "3",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each host",
        ),
    ],
)
def test_bad_numbers_of_processes_are_refused(
    arguments: list[str], variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *DDP, *arguments],
        cwd=tmp_path,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []
