"""Killed at any moment: a run goes on as if nothing had been, and no file is ever half of one."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import environment

COMMAND = (
    sys.executable, "-m", "pipeline", "train", "--dataset-id", "digits_v1", "--model-id", "mnist_fcn_v1",
    "--epochs", "24", "--batch-size", "256", "--skip-export", "--quiet", "--output-dir",
)  # fmt: skip
KILL_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from pipeline.training import checkpoint

signal.alarm(50)
torch.set_num_threads(1)
path, moments, numbers, unfinished = Path(sys.argv[1]), random.Random(1), set(), 0
half = path.with_name(".last.pt.tmp")
for number in range(20):
    writer = os.fork()
    while not writer:
        signal.alarm(50)
        state = {"identity": "{}", "number": number, "weights": torch.full((300_000,), float(number))}
        checkpoint.save(path, state)
    time.sleep(moments.uniform(0, 0.15))
    while number % 2 and not half.exists():
        pass  # every second one is killed while it writes
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    unfinished += half.exists()
    half.unlink(missing_ok=True)
    state = checkpoint.load(path, {})
    if state is not None:
        assert bool((state["weights"] == state["number"]).all())
        numbers.add(state["number"])
print(len(numbers), unfinished)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, str(folder)], cwd=folder.parent, env=environment())


def wait_for_a_checkpoint(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until this process has written one."""
    before, deadline = modified(path), time.monotonic() + 60
    while modified(path) == before:
        assert process.poll() is None, f"ended with {process.returncode} before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def trained(folder: Path) -> dict[str, Any]:
    """What a run came to, without how long it took."""
    record: dict[str, Any] = json.loads((folder / "records" / "trained.json").read_text())
    del record["seconds"]
    for epoch in record["epochs"]:
        del epoch["seconds"]
    return record


def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    path = killed / "checkpoints" / "last.pt"
    uninterrupted = start(whole)
    moments = random.Random(1)
    try:
        for _ in range(2):
            with start(killed) as process:
                try:
                    wait_for_a_checkpoint(process, path)
                    time.sleep(moments.uniform(0, 0.2))
                finally:
                    process.kill()
            assert process.returncode == -signal.SIGKILL
        with start(killed) as process:
            assert process.wait(60) == 0
        assert uninterrupted.wait(60) == 0
    finally:
        uninterrupted.kill()
        uninterrupted.wait()
    done = [int(epoch) for epoch in re.findall(r"going on after epoch (\d+)", (killed / "pipeline.log").read_text())]
    assert 0 < done[0] < done[1] < 24
    assert trained(killed) == trained(whole)
    assert not list(killed.rglob(".*.tmp"))


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_WRITERS, str(tmp_path / "last.pt")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    written, unfinished = map(int, done.stdout.split())
    assert written > 1
    assert unfinished > 0, "no writer was killed while it wrote"
