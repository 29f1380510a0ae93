"""One run, one folder: <model_dir>/<method>/<env_id with / as ->/seed_<seed>_<time>/, and how to find one again."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xrl.common.config import save_config
from xrl.common.errors import CheckpointError, ConfigError, ModelFileError
from xrl.common.files import sync
from xrl.configs.schemas.base import RunConfig

CONFIG = "config.yaml"
FACTS = "run.json"
LOCK = ".lock"
PATIENCE = 4.0  # seconds to wait for the lock
BEST_MODEL = "best_model.pth"
FINAL_MODEL = "final_train_model.pth"
INTERRUPTED_MODEL = "interrupted_model.pth"
LAST_GOOD_MODEL = "last_good_model.pth"
MODEL_ENDINGS = (".pth", ".pt", ".safetensors")  # the contents are the same: safetensors


def experiment_name(config: RunConfig) -> Path:
    return Path(config.method) / config.env_id.replace("/", "-")


def new_run_folder(config: RunConfig) -> Path:
    """Create and return a fresh folder that holds config.yaml: there is no moment at which it lacks that."""
    parent = Path(config.model_dir) / experiment_name(config)
    name = f"seed_{config.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    try:
        fresh.chmod(0o777 & ~_umask())
        save_config(config, fresh / CONFIG)
        for suffix in ["", *(f"-{i}" for i in range(1, 1000))]:
            folder = parent / (name + suffix)
            with suppress(OSError):  # there is one of this name, with a config.yaml in it
                fresh.rename(folder)
                sync(parent)
                return folder
        raise FileExistsError(f"{parent / name}: cannot make a fresh run folder")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_closed(folder: Path) -> None:
    """A run folder, perhaps a stranger's, holds files and folders: no link may lead reading or writing out of it, and
    no pipe or device keep its reader waiting. What wandb keeps there (with links of its own) nobody here touches.

    Raises CheckpointError.
    """
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and "wandb" in folders and not (folder / "wandb").is_symlink():
            folders.remove("wandb")
        for name in [*folders, *files]:
            mode = os.lstat(Path(place) / name).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "a link" if stat.S_ISLNK(mode) else "no file"
                raise CheckpointError(f"{Path(place) / name}: is {what}; what a run consists of must lie in its own "
                                      f"folder, {folder}, as files (that folder itself may be a link)")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run to this process, so that no second one resumes it. The lock ends with the process, however it ends.

    Raises ConfigError if another process holds it. Without effect on systems without fcntl.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to: {error}; a run that goes on writes there") from error
    with lock as file:
        # Environments in processes of their own hold it, too, and outlive a killed run for a second.
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(f"{folder}: another process is training this run; wait for it, or stop "
                                      f"it") from None
            time.sleep(0.1)
        yield


def find_model(place: Path) -> Path:
    """The model file meant by ``place``: a file, a run folder, or a folder of run folders (its newest run).

    In a run folder the best evaluated model comes before the final one, and any other file last.

    Raises:
        ModelFileError: there is none.
    """
    if place.is_file():
        return place
    models = _models(place, "*")
    if not models and not (place / CONFIG).exists():  # what lies deeper in a run folder is none of its models
        models = _models(place, "*/*")
    if not models:
        raise ModelFileError(f"{place}: no saved model here; train one first, or name another place (model_dir)")
    newest = max(models, key=lambda path: path.stat().st_mtime).parent
    ranked = [newest / name for name in (BEST_MODEL, FINAL_MODEL)]
    return next((path for path in ranked if path in models), max(
        (path for path in models if path.parent == newest), key=lambda path: path.stat().st_mtime))


def _models(place: Path, pattern: str) -> list[Path]:
    return sorted(path for path in place.glob(pattern) if path.suffix in MODEL_ENDINGS)
