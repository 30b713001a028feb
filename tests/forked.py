"""Commands that fork from a process in which their imports are done: these are most of what a short command takes."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_STREAMS = ((1, "stdout"), (2, "stderr"))

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pipeline.release", "pipeline.evaluation", "pipeline.inference"])


def run(arguments: tuple[str, ...], cwd: Path, variables: dict[str, str], timeout: float) -> CompletedProcess[str]:
    """`python -m pipeline` with these arguments and environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        process = _context.Process(target=_become, args=(arguments, cwd, variables, folder))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutExpired(arguments, timeout)
        out, err = (Path(folder, name).read_text(encoding="utf-8") for _, name in _STREAMS)
        return CompletedProcess(arguments, process.exitcode, out, err)


def _become(arguments: tuple[str, ...], cwd: Path, variables: dict[str, str], folder: str) -> None:
    for descriptor, name in _STREAMS:
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # it is remembered, and TMPDIR may be another one now
    sys.argv = ["pipeline", *arguments]
    from pipeline.cli import main

    main()
