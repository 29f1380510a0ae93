"""An update whose numbers went bad, on file, so that it can be run again and looked at.

::

    RUN/crash_UPDATE/
        batch.safetensors   the batch; where imagination started; the generator before the update
        model.pth           weights and moments, which the update left as they were: a model file like any other
        config.yaml         may be edited before it is run again: with precision: fp32, say
        crash.json          what was found, in which surroundings, checksums of the tensors
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from xrl.agents.checkpointing import surroundings
from xrl.common.config import load_config, save_config
from xrl.common.errors import ConfigError, ModelFileError, XrlError
from xrl.common.files import load_tensors, read_metadata, save_tensors, sha256_of, write_atomic
from xrl.common.registry import load
from xrl.common.row import ActionSpec, ObsSpec
from xrl.common.run_folder import CONFIG, LAST_GOOD_MODEL
from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.fields import Section
from xrl.learners.base import Postmortem
from xrl.methods import METHODS

if TYPE_CHECKING:
    from xrl.agents.base import Agent

FORMAT = 1
FOLDER = "crash_"
_BATCH, _MODEL, _FACTS = "batch.safetensors", "model.pth", "crash.json"
_LARGEST_JSON = 2**20  # bytes


class CrashFacts(Section):
    """crash.json."""

    format: Literal[1] = 1
    update: int
    stage: str
    metrics: dict[str, float]
    parameter: str | None
    data: tuple[str, ...]
    counters: dict[str, int]
    surroundings: dict[str, Any]
    files: dict[Literal["batch.safetensors", "model.pth"], str]


@dataclass(frozen=True)
class CrashReport:
    """What running the update again showed.

    ``then`` and ``now``: the update as it was and as it is now. ``module``: the first part of the policy, as forward
    passes go, whose output is not finite. ``trace``: what autograd's anomaly detection says. ``notes``: in what the
    surroundings differ.
    """

    folder: Path
    then: CrashFacts
    now: Postmortem
    module: str | None
    trace: str | None
    notes: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        """It is not finite again."""
        return self.now.stage is not None

    @property
    def identical(self) -> bool:
        """Every number that it gave is the same to the last bit."""
        return all(_same(value, self.then.metrics.get(name, math.nan)) for name, value in self.now.metrics.items()
                   if name != "update/skipped")

    def __str__(self) -> str:
        now, bits = self.now, "to the last bit" if self.identical else "though not to the last bit"
        verdict = (f"not finite again ({now.stage} stage), the same numbers {bits}" if self.reproduced else
                   "finite this time: the fault is not in the batch, the weights and the generator alone")
        return "\n".join([
            f"update {self.then.update}, {self.then.stage} stage: {verdict}",
            *(f"  {name:24} {value:<14.7g} was {self.then.metrics.get(name, math.nan):.7g}"
              for name, value in now.metrics.items() if "loss" in name or "grad_norm" in name),
            f"batch: {', '.join(now.data) + ' not finite' if now.data else 'all finite'}",
            f"first module whose output is not finite: {self.module or 'none'}",
            f"first parameter that is not finite or has such a gradient: {now.parameter or 'none'}",
            f"autograd: {self.trace or 'nothing found'}", *(f"note: {note}" for note in self.notes)])


# Writing -----------------------------------------------------------------------------------------------------------

def save_what_is_left(agent: Agent[Any]) -> str:
    """After a NumericalError: write the update, and the weights if they are good. Returns what is where; a disk that
    cannot be written to is told, not raised, so that it does not hide what happened."""
    said = []
    if agent.learner.postmortem is not None:
        said.append(_tried("the crash folder", lambda: "run it again with: xrl replay-crash "
                                                       + quote(str(write_crash(agent)))))
    if all(bool(parameter.isfinite().all()) for parameter in agent.policy.parameters()):
        said.append(_tried("the model", lambda: f"saved as {agent.save_model(LAST_GOOD_MODEL)}"))
    else:
        said.append("not saved: its weights are not finite")
    return "; ".join(said)


def _tried(what: str, write: Callable[[], str]) -> str:
    try:
        return write()
    except (OSError, XrlError) as error:
        return f"{what} could not be written: {error}"


def write_crash(agent: Agent[Any]) -> Path:
    """Write the folder of ``agent.learner.postmortem`` and return its path. Raises OSError."""
    found = agent.learner.postmortem
    assert found is not None
    final = agent.folder / f"{FOLDER}{found.update}"
    folder = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _write(folder, agent, found)
        shutil.rmtree(final, ignore_errors=True)  # of an earlier process of this run
        os.replace(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def _write(folder: Path, agent: Agent[Any], found: Postmortem) -> None:
    assert found.stage is not None
    save_tensors(folder / _BATCH, found.tensors, {})
    agent.save_model(str(folder / _MODEL))
    save_config(agent.config, folder / CONFIG)
    facts = CrashFacts(
        update=found.update, stage=found.stage, metrics=found.metrics, parameter=found.parameter, data=found.data,
        counters=agent.counters, surroundings=surroundings(agent),
        files={_BATCH: sha256_of(folder / _BATCH), _MODEL: sha256_of(folder / _MODEL)})
    content = facts.model_dump() | {"metrics": {name: value if math.isfinite(value) else str(value)
                                                for name, value in found.metrics.items()}}  # JSON knows no NaN
    write_atomic(folder / _FACTS, json.dumps(content, indent=1).encode())


# Running it again ----------------------------------------------------------------------------------------------------

def replay_crash(place: str | Path) -> CrashReport:
    """Run the update of a crash folder again, operation by operation, and find where its numbers go bad.

    Nothing else is needed: no environment, no replay, and on the CPU no GPU. It runs twice: as it was, watching what
    every module gives, and under autograd's anomaly detection. Nothing is written.

    Raises:
        ModelFileError: the folder is incomplete or damaged, or was not written by xrl.
    """
    folder = Path(place)
    facts = _read_facts(folder)
    for name, checksum in facts.files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != checksum:
            raise ModelFileError(f"{folder / name}: missing or damaged: its checksum is not the one in {_FACTS}; copy "
                                 "the folder again from where it was written")
    agent, notes = _agent_of(folder, facts)
    tensors = load_tensors(folder / _BATCH)[0]

    def rerun() -> Postmortem:
        return agent.learner.rerun(facts.update, facts.stage, tensors)

    threads = torch.get_num_threads()
    torch.set_num_threads(_threads(facts) or threads)  # sums depend on how they are divided
    try:
        with _watched(agent.policy) as bad_modules:
            now = rerun()
        trace = _trace(rerun) if now.stage is not None else None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"{folder / _BATCH}: is no update of the model beside it: {error!r}; use a folder that "
                             "xrl wrote") from error
    finally:
        torch.set_num_threads(threads)
    return CrashReport(folder, facts, now, next(iter(bad_modules), None), trace, notes)


def _read_facts(folder: Path) -> CrashFacts:
    path = folder / _FACTS
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("it is too large")
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise ModelFileError(f"{path}: crash format {content.get('format')}, this xrl reads format {FORMAT}; "
                                 "replay it with the xrl version that wrote it")
        return CrashFacts.model_validate(content)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: missing; give a folder {FOLDER}UPDATE of a run that was written to the end"
                             ) from None
    except ModelFileError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ModelFileError(f"{path}: damaged, or not written by xrl: {reason}; use another folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged, or not written by xrl: {error}; use another folder") from error


class _Spaces:
    """In the place of environments, as far as building an agent needs them."""

    num_envs = action_repeat = 1

    def __init__(self, spaces: Mapping[str, Any]) -> None:
        self.obs_spec = {name: ObsSpec(kind, tuple(shape)) for name, (kind, shape) in spaces["observation"].items()}
        kind, size, *choices = spaces["action"]
        self.action_spec = ActionSpec(kind, size, *map(tuple, choices))
        sizes = [self.action_spec.size, *self.action_spec.choices]
        sizes += [size for spec in self.obs_spec.values() for size in spec.shape]
        kinds = {self.action_spec.kind, *(spec.kind for spec in self.obs_spec.values())}
        if not kinds <= {"discrete", "multi_discrete", "continuous", "image", "vector"} or not all(
                type(size) is int and 0 < size < 2**20 for size in sizes):
            raise ValueError(f"no such spaces: {spaces}")


def _agent_of(folder: Path, facts: CrashFacts) -> tuple[Agent[Any], tuple[str, ...]]:
    """An agent with the weights of the crash, and in what its surroundings differ from those of then."""
    path = folder / _MODEL
    on_gpu = facts.surroundings.get("device") != "cpu"
    device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
    try:
        config = load_config(config_path=folder / CONFIG, overrides={
            "device": device, "cuda_graph": "off", "compile": "off"}).config
        spaces = _Spaces(read_metadata(path)["spaces"])
        _check_size(path, config, spaces)
        agent: Agent[Any] = load(METHODS[config.method].agent)(config, spaces)
    except ConfigError as error:
        raise ModelFileError(f"{folder}: its configuration does not fit this xrl: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, XrlError):
            raise
        raise ModelFileError(f"{path}: damaged, or not written by xrl: {error!r}; use another folder") from error
    agent.load_model(path)
    notes = [f"{name} was {then}, is {now}" for name, now in surroundings(agent).items()
             if name != "threads" and (then := facts.surroundings.get(name)) != now]
    if on_gpu and device == "cpu":
        notes.append("it crashed on a GPU, and a CPU draws other random numbers: the same batch and weights, not the "
                     "same samples")
    return agent, tuple(notes)


def _check_size(path: Path, config: RunConfig, spaces: _Spaces) -> None:
    """Before memory is asked for: the networks must be as large as the model file says that they are."""
    with torch.device("meta"):
        policy = load(METHODS[config.method].policy)(spaces.obs_spec, spaces.action_spec, config)
    tensors, _ = load_tensors(path)
    for name, value in policy.state_dict().items():
        if (saved := tensors.get(f"policy/{name}")) is None or saved.shape != value.shape:
            raise ModelFileError(f"{path}: another network shape than {CONFIG} and its spaces describe: {name}; change "
                                 f"nothing in {CONFIG} that shapes the networks")


def _threads(facts: CrashFacts) -> int | None:
    threads = facts.surroundings.get("threads")
    return threads if type(threads) is int and 0 < threads <= 1024 else None


@contextmanager
def _watched(policy: nn.Module) -> Iterator[list[str]]:
    """Within, the names of modules whose output is not finite gather in the order in which they gave it."""
    names: list[str] = []
    hooks = [module.register_forward_hook(
        lambda module, inputs, output, name=name: None if _finite(output) else names.append(name))
        for name, module in policy.named_modules()]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if is_dataclass(value):  # the law of an action
        return _finite(vars(value))
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return not isinstance(value, tuple | list) or all(map(_finite, value))


def _trace(rerun: Callable[[], Postmortem]) -> str | None:
    """What anomaly detection says of the first gradient that is NaN, and the line of xrl whose gradient it is."""
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            rerun()
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            lines = [line.strip() for warning in caught for line in str(warning.message).splitlines()]
            places = [f"{place.replace('File ', '')}: {code}" for place, code in pairwise(lines)
                      if place.startswith("File ") and "xrl" in Path(place.split('"')[1]).parts]
            return f"{error} Computed at {places[-1]}" if places else str(error)
    return None


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
