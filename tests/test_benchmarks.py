"""The benchmark scripts run, on the smallest case of each, and measure what they say."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders import IMAGE, parameter_count, tiny_config
from xrl.common import accelerate
from xrl.common.config import load_config, save_config
from xrl.common.row import ActionSpec
from xrl.policies.dreamer_v2 import DreamerV2Policy

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PIXELS, BUTTONS = IMAGE["image"], ActionSpec("discrete", 3)


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name. Afterwards their modules are gone and the number of threads is what it was."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(accelerate, "keep_memory", lambda: True)  # a setting of the whole process
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def tiny_update(script, monkeypatch):
    """update.py with a tiny workload of known parameter counts, and no time spent on a matrix product."""
    update = script("update")
    tiny = update.Workload("toy", "Catch-v0", PIXELS, BUTTONS, {"preset": "debug"}, (21_263, 723, 689))
    monkeypatch.setattr(update, "WORKLOADS", {"tiny": tiny})
    monkeypatch.setattr(update, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(update, "matmul_peak", lambda precision: 100.0)
    monkeypatch.setattr(update, "in_own_process", lambda case, repeats: update.measure(case, repeats))
    return update


def run_main(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
    module.main()


class Watch(TorchDispatchMode):
    """Counts operations by name and by the memory order of what they yield."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen[str(function), result.stride() if isinstance(result, torch.Tensor) else ()] += 1
        return result


def two_updates(script, changes):
    update = script("update")
    learner, batch = update.build(tiny_config(changes), PIXELS, BUTTONS)
    learner.step(batch)
    with Watch() as watch:
        return learner.step(batch), watch.seen


LEVERS = ("no-graph", "gather", "recall", "loop-linear", "inverse-cdf", "first-deconvolution", "last-deconvolution",
          "bias-apart", "channels-last", "elu-in-place", "allocator")


@pytest.mark.parametrize("name", LEVERS)
def test_without_a_lever_the_update_is_another_way_to_the_same_numbers(script, name):
    levers = script("levers")
    expected, usual = two_updates(script, {})
    with levers.LEVERS[name]():
        found, other = two_updates(script, dict(levers.CONFIG_CHANGES))
        kept = accelerate.keep_memory()
    assert kept == (name != "allocator")
    assert (other == usual) == (name == "allocator")
    if name == "inverse-cdf":  # draws other numbers
        assert any("multinomial" in operation for operation, _ in other)
        return
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert two_updates(script, {})[1] == usual, "the lever was not put back"


def test_every_lever_is_tested_and_pulled_where_it_applies(script):
    levers = script("levers")
    assert set(levers.LEVERS) == set(LEVERS)
    assert levers.levers_for(images=True, discrete=True) == list(levers.LEVERS)
    assert set(levers.levers_for(images=False, discrete=False)) == {
        "loop-linear", "inverse-cdf", "elu-in-place", "allocator"}


def test_update_counts_arithmetic_and_operations(script):
    update = script("update")
    square = torch.ones(8, 8)
    learner = SimpleNamespace(step=lambda batch: (square @ square).add_(1).t())
    gflop, operations = update.count(update.Case("", "fp32", "off", 1), learner, None)
    assert (gflop * 1e9, operations) == (2 * 8**3, 3)


@pytest.mark.parametrize(("seconds", "updates"), [([1.0, 0.9, 0.1], 2), ([40.0, 1.0, 0.9, 0.1], 3),
                                                  ([40.0, 9.0, 1.0, 0.9, 0.1], 4)])
def test_update_warms_up_twice_or_until_it_gets_no_faster(script, monkeypatch, seconds, updates):
    update, remaining = script("update"), iter(seconds)
    monkeypatch.setattr(update, "timed", lambda work: next(remaining))
    assert update.warm(None, None) == seconds[:updates]


def test_update_times_short_updates_more_often(script, monkeypatch):
    update = script("update")
    monkeypatch.setattr(update, "timed", lambda work: 0.25)
    assert len(update.time_updates(None, None, 3, least=2.0)) == 8
    assert len(update.time_updates(None, None, 3, least=0.0)) == 3


def test_update_measures_every_case(tiny_update, monkeypatch, tmp_path, capsys):
    path = tmp_path / "deep" / "update.json"
    run_main(tiny_update, monkeypatch, "--workloads", "tiny", "--compile", "off", "--repeats", 2, "--threads", 1,
             "--output", path)
    record = json.loads(path.read_text())
    assert record.keys() >= {"commit", "versions", "hardware", "threads"}
    assert [(case["workload"], case["precision"], case["compile"]) for case in record["cases"]] == [
        ("tiny", "fp32", "off"), ("tiny", "bf16", "off")]
    for case in record["cases"]:
        assert len(case["seconds"]) == 2
        assert min(case[key] for key in ("median_seconds", "start_up_seconds", "peak_rss_gib", "gflop", "operations",
                                         "matmul_ratio", "share_of_peak")) > 0
    fp32, bf16 = (case["operations"] for case in record["cases"])
    assert bf16 > fp32, "bfloat16 takes casts"
    assert capsys.readouterr().out.count("| tiny |") == 2


def test_update_measures_levers_between_runs_with_all_round_after_round(tiny_update, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tiny_update.levers, "levers_for", lambda images, discrete: ["gather", "no-graph", "recall"])
    run_main(tiny_update, monkeypatch, "--levers", "--only", "gather", "no-graph", "--rounds", 2, "--workloads", "tiny",
             "--precision", "fp32", "--repeats", 1, "--threads", 1, "--output", tmp_path / "levers.json")
    cases = json.loads((tmp_path / "levers.json").read_text())["cases"]
    assert [case["without"] for case in cases] == 2 * ["", "gather", "no-graph", ""]
    assert cases[0]["operations"] == cases[3]["operations"] < cases[2]["operations"]
    # The second round is twice as slow all over, and no-graph a little slower still.
    seconds = (1.0, 3.0, 1.0, 2.0, 2.0, 6.0, 2.6, 4.0)
    table = tiny_update.lever_table([{**case, "median_seconds": seconds} for case, seconds in
                                     zip(cases, seconds, strict=True)])
    assert [[cell.strip() for cell in line.split("|")[5:8]] for line in table.splitlines()[2:]] == [
        ["-0.0%", "-33.3%", "+33.3%"], ["+100.0%", "+100.0%", "+100.0%"], ["-23.3%", "-33.3%", "-13.3%"]]


def test_update_refuses_a_model_of_another_size(tiny_update, monkeypatch):
    workload = tiny_update.WORKLOADS["tiny"]
    monkeypatch.setitem(tiny_update.WORKLOADS, "tiny", tiny_update.replace(workload, parameters=(1, 723, 689)))
    with pytest.raises(SystemExit, match="21263"):
        tiny_update.build_case(tiny_update.Case("tiny", "fp32", "off", 1))


@pytest.mark.parametrize("name", ["W1", "W2", "W3", "CartPole-v1", "Pendulum-v1", "Catch-v0"])
def test_workloads_are_models_of_the_stated_size(script, name):
    workload = script("update").WORKLOADS[name]
    config = load_config("DreamerV2", workload.env, workload.env_id, overrides=workload.changes).config
    with torch.device("meta"):
        policy = DreamerV2Policy({workload.obs.kind: workload.obs}, workload.action, config)
    found = tuple(parameter_count(part) for part in (policy.world_model, policy.actor, policy.critic))
    assert workload.parameters in ((), found)
    assert bool(workload.parameters) == name.startswith("W")


def test_replay(script, monkeypatch, tmp_path, capsys):
    replay = script("replay")
    monkeypatch.setattr(replay, "EPISODE", 60)
    run_main(replay, monkeypatch, "--rows", 150, "--repeats", 1, "--threads", 1, "--output", tmp_path / "replay.json")
    cases = json.loads((tmp_path / "replay.json").read_text())["cases"]
    row = {"image": 64 * 64 + 6 * 4 + 4 + 3, "vector": 4 * 4 + 6 * 4 + 4 + 3}  # bytes
    assert [(case["observation"], case["sampling"], case["storage"], case["batch"][0]) for case in cases] == [
        (kind, sampling, storage, size) for kind in row for sampling in ("steps", "episodes")
        for storage in ("memory", "disk") for size in (16, 50)]
    for case in cases:
        assert case["batch_bytes"] == case["batch"][0] * case["batch"][1] * row[case["observation"]]
        assert min(case[key] for key in ("insert_us", "sample_ms", "to_torch_ms", "to_float_ms")) > 0
    assert capsys.readouterr().out.count("\n") == 2 + len(cases)


@pytest.mark.parametrize(("kind", "law", "text"), [
    ("linear", lambda x: 0.5 + 0.02 * x, "500 + 20 x"), ("linear", lambda x: 3.0 - 0.02 * x, "3e+03 - 20 x"),
    ("square", lambda x: 0.5 + 0.02 * x**2, "500 + 20 x^2"), ("power", lambda x: 0.02 * x**0.7, "20 x^0.70")])
def test_scaling_finds_the_law(script, kind, law, text):
    scaling = script("scaling")
    sizes = [4, 8, 16, 32, 64]
    found = scaling.fits(sizes, [law(size) for size in sizes])
    assert found[kind]["error"] < 1e-9
    assert min(found, key=lambda other: found[other]["error"]) == kind
    assert scaling.formula(kind, found[kind]["a"], found[kind]["b"]) == text


def test_scaling_changes_one_size_at_a_time_and_is_drawn(script, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    scaling, plot = script("scaling"), script("plot_scaling")
    monkeypatch.setattr(scaling, "BASE", {"preset": "debug", "imagination.starts": 0})
    monkeypatch.setattr(scaling, "SCANS", {name: (keys, (4, 8)) for name, (keys, _) in scaling.SCANS.items()})
    monkeypatch.setattr(scaling, "PARALLELS", (1, 2))
    monkeypatch.setattr(scaling, "PLAYED", scaling.PLAYED[:1])
    built, build = [], scaling.build
    monkeypatch.setattr(scaling, "build", lambda config, *specs: built.append(config) or build(config, *specs))
    run_main(scaling, monkeypatch, "--repeats", 1, "--threads", 1, "--seconds", 0.01, "--output", tmp_path / "s.json")
    record = json.loads((tmp_path / "s.json").read_text())
    assert [(scan["scan"], scan["threads"], scan["sizes"]) for scan in record["scans"]] == [
        (name, 1, [4, 8]) for name in ("batch", "length", "horizon", "deter", "starts")]
    sizes = [(config.batch_size, config.seq_len, config.horizon, config.world_model.rssm.deter,
              config.world_model.rssm.hidden, config.imagination.starts) for config in built]
    assert sizes == [(4, 8, 3, 8, 8, 0), (8, 8, 3, 8, 8, 0), (4, 4, 3, 8, 8, 0), (4, 8, 3, 8, 8, 0),
                     (4, 8, 4, 8, 8, 0), (4, 8, 8, 8, 8, 0), (4, 8, 3, 4, 4, 0), (4, 8, 3, 8, 8, 0),
                     (4, 8, 3, 8, 8, 4), (4, 8, 3, 8, 8, 8)]
    assert [case["parallels"] for case in record["environments"]] == [1, 2]
    plot.draw(record, tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").stat().st_size > 10_000


def test_checkpoint(script, monkeypatch, tmp_path, capsys):
    checkpoint = script("checkpoint")
    monkeypatch.setattr(checkpoint, "NEW", 50)
    run_main(checkpoint, monkeypatch, "--rows", 200, "--models", "cartpole", "--threads", 1, "--place", tmp_path,
             "--output", tmp_path / "checkpoint.json")
    cases = json.loads((tmp_path / "checkpoint.json").read_text())["cases"]
    assert [(case["storage"], case["checkpoint"]) for case in cases] == [
        (storage, which) for storage in ("disk", "memory") for which in ("first", "next")]
    for first, following in (cases[:2], cases[2:]):
        row = 4 * 4 + 2 * 4 + 4 + 3  # bytes; the next checkpoint writes only what is new, and the weights again
        assert 100 * row < first["bytes"] - following["bytes"] < 200 * row
        assert 0 < first["waits_seconds"] <= first["seconds"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.json"], "it gives the disk back"
    assert capsys.readouterr().out.count("| cartpole |") == 4


def test_soak_fits_its_line_to_the_later_part(script, tmp_path):
    soak = script("soak")
    samples = [{"seconds": 10.0 * n, "own_mib": 300 + (400 if n < 60 else 0) + n / 36, "mapped_mib": 90, "files": 5,
                "threads": 4, "children": 0} for n in range(360)]  # ten MiB an hour, after a wild beginning
    assert soak.slope(samples) == pytest.approx(10.0)
    record = {"samples": samples, "slope_mib_per_hour": 10.0, "disk_mib": 50.0, "complaints": 0,
              "counters": {"agent_steps": 1000, "updates": 10}}
    assert "| open files | 5 | 5 | 5 | 5 |" in soak.table(record) and "+10.0 MiB per hour" in soak.table(record)
    soak.draw(record, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert soak.sample(os.getpid())["threads"] >= 1


# What is normal, and what it costs to know ---------------------------------------------------------------------------


def make_seed(folder, seed, values):
    """A run folder of a benchmark: health/kl at frames 0, 100, 200, ..."""
    run = folder / f"seed_{seed}" / "DreamerV2" / "Catch-v0" / f"seed_{seed}_x"
    run.mkdir(parents=True)
    save_config(load_config("DreamerV2", "toy", "Catch-v0").config, run / "config.yaml")
    (run / "run.json").write_text(json.dumps({"commit": "abc", "versions": {}}))
    lines = [{"agent_steps": 100 * i, "frames": 100 * i, "updates": 1000, "metrics": {"health/kl": value}}
             for i, value in enumerate(values)]
    (run / "health.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_bands_are_the_extremes_of_the_seeds_around_each_evaluation(script, tmp_path, monkeypatch, capsys):
    bands = script("bands")
    rows = {1: [1, 2, 3, 4, 5, 6], 2: [2, 2, 2, 2, 2, 2], 3: [9, 1, 1, 1, 1, 1, 1]}  # the third is longer
    for seed, values in rows.items():
        make_seed(tmp_path, seed, values)
    monkeypatch.setattr(bands, "BANDS", tmp_path / "bands.json")
    monkeypatch.setattr(sys, "argv", ["bands.py", str(tmp_path)])
    bands.main()
    found = json.loads((tmp_path / "bands.json").read_text())
    assert found["bands"]["Catch-v0"]["health/kl"] == [
        [0, 1, 9], [100, 1, 9], [200, 1, 9], [300, 1, 6], [400, 1, 6], [500, 1, 6]]
    assert found["made_of"]["Catch-v0"]["seeds"] == 3 and found["made_of"]["Catch-v0"]["settings"]["gamma"] == 0.98
    assert capsys.readouterr().out.startswith("Catch-v0: 1 metrics of 3 seeds; warnings by the bands of the others: [")


def test_the_docs_show_the_bands_at_the_end_of_a_run(script):
    bands = script("bands")
    page = (BENCHMARKS.parent / "docs" / "health.md").read_text(encoding="utf-8")
    assert bands.table(json.loads(bands.BANDS.read_text())["bands"]) in page


def test_the_cost_of_being_shown_is_a_share_of_all_that_was_spent(script, tmp_path):
    overhead = script("overhead")
    run = make_seed(tmp_path, 4, [1])
    spent = {"time/update": 8, "time/inspection": 1.5, "time/logging": 0.5, "time/rest": 0, "time/update/actor": 3}
    lines = [{"agent_steps": steps, "updates": steps // 5, **spent} for steps in (500, 1000)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = overhead.measure(run, entry=1e-5)
    assert (row["seconds"], row["inspection"], row["logging"]) == pytest.approx((10, 0.15, 0.05))
    assert row["timing"] == pytest.approx(1e-5 * (8 * 1000 + 14 * 200) / 10)
    assert row["all"] == pytest.approx(row["inspection"] + row["timing"]) and row["seed"] == 1
    assert 0 < overhead.seconds_of_an_entry() < 1e-3
