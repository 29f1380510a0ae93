"""Do to real training processes what goes wrong in practice, and record what they do.

    python benchmarks/faults.py [--only WORD ...]

Environments that die, hang, raise or return nonsense; full and read-only disks (a tmpfs of a few megabytes, a read-only
mount: as root on Linux; without the right to mount, a limit on the size of files, and the read-only case is left out);
signals at every moment; a damaged checkpoint; two processes for one run. "the same run": resumed to its end it equals,
as kill.py compares, a run that nothing happened to. Writes benchmarks/results/faults.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kill import outcome
from recording import RESULTS, ROOT, provenance

from xrl.common.checkpoint import checkpoint_paths, find_checkpoints
from xrl.common.logger import METRICS

SMALL = ["preset=debug", "device=cpu", "logger=none", "running_steps=200", "checkpoint_every=20", "buffer_size=150",
         "pretrain=6"]
CARTPOLE = ["--env", "classic_control", "--env-id", "CartPole-v1", *SMALL, "eval_interval=100", "test_episode=2"]
PLAIN = ["--env", "faulty", "--env-id", "none", *SMALL, "eval_interval=0"]
LONGEST = 120.0  # seconds
ENVIRONMENT = {"dies": "dies (kill -9 of its process)", "hangs": "hangs", "raises": "raises",
               "wrong shape": "returns another shape", "NaN observation": "returns NaN as an observation",
               "NaN reward": "returns NaN as a reward"}
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}
MOMENTS = ("steps", "pretraining", "evaluation", "checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="faults with one of these words in their name")
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    options = parser.parse_args()
    found = []
    for fault, work in cases().items():
        if any(word in fault for word in options.only):
            with tempfile.TemporaryDirectory() as name:
                found.append({"fault": fault, **work(Path(name))})
            print(line(found[-1]), file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**provenance(), "faults": found}, indent=1) + "\n")
    print(table(found))
    if not all(each["ok"] for each in found):
        sys.exit("not every fault was survived as promised")


def cases() -> dict[str, Callable[[Path], dict[str, Any]]]:
    found: dict[str, Callable[[Path], dict[str, Any]]] = {}
    for how, text in ENVIRONMENT.items():
        found[f"an environment {text}"] = lambda place, how=how: environment(place, how, "async")
    for how in ("raises", "NaN observation"):
        found[f"the same, in the training process: {how}"] = lambda place, how=how: environment(place, how, "sync")
    found["more failures than max_env_failures"] = too_many
    found["the disk is full for a while"] = lambda place: disk(place, full)
    found["the disk is full to the end"] = lambda place: disk(place, full, to_the_end=True)
    found["the folder is read-only for a while"] = lambda place: disk(place, read_only)
    for name in SIGNALS:
        for moment in MOMENTS:
            found[f"{name} during {moment}"] = lambda place, name=name, moment=moment: signalled(place, name, moment)
    found["Ctrl-C twice"] = twice
    found["the newest checkpoint is damaged"] = damaged
    found["two processes resume one run"] = two_processes
    return found


# Processes -----------------------------------------------------------------------------------------------------------


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "xrl", "train", "--import", "faulty", "--method", "DreamerV2", *words]


def surroundings(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **extra}


def run(place: Path, words: list[str], **extra: str) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    done = subprocess.run(command(words), cwd=place, env=surroundings(**extra), timeout=LONGEST, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def resume(place: Path) -> tuple[int, str]:
    return run(place, ["--resume"])


def folder(place: Path) -> Path:
    found = next(place.glob("models/*/*/*/"), None)
    if found is None:
        raise RuntimeError(f"no run was made in {place}")
    return found


_expected: dict[tuple[str, ...], dict[str, str]] = {}


def same(place: Path, words: list[str], but: tuple[str, ...] = ()) -> bool:
    """Whether the run equals one that nothing happened to, leaving ``but`` out of the comparison."""
    if tuple(words) not in _expected:
        with tempfile.TemporaryDirectory() as name:
            code, text = run(Path(name), words)
            if code != 0:
                sys.exit(f"the undisturbed run failed:\n{text}")
            _expected[tuple(words)] = outcome(folder(Path(name)))
    got = outcome(folder(place))
    return all(got[key] == value for key, value in _expected[tuple(words)].items() if key not in but)


def newest(place: Path) -> int:
    """Agent steps of the newest checkpoint, which is compared with its checksums."""
    checkpoint = find_checkpoints(folder(place))[-1]
    checkpoint.verify()
    return checkpoint.counters["agent_steps"]


# Environments --------------------------------------------------------------------------------------------------------


def environment(place: Path, how: str, vectorize: str) -> dict[str, Any]:
    words = ["--env", "faulty", "--env-id", how, *SMALL, "parallels=2", f"vectorize={vectorize}", "env_timeout=5",
             "eval_interval=0"]
    code, text = run(place, words)
    records = [json.loads(each) for each in (folder(place) / METRICS).read_text().splitlines()]
    failures = max((record.get("env/failures", 0) for record in records), default=0)
    ok = code == 0 and failures == 1 and "failed and was restarted" in text and newest(place) >= 200
    return result(ok, code, f"restarted alone, logged, counted ({failures}); the run went on to its end",
                  "the rest of that one episode", text)


def too_many(place: Path) -> dict[str, Any]:
    words = ["--env", "faulty", "--env-id", "raises", *SMALL, "eval_interval=0", "max_env_failures=0"]
    code, text = run(place, words)
    ok = code == 2 and 'raise ValueError("the arm is stuck")' in text and newest(place) >= 29
    return result(ok, code, f"saved at agent step {newest(place)}, then stopped with the environment's own traceback",
                  "nothing", text)


# Disks ---------------------------------------------------------------------------------------------------------------


@contextmanager
def full(place: Path, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Fill what is left of the file system."""
    filler = place / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    except OSError:
        pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(place: Path, process: subprocess.Popen[bytes]) -> Iterator[None]:
    # Files that are open for writing keep a whole file system from becoming read-only; a second mount over the run's
    # subfolders is enough, and the same to who opens a file.
    places = [path for path in (folder(place) / "checkpoints", folder(place) / "replay") if path.is_dir()]
    for path in places:
        mount("--bind", str(path), str(path))
        mount("-o", "remount,ro,bind", str(path))
    try:
        yield
    finally:
        for path in places:
            subprocess.run(["umount", str(path)], check=True)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    disk = place / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def disk(place: Path, trouble: Any, to_the_end: bool = False) -> dict[str, Any]:
    try:
        with small_disk(place) as mounted:
            return on_disk(mounted, trouble, to_the_end, place / "log")
    except (OSError, subprocess.CalledProcessError):
        return limited(place)


def on_disk(place: Path, trouble: Any, to_the_end: bool, log: Path) -> dict[str, Any]:
    with log.open("wb") as file:
        process = subprocess.Popen(command(PLAIN), cwd=place, env=surroundings(XRL_SLOW="0.03"), stdout=file,
                                   stderr=file)
        wait(lambda: len(saved(place)) >= 2, process)
        with trouble(place, process):
            if to_the_end:
                process.wait(LONGEST)
                checkpoint = newest(place)
            else:
                wait(lambda: "CHECKPOINT FAILED" in log.read_text(), process)
                checkpoint = newest(place)
        code = process.wait(LONGEST)
    loud = "CHECKPOINT FAILED" in log.read_text()
    if to_the_end:
        ended, _ = resume(place)
        ok = loud and code == 2 and ended == 0 and same(place, PLAIN)
        return result(ok, code, f"said so at every checkpoint, trained to the end, could not write the model; the "
                      f"checkpoint at step {checkpoint} stayed whole; resumed with room: the same run", "nothing",
                      log.read_text())
    ok = loud and code == 0 and same(place, PLAIN, but=("log",))
    return result(ok, code, f"said so, went on training; the checkpoint at step {checkpoint} stayed whole; wrote the "
                  "next ones when it could again", "log records of that time, where the log could not be written",
                  log.read_text())


def saved(place: Path) -> list[Path]:
    run = next(place.glob("models/*/*/*/"), None)
    return checkpoint_paths(run) if run is not None else []


def wait(found: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    start = time.monotonic()
    while not found() and process.poll() is None and time.monotonic() - start < LONGEST:
        time.sleep(0.02)


def limited(place: Path) -> dict[str, Any]:
    """Where nothing can be mounted: no file may grow beyond 20 kB, which no checkpoint but the first respects."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    done = subprocess.run(command(PLAIN), cwd=place, env=surroundings(), timeout=LONGEST, text=True, preexec_fn=limit,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ended, _ = resume(place)
    ok = "CHECKPOINT FAILED" in done.stdout and done.returncode == 2 and ended == 0
    return result(ok and same(place, PLAIN), done.returncode, "(a limit on the size of files) said so at every "
                  "checkpoint, trained to the end; resumed without the limit: the same run", "nothing", done.stdout)


# Signals -------------------------------------------------------------------------------------------------------------


def signalled(place: Path, name: str, moment: str) -> dict[str, Any]:
    number = str(int(getattr(signal, name)))
    code, text = run(place, CARTPOLE, XRL_MOMENT=moment, XRL_SIGNAL=number)
    stopped = newest(place)
    ended, more = resume(place)
    ok = code == SIGNALS[name] and ended == 0 and same(place, CARTPOLE)
    return result(ok, code, f"saved at agent step {stopped} and stopped; resumed: the same run", "nothing", text + more)


def twice(place: Path) -> dict[str, Any]:
    start = time.monotonic()
    code, text = run(place, CARTPOLE, XRL_MOMENT="steps", XRL_SIGNAL=str(int(signal.SIGINT)), XRL_TWICE="1")
    seconds, stopped = time.monotonic() - start, newest(place)
    ended, more = resume(place)
    ok = code == 130 and seconds < 40 and ended == 0 and same(place, CARTPOLE)
    return result(ok, code, f"stopped at once, without saving; resumed from agent step {stopped}: the same run",
                  "the time since the last checkpoint", text + more)


# Checkpoints ---------------------------------------------------------------------------------------------------------


def damaged(place: Path) -> dict[str, Any]:
    run(place, CARTPOLE)
    last = find_checkpoints(folder(place))[-1]
    data = bytearray((last.path / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (last.path / "state.safetensors").write_bytes(data)
    code, text = resume(place)
    ok = code == 0 and "checkpoint skipped" in text and "checksum" in text and same(place, CARTPOLE)
    return result(ok, code, "named with the reason and set aside; went on from the one before: the same run",
                  "the time between the two", text)


def two_processes(place: Path) -> dict[str, Any]:
    with subprocess.Popen(command(PLAIN), cwd=place, env=surroundings(XRL_SLOW="0.1"), stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        wait(lambda: len(saved(place)) >= 1, process)
        code, text = resume(place)
        process.kill()
    ended, _ = resume(place)
    ok = code == 2 and "another process" in text and ended == 0 and same(place, PLAIN)
    return result(ok, code, "the second refused; the first was then killed and resumed: the same run", "nothing", text)


# The record ----------------------------------------------------------------------------------------------------------


def result(ok: bool, code: int, happened: str, lost: str, text: str) -> dict[str, Any]:
    return {"ok": ok, "exit_code": code, "happened": happened, "lost": lost,
            **({} if ok else {"output": text[-3000:]})}


def line(each: dict[str, Any]) -> str:
    return (f"| {each['fault']} | {each['happened'] if each['ok'] else 'NOT AS PROMISED'} | {each['exit_code']} "
            f"| {each['lost']} |")


def table(found: list[dict[str, Any]]) -> str:
    return "\n".join(["| fault | what happened | exit code | lost |", "|---|---|---|---|", *map(line, found)])


if __name__ == "__main__":
    main()
