"""The command line: its surface is frozen, its errors are one line, and nothing is left after one."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from conftest import NAME, ROOT, Workplace, environment, run_command

from pipeline import options
from pipeline.commands import CONTEXT, docs, train
from pipeline.settings import configure

SURFACE = """
-h --help --model-id --dataset-id --data-dir --output-dir --image-size --criterion-id --optimizer-id --scheduler-id
--epochs --add-epochs --max-steps --batch-size --learning-rate --lr --weight-decay --label-smoothing --augmentation
--hard-fraction --gradient-clip-norm --gamma --validation-fraction --early-stopping-patience --seed --test-batch-size
--log-interval --checkpoint --save-model --no-save-model --resume --no-resume --tensorboard --dry-run --device
--no-cuda --no-mps --precision --trainer --num-processes --export-format --export_format --skip-export
--skip-visualizations --min-test-accuracy --min-per-class-accuracy --max-model-size-mb --max-inference-time-ms
--served-format --model-repository --release-name --no-publish --sign-key --validate-with -q --quiet --debug
"""


def test_the_flags_of_train_are_frozen() -> None:
    command = train.command
    context = command.context_class(command, **CONTEXT)
    found = {name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)}
    assert found | {"-h", "--help"} == set(SURFACE.split())


def test_general_defaults_are_frozen() -> None:
    expected = {
        "epochs": 5,
        "batch_size": 64,
        "learning_rate": 0.001,
        "optimizer_id": "adam",
        "criteria": ("nll",),
        "gamma": 0.7,
        "seed": 1,
        "log_interval": 10,
        "test_batch_size": 1000,
        "min_test_accuracy": 0.97,
        "min_per_class_accuracy": 0.90,
        "max_model_size_mb": 10.0,
        "max_inference_time_ms": 50.0,
    }
    assert {name: options.DEFAULTS[name] for name in expected} == expected


def test_help_is_grouped_and_loads_nothing_slow() -> None:
    code = (
        "import sys\nfrom pipeline.commands import train\n"
        "command = train.command\n"
        "print(command.get_help(command.context_class(command)))\n"
        "slow = {'torch', 'numpy', 'pydantic', 'matplotlib', 'onnx', 'tritonclient'} & set(sys.modules)\n"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for group in ("What to train:", "Training:", "Device:", "Export:", "Gates:", "Release:", "Output:"):
        assert group in done.stdout


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "doc" / "Cli.md").read_text(encoding="utf-8") == docs.reference()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model-id", "mnist_cn_v1"], "did you mean mnist_"),
        (["--model-id", "../../x"], "unknown model"),
        (["--dataset-id", "mnist"], "unknown data set"),
        (["--dataset-id", "digits_v1", "--optimizer-id", "adm"], "unknown optimizer"),
        (["--dataset-id", "digits_v1", "--criterion-id", "nll:-1"], "above 0"),
        (["--min-test-accuracy", "1.5"], "0<=x<=1"),
        (["--min-per-class-accuracy", "nan"], "finite"),
        (["--epochs", "0"], "x>=1"),
        (["--batch-size", "-3"], "x>=1"),
        (["--dataset-id", "digits_v1", "--batch-size", "5000"], "1293 training images"),
        (["--dataset-id", "digits_v1", "--release-name", "../x"], "--release-name"),
        (["--dataset-id", "digits_v1", "--export-format", "pytorch"], "--export-format onnx"),
        (["--dataset-id", "digits_v1", "--output-dir", "file/run"], "--output-dir"),
        (["--dataset-id", "digits_v1", "--model-repository", "file"], "--model-repository"),
        (["--dataset-id", "digits_v1", "--model-repository", "gs://bucket/models"], "expected a folder, s3://"),
        (["--dataset-id", "digits_v1", "--criterion-id", "capsule_loss_v1"], "has no meaning for mnist_cnn_v1"),
        (["--dataset-id", "digits_v1", "--image-size", "100"], "always have 28x28 pixels"),
        (["--dataset-id", "digits_v1", "--seed", "4294967296"], "0<=x<=4294967295"),
        (["--dataset-id", "mnist_v1", "--data-dir", "~nobody-here/data"], "~nobody-here/data/MNIST/raw"),
        (["--epoch", "3"], "--epochs"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    run = [] if "--output-dir" in arguments else ["--output-dir", str(tmp_path / "run")]
    done = run_command("train", *arguments, *run, cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "run"}


def test_a_loss_that_is_no_number_is_refused_with_status_3(tmp_path: Path) -> None:
    done = run_command(
        "train",
        "--dataset-id",
        "digits_v1",
        "--optimizer-id",
        "sgd",
        "--lr",
        "1e30",
        "--output-dir",
        "run",
        cwd=tmp_path,
    )
    assert done.returncode == 3
    assert "loss became" in done.stderr
    assert not (tmp_path / "model_repository").exists()


def test_a_fault_of_the_program_is_one_line_and_status_1(tmp_path: Path) -> None:
    code = "from pipeline import cli, commands; commands.load = lambda name: 1 / 0; cli.main()"
    for more in ((), ("--debug",)):
        command = [sys.executable, "-c", code, "zoo", "list", *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        *traceback, line = done.stderr.splitlines()
        assert line == "error: unexpected ZeroDivisionError: division by zero; --debug shows the traceback"
        assert bool(traceback) == bool(more)


@pytest.mark.parametrize("arguments", [["list", "--json"], ["list"], ["--help"]], ids=["print", "rich", "click"])
def test_who_cannot_print_ends_with_a_status_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    unread, closed = os.pipe()
    os.close(unread)
    full = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-m", "pipeline", "zoo", *arguments]
    buffered = {**environment(), "PYTHONUNBUFFERED": ""}
    for output, status, said in (
        (closed, 141, r"\A\Z"),
        (full, 4, r"\Aerror: standard output or a file: No space left on device: [^\n]*\n\Z"),
    ):
        done = subprocess.run(
            command, cwd=tmp_path, env=buffered, stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(output)
        assert done.returncode == status, done.stderr
        assert re.search(said, done.stderr), done.stderr


def test_tensorboard_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['tensorboard'] = None; from pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--dataset-id", "digits_v1", "--tensorboard"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "requirements-tensorboard.lock" in done.stderr
    assert (ROOT / "requirements-tensorboard.lock").exists()


def test_a_damaged_checkpoint_is_refused(released: Workplace, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    path.parent.mkdir(parents=True)
    content = (released.run / "checkpoints" / "last.pt").read_bytes()
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    done = run_command("train", "--dataset-id", "digits_v1", "--epochs", "6", "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "--no-resume" in done.stderr


def test_a_refused_run_leaves_what_lies_in_its_folder(released: Workplace, tmp_path: Path) -> None:
    shutil.copytree(released.run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "records").iterdir()}
    other = ("--dataset-id", "digits_v1", "--model-id", "mnist_fcn_v1", "--output-dir", "run")
    done = run_command("train", *other, cwd=tmp_path)
    assert done.returncode == 2
    assert "model_id was 'mnist_cnn_v1' and is now 'mnist_fcn_v1'" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "records").iterdir()} == before


def test_a_name_that_is_live_with_other_inputs_is_refused_before_training(released: Workplace, tmp_path: Path) -> None:
    done = run_command(
        "train", "--dataset-id", "cifar10_v1", "--release-name", NAME,
        "--model-repository", str(released.repository), "--output-dir", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--release-name" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named(released: Workplace) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_command("serve", "--http-port", str(port), cwd=released.folder)
    assert done.returncode == 4
    assert f"port {port}" in done.stderr


@pytest.mark.parametrize(
    ("typed", "epochs", "max_steps"), [([], 1, 162), (["--epochs", "2"], 2, None), (["--max-steps", "9"], 1, 9)]
)
def test_the_recipes_steps_yield_to_epochs_that_were_typed(
    typed: list[str], epochs: int, max_steps: int | None
) -> None:
    context = train.command.make_context("train", ["--model-id", "mnist_cnn_fast_v1", *typed])
    flags = {**context.params, "typed": train.typed(context)}
    config = configure(flags, "mnist_v1", fallback=False, started=time.localtime())
    assert (config.train.epochs, config.train.max_steps) == (epochs, max_steps)


def test_flag_environment_dotenv_recipe_and_default(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MODEL_REPOSITORY='from dotenv'\nDATA_DIR=unused\n")
    done = forked.run(
        ("train", "--dataset-id", "digits_v1", "--epochs", "1", "--dry-run", "--no-mps"),
        tmp_path,
        {**environment(), "DATA_DIR": "from environment", "OUTPUT_DIR": "run"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stderr.splitlines() if line.startswith("  ")}
    assert shown["epochs"] == "1 flag"
    assert shown["data_dir"] == "from environment environment"
    assert shown["model_repository"] == "from dotenv .env"
    assert shown["learning_rate"] == "0.01 recipe"
    assert shown["gamma"] == "0.7 default"
    assert shown["devices"] == "cuda cpu flag"
    assert shown["release_name"] == "mnist_cnn_v1-digits_v1 default"
    assert shown["test_batch_size"] == "1000 default"
    assert (tmp_path / "run").is_dir()
