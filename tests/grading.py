"""The parts of grading.sh: `run SERVICE FOLDER` without a container, and `check FOLDER`, which needs only Python."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = {"model": {"mnist_cnn.pt", "eval_results.json"}, "train": {".lock", "logs", "pipeline.log", "records"}}
PICTURE = re.compile(r"predicted_\d_\d+\.png")


def command(service: str) -> list[str]:
    """What a service of compose.yaml runs."""
    import yaml  # not on every machine that has containers

    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    found: list[str] = services[service]["entrypoint"]
    return found


def run(service: str, folder: Path) -> None:
    """Become what the service runs, in the folder that stands for its volume."""
    data = Path(os.environ.get("DATA_DIR") or ROOT / "data").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.execve(ROOT / "bin" / "python", command(service), {**os.environ, "DATA_DIR": str(data)})


def check(folder: Path) -> int:
    """How many epochs were trained; AssertionError of the first thing that is not as it must be."""
    pictures = _names(folder / "results")
    assert len(pictures) == 5, f"results/: expected 5 pictures, found {sorted(pictures)}"
    for name in pictures:
        assert PICTURE.fullmatch(name), f"results/{name}: expected predicted_<class>_<index>.png"
        assert (folder / "results" / name).read_bytes().startswith(b"\x89PNG"), f"results/{name} is not a PNG"
    for place, expected in EXPECTED.items():
        found = _names(folder / place)
        assert found == expected, f"{place}/: expected {sorted(expected)}, found {sorted(found)}"
    assert _names(folder) == {"results", *EXPECTED}, f"expected no other folders, found {sorted(_names(folder))}"

    stored = (folder / "model" / "mnist_cnn.pt").read_bytes()
    assert hashlib.sha256(stored[32:]).digest() == stored[:32], "model/mnist_cnn.pt is cut off or altered"
    evaluated = _json(folder / "model" / "eval_results.json")
    assert 0 < evaluated["test_loss"] < 2, f"eval_results.json: test loss {evaluated['test_loss']}"
    assert 0.6 < evaluated["accuracy"] <= 1, f"eval_results.json: accuracy {evaluated['accuracy']}"
    assert evaluated["answered_by"] == "model/mnist_cnn.pt", f"eval_results.json: of {evaluated['answered_by']}"
    return len(_json(folder / "train" / "logs" / "metrics.json")["epochs"])


def _names(folder: Path) -> set[str]:
    assert folder.is_dir(), f"{folder.name}/ is missing"
    return {path.name for path in folder.iterdir()}


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", service, folder]:
            run(service, Path(folder))
        case ["check", folder]:
            try:
                print(check(Path(folder)))
            except (AssertionError, OSError) as error:
                sys.exit(f"tests/grading.sh: {error}")
