"""The layers of a configuration, and what it says when they are wrong."""

import argparse
import json
import warnings
from pathlib import Path

import pytest
import yaml

import xrl.configs
from xrl.common.config import as_config, as_dict, describe, get_configs, load_config, save_config
from xrl.common.errors import ConfigError
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config

CARTPOLE = {"method": "DreamerV2", "env": "classic_control", "env_id": "CartPole-v1"}
SHORT = "method: DreamerV2\nenv_name: MyNewEnv\nenv_id: my-env-v0\n"
SHIPPED = Path(xrl.configs.__path__[0]) / "dreamer_v2"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def flat(nested: dict, prefix: str = "") -> dict:
    """An independent flattening of plain dicts, leaving env_kwargs whole."""
    out = {}
    for key, value in nested.items():
        if isinstance(value, dict) and key != "env_kwargs":
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


# --- layers ---------------------------------------------------------------------------------------------------------


def test_later_layers_win_and_origins_name_the_winner(tmp_path):
    path = write(tmp_path / "my.yaml", "gamma: 0.9\nbatch_size: 7\nactor: {entropy: 0.5}\n")
    resolved = load_config("DreamerV2", "atari", "ALE/Pong-v5", path, {"preset": "paper", "batch_size": 3})
    config, origins = resolved.config, resolved.origins
    assert isinstance(config, DreamerV2Config)
    expected = {  # key -> (value, origin)
        "horizon": (15, "default"),
        "start_training": (50_000, "dreamer_v2/atari.yaml"),
        "train_every": (4, "preset paper"),  # atari.yaml says 16
        "gamma": (0.9, str(path)),  # atari.yaml and the preset say 0.999
        "actor.entropy": (0.5, str(path)),
        "actor.advantage": ("centered", "preset paper"),
        "batch_size": (3, "keyword argument"),  # my.yaml says 7
        "env_id": ("ALE/Pong-v5", "keyword argument"),
    }
    values = flat(as_dict(config))
    assert {key: (values[key], origins[key]) for key in expected} == expected
    assert origins.keys() == values.keys()


def test_env_id_file_wins_over_family_and_slash_becomes_dash(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    (folder / "fam").mkdir(parents=True)
    write(folder / "default.yaml", "seed: 10\nhorizon: 10\n")
    write(folder / "fam.yaml", "seed: 20\nbatch_size: 20\n")
    write(folder / "fam" / "A-b-v0.yaml", "seed: 30\n")
    entry = xrl.METHODS["DreamerV2"]
    monkeypatch.setitem(xrl.METHODS, "Mine", type(entry)(entry.agent, entry.learner, entry.policy, entry.schema,
                                                         configs=str(folder)))
    own = load_config("mine", "fam", "A/b-v0").config
    other = load_config("mine", "fam", "c").config
    unknown_family = load_config("mine", "elsewhere", "c").config
    assert (own.seed, own.batch_size, own.horizon) == (30, 20, 15)  # default.yaml only stands in for a missing family
    assert (other.seed, other.batch_size, other.horizon) == (20, 20, 15)
    assert (unknown_family.seed, unknown_family.batch_size, unknown_family.horizon) == (10, 16, 10)


def test_a_family_without_a_file_gets_the_laptop_sizes():
    config = load_config("DreamerV2", "MyNewEnv", "x").config
    assert config.world_model.rssm.deter == 128
    assert config.world_model.reward_transform == "identity"
    assert config.environment.action_repeat == 1


def test_partly_given_section_keeps_the_defaults_of_its_place():
    config = load_config("DreamerV2", "MyNewEnv", "x", overrides={"actor_opt": {"clip": 5}}).config
    assert config.actor_opt.clip == 5
    assert config.actor_opt.lr == 2e-4  # default.yaml's, not OptimizerConfig's own 1e-4


@pytest.mark.parametrize("source", ["file", "keyword"])
def test_preset_is_looked_up_wherever_it_is_set_and_the_file_still_wins(tmp_path, source):
    text = "start_training: 60\n" + ("preset: debug\n" if source == "file" else "")
    overrides = {"preset": "debug"} if source == "keyword" else None
    config = load_config(**CARTPOLE, config_path=write(tmp_path / "a.yaml", text), overrides=overrides).config
    assert (config.preset, config.world_model.rssm.deter, config.start_training) == ("debug", 8, 60)


def test_preset_paper_sets_the_points_where_paper_and_code_differ():
    official = load_config("DreamerV2", "atari", "ALE/Pong-v5").config
    paper = load_config("DreamerV2", "atari", "ALE/Pong-v5", overrides={"preset": "paper"}).config
    before, after = flat(as_dict(official)), flat(as_dict(paper))
    assert {key: after[key] for key in before if before[key] != after[key]} == {
        "preset": "paper", "batch_size": 50, "train_every": 4, "environment.full_action_space": True,
        "actor.advantage": "centered", "actor.baseline": "fast", "imagination.drop_last": True}
    assert (paper.seq_len, paper.gamma) == (50, 0.999)


@pytest.mark.parametrize("preset", ["official", "paper", "debug"])
@pytest.mark.parametrize("path", [p for p in sorted(SHIPPED.rglob("*.yaml")) if "presets" not in p.parts],
                         ids=lambda path: str(path.relative_to(SHIPPED)))
def test_every_shipped_file_resolves_with_every_preset(path, preset):
    parts = path.relative_to(SHIPPED).with_suffix("").parts
    env, env_id = parts if len(parts) == 2 else (parts[0], "some-id")
    resolved = load_config("DreamerV2", env, env_id, overrides={"preset": preset})
    wanted = flat(yaml.safe_load(path.read_text()))
    assert any(origin == f"dreamer_v2/{path.relative_to(SHIPPED).as_posix()}" for origin in resolved.origins.values())
    assert resolved.origins.keys() >= wanted.keys()
    if preset == "debug":
        assert resolved.config.world_model.rssm.deter == 8
        assert resolved.config.running_steps == 200


# --- numbers and other values ---------------------------------------------------------------------------------------


def test_numbers_as_people_write_them_in_every_source(tmp_path):
    path = write(tmp_path / "a.yaml", "running_steps: 5e7\nmodel_opt.lr: 1e-4\nenv_kwargs: {friction: 2e-3}\n")
    from_file = load_config(**CARTPOLE, config_path=path).config
    from_line = load_config(**CARTPOLE, overrides=["running_steps=5e7", "model_opt.lr=1e-4",
                                                   "env_kwargs.friction=2e-3"])
    from_words = load_config(**CARTPOLE, overrides={"running_steps": "5e7", "model_opt": {"lr": "1e-4"},
                                                    "env_kwargs": {"friction": 0.002}})
    assert from_file == from_line.config == from_words.config
    assert type(from_file.running_steps) is int and from_file.running_steps == 50_000_000
    assert from_file.model_opt.lr == 0.0001
    assert from_file.env_kwargs == {"friction": 0.002}


def test_values_on_the_command_line_are_yaml():
    config = load_config(**CARTPOLE, overrides=[
        "world_model.predict_discount=false", "log_dir=null", "world_model.grad_heads=[decoder]", "project_name=2024",
        "world_model.obs_scale=[1, 2.5]"]).config
    assert config.world_model.predict_discount is False
    assert config.log_dir is None
    assert config.world_model.grad_heads == ("decoder",)
    assert config.project_name == "2024"
    assert config.world_model.obs_scale == (1.0, 2.5)


def test_dotted_nested_and_mixed_keys_mean_the_same(tmp_path):
    one = write(tmp_path / "a.yaml", "world_model.rssm.deter: 300\nworld_model:\n  rssm.hidden: 20\n  kl: {scale: 2}\n")
    nested = {"world_model": {"rssm": {"deter": 300, "hidden": 20}, "kl": {"scale": 2}}}
    assert load_config(**CARTPOLE, config_path=one).config == load_config(**CARTPOLE, overrides=nested).config


def test_env_kwargs_are_replaced_whole_or_extended_by_a_dotted_key(tmp_path):
    path = write(tmp_path / "a.yaml", "env_kwargs: {a: 1}\n")
    assert load_config(**CARTPOLE, config_path=path, overrides=["env_kwargs.b=2"]).config.env_kwargs == {"a": 1, "b": 2}
    replaced = load_config(**CARTPOLE, config_path=path, overrides={"env_kwargs": {"b": 2}}).config
    assert replaced.env_kwargs == {"b": 2}


def test_method_is_found_whatever_its_case():
    assert load_config("dreamerv2", "toy", "Catch-v0").config.method == "DreamerV2"


# --- plain dicts, Namespaces, saving --------------------------------------------------------------------------------


def test_get_configs_is_full_plain_and_feeds_a_namespace(tmp_path):
    path = write(tmp_path / "dreamerv2_myenv.yaml", SHORT + "parallels: 2\n")
    configs_dict = get_configs(file_dir=str(path), running_steps=500)
    assert json.loads(json.dumps(configs_dict)) == configs_dict  # lists and dicts only, no tuples
    assert flat(configs_dict).keys() == load_config(config_path=path).origins.keys()
    configs = argparse.Namespace(**configs_dict)
    assert (configs.parallels, configs.running_steps, configs.env_name) == (2, 500, "MyNewEnv")
    configs.gamma = 0.5
    assert as_config(configs) == load_config(config_path=path, overrides={"running_steps": 500, "gamma": 0.5}).config


def test_as_config_is_idempotent_and_resolved_values_survive_their_preset():
    paper = load_config("DreamerV2", "atari", "ALE/Pong-v5", overrides={"preset": "paper", "gamma": 0.5,
                                                                        "env_kwargs": {"a": 1}}).config
    assert paper.gamma == 0.5
    assert as_config(paper) is paper
    assert as_config(as_dict(paper)) == paper
    assert as_config(argparse.Namespace(**as_dict(paper))) == paper


def test_as_config_gives_a_short_mapping_the_same_layers_as_a_file(tmp_path):
    short = yaml.safe_load(SHORT)
    assert as_config(short) == as_config(argparse.Namespace(**short)) == load_config(
        config_path=write(tmp_path / "a.yaml", SHORT)).config


def test_saved_config_loads_equal_both_ways(tmp_path):
    config = load_config("DreamerV2", "atari", "ALE/Pong-v5", overrides={
        "model_opt.eps": 1e-20, "log_dir": "1e5", "world_model.obs_scale": [1, 2],
        "env_kwargs": {"name": "1e-4", "deep": {"list": [1, None, True]}}}).config
    save_config(config, tmp_path / "config.yaml")
    assert load_config(config_path=tmp_path / "config.yaml").config == config
    assert as_config(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_what_yaml_cannot_hold_is_refused_when_saving(tmp_path):
    config = load_config(**CARTPOLE, overrides={"env_kwargs": {"f": object()}}).config
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be written: <object object .* has no YAML form"):
        save_config(config, tmp_path / "config.yaml")


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config(**CARTPOLE).config.seed = 2


# --- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = [  # overrides as on the command line, what the one line must say
    ("actor.entropi=0.001", "command line: actor.entropi: unknown key (value 0.001). Did you mean 'actor.entropy'?"),
    ("runing_steps=5", "command line: runing_steps: unknown key (value 5). Did you mean 'running_steps'?"),
    ("deter=5", "command line: deter: unknown key (value 5). Did you mean 'world_model.rssm.deter'?"),
    ("qqqqqq=5", "command line: qqqqqq: unknown key (value 5)."),
    ("running_steps=lots", "command line: running_steps: must be a valid integer, unable to parse string as an integer "
                           "(value 'lots')."),
    ("running_steps=1.5", "command line: running_steps: must be a valid integer, got a number with a fractional part "
                          "(value 1.5)."),
    ("parallels=0", "command line: parallels: must be greater than or equal to 1 (value 0)."),
    ("parallels=true", "command line: parallels: must be a finite number (value True)."),
    ("gamma=.nan", "command line: gamma: must be a finite number (value nan)."),
    ("running_steps=1e999", "command line: running_steps: must be a finite number (value inf)."),
    ("vectorize=threads", "command line: vectorize: must be 'sync', 'async' or 'native' (value 'threads')."),
    ("preset=papr", "command line: preset: must be 'official', 'paper' or 'debug' (value 'papr')."),
    ("actor=3", "command line: actor: must be a section, with keys such as layers, units, norm, grad (value 3)."),
    ("world_model.obs_scale=[1, -1]", "command line: world_model.obs_scale: every scale must be positive "
                                      "(value [1, -1])."),
    ("running_steps.x=1", "command line: running_steps.x: unknown key (value 1). Did you mean 'running_steps'?"),
    ("seed", "command line: 'seed' must look like key=value"),
    ("=1", "command line: '=1' must look like key=value"),
    ("seed=[1", "command line: seed: line 1, column 3: expected ',' or ']', but got '<stream end>'"),
    ("method=DreamerV2", "command line: method: 'method' is given twice (value 'DreamerV2')."),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_mistake_on_the_command_line_is_one_exact_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(**CARTPOLE, overrides=[override])
    assert str(caught.value) == message


FILE_MISTAKES = [
    ("actor:\n  entropi: 1e-3\n", "actor.entropi: unknown key (value 0.001). Did you mean 'actor.entropy'?"),
    ("running_steps: lots\n", "running_steps: must be a valid integer, unable to parse string as an integer"
                              " (value 'lots')."),
    ("actor: big\n", "actor: must be a section, with keys such as layers, units, norm, grad (value 'big')."),
    ("seed: 1\ngamma: 0.9\nseed: 2\n", "line 3, column 1: the key 'seed' is given twice"),
    ("actor:\n  mix: 1\n  mix: 1\n", "line 3, column 3: the key 'mix' is given twice"),
    ("actor.mix: 1\nactor: {mix: 1}\n", "actor.mix: 'actor.mix' is given twice (value 1)."),
    ("a: [1,\n", "line 2, column 1: expected the node content, but found '<stream end>'"),
    ("", "the file is empty; write at least one 'key: value'"),
    ("# only a comment\n", "the file is empty; write at least one 'key: value'"),
    ("- seed\n", "must hold 'key: value' lines, not a list"),
    ("seed: !!python/object:os.system x\n",
     "line 1, column 7: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"),
    ("1: 2\n", "1: unknown key (value 2)."),
]


@pytest.mark.parametrize(("text", "message"), FILE_MISTAKES)
def test_mistake_in_a_file_names_the_file(tmp_path, text, message):
    path = write(tmp_path / "my.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(**CARTPOLE, config_path=path)
    label, colon, rest = str(caught.value).partition("my.yaml: ")
    assert (label, colon, rest) == (f"{tmp_path}/", "my.yaml: ", message)


def test_missing_file_names_its_nearest_neighbour(tmp_path):
    write(tmp_path / "my_config.yaml", SHORT)
    with pytest.raises(ConfigError, match=r"my_confg\.yaml: no such config file\. Did you mean 'my_config\.yaml'\?"):
        load_config(config_path=tmp_path / "my_confg.yaml")
    with pytest.raises(ConfigError, match=r"no such config file \(there is no folder"):
        load_config(config_path=tmp_path / "nowhere" / "my.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a text file"):
        load_config(config_path=tmp_path)


def test_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match=r"a\.yaml: cannot be read as a text file"):
        load_config(config_path=tmp_path / "a.yaml")


def test_the_layer_at_fault_is_named_not_a_later_one(tmp_path):
    path = write(tmp_path / "my.yaml", "parallels: 0\n")
    with pytest.raises(ConfigError, match=r"my\.yaml: parallels"):
        load_config(**CARTPOLE, config_path=path, overrides={"seed": 1})


def test_values_that_do_not_fit_each_other_name_the_last_layer_involved(tmp_path):
    path = write(tmp_path / "my.yaml", "seq_len: 60\n")
    with pytest.raises(ConfigError, match=r"my\.yaml: replay\.min_length: 50 is too short.* seq_len = 60"):
        load_config("DreamerV2", "atari", "ALE/Pong-v5", path, {"seed": 1})
    fixed = load_config("DreamerV2", "atari", "ALE/Pong-v5", path, {"replay.min_length": 59}).config
    assert fixed.seq_len == 60  # a layer need not be consistent alone


@pytest.mark.parametrize("key", ["method", "env_name", "env_id"])
def test_required_keys_that_are_missing_are_named(key):
    short = {k: v for k, v in yaml.safe_load(SHORT).items() if k != key}
    with pytest.raises(ConfigError, match=f"^config: {key}: missing; .* e.g. "):
        as_config(short)


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"method: unknown method 'DreamerV22'\. Did you mean 'DreamerV2'\?"):
        load_config("DreamerV22", "toy", "Catch-v0")
    with pytest.raises(ConfigError, match="method: unknown method 5"):
        as_config({"method": 5})


def test_as_config_refuses_other_things_and_unknown_keys():
    with pytest.raises(ConfigError, match="not a list"):
        as_config([1])
    full = as_dict(load_config(**CARTPOLE).config)
    with pytest.raises(ConfigError, match=r"^config: critic\.slow_evry: unknown key .* 'critic\.slow_every'"):
        as_config({**full, "critic": {"slow_evry": 5}})


def test_long_values_are_cut_in_messages():
    with pytest.raises(ConfigError) as caught:
        load_config(**CARTPOLE, overrides={"seed": "x" * 1000})
    assert len(str(caught.value)) < 200


# --- XuanCe ---------------------------------------------------------------------------------------------------------

XUANCE = """
dl_toolbox: torch
agent: dreamerv2
env_name: Classic Control
env_id: CartPole-v1
vectorize: DummyVecEnv
representation: SomeModel
learner: SomeLearner
policy: SomePolicy
runner: DRL
distribution: {type: auto, validate_args: false}
world_model:
  stochastic_size: 24
  recurrent_model: {recurrent_state_size: 200, layer_norm: true}
  transition_model: {hidden_size: 200}
  encoder: {mlp_layers: 3, layer_norm: false}
lmbda: 0.9
learning_rate_model: 0.0003
replay_ratio: 0.2
gamma: 0.98
"""


def test_yaml_written_for_xuance_loads_with_one_warning(tmp_path):
    path = write(tmp_path / "xc.yaml", XUANCE)
    with pytest.warns(UserWarning) as caught:
        config = load_config(config_path=path).config
    assert len(caught) == 1
    assert str(caught[0].message) == (
        f"{path}: keys of XuanCe that are not needed here and have no effect: dl_toolbox, representation, learner, "
        "policy, runner, distribution, world_model.recurrent_model.layer_norm, world_model.transition_model "
        "(see world_model.rssm.hidden), world_model.encoder.layer_norm (see world_model.norm), "
        "replay_ratio (see train_every)")
    assert (config.method, config.env_name, config.vectorize) == ("DreamerV2", "classic_control", "sync")
    rssm, encoder = config.world_model.rssm, config.world_model.encoder
    assert (rssm.stoch, rssm.deter, encoder.layers) == (24, 200, 3)
    assert (config.gamma, config.lambda_, config.model_opt.lr) == (0.98, 0.9, 0.0003)


def test_a_typo_beside_xuance_keys_is_still_an_error(tmp_path):
    path = write(tmp_path / "xc.yaml", XUANCE.replace("mlp_layers", "mlp_layerz"))
    with pytest.raises(ConfigError, match=r"xc\.yaml: world_model\.encoder\.mlp_layerz: unknown key \(value 3\)\."):
        load_config(config_path=path)


def test_agent_and_method_together_are_given_twice(tmp_path):
    path = write(tmp_path / "xc.yaml", SHORT + "agent: DreamerV2\n")
    with pytest.raises(ConfigError, match=r"agent: 'method' is given twice"):
        load_config(config_path=path)


def test_subprocess_vectorisation_and_atari_of_xuance():
    config = load_config(overrides={"algo": "DreamerV2", "env": "Atari", "env_id": "ALE/Pong-v5",
                                    "vectorize": "Subproc_Atari", "frame_skip": 2}).config
    assert (config.env_name, config.vectorize, config.environment.action_repeat) == ("atari", "async", 2)


def test_our_own_keys_never_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_config(as_dict(load_config(**CARTPOLE).config))


# --- describe -------------------------------------------------------------------------------------------------------


def test_describe_shows_value_origin_unit_and_meaning_of_every_key():
    resolved = load_config("DreamerV2", "atari", "ALE/Pong-v5", overrides=["seed=7"])
    text = describe(resolved.config, resolved.origins)
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["seed", "7", "command line", "-", "seed of networks, sampling and policy"] in cells
    assert ["train_every", "16", "dreamer_v2/atari.yaml", "agent steps", "one update per this many"] in cells
    assert ["full_action_space", "false", "default", "-",
            "Atari: all 18 actions instead of the game's minimal set"] in cells
    assert sum(len(row) == 5 for row in cells) == len(resolved.origins)
    assert "[world_model.rssm] recurrent state-space model" in text


def test_nesting_that_yaml_could_not_write_again_is_refused(tmp_path):
    path = tmp_path / "deep.yaml"
    nested = "[" * 60 + "]" * 60
    path.write_text(f"method: DreamerV2\nenv_name: toy\nenv_id: Catch-v0\nenv_kwargs: {{a: {nested}}}\n")
    with pytest.raises(ConfigError, match="nested deeper than 50 levels"):
        load_config(config_path=path)
