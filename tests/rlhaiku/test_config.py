import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.config import (
    config_from_dict,
    describe_settings,
    field_names,
    fingerprint,
    load_config,
    preset_names,
    read_config,
    write_config,
)
from rlhaiku.errors import BadInput, OutputFailed

FROZEN = """
seed num_steps model.path data.path rollout.engine rollout.num_engines rollout.threads_per_engine
rollout.groups_per_step rollout.group_size rollout.tile_groups rollout.gpus_per_engine rollout.max_tokens
rollout.temperature rollout.deterministic rollout.max_staleness reward.num_workers reward.functions reward.mode
reward.topic_weight reward.repeat_penalty reward.dictionary reward.gate reward.timeout_s judge.required judge.rubric
judge.poems_per_request judge.max_concurrency judge.requests_per_s judge.max_tries judge.max_asks
judge.give_up_s judge.cache judge.usd_per_million algorithm.advantage_scale
algorithm.min_scored algorithm.clip_low algorithm.clip_high algorithm.max_importance_ratio algorithm.kl_coef
algorithm.loss_aggregation
trainer.backend trainer.threads trainer.lr trainer.lr_schedule trainer.lr_warmup_steps trainer.adam_beta1
trainer.adam_beta2 trainer.adam_eps trainer.weight_decay trainer.max_grad_norm trainer.optimizer_steps
trainer.micro_batch_tokens trainer.shared_prompt trainer.tensor_parallel trainer.recompute
evaluation.interval evaluation.num_prompts
evaluation.samples_per_prompt evaluation.temperature evaluation.max_tokens cluster.num_nodes
cluster.gpus_per_node cluster.colocate cluster.weight_path cluster.wait_timeout_s output.save_interval output.keep_last
output.poems_interval output.sinks
""".split()  # noqa: SIM905  (a list of strings is hard to read)


def test_settings_are_frozen_so_that_a_new_one_is_a_decision():
    assert field_names() == FROZEN
    assert len(FROZEN) <= 69


def test_presets():
    assert preset_names() == ["laptop", "one-gpu", "reference", "seed"]
    reference, seed = load_config("reference"), load_config("seed")
    rollout = reference.rollout
    assert (rollout.groups_per_step, rollout.group_size, rollout.max_tokens) == (128, 8, 300)
    assert reference.algorithm.kl_coef == 0
    assert (seed.rollout.groups_per_step, seed.rollout.group_size, seed.rollout.max_tokens) == (8, 2, 8192)
    assert (seed.evaluation.num_prompts, seed.evaluation.samples_per_prompt, seed.evaluation.interval) == (1000, 8, 20)
    assert (seed.num_steps, seed.trainer.lr, seed.output.save_interval) == (50, 1e-6, 10)
    assert seed.reward.mode == "seed"


@pytest.mark.parametrize("preset", preset_names())
def test_written_config_reads_back_equal(preset, tmp_path):
    config = load_config(preset, ['model.path=a "quoted" \\ path', 'output.sinks=["tensorboard", "wandb:a/b"]'])
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


def test_settings_of_an_earlier_version_are_refused_with_where_to_change_them(tmp_path):
    write_config(load_config("laptop"), file := tmp_path / "config.toml")
    file.write_text(file.read_text().replace("topic_weight = 0.12", "topic_weight = 0.25"))
    with pytest.raises(BadInput, match=r"config\.toml, reward\.topic_weight[\s\S]*Edit it there"):
        read_config(file)


def test_settings_that_were_cut_off_are_refused(tmp_path):
    path = tmp_path / "config.toml"
    write_config(load_config("laptop"), path)
    whole = path.read_bytes()
    for size in range(0, whole.index(b"[output]"), 7):  # the sections come one after another, `output` last
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"config\.toml must be whole.*Bring it back"):
            read_config(path)
    path.write_bytes(b"\xff\x00" + whole)
    with pytest.raises(BadInput, match="must be whole"):
        read_config(path)


def test_settings_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    config = load_config("laptop")
    write_config(config, path)
    before = path.stat()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    write_config(config, path)
    assert path.stat() == before, "what is there already is not written again"
    with pytest.raises(OutputFailed, match=r"config\.toml: No space left on device[\s\S]*--resume"):
        write_config(load_config("laptop", ["seed=1"]), path)
    assert read_config(path) == config


@given(st.text(), st.floats(1e-9, 1e9))
def test_any_text_and_number_survives_writing(tmp_path_factory, text, number):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    config = config_from_dict({"model": {"path": text}, "trainer": {"lr": number}})
    write_config(config, path)
    assert read_config(path) == config


def test_overrides_the_last_one_wins():
    overrides = ["rollout.group_size=4", "model.path=some/dir", "rollout.group_size=6", "trainer.shared_prompt=false"]
    config = load_config("laptop", overrides)
    assert (config.rollout.group_size, config.model.path, config.trainer.shared_prompt) == (6, "some/dir", False)


@pytest.mark.parametrize(("override", "value", "remedy"), [
    ("rollout.group_siz=8", "rollout.group_siz", "rollout.group_size"),
    ("grup_size=8", "grup_size", "Did you mean"),
    ("rollout=8", "rollout", "Did you mean"),
    ("rollout.group_size=1", 1, "--set rollout.group_size"),
    ("rollout.group_size=many", "many", "--set rollout.group_size"),
    ("rollout.tile_groups=5", "16", "e.g. 16 and 8"),
    ("trainer.optimizer_steps=3", "3", "divisor"),
    ("output.keep_last=1", 1, "--set output.keep_last"),
    ('output.sinks=["comet"]', "comet", "--set output.sinks"),
    ("no equals sign", "no equals sign", "--set"),
])
def test_bad_overrides_say_rule_value_remedy(override, value, remedy):
    with pytest.raises(BadInput) as caught:
        load_config("laptop", [override])
    assert caught.value.rule
    assert caught.value.value == value
    assert remedy in caught.value.remedy


def test_unknown_key_in_a_file_names_the_nearest():
    with pytest.raises(BadInput, match=r"trainer\.lr_shedule.*trainer\.lr_schedule"):
        config_from_dict({"trainer": {"lr_shedule": "linear"}})


def test_unknown_preset_names_the_nearest():
    with pytest.raises(BadInput, match="Did you mean 'laptop'"):
        load_config("labtop")


def test_every_setting_says_what_it_means():
    rows = describe_settings(load_config("laptop"))
    assert [key for key, _, _ in rows] == FROZEN
    assert not [key for key, _, meaning in rows if not meaning]
    assert {key: value for key, value, _ in rows}["reward.functions"] == '{ "haiku" = 1.0 }'


def test_prices_change_no_weights_and_a_deadline_may():
    plain = fingerprint(load_config("laptop"))
    assert fingerprint(load_config("laptop", ["judge.usd_per_million=[0.5, 2]"])) == plain
    assert fingerprint(load_config("laptop", ["reward.timeout_s=5"])) != plain
def test_a_bound_on_ratios_is_above_the_clip():
    assert load_config("laptop", ["algorithm.max_importance_ratio=2"]).algorithm.max_importance_ratio == 2
    with pytest.raises(BadInput, match=r"max_importance_ratio must be 0, or above .* \(1\.28\); got '1\.2'"):
        load_config("laptop", ["algorithm.max_importance_ratio=1.2"])


def test_repeats_are_compared_between_groups():
    with pytest.raises(BadInput, match=r"groups_per_step must be at least 2 for reward\.repeat_penalty"):
        load_config("laptop", ["rollout.groups_per_step=1", "rollout.tile_groups=1", "reward.repeat_penalty=0.2"])
