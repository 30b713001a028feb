"""`bin/serve` as people run it: what it says, which container it would run, and what it leaves.

Where there is no container engine, a stand-in runs the image's command with the embedded server in the image's place.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_nothing_left, environment, processes, run_command, start_command, wait_until
from test_triton_server import MATRIX, add_version, expected, images, onnx_model, point_at

from pipeline.errors import InputError, ServerError
from pipeline.serving import choose
from pipeline.triton import client, container
from pipeline.triton.server import ServerOptions

FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")

# Records what it is asked, says that it has the image, and runs the command in it.
DOCKER = """#!{python}
import json, os, sys

with open({asked!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "images":
    print("sha256:0")
elif sys.argv[1] == "run":
    at = sys.argv.index({image!r})
    flags = dict(flag.split("=", 1) for flag in sys.argv[2:at] if "=" in flag and "--publish" not in flag)
    published = [flag.split(":") for flag in sys.argv[2:at] if flag.startswith("--publish=")]
    os.environ["SOURCE"] = flags["--mount"].split('source=')[1].split('"')[0]
    os.environ["PORTS"] = json.dumps({{inner: outer for _, outer, inner in published}})
    os.execvp("sh", sys.argv[at + 1 :])
"""

# What the image has under this name; under a guard, which does for it what a container does.
TRITONSERVER = """#!{python}
import json, os, sys, tempfile
sys.path.insert(0, {root!r})
from pipeline.triton import guard, server

ports = json.loads(os.environ["PORTS"])
arguments = []
for argument in sys.argv[1:]:
    flag, _, value = argument.partition("=")
    if flag == "--model-repository":
        assert value == "/models"
        value = os.environ["SOURCE"]
    elif flag.endswith("-address"):
        assert value == "0.0.0.0"
        value = "127.0.0.1"
    elif flag in ("--http-port", "--grpc-port", "--metrics-port"):
        value = ports[value]
    arguments.append(f"{{flag}}={{value}}" if value else flag)
reading, writing = os.pipe()
os.dup2(reading, 0)
os.set_inheritable(writing, True)
folders = [tempfile.gettempdir(), server.TRITON / "backends" / "python", server.STUB, server.PACKAGE / "backends"]
command = [sys.executable, "-I", "-S", guard.__file__, *map(str, folders), "5", str(server.BINARY), *arguments]
os.execve(sys.executable, command, server._environment())
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a program before all others of its name."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, text: str) -> None:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    return put


@pytest.fixture
def asked(tmp_path: Path, programs: Callable[[str, str], None]) -> Callable[[], list[list[str]]]:
    """What the stand-in for docker was asked."""
    file = tmp_path / "asked"
    root = str(Path(__file__).parent.parent)
    programs("docker", DOCKER.format(python=sys.executable, asked=str(file), image=container.IMAGE))
    programs("tritonserver", TRITONSERVER.format(python=sys.executable, root=root))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the one model `digits`."""
    add_version(tmp_path / "models" / "digits", 1, "onnxruntime", onnx_model(), instances=1)
    point_at(tmp_path / "models" / "digits", 1)
    return tmp_path / "models"


class Serving:
    """A running `bin/serve` and what it has said."""

    def __init__(self, process: subprocess.Popen[str], temporary: Path) -> None:
        self.process = process
        self.temporary = temporary
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def waits_for(self, pattern: str) -> re.Match[str]:
        """The first line that it says, or has said, with the pattern."""
        found: list[re.Match[str]] = []

        def is_said() -> bool:
            found[:] = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            return bool(found) or self.process.poll() is not None

        wait_until(is_said, 60, f"{pattern} in {self.lines}")
        assert found, self.lines
        return found[0]

    @property
    def urls(self) -> tuple[str, str]:
        """HTTP's and gRPC's."""
        found = self.waits_for(r"HTTP (\S+), gRPC (\S+), metrics")
        return found[1], found[2]

    def guards(self) -> list[int]:
        return processes(self.temporary, "guard.py")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(repository: Path, *flags: str) -> Iterator[Serving]:
    temporary = repository.parent / "tmp"
    temporary.mkdir()
    arguments = ("serve", "--model-repository", str(repository), *FREE_PORTS, *flags)
    started = Serving(start_command(*arguments, cwd=repository.parent, temporary=temporary), temporary)
    try:
        yield started
    finally:
        started.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_stock_image_answers_and_ends_with_serve(
    models: Path, asked: Callable[[], list[list[str]]], how: signal.Signals
) -> None:
    with serving(models, "--memory", "2g", "--cpus", "1.5") as started:
        http, grpc = started.urls
        assert container.IMAGE in started.lines[0]
        started.waits_for("digits version 1 ready")
        batch = images(3)
        np.testing.assert_allclose(client.classify(http, "digits", batch), expected(batch), atol=1e-5)
        np.testing.assert_allclose(client.classify(f"grpc://{grpc}", "digits", batch), expected(batch), atol=1e-5)
        guards = started.guards()
        assert guards
        started.process.send_signal(how)
        assert started.process.wait(15) == (143 if how == signal.SIGTERM else -signal.SIGKILL)
        assert_nothing_left(started.temporary, guards)
    run = asked()[1]
    flags, command = run[1 : run.index(container.IMAGE)], run[run.index(container.IMAGE) + 1 :]
    (name,) = (flag for flag in flags if flag.startswith("--name="))
    ports = [url.rpartition(":")[2] for url in (http, grpc)]
    metrics = re.search(r"metrics 127.0.0.1:(\d+)", started.lines[0])
    assert metrics
    assert set(flags) - {"--gpus=all"} == {  # the last where there is a GPU
        name,
        "--rm",
        "--interactive",
        "--pull=never",
        "--log-driver=none",
        "--user=1000:1000",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f'--mount=type=bind,"source={models}",target=/models,readonly',
        f"--publish=127.0.0.1:{ports[0]}:8000",
        f"--publish=127.0.0.1:{ports[1]}:8001",
        f"--publish=127.0.0.1:{metrics[1]}:8002",
        "--memory=2g",
        "--cpus=1.5",
    }
    assert command[4] == "tritonserver"
    assert {"--model-control-mode=poll", "--exit-on-error=false", "--disable-auto-complete-config"} < set(command)
    removed = [["rm", "--force", name.removeprefix("--name=")]]
    assert asked()[2:] == (removed if how == signal.SIGTERM else [])


def test_a_container_reads_from_an_object_store_with_our_credentials_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    options = ServerOptions("s3://bucket/models", None, "poll", False)
    flags = container._flags(
        options,
        container.Container("docker", "image"),
        "name",
        {"--http-port": 1, "--grpc-port": 2, "--metrics-port": 3},
    )
    assert "--env=AWS_SECRET_ACCESS_KEY" in flags
    assert not any("hidden" in flag or "--mount" in flag for flag in flags)


def life_line(command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "-c", container._LIFE_LINE, "sh", "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_containers_server_ends_with_its_input_and_gives_its_status() -> None:
    with life_line("trap 'exit 7' TERM; echo begun; while true; do sleep 0.05; done") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "begun\n"
        process.stdin.close()
        assert process.wait(5) == 7
    with life_line("exit 5") as process:
        assert process.wait(5) == 5


def test_a_containers_server_may_end_its_requests_until_it_is_told_twice() -> None:
    with life_line("trap 'echo told' TERM; echo begun; while true; do sleep 0.05; done") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "begun\n"
        process.stdin.close()
        assert process.stdout.readline() == "told\n"
        assert process.poll() is None
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGKILL


NO_DAEMON = "#!/bin/sh\necho 'Cannot connect to the daemon.' >&2\nexit 1\n"
NO_IMAGE = "#!/bin/sh\n"
HAS_IMAGE = "#!/bin/sh\necho sha256:0\n"


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ({}, ["install Docker or Podman", "--engine embedded"]),
        ({"docker": NO_IMAGE}, [f"run docker pull {container.IMAGE}", "--engine embedded"]),
        ({"docker": NO_DAEMON, "podman": NO_IMAGE}, ["Cannot connect", f"podman pull {container.IMAGE}"]),
    ],
)
def test_an_image_that_is_not_there_is_never_fetched_but_named(
    engines: dict[str, str],
    said: list[str],
    programs: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))  # where this machine's own engine is not
    for name, text in engines.items():
        programs(name, text)
    with pytest.raises(ServerError) as error:
        choose("docker", container.IMAGE, None, None)
    for part in said:
        assert part in str(error.value)
    assert choose("auto", container.IMAGE, None, None) is None
    with pytest.raises(InputError, match="--engine docker"):
        choose("auto", container.IMAGE, "4g", None)


def test_the_engine_that_has_the_image_is_taken(programs: Callable[[str, str], None]) -> None:
    programs("docker", NO_DAEMON)
    programs("podman", HAS_IMAGE)
    chosen = choose("auto", "an/image:1", "4g", 2)
    assert chosen == container.Container("podman", "an/image:1", "4g", 2)
    assert choose("embedded", "an/image:1", None, None) is None


def release(folder: Path, engine: str) -> subprocess.CompletedProcess[str]:
    """A release that is made quickly."""
    return run_command(
        "train", "--dataset-id", "digits_v1", "--model-id", "mnist_fcn_v1", "--epochs", "1", "--min-test-accuracy", "0",
        "--min-per-class-accuracy", "0", "--export-format", "onnx", "--skip-visualizations", "--output-dir", "run",
        "--validate-with", engine, cwd=folder,
    )  # fmt: skip


def test_a_release_is_proven_by_the_stock_image(tmp_path: Path, asked: Callable[[], list[list[str]]]) -> None:
    done = release(tmp_path, "auto")
    assert done.returncode == 0, done.stderr
    (released,) = tmp_path.glob("model_repository/*/1/release.json")
    validated = json.loads(released.read_bytes())["validated"]
    assert re.fullmatch(rf"Triton 2\.\d+\.\d+ \({re.escape(container.IMAGE)}\)", validated["server"])
    (run,) = (arguments for arguments in asked() if arguments[0] == "run")
    assert f'--mount=type=bind,"source={tmp_path / "run" / "candidate"}",target=/models,readonly' in run
    assert "--model-control-mode=explicit" in run


def test_an_image_that_is_to_prove_a_release_is_missed_before_the_training(
    tmp_path: Path, programs: Callable[[str, str], None]
) -> None:
    programs("docker", NO_IMAGE)
    done = release(tmp_path, "docker")
    assert done.returncode == 4
    assert f"run docker pull {container.IMAGE}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_container_that_cannot_start_says_why(models: Path, programs: Callable[[str, str], None]) -> None:
    reason = 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]]'
    programs("docker", f"#!/bin/sh\n[ $1 = images ] && echo x && exit 0\necho '{reason}\n\nRun --help' >&2\nexit 125\n")
    done = run_command("serve", "--engine", "docker", "--model-repository", str(models), *FREE_PORTS, cwd=models.parent)
    assert done.returncode == 4
    assert "could not select device driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_becomes_of_each_model_is_said_once(models: Path, programs: Callable[[str, str], None]) -> None:
    """Of the bad ones by name and reason, while the good one is served, and of later versions as they come."""
    add_version(models / "cut-short", 1, "onnxruntime", onnx_model(), instances=1)
    file = models / "cut-short" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:100])
    point_at(models / "cut-short", 1)
    (models / "no-config" / "1").mkdir(parents=True)
    batch = images(2)
    with serving(models, "--engine", "embedded") as started:
        http, _ = started.urls
        started.waits_for("^  digits version 1 ready$")
        started.waits_for("^  cut-short version 1 refused: .*Error parsing")
        started.waits_for("^  no-config refused: .*config.pbtxt: No such file")
        started.waits_for("^try: bin/infer")
        np.testing.assert_allclose(client.classify(http, "digits", batch), expected(batch), atol=1e-5)

        shutil.rmtree(models / "cut-short")  # each try takes the server's time
        add_version(models / "digits", 2, "onnxruntime", onnx_model(-MATRIX), instances=1)
        point_at(models / "digits", 2)
        started.waits_for("^  digits version 2 ready$")
        add_version(models / "digits", 3, "onnxruntime", None, instances=1)
        point_at(models / "digits", 3)
        started.waits_for("^  digits version 3 refused: .*model.onnx is missing")
        np.testing.assert_allclose(client.classify(http, "digits", batch), expected(batch, -MATRIX), atol=1e-5)
        point_at(models / "digits", 1)
        wait_until(lambda: started.lines.count("  digits version 1 ready\n") == 2, 30, "version 1 is ready again")
        time.sleep(1.5)  # it has tried the bad one again meanwhile
        assert len([line for line in started.lines if "refused" in line]) == 3, started.lines


def test_no_server_reads_from_github(tmp_path: Path) -> None:
    done = run_command("serve", "--model-repository", "github:someone/zoo", cwd=tmp_path)
    assert done.returncode == 2
    assert "run bin/zoo pull github:someone/zoo" in done.stderr


def test_explicit_control_is_for_this_machine_alone(models: Path) -> None:
    done = run_command(
        "serve", "--model-repository", str(models), "--control", "explicit", "--host", "0.0.0.0", cwd=models.parent
    )
    assert done.returncode == 2
    assert "--control poll" in done.stderr


def test_a_server_that_is_not_ready_in_time_is_given_up(models: Path) -> None:
    done = run_command(
        "serve", "--model-repository", str(models), "--engine", "embedded", "--ready-seconds", "0.01", *FREE_PORTS,
        cwd=models.parent,
    )  # fmt: skip
    assert done.returncode == 4
    assert "not live in time" in done.stderr


def test_the_guides_name_the_pinned_image() -> None:
    for guide in ("README.md", "doc/Operations.md"):
        named = re.findall(r"nvcr\.io/nvidia/tritonserver:\d\S*", (ROOT / guide).read_text(encoding="utf-8"))
        assert set(named) == {container.IMAGE}, guide


def test_serve_loads_no_torch() -> None:
    code = "import sys; from pipeline import serving, settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
