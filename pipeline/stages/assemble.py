"""Put a complete Triton repository with this one model together, in the run's folder."""

import shutil
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.records import Assembled, Carded, DataInfo, Exported
from pipeline.runfolder import RunFolder
from pipeline.specs import MAX_BATCH_SIZE
from pipeline.triton import model_config, repository
from pipeline.triton.store import open_store


def assemble(config: RunConfig, data: DataInfo, exported: Exported, carded: Carded, folder: RunFolder) -> Assembled:
    """`candidate/<name>/config.pbtxt` and `candidate/<name>/<N>/` with every file of the version but release.json.

    The number is the one that a publish would take now; it may take another. Where nothing is to be published it is 1,
    and the repository is not asked.
    """
    name, root = config.release_name, folder.candidate
    number = repository.next_version(open_store(config.model_repository), name) if config.publish else 1
    root.mkdir(exist_ok=True)
    for earlier in root.iterdir():  # the folder itself stays: a server is starting on it
        shutil.rmtree(earlier)
    version = root / name / str(number)
    version.mkdir(parents=True)
    for file in exported.files:
        shutil.copy(folder.root / file.path, version / repository.MODEL_FILES[file.format])
    _copy_card(folder.root, carded, version)
    shutil.copy(folder.metrics, version / "metrics.json")
    shutil.copy(folder.golden, version / "golden.npz")
    (version / repository.LABELS).write_text(repository.labels_text(data.labels), encoding="utf-8")
    own = model_config.build(
        name=name,
        backend="onnxruntime" if config.served_format == "onnx" else "pytorch",
        shape=data.shape,
        classes=len(data.labels),
        max_batch_size=MAX_BATCH_SIZE,
    )
    (version / repository.CONFIG).write_text(model_config.to_text(own), encoding="utf-8")
    (root / name / repository.CONFIG).write_text(repository.pointing_config(own, number), encoding="utf-8")
    return Assembled(
        name=name,
        version=number,
        root=folder.relative(root),
        served_format=config.served_format,
        hashes=repository.hashes(version),
    )


def _copy_card(run: Path, carded: Carded, version: Path) -> None:
    for path in (carded.card, *carded.plots):
        target = version / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / path, target)
