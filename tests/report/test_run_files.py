"""Reading a run folder that may be half-written, or a stranger's."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.report.runs import gif, health_line, make_full_run, make_run, records, write_lines
from xrl.common.checkpoint import Checkpoints, Snapshot
from xrl.common.errors import ConfigError
from xrl.common.run_folder import locked
from xrl.report import run_files, run_log
from xrl.report.run_files import number, read_run


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder; name a run folder"):
        read_run(tmp_path / "nowhere")


def test_a_file_of_a_run(tmp_path):
    (tmp_path / "best_model.pth").touch()
    with pytest.raises(ConfigError) as caught:
        read_run(tmp_path / "best_model.pth")
    assert str(caught.value).endswith(f"best_model.pth: is a file; name the run folder that holds it: {tmp_path}")


def test_an_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.yaml; name a run folder"):
        read_run(tmp_path)


def test_a_folder_of_runs_names_one(tmp_path):
    folder = make_run(tmp_path)
    benchmark, own = tmp_path / "models/benchmarks/DreamerV2/CartPole-v1", folder.relative_to(tmp_path / "models")
    seeds = [Path(shutil.copytree(folder, benchmark / f"seed_{number}" / own)) for number in range(6)]
    with pytest.raises(ConfigError) as caught:
        read_run(tmp_path / "models/DreamerV2")
    assert f"the runs below it are {folder}; name one" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_run(tmp_path / "models")
    assert f"the runs below it are {folder}, {seeds[0]}, " in str(caught.value)
    assert str(caught.value).endswith(" and 2 more; name one")


def test_a_configuration_that_is_no_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: line 1"):
        read_run(tmp_path)


def test_a_method_that_is_not_installed_is_read_as_it_stands(tmp_path):
    (tmp_path / "config.yaml").write_text("method: Mine\nenv_id: X\nworld_model: {rssm: {deter: 3}}\n")
    run = read_run(tmp_path)
    assert run.resolved is None and "unknown method 'Mine'" in run.problem
    assert run.config == {"method": "Mine", "env_id": "X", "world_model.rssm.deter": 3}


def test_a_fresh_run(tmp_path):
    run = read_run(make_run(tmp_path))
    assert (run.records, run.health, run.facts, run.pictures, run.notes) == ([], [], {}, [], [])
    assert (run.finished, run.being_written, run.benchmark) == (False, False, False)
    assert run.config["env_id"] == "CartPole-v1" and run.config["world_model.rssm.deter"] == 128
    assert math.isnan(run.newest("eval/return"))


def test_lines_that_are_no_records_are_left_out(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"frames": 1, "a": 2}, "no json", "[1]", "[" * 100_000, "",
                '{"frames": 2, "a": NaN, "b": null, "c": "x", "d": 1e999, "e": true, "f": 1' + "0" * 400 + "}",
                '{"frames": 3, "a": 4}', '{"frames": 4, "a')
    run = read_run(folder)
    assert run.records == [{"frames": 1, "a": 2}, {"frames": 2}, {"frames": 3, "a": 4}]
    assert run.series("a") == ([1, 3], [2, 4]) and run.newest("a") == 4


@pytest.mark.parametrize("value", [None, "1", True, [], {}, math.nan, math.inf, -math.inf, 1e101, 10**400])
def test_what_is_no_number(value):
    assert math.isnan(number(value))


def test_a_log_elsewhere_is_found(tmp_path):
    folder = make_run(tmp_path, log_dir=str(tmp_path / "logs"))
    logs = tmp_path / "logs/DreamerV2/CartPole-v1" / folder.name
    assert read_run(folder).logs == logs  # for the sentence that says where nothing was
    write_lines(logs / "metrics.jsonl", *records())
    write_lines(logs / "health.jsonl", health_line(1000))
    run = read_run(folder)
    assert len(run.records) == 24 and len(run.health) == 1


def test_a_log_that_was_diverted_goes_on_from_the_one_before(tmp_path):
    """What the first part holds beyond the checkpoint was made again, and is in the second."""
    folder = make_run(tmp_path, log_dir=str(tmp_path / "logs"))
    logs = tmp_path / "logs/DreamerV2/CartPole-v1" / folder.name
    write_lines(folder / "metrics.jsonl", *({"agent_steps": step, "a": 1} for step in (500, 1000, 1500)))
    write_lines(logs / "metrics.jsonl", *({"agent_steps": step, "a": 2} for step in (1400, 1900)))
    write_lines(folder / "health.jsonl", health_line(1000))
    write_lines(logs / "health.jsonl", health_line(1900))
    run = read_run(folder)
    found = [(record["agent_steps"], record["a"]) for record in run.records]
    assert found == [(500, 1), (1000, 1), (1400, 2), (1900, 2)]
    assert len(run.health) == 2 and run.notes == [] and run.logs == logs


def test_a_log_without_its_beginning_says_so(tmp_path):
    """As of a run that was resumed without the log_dir that it began with. One line each 500 agent steps."""
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"agent_steps": 12_000, "a": 1}, {"agent_steps": 12_500, "a": 1})
    (said,) = read_run(folder).notes
    assert said.startswith("The log begins at agent step 12,000: what the run logged before was not found; log_dir")
    write_lines(folder / "metrics.jsonl", {"agent_steps": 505, "a": 1}, {"agent_steps": 12_500, "a": 1})
    assert read_run(folder).notes == []


def test_a_long_log_is_cut_and_says_so(tmp_path, monkeypatch):
    folder = make_full_run(tmp_path)
    monkeypatch.setattr(run_log, "LARGEST_LOG", 1000)
    run = read_run(folder)
    assert 0 < len(run.records) < 24
    assert len(run.notes) == 2 and "metrics.jsonl" in run.notes[0]


def test_health_keeps_its_gaps_and_drops_points_without_numbers(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "health.jsonl", health_line(500, returns=[[1, 2], [1, None], [1, 2, 3], 7, "x"], kl="no"),
                {"frames": None, "metrics": 3})
    first, second = read_run(folder).health
    assert first.lists["open_loop"][0] == 0.01 and math.isnan(first.lists["open_loop"][-1])
    assert len(first.lists["open_loop"]) == 50
    assert first.points["returns"] == [(1, 2)] and first.lists["kl"] == [] and first.classes == 16
    assert math.isnan(second.frames) and second.metrics == {} and second.points["values"] == []


# State ---------------------------------------------------------------------------------------------------------------

def test_finished_means_a_final_model_and_all_steps(tmp_path):
    folder = make_full_run(tmp_path)
    assert read_run(folder).finished
    write_lines(folder / "metrics.jsonl", *records(7000))
    assert not read_run(folder).finished  # a longer run goes on from it
    write_lines(folder / "metrics.jsonl", *records())
    (folder / "final_train_model.pth").unlink()
    assert not read_run(folder).finished


def test_a_run_that_is_held_is_being_written(tmp_path):
    folder = make_run(tmp_path)
    with locked(folder):
        assert read_run(folder).being_written
    assert not read_run(folder).being_written


def test_it_is_a_benchmark_where_there_is_a_curve(tmp_path):
    folder = make_run(tmp_path)
    (folder / "curve.json").touch()
    assert read_run(folder).benchmark


def test_facts_of_the_newest_checkpoint_and_of_the_run(tmp_path):
    folder = make_run(tmp_path)
    counts = {"agent_steps": 1, "frames": 1, "updates": 0}
    Checkpoints(folder, 2).write(Snapshot({}, {}, counts, facts={"torch": "1", "device": "cuda", "exact": True}))
    assert read_run(folder).facts == {"torch": "1", "device": "cuda"}
    write_lines(folder / "run.json", {"command": ["a"], "device": "cpu", "versions": {"torch": "2"}, "cores": 3})
    assert read_run(folder).facts == {"torch": "2", "device": "cpu", "cores": "3"}
    write_lines(folder / "run.json", '{"device": ')
    assert read_run(folder).facts == {"torch": "1", "device": "cuda"}


# Pictures and links --------------------------------------------------------------------------------------------------

def videos(folder: Path, **contents: bytes) -> Path:
    (folder / "videos").mkdir()
    for name, data in contents.items():
        (folder / "videos" / name.replace("__", ".")).write_bytes(data)
    return folder


def test_the_newest_picture_is_that_of_the_most_frames(tmp_path):
    folder = videos(make_run(tmp_path), dream_900__gif=gif(), dream_10000__gif=gif(), dream_20000__mp4=b"")
    os.utime(folder / "videos/dream_900.gif", (2e9, 2e9))
    (found,) = read_run(folder).pictures
    assert (found.kind, found.name, found.frames, found.data) == ("dream", "dream_10000.gif", 10000, gif())


def test_a_dream_of_images_and_vectors_is_two_pictures(tmp_path):
    png = b"\x89PNG\r\n\x1a\n"
    folder = videos(make_run(tmp_path), dream_000070__gif=gif(), dream_000070__png=png, dream_000060__png=png)
    assert [picture.name for picture in read_run(folder).pictures] == ["dream_000070.gif", "dream_000070.png"]


def test_a_picture_that_is_none_or_too_large_is_not_shown(tmp_path, monkeypatch):
    folder = videos(make_run(tmp_path), dream_1__gif=b"<svg onload=alert(1)>", evaluation_1__png=gif())
    dream, evaluation = read_run(folder).pictures
    assert dream.data == b"" == evaluation.data
    assert "is not a GIF" in dream.problem and "is not a PNG" in evaluation.problem
    (folder / "videos/dream_1.gif").write_bytes(gif())
    assert read_run(folder).pictures[0].problem == ""
    monkeypatch.setattr(run_files, "LARGEST_PICTURE", len(gif()) - 1)
    assert "is larger than" in read_run(folder).pictures[0].problem


def test_links_are_not_followed(tmp_path):
    folder, secret = make_run(tmp_path), tmp_path / "secret"
    write_lines(secret / "metrics.jsonl", {"frames": 1})
    (secret / "dream_1.gif").write_bytes(gif())
    (folder / "metrics.jsonl").symlink_to(secret / "metrics.jsonl")
    (folder / "videos").symlink_to(secret)
    run = read_run(folder)
    assert run.records == [] and run.pictures == []
    (folder / "videos").unlink()
    videos(folder)
    (folder / "videos/dream_1.gif").symlink_to(secret / "dream_1.gif")
    assert read_run(folder).pictures == []


def test_a_pipe_does_not_keep_it_waiting(tmp_path):
    folder = make_run(tmp_path)
    os.mkfifo(folder / "metrics.jsonl")
    done: list[int] = []
    reader = threading.Thread(target=lambda: done.append(len(read_run(folder).records)), daemon=True)
    reader.start()
    reader.join(10)
    assert done == [0]


def test_a_file_that_goes_between_listing_and_reading(tmp_path, monkeypatch):
    folder = make_full_run(tmp_path)
    for module in (run_files, run_log):
        monkeypatch.setattr(module, "is_file", lambda path: True)
    for path in [folder / "metrics.jsonl", folder / "health.jsonl", folder / "run.json"]:
        path.unlink()
    run = read_run(folder)
    assert run.records == [] and run.health == [] and run.created == {}


def test_created_must_be_an_object(tmp_path):
    folder = make_run(tmp_path)
    (folder / "run.json").write_text(json.dumps([1, 2]))
    assert read_run(folder).created == {}
