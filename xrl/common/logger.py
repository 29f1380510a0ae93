"""Where metrics go: metrics.jsonl always, TensorBoard or wandb beside it. Keys are explained in docs/metrics.md."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from xrl.common.errors import ConfigError

COUNTERS = ("agent_steps", "frames", "updates")


class Sink(Protocol):
    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None: ...
    def close(self) -> None: ...


class Logger:
    """Writes records; each carries the counters. The x axis everywhere is ``frames``."""

    def __init__(self, kind: str, folder: Path, *, project: str, name: str, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl")]
        if kind == "tensorboard":
            self.sinks.append(TensorBoard(folder))
        elif kind == "wandb":
            self.sinks.append(Wandb(folder, project, name, config))

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        """One record: metrics by key, and the COUNTERS."""
        for sink in self.sinks:
            sink.write(metrics, counters)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.sinks = []


class JsonLines:
    """One JSON object per line, flushed at once: a killed run keeps every line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        print(json.dumps({**counters, **metrics}), file=self.file, flush=True)

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(str(folder))

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        steps = {f"counters/{key}": counters[key] for key in ("agent_steps", "updates")}
        for key, value in {**metrics, **steps}.items():
            self.writer.add_scalar(key, value, counters["frames"])

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Online where an account is set up or WANDB_MODE says so; offline otherwise: never an account required."""

    def __init__(self, folder: Path, project: str, name: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("logger: wandb: the wandb package is not installed; `pip install wandb`, or "
                              "logger: tensorboard") from error
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _wandb_account() else "offline")
        print(f"wandb: {mode}", file=sys.stderr)
        self.run = wandb.init(project=project, name=name, dir=str(folder), config=config, mode=mode,
                              settings=wandb.Settings(silent=True))

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        self.run.log({**metrics, **counters}, step=counters["frames"])

    def close(self) -> None:
        self.run.finish()


def _wandb_account() -> bool:
    """`wandb login` leaves its key in the netrc file."""
    netrc = Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
    return bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace"))
