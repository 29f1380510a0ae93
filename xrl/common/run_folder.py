"""One run, one folder: <model_dir>/<method>/<env_id with / as ->/seed_<seed>_<time>/, and how to find one again."""

from __future__ import annotations

import time
from pathlib import Path

from xrl.common.errors import ModelFileError
from xrl.configs.schemas.base import RunConfig

BEST_MODEL = "best_model.pth"
FINAL_MODEL = "final_train_model.pth"
INTERRUPTED_MODEL = "interrupted_model.pth"
LAST_GOOD_MODEL = "last_good_model.pth"
MODEL_ENDINGS = (".pth", ".pt", ".safetensors")  # the contents are the same: safetensors


def experiment_name(config: RunConfig) -> Path:
    return Path(config.method) / config.env_id.replace("/", "-")


def new_run_folder(config: RunConfig) -> Path:
    """Create and return a fresh folder."""
    parent = Path(config.model_dir) / experiment_name(config)
    name = f"seed_{config.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ["", *(f"-{i}" for i in range(1, 1000))]:
        folder = parent / (name + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{parent / name}: cannot make a fresh run folder")


def find_model(place: Path) -> Path:
    """The model file meant by ``place``: a file, a run folder, or a folder of run folders (its newest run).

    In a run folder the best evaluated model comes before the final one, and any other file last.

    Raises:
        ModelFileError: there is none.
    """
    if place.is_file():
        return place
    models = _models(place, "*") or _models(place, "*/*")
    if not models:
        raise ModelFileError(f"{place}: no saved model here; train one first, or name another place (model_dir)")
    newest = max(models, key=lambda path: path.stat().st_mtime).parent
    ranked = [newest / name for name in (BEST_MODEL, FINAL_MODEL)]
    return next((path for path in ranked if path in models), max(
        (path for path in models if path.parent == newest), key=lambda path: path.stat().st_mtime))


def _models(place: Path, pattern: str) -> list[Path]:
    return sorted(path for path in place.glob(pattern) if path.suffix in MODEL_ENDINGS)
