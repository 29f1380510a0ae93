"""report.html: whole, harmless whatever the files say, and complete however little there is."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.report.runs import counters, gif, health_line, make_full_run, make_run, records, write_lines
from xrl.common.errors import ConfigError
from xrl.common.run_folder import locked
from xrl.report import diagnosis
from xrl.report.html import duration, report_html, seconds_trained, write_report
from xrl.report.run_files import read_run

SECTIONS = ["curves", "dream", "health", "losses", "time", "machine", "config", "commands"]
EVIL = "<img src=x onerror=alert(1)>\"'&</style><script>alert(2)</script>"


@pytest.fixture
def quick(monkeypatch):
    """Charts that take no time."""
    monkeypatch.setattr("xrl.report.charts.draw", lambda *_: "<svg></svg>")


class Page(HTMLParser):
    """Reads a page; tags that are not closed in order are an error."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == [] and html.startswith("<!DOCTYPE html>")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.stack  # HTML itself knows no such tags
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names]


def page_of(folder) -> Page:
    return Page(report_html(read_run(folder)))


def check_harmless(html: str) -> Page:
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "h3", "h4", "p",
        "dl", "dt", "dd", "div", "span", "strong", "br", "figure", "figcaption", "table", "thead", "tbody", "tr", "th",
        "td", "code", "pre", "details", "summary", "img", "svg", "g", "path", "defs", "clippath", "rect", "text", "use",
        "tspan"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    references = page.values("src", "href", "xlink:href", "action", "srcset", "poster")
    assert all(value.startswith(("#", "data:image/gif;base64,", "data:image/png;base64,")) for value in references)
    addresses = re.findall(r"url\((?!#)|@import|https?:|//\w", re.sub(r'src="data:[^"]*"', "", html))
    assert addresses == []
    return page


def test_everything_is_there_in_order(tmp_path):
    page = check_harmless(report_html(read_run(make_full_run(tmp_path))))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS
    assert len([1 for tag, _ in page.tags if tag == "svg"]) == 2 + 8 + 6  # returns wide and narrow, health, losses
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 2
    for words in ("CartPole-v1", "DreamerV2, seed 1, started 2030-01-01 12:00", "finished", "frames 16,000",
                  "agent steps 8,000", "updates 2,000", "time trained 6 min 40 s", "best evaluation 160",
                  "newest evaluation 160", "after 16,000 frames.", "open_loop_15", "torch 2.99", "cpu Z80",
                  "commit abcdef0", "running_steps 8000 7000", "xrl train --resume", "xrl dream",
                  "xrl train 'it'\"'\"'s'"):
        assert words in page.text, words


def test_what_a_browser_may_do_is_nothing(tmp_path, quick):
    page = page_of(make_full_run(tmp_path))
    (policy,) = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules == {"img-src": "data:", "style-src": "'unsafe-inline'"}
    order = [tag for tag, _ in page.tags]
    assert order.index("meta") < order.index("style")


def test_a_fresh_run_says_what_is_missing(tmp_path):
    folder = make_run(tmp_path)
    page = check_harmless(report_html(read_run(folder)))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS
    for words in ("stopped before its first record", f"{folder / 'metrics.jsonl'} is not there", "No evaluation yet.",
                  "No dream yet", "No evaluation has looked at the world model yet", "No update yet.",
                  "Not measured yet", "no checkpoint and no run.json", "frames -"):
        assert words in page.text, words


def test_a_run_that_is_being_written_and_one_that_stopped(tmp_path, quick):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", *records(3000), '{"agent_steps": 40')
    assert "stopped at 3,000 agent steps" in page_of(folder).text
    with locked(folder):
        assert "still being written" in page_of(folder).text


def test_evaluations_that_are_off(tmp_path):
    assert "Evaluations are off (eval_interval: 0)." in page_of(make_run(tmp_path, eval_interval=0)).text


def test_hostile_words_are_words(tmp_path):
    folder = make_full_run(tmp_path)
    text = (folder / "config.yaml").read_text().replace("CartPole-v1", "'" + EVIL.replace("'", "''") + "'")
    (folder / "config.yaml").write_text(text)
    extra = {**counters(9000), f"health/{EVIL}": 1.0, f"time/{EVIL}": 5.0, f"time/update/{EVIL}": 5.0, EVIL: 2}
    write_lines(folder / "metrics.jsonl", *records(), extra)
    write_lines(folder / "health.jsonl", health_line(9000, metrics={f"health/{EVIL}": 1.0, "health/kl": 1.0}))
    write_lines(folder / "run.json", {EVIL: EVIL, "versions": {EVIL: [EVIL]}, "command": [EVIL], "device": EVIL})
    (folder / "videos" / "dream_20000 <b>.gif").write_bytes(b"GIF8")
    page = check_harmless(report_html(read_run(folder)))
    assert page.text.count("<script>alert(2)</script>") > 5  # shown, as it stands


def test_a_configuration_of_a_method_that_is_not_here(tmp_path, quick):
    folder = make_full_run(tmp_path)
    write_lines(folder / "config.yaml", f"method: {json.dumps(EVIL)}", "env_id: [1, 2]", "running_steps: {}",
                "train_every: no")
    page = check_harmless(report_html(read_run(folder)))
    assert "cannot be said" in page.text and "unknown method" in page.text and "All 4 keys" in page.text


@pytest.mark.parametrize("broken", ["metrics.jsonl", "health.jsonl", "run.json", "videos/dream_16000.gif"])
def test_one_missing_or_broken_file_costs_its_part_only(tmp_path, broken, quick):
    folder = make_full_run(tmp_path)
    (folder / broken).write_bytes(b"\xff\x00{[")
    check_harmless(report_html(read_run(folder)))
    (folder / broken).unlink()
    check_harmless(report_html(read_run(folder)))


def test_health_in_the_log_alone_is_shown_without_charts(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {**counters(4000), "health/kl": 3.25})
    page = page_of(folder)
    assert "kl 3.25" in page.text and "No health.jsonl beside the log" in page.text


def test_nan_and_null_in_every_place(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", '{"agent_steps": NaN, "frames": 1, "eval/return": 3, "time/fps": 0}',
                '{"frames": null, "eval/return": NaN, "model/kl": -Infinity, "time/update": -1}',
                '{"eval/return": 5}', '{"agent_steps": 5, "time/update": 1e300, "model/kl": 1}')
    write_lines(folder / "health.jsonl", health_line(
        600, open_loop=None, still=[None] * 50, horizon=["a"], kl=[None], returns=[[None, 1]], classes="x",
        metrics={"health/kl": None}))
    check_harmless(report_html(read_run(folder)))


# Numbers -------------------------------------------------------------------------------------------------------------

def test_time_by_part_is_the_mean_over_steps(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"agent_steps": 1000, "time/update": 10, "time/fps": 9},
                {"agent_steps": 1500, "episode/return": 1},  # no clock: none of its steps is lost
                {"agent_steps": 4000, "time/update": 2, "time/policy": 4, "time/fps": 9, "time/gpu_idle": 0.5})
    seconds = diagnosis.seconds_by_part(read_run(folder))
    assert seconds == {"time/update": (10 * 1 + 2 * 3) / 4, "time/policy": 4 * 3 / 4}


def test_time_shows_shares_and_the_device(tmp_path, quick):
    folder = make_full_run(tmp_path)
    device = [{"time/gpu_idle": idle, "time/launches": 1234} for idle in (0.49, 0.33)]
    write_lines(folder / "metrics.jsonl", *({**record, **(device[record["agent_steps"] > 2000] if "time/fps" in record
                                                          else {})} for record in records()))
    text = page_of(folder).text
    assert "the average of the whole run (8,000 agent steps)" in text
    for words in ("update 17 85.0%", "rest 10 50.0%", "actor 7 35.0%", "policy 2 10.0%", "environment 1 5.0%",
                  "all 20 100.0%", "for 37% of the time", "1,234 kernels"):
        assert words in text, words


def test_the_verdict_on_time_is_on_the_whole_run(tmp_path, monkeypatch):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"agent_steps": 3000, "time/update": 10, "time/gpu_idle": 0.8},
                {"agent_steps": 4000, "updates": 100, "time/update": 2, "time/gpu_idle": 0.4})
    given = []
    monkeypatch.setattr("xrl.report.timing.verdict",
                        lambda seconds, _, updates: given.append((seconds, updates)) or "so")
    assert diagnosis.time_verdict(read_run(folder)) == ("fine", "so")
    assert given == [({"time/update": pytest.approx(8), "time/gpu_idle": pytest.approx(0.7)}, 25)]


def test_few_updates_say_nothing_of_the_time(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"agent_steps": 500, "updates": 99, "time/logging": 10})
    assert diagnosis.time_verdict(read_run(folder)) == ("unknown", "Too few updates to say where the time goes.")


def test_a_seed_of_a_benchmark_names_the_benchmark(tmp_path):
    whole = tmp_path / "models/benchmarks/DreamerV2/CartPole-v1"
    folder = make_run(whole / "seed_2")
    for seed in (1, 2, 3):
        (whole / f"seed_{seed}").mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"command": ["python", "seed.py", "seed.yaml", "x"]}))
    told = page_of(folder).text  # nobody knows of which benchmark
    assert "seed.py" not in told and "Repeat this run: xrl train" in told
    (whole / "benchmark.json").write_text("{}")
    told = page_of(folder).text
    assert "seed.py" not in told and "xrl train" not in told  # the benchmark goes on by itself
    assert f"--env-id CartPole-v1 --seeds 3 model_dir={tmp_path / 'models'}" in told
    (whole / "seed_1").rmdir()
    assert f"--seeds 2 seed=2 model_dir={tmp_path / 'models'}" in page_of(folder).text


def test_time_trained_leaves_pauses_out(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"frames": 100, "time/fps": 50}, {"frames": 150, "episode/return": 1},
                {"frames": 300, "time/fps": 100})
    assert seconds_trained(read_run(folder)) == 2 + 2
    assert math.isnan(seconds_trained(read_run(make_run(tmp_path / "b"))))


@pytest.mark.parametrize(("seconds", "words"), [
    (5.4, "5 s"), (65, "1 min 5 s"), (3600, "1 h 0 min"), (93_780, "1 d 2 h"), (math.nan, "-"), (1e300, "-")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_health_is_judged_once_there_is_something_to_judge(tmp_path, monkeypatch, quick):
    judged = []

    def judge(task, key, frames, value, updates, config):
        judged.append((task, key, frames, value))
        return "lower <this>" if key == "health/kl" else None

    monkeypatch.setattr("xrl.report.health.judge", judge)
    monkeypatch.setattr("xrl.report.health.task_of", lambda config: config["env_id"])
    folder = make_run(tmp_path)
    write_lines(folder / "health.jsonl", health_line(1000))  # 250 updates
    text = page_of(folder).text
    assert "Too few updates" in text and "number value status what it means" in text and judged == []
    assert "kl 2.5 too early" in text
    write_lines(folder / "health.jsonl", health_line(1000), health_line(4000))
    text = page_of(folder).text
    assert judged == [("CartPole-v1", "health/open_loop_15", 8000, 0.5), ("CartPole-v1", "health/kl", 8000, 2.5)]
    assert "1 of 2 numbers outside of what is normal: lower <this>" in text
    assert text.index("kl 2.5 warning") < text.index("open_loop_15 0.5 ok")
    monkeypatch.setattr("xrl.report.health.judge", lambda *_: None)
    assert "None of 2 numbers is outside" in page_of(folder).text


def test_the_command_to_repeat_it(tmp_path, quick):
    folder = make_full_run(tmp_path)
    write_lines(folder / "run.json", {"command": ["xrl", "train", "--import", "mine", "--env", "x"]})
    text = page_of(folder).text
    assert "Repeat this run: xrl train --import mine --method DreamerV2" in text
    assert "It was started with: xrl train --import mine --env x" in text
    write_lines(folder / "run.json", {"command": ["python", "script.py"]})
    text = page_of(folder).text
    assert "Repeat this run, if the script below registers nothing that it needs: xrl train --method" in text
    assert "It was started with: python script.py" in text


def test_a_report_needs_no_torch(tmp_path):
    """Not even of a run with checkpoints."""
    folder = make_full_run(tmp_path)
    (folder / "checkpoints").mkdir()
    script = ("import sys; sys.modules['torch'] = None; from xrl.report.html import write_report; "
              "import xrl.report.plot, xrl.report.tables; write_report(sys.argv[1])")
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and (folder / "report.html").exists(), done.stderr


# The file ------------------------------------------------------------------------------------------------------------

def test_it_is_written_into_the_run_or_elsewhere(tmp_path):
    folder = make_run(tmp_path)
    assert write_report(folder) == folder / "report.html"
    content = (folder / "report.html").read_text(encoding="utf-8")
    assert content.endswith("</html>\n")
    assert write_report(str(folder), tmp_path / "x.html").read_text(encoding="utf-8") == content
    with pytest.raises(ConfigError, match="there is no folder"):
        write_report(folder, tmp_path / "no/x.html")


def test_it_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, quick):
    folder = make_run(tmp_path)
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    write_lines(folder / "metrics.jsonl", *records(1000))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
            write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert write_report(folder).read_bytes() != before


def test_a_long_run_makes_a_small_file(tmp_path):
    folder = make_run(tmp_path)
    episodes = ({**counters(step), "episode/return": step % 97, "model/kl": step % 13, "model/image_loss": step % 7,
                 "eval/return": step % 41, "eval/return_min": 0, "eval/return_max": 50} for step in range(1, 20_001))
    write_lines(folder / "metrics.jsonl", *episodes)
    assert write_report(folder).stat().st_size < 1_500_000


# Methods without a world model ---------------------------------------------------------------------------------------


def model_free(folder, **changes):
    at = {"agent_steps": 1000, "frames": 1000, "updates": 200}
    update = {"actor/loss": 0.1, "critic/value": 2.0, "policy/ratio": 1.1, "update/skipped": 0.0, "time/update": 3.0}
    write_lines(folder / "metrics.jsonl", {**at, **update, **changes}, {**at, "eval/return": 3.0, "time/wall": 9.0})


def test_a_run_without_a_world_model_has_no_section_of_one_and_all_its_numbers(tmp_path):
    folder = make_run(tmp_path)
    model_free(folder)
    text = report_html(read_run(folder))
    assert "Health of the world model" not in text and "Newest dream" not in text and "No dream yet" not in text
    assert "DreamerV2 has no world model to judge." in text
    for shown in ("policy/ratio over frames", "actor/loss over frames", "Value over frames"):
        assert f'aria-label="{shown}"' in text
    for hidden in ("update/skipped", "time/wall", "eval/return", "critic/value"):
        assert f'aria-label="{hidden} over frames"' not in text


def test_a_run_that_has_not_learned_yet_may_have_one(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", {"agent_steps": 9, "frames": 9, "updates": 0, "eval/return": 3.0,
                                           "time/wall": 1.0}, {"agent_steps": 9, "frames": 9, "episode/return": 2.0})
    assert "Health of the world model" in report_html(read_run(folder))


@pytest.mark.parametrize("sign", ["model/kl", "health/kl"])
def test_a_number_of_a_model_is_a_sign_of_one(tmp_path, sign):
    folder = make_run(tmp_path, inspect=False)
    model_free(folder, **{sign: 1.0})
    assert "Health of the world model" in report_html(read_run(folder))


def test_its_film_is_shown(tmp_path):
    folder = make_run(tmp_path)
    model_free(folder)
    (folder / "videos").mkdir()
    (folder / "videos/evaluation_1000.gif").write_bytes(gif())
    text = report_html(read_run(folder))
    assert "Newest film" in text and "An evaluation episode" in text and "Newest dream" not in text
