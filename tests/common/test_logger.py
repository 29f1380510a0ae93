"""Where records go: JSON lines always, TensorBoard or wandb beside them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from xrl.common.errors import ConfigError
from xrl.common.logger import COUNTERS, Logger, cut_logs

FIRST = {"agent_steps": 5, "frames": 20, "updates": 1}
SECOND = {"agent_steps": 10, "frames": 40, "updates": 2}


def logger(kind, folder, marks=None) -> Logger:
    return Logger(kind, folder, project="my-project", name="my-run", config={"seed": 3}, marks=marks or {})


def write_two(log: Logger) -> None:
    log.write({"model/kl": 0.5}, FIRST)
    log.write({"model/kl": 0.25, "eval/return": -1.0}, SECOND)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["none", "tensorboard"])
def test_json_lines_are_always_written_with_the_counters_on_each(tmp_path, kind):
    log = logger(kind, tmp_path / "new" / "folder")
    write_two(log)
    log.close()
    folder = tmp_path / "new" / "folder"
    assert lines(folder) == [{**FIRST, "model/kl": 0.5}, {**SECOND, "model/kl": 0.25, "eval/return": -1.0}]
    assert tuple(FIRST) == COUNTERS
    assert len(list(folder.iterdir())) == (1 if kind == "none" else 2)


def test_a_killed_run_keeps_every_line(tmp_path):
    log = logger("none", tmp_path)
    log.write({"model/kl": 0.5}, FIRST)
    assert len(lines(tmp_path)) == 1  # before it is closed
    log.close()


def test_a_log_that_is_opened_again_goes_on(tmp_path):
    for _ in range(2):
        log = logger("none", tmp_path)
        write_two(log)
        log.close()
        log.close()  # a second time is no harm
    assert len(lines(tmp_path)) == 4


def test_tensorboard_has_the_same_values_over_frames(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = logger("tensorboard", tmp_path)
    write_two(log)
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    curves = {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}
    assert curves == {"model/kl": [(20, 0.5), (40, 0.25)], "eval/return": [(40, -1.0)],
                      "counters/agent_steps": [(20, 5.0), (40, 10.0)], "counters/updates": [(20, 1.0), (40, 2.0)]}


def gif(height=4, width=6):
    """The smallest film: two frames of one colour each."""
    film = cv2.Animation()
    film.frames = [np.full((height, width, 3), shade, np.uint8) for shade in (10, 200)]
    film.durations = [100, 100]
    return bytes(cv2.imencodeanimation(".gif", film)[1])


def test_tensorboard_plays_a_film_among_its_images(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = logger("tensorboard", tmp_path)
    log.write_picture("dream/gif", gif(), (4, 6), SECOND)
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("dream/gif")
    assert (image.step, image.height, image.width) == (40, 4, 6) and image.encoded_image_string == gif()
    assert lines(tmp_path) == []  # pictures are files of their own


def test_what_is_no_scalar_is_a_line_of_health(tmp_path):
    log = logger("none", tmp_path)
    log.write_health({"kl": [0.5, None]}, FIRST)
    log.write_health({"kl": []}, SECOND)
    log.close()
    assert [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()] == [
        {**FIRST, "kl": [0.5, None]}, {**SECOND, "kl": []}]
    assert lines(tmp_path) == []


def test_health_is_brought_back_to_its_marks_too(tmp_path):
    log = logger("none", tmp_path)
    log.write_health({"n": 1}, FIRST)
    marks = log.marks()
    log.write_health({"n": 2}, SECOND)
    log.close()
    assert marks["health.jsonl"] < (tmp_path / "health.jsonl").stat().st_size
    cut_logs(tmp_path, marks)
    assert [json.loads(line)["n"] for line in (tmp_path / "health.jsonl").read_text().splitlines()] == [1]
    cut_logs(tmp_path, {})
    assert not (tmp_path / "health.jsonl").exists()


def test_a_full_disk_costs_pictures_and_health_and_not_the_run(tmp_path, monkeypatch, capsys):
    log = logger("none", tmp_path)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        log.write_health({"kl": []}, FIRST)
    log.sinks[0].write_picture = full
    log.write_picture("dream/gif", gif(), (4, 6), FIRST)
    log.write({"x": 1.0}, FIRST)
    log.close()
    assert len(lines(tmp_path)) == 1 and "2 records could not be written" in capsys.readouterr().err


def test_a_log_is_brought_back_to_its_marks(tmp_path):
    """Records after them go, files that began after them too; the next process goes on in files of its own."""
    log = logger("tensorboard", tmp_path)
    log.write({"x": 1.0}, FIRST)
    marks = log.marks()
    log.write({"x": 2.0}, SECOND)
    log.close()
    (tmp_path / "events.out.tfevents.99.later").write_bytes(b"of a process that was killed")
    (tmp_path / "other.txt").write_text("not ours")
    cut_logs(tmp_path, marks)
    assert [record["x"] for record in lines(tmp_path)] == [1.0]
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.name != "other.txt"} == marks
    cut_logs(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_a_full_disk_costs_records_and_not_the_run(tmp_path, capsys):
    log = logger("none", tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    write, log.sinks[0].write = log.sinks[0].write, full
    write_two(log)
    log.sinks[0].write = write
    log.write({"x": 3.0}, SECOND)
    log.close()
    assert [record["x"] for record in lines(tmp_path)] == [3.0]
    told = capsys.readouterr().err
    assert told.count("No space left") == 1 and "2 records could not be written" in told


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user who never heard of wandb."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def fake_wandb(monkeypatch):
    seen = SimpleNamespace(init=[], logged=[], finished=0)

    def finish():
        seen.finished += 1

    run = SimpleNamespace(log=lambda record, step: seen.logged.append((record, step)), finish=finish)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(
        init=lambda **keywords: seen.init.append(keywords) or run, Settings=lambda **keywords: keywords))
    return seen


def test_wandb_gets_records_with_counters_over_frames(tmp_path, home, fake_wandb, capsys):
    log = logger("wandb", tmp_path / "run")
    write_two(log)
    log.close()
    (init,) = fake_wandb.init
    assert (init["project"], init["name"], init["dir"], init["config"], init["mode"]) == (
        "my-project", "my-run", str(tmp_path / "run"), {"seed": 3}, "offline")
    assert fake_wandb.logged == [({"model/kl": 0.5, **FIRST}, 20),
                                 ({"model/kl": 0.25, "eval/return": -1.0, **SECOND}, 40)]
    assert fake_wandb.finished == 1 and len(lines(tmp_path / "run")) == 2
    assert "wandb: offline" in capsys.readouterr().err


def test_wandb_gets_a_picture_as_a_file_of_its_kind(tmp_path, home, fake_wandb, monkeypatch):
    log = logger("wandb", tmp_path / "run")
    log.sinks[1].run.dir = str(tmp_path)
    monkeypatch.setattr(sys.modules["wandb"], "Image", lambda path: ("image", path), raising=False)
    for name, data in (("dream/gif", gif()), ("dream/png", b"\x89PNG...")):
        log.write_picture(name, data, (4, 6), SECOND)
        path = tmp_path / f"{name.replace('/', '_')}.{name[-3:]}"
        assert fake_wandb.logged.pop() == ({name: ("image", str(path)), **SECOND}, 40) and path.read_bytes() == data


def test_wandb_goes_on_with_the_same_run(tmp_path, home, fake_wandb):
    logger("wandb", tmp_path / "run", {"wandb": "abc"}).close()
    logger("wandb", tmp_path / "run").close()
    assert [(init["id"], init["resume"]) for init in fake_wandb.init] == [("abc", "allow"), (None, None)]


@pytest.mark.parametrize(("variables", "netrc", "mode"), [
    ({}, "", "offline"), ({"WANDB_API_KEY": "k"}, "", "online"), ({"WANDB_MODE": "disabled"}, "", "disabled"),
    ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "", "offline"),
    ({}, "machine api.wandb.ai\n  login user\n  password p\n", "online"),
    ({}, "machine github.com\n  login user\n", "offline"),
])
def test_wandb_is_online_only_for_who_has_an_account(tmp_path, home, fake_wandb, monkeypatch, variables, netrc, mode):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (home / (".netrc" if sys.platform != "win32" else "_netrc")).write_text(netrc)
    logger("wandb", tmp_path / "run").close()
    assert fake_wandb.init[0]["mode"] == mode


def test_wandb_that_is_not_installed(tmp_path, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logger: wandb: .*not installed; `pip install wandb`, or logger:"):
        logger("wandb", tmp_path)


def test_wandb_itself_offline(tmp_path, home, monkeypatch):
    """The real package, without an account and without a network: about two seconds."""
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home))
    log = logger("wandb", tmp_path / "run")
    write_two(log)
    log.write_picture("dream/gif", gif(), (4, 6), SECOND)
    log.close()
    assert len(lines(tmp_path / "run")) == 2
    (picture,) = tmp_path.glob("run/wandb/offline-run-*/files/media/images/dream/*.gif")
    assert picture.read_bytes() == gif()
    (stored,) = [*tmp_path.glob("run/wandb/offline-run-*/*.wandb"), *home.glob("wandb/offline-run-*/*.wandb")]
    deadline = time.monotonic() + 30
    while b"model/kl" not in stored.read_bytes():  # its own process writes, on a busy machine a little later
        assert time.monotonic() < deadline
        time.sleep(0.05)
