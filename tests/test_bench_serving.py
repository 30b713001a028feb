"""The serving benchmark: it asks real servers, ends in a table, a record and a picture, and leaves nothing behind."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import NAME, STUB, Workplace, assert_nothing_left, processes, run_command, start_command
from tritonclient.http import InferenceServerClient

from pipeline.benchmarks import serving
from pipeline.benchmarks.load import Protocol, Target, ask, read_report
from pipeline.benchmarks.serving import ServingBenchmark, Settings
from pipeline.benchmarks.serving_table import table
from pipeline.errors import InputError, ServerError
from pipeline.triton.server import Server, ServerOptions, running
from pipeline.triton.store import open_store

SHORT = ("--seconds", "0.1", "--rounds", "2", "--concurrency", "3", "--concurrency", "1")
SETTINGS = Settings(protocol="http", concurrencies=(1,), batch_size=1, seconds=1, rounds=1)

# What perf_analyzer 2.50.0 wrote.
REPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "8,2522.76,180,955,733,72,993,202,0,2804,4255,5367,8773\n"
)


@pytest.fixture(scope="module")
def server(released: Workplace) -> Iterator[Server]:
    root = released.repository
    options = ServerOptions(root, None, "explicit", True, "127.0.0.1", 0, 0, 0, drain_seconds=0, load=(NAME,))
    with running(options) as started:
        started.wait_live(time.monotonic() + 60)
        yield started


def test_its_own_server_is_measured_and_ends(released: Workplace, tmp_path: Path) -> None:
    done = run_command(
        "bench", "serving", *SHORT, "--model-repository", str(released.repository), "--batch-size", "2",
        "--json", "new/bench.json", "--plot", "bench.png", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "round 2 of 2" in done.stderr
    result = ServingBenchmark.load(tmp_path / "new" / "bench.json")
    assert table(result) + "\n" == done.stdout
    assert (result.name, result.version, result.settings.batch_size) == (NAME, 1, 2)
    assert [point.concurrency for point in result.points] == [1, 3]
    for side in (side for point in result.points for side in (point.server, point.in_process)):
        assert len(side.rounds) == 2
        for load in (side.median, *side.rounds):
            assert 0 < load.p50_ms <= load.p95_ms <= load.p99_ms
            assert load.throughput > 1
    assert all(point.in_process.median.throughput > point.server.median.throughput for point in result.points)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "bench.png"}


def test_a_running_server_is_asked_and_goes_on(released: Workplace, server: Server, tmp_path: Path) -> None:
    arguments = ("--model-repository", str(released.repository), "--url", f"grpc://{server.grpc_url}")
    done = run_command("bench", "serving", *SHORT, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"by grpc from the server at {server.grpc_url}" in done.stdout
    assert server.is_alive()


def target(server: Server, protocol: Protocol, model: str = NAME) -> Target:
    images = np.zeros((2, 1, 28, 28), np.uint8)
    return Target(protocol, server.http_url if protocol == "http" else server.grpc_url, model, images)


def answered(server: Server) -> int:
    """Requests, by the server's own count."""
    with InferenceServerClient(server.http_url) as client:
        return int(client.get_inference_statistics(NAME)["model_stats"][0]["inference_stats"]["success"]["count"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_server_counts_what_the_clients_count(server: Server, protocol: Protocol) -> None:
    before, started = answered(server), time.perf_counter()
    load = ask(target(server, protocol), 4, 0.3)
    seconds, count = time.perf_counter() - started, answered(server) - before
    assert load.throughput * 0.3 <= count <= load.throughput * seconds
    assert load.client_us is not None
    assert 0 < load.client_us * count / 1e6 < 2 * seconds


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_refused_request_ends_it(server: Server, protocol: Protocol) -> None:
    with pytest.raises(ServerError, match="unknown model"):
        ask(target(server, protocol, "nobody"), 2, 0.3)


def test_a_server_of_other_answers_is_not_measured(released: Workplace, server: Server, tmp_path: Path) -> None:
    version = tmp_path / NAME / "1"
    version.mkdir(parents=True)
    with np.load(released.repository / NAME / "1" / "golden.npz") as golden:
        np.savez(version / "golden.npz", images=golden["images"], probabilities=golden["probabilities"][::-1])
    with pytest.raises(InputError, match="does not give the answers"):
        serving._target(open_store(tmp_path), NAME, 1, server.http_url, SETTINGS)


def test_perf_analyzers_report_is_read() -> None:
    load = read_report(REPORT, 2)
    assert load.throughput == pytest.approx(1261.38)
    assert (load.p50_ms, load.p95_ms, load.p99_ms) == (2.804, 5.367, 8.773)


def test_no_server_there_is_one_line_and_status_4(released: Workplace, tmp_path: Path) -> None:
    with socket.socket() as listener:  # bound but not listening: refused, and nobody else takes it
        listener.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        arguments = ("--model-repository", str(released.repository), "--url", url)
        done = run_command("bench", "serving", *SHORT, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert done.stderr.startswith("error: no Triton server answers")


def test_an_empty_repository_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "model_repository").mkdir()
    done = run_command("bench", "serving", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: nothing is released")


def test_an_unknown_name_is_refused(released: Workplace) -> None:
    with pytest.raises(InputError, match=f"mnist is not in .*: known: {NAME}"):
        serving.benchmark(open_store(released.repository), "mnist", None, SETTINGS)


def test_ctrl_c_ends_it_and_its_server(released: Workplace, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    arguments = ("--seconds", "30", "--model-repository", str(released.repository), "--json", "bench.json")
    with start_command("bench", "serving", *arguments, cwd=tmp_path, temporary=temporary) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "round 1 of 5\n"
        guards = processes(temporary, "guard.py")
        assert len(guards) == 1
        assert processes(temporary, STUB)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1].startswith("error: interrupted")
    assert_nothing_left(temporary, guards)
    assert list(tmp_path.iterdir()) == [temporary]
