"""Write the served network in each format that was asked for."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import registry
from pipeline.errors import StorageError
from pipeline.records import DataInfo, Exported, ExportedFile, Format
from pipeline.runfolder import RunFolder
from pipeline.served import Served

_log = logging.getLogger(__name__)


def export(served: Served, data: DataInfo, formats: Sequence[Format], folder: RunFolder) -> Exported:
    """One file per format, each with its hash. StorageError where it cannot be written."""
    example = torch.zeros((2, *data.shape), dtype=torch.uint8)
    return Exported(files=tuple(_export(served, example, name, folder, data.short_name) for name in formats))


def _export(served: Served, example: torch.Tensor, name: Format, folder: RunFolder, short_name: str) -> ExportedFile:
    entry = registry.file_format(name)
    path = folder.model(short_name, entry.SUFFIX)
    try:
        path.parent.mkdir(exist_ok=True)
        details = entry.export(served, example, path)
        content = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}): free space and run the command again"
        ) from None
    _log.info("wrote %s (%.2f MB)", folder.relative(path), len(content) / 1e6)
    return ExportedFile(
        format=name,
        path=folder.relative(path),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        details=details,
    )
