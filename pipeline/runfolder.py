"""Where everything lies in a run's folder. A run folder is the whole truth: each stage can run again from it."""

from dataclasses import dataclass
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from pipeline.errors import FolderError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; `root` may be moved as a whole."""

    root: Path

    @property
    def log(self) -> Path:
        return self.root / "pipeline.log"

    @property
    def metrics(self) -> Path:
        return self.root / "logs" / "metrics.json"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoints" / "last.pt"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def reference(self) -> Path:
        """Probabilities float32 [N, K] of the network in PyTorch over the test set."""
        return self.root / "records" / "probabilities.npy"

    @property
    def golden(self) -> Path:
        """Some test images and what the served file answered to them."""
        return self.root / "records" / "golden.npz"

    @property
    def candidate(self) -> Path:
        """A Triton repository with the one model that is to be released."""
        return self.root / "candidate"

    def record(self, name: str) -> Path:
        return self.root / "records" / f"{name}.json"

    def clear_records(self) -> None:
        """A stage that is not reached this time must not be answered for by a record of an earlier run."""
        for path in (self.root / "records").glob("*.json"):
            path.unlink()

    def model(self, short_name: str, suffix: str) -> Path:
        return self.root / "models" / f"{short_name}_model{suffix}"

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def open(self) -> AcquireReturnProxy[FileLock]:
        """Make the folder and hold it for this process while a `with` block runs; FolderError where that cannot be."""
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = lock.acquire()
            # A run that was killed while it wrote a file has left the unfinished one; others are not ours.
            for written in (self.record("*"), self.metrics, self.checkpoint):
                for temporary in written.parent.glob(f".{written.name}.tmp"):
                    temporary.unlink()
        except Timeout:
            raise FolderError(
                f"{self.root} is in use by another run: wait for it or name another --output-dir"
            ) from None
        except OSError as error:
            raise FolderError(
                f"{self.root} cannot be written ({error.strerror}): name another folder by --output-dir or OUTPUT_DIR"
            ) from None
        return held
