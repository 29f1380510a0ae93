"""Where metrics go: metrics.jsonl always, TensorBoard or wandb beside it. Keys are explained in docs/metrics.md."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from xrl.common.errors import ConfigError
from xrl.common.files import sync

COUNTERS = ("agent_steps", "frames", "updates")
METRICS = "metrics.jsonl"
HEALTH = "health.jsonl"
EVENTS = "events.out.tfevents.*"  # what TensorBoard calls its files


class Sink(Protocol):
    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None: ...
    def write_picture(self, name: str, data: bytes, size: tuple[int, int], counters: dict[str, int]) -> None: ...
    def marks(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Logger:
    """Writes records; each carries the counters. The x axis everywhere is ``frames``.

    ``marks``: what an earlier process of this run gave as its ``marks()``. A disk that is full costs records, not the
    run.
    """

    def __init__(self, kind: str, folder: Path, *, project: str, name: str, config: dict[str, Any],
                 marks: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._earlier = {name: marks[name] for name in ("wandb",) if name in marks}
        self.sinks: list[Sink] = [JsonLines(folder / METRICS)]
        if kind == "tensorboard":
            self.sinks.append(TensorBoard(folder))
        elif kind == "wandb":
            self.sinks.append(Wandb(folder, project, name, config, marks.get("wandb")))
        self._lost = 0

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        """One record: metrics by key, and the COUNTERS."""
        for sink in self.sinks:
            with self._losing():
                sink.write(metrics, counters)

    def write_picture(self, name: str, data: bytes, size: tuple[int, int], counters: dict[str, int]) -> None:
        """``data``: a PNG or GIF of ``size`` (height, width)."""
        for sink in self.sinks:
            with self._losing():
                sink.write_picture(name, data, size, counters)

    def write_health(self, curves: Mapping[str, Any], counters: dict[str, int]) -> None:
        """A line of HEALTH: what was seen of the world model at one evaluation and is no scalar."""
        with self._losing(), (self._folder / HEALTH).open("a", encoding="utf-8") as file:
            print(json.dumps({**counters, **curves}), file=file)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._lost == 0:
                print(f"log: a record is lost: {error}; training goes on", file=sys.stderr)
            self._lost += 1

    def marks(self) -> dict[str, Any]:
        """How far every file of the log has got, by name, whoever writes it, and what continues it elsewhere; see
        ``cut_logs``."""
        own = {name: mark for sink in self.sinks for name, mark in sink.marks().items()}
        return {**self._earlier, **_sizes(self._folder), **own}

    def close(self) -> None:
        if self._lost:
            print(f"log: {self._lost} records could not be written", file=sys.stderr)
        for sink in self.sinks:
            with suppress(OSError):  # nothing can be done about the last bytes, and the run is over
                sink.close()
        self.sinks = []


def cut_logs(folder: Path, marks: Mapping[str, Any]) -> None:
    """Bring the log's files back to ``marks``: what was written later will be written again.

    Of wandb nothing can be cut; it shows again what it was sent before.
    """
    for path in _files(folder):
        if (size := marks.get(path.name)) is None:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)


def _files(folder: Path) -> list[Path]:
    """Those of the log, whichever sink writes them now."""
    paths = [folder / METRICS, folder / HEALTH, *folder.glob(EVENTS)]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _sizes(folder: Path) -> dict[str, Any]:
    """How long each file is, and is for certain, whatever happens to the machine."""
    for path in _files(folder):
        sync(path)
    return {path.name: path.stat().st_size for path in _files(folder)}


class JsonLines:
    """One JSON object per line, flushed at once: a killed run keeps every line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        print(json.dumps({**counters, **metrics}), file=self.file, flush=True)

    def write_picture(self, name: str, data: bytes, size: tuple[int, int], counters: dict[str, int]) -> None:
        """Pictures are files of their own in the run folder."""

    def marks(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self.open = partial(SummaryWriter, str(folder))
        self.writer = self.open()

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        steps = {f"counters/{key}": counters[key] for key in ("agent_steps", "updates")}
        with self._reopening():
            for key, value in {**metrics, **steps}.items():
                self.writer.add_scalar(key, value, counters["frames"])

    def write_picture(self, name: str, data: bytes, size: tuple[int, int], counters: dict[str, int]) -> None:
        """TensorBoard plays a GIF among its images; its own video writer would need another package to encode one."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=data)
        with self._reopening():
            self.writer._get_file_writer().add_summary(
                Summary(value=[Summary.Value(tag=name, image=image)]), counters["frames"])

    @contextmanager
    def _reopening(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # its thread has died of it, and would say so for ever
            self.writer = self.open()
            raise

    def marks(self) -> dict[str, Any]:
        with suppress(OSError):  # the next record tells, and begins another file
            self.writer.flush()
        return {}

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Online where an account is set up or WANDB_MODE says so; offline otherwise: never an account required."""

    def __init__(self, folder: Path, project: str, name: str, config: dict[str, Any], run_id: str | None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("logger: wandb: the wandb package is not installed; `pip install wandb`, or "
                              "logger: tensorboard") from error
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _wandb_account() else "offline")
        print(f"wandb: {mode}", file=sys.stderr)
        self.run = wandb.init(project=project, name=name, dir=str(folder), config=config, mode=mode,
                              id=run_id, resume="allow" if run_id else None, settings=wandb.Settings(silent=True))

    def write(self, metrics: dict[str, float], counters: dict[str, int]) -> None:
        self.run.log({**metrics, **counters}, step=counters["frames"])

    def write_picture(self, name: str, data: bytes, size: tuple[int, int], counters: dict[str, int]) -> None:
        import wandb
        path = Path(self.run.dir) / f"{name.replace('/', '_')}.{'gif' if data.startswith(b'GIF') else 'png'}"
        path.write_bytes(data)
        self.run.log({name: wandb.Image(str(path)), **counters}, step=counters["frames"])

    def marks(self) -> dict[str, Any]:
        return {"wandb": self.run.id}

    def close(self) -> None:
        self.run.finish()


def _wandb_account() -> bool:
    """`wandb login` leaves its key in the netrc file."""
    netrc = Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
    return bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace"))
