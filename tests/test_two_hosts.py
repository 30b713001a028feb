"""Two hosts on one machine: network namespaces that only a cable joins. They need root and iproute2."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from conftest import ROOT, children, environment, kill_all, wait_until

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], stderr=subprocess.DEVNULL, check=False).returncode == 0


def can_make_hosts() -> bool:
    name = f"zoo-probe-{os.getpid()}"
    return shutil.which("ip") is not None and ip("netns", "add", name) and ip("netns", "delete", name)


@contextmanager
def hosts() -> Iterator[list[str]]:
    names = [f"zoo-{os.getpid()}-{number}" for number in range(2)]
    with ExitStack() as stack:
        for name in names:
            assert ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
        assert ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            assert ip("-n", name, "link", "set", "lo", "up")
            assert ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            assert ip("-n", name, "link", "set", "cable", "up")
        yield names


def torchrun(host: str, number: int, folder: Path) -> subprocess.Popen[str]:
    """The command of doc/Distributed.md, with what it says for hosts whose names do not lead to their addresses."""
    command = [
        "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
        "--nproc-per-node", "1", "--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
        f"{ADDRESSES[0]}:29500", "--rdzv-conf", f"is_host={1 - number}", "--local-addr", ADDRESSES[number],
        "--log-dir", f"{folder}-log",
        "--no-python", str(ROOT / "bin" / "train"), "--trainer", "ddp", "--dataset-id", "digits_v1",
        "--model-id", "mnist_fcn_v1", "--epochs", "40", "--batch-size", "256", "--skip-export", "--output-dir", "run",
    ]  # fmt: skip
    folder.mkdir()
    variables = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": "cable",
        "TMPDIR": str(folder.parent),
    }
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


if can_make_hosts():

    def test_two_hosts_train_together_go_on_when_a_process_is_lost_and_only_the_first_one_writes(
        tmp_path: Path,
    ) -> None:
        with hosts() as names:
            first, second = (torchrun(name, number, tmp_path / f"host{number}") for number, name in enumerate(names))
            try:
                # The rest of the training takes some seconds. The other one looks for this process when both are new.
                wait_until((tmp_path / "host0" / "run" / "checkpoints" / "last.pt").exists, pause=0.001)
                os.kill(children(first.pid)[0], signal.SIGKILL)
                output = first.communicate(timeout=150)[0]
                other = second.communicate(timeout=60)[0]
            finally:
                kill_all(tmp_path)
                for process in (first, second):
                    process.communicate()
        assert (first.returncode, second.returncode) == (0, 0), output + other
        assert "going on after epoch" in output
        assert output.count("epoch  40/40") == 1
        assert "epoch" not in other
        assert (tmp_path / "host0" / "run" / "records" / "trained.json").exists()
        assert list((tmp_path / "host1").iterdir()) == []
