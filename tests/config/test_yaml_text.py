"""YAML texts that are malformed, hostile or merely odd."""

import itertools
import time

import pytest

from d3jax.config.loading import load, loads
from d3jax.config.yaml_text import parse_yaml
from d3jax.core.errors import ConfigError
from d3jax.study.registries import REGISTRIES

LETTERS = "abcdefghi"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(10 * ['*' + before])}]"
    for before, name in itertools.pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000 + "]" * 10_000, "f: not YAML: it is nested too deep"),
        ("a: " + "9" * 5_000, "f:1: not YAML: the number 9{20}… is too large"),
        ("a: 0x" + "f" * 5_000, "f:1: not YAML: the number 0xf{18}… is too large"),
        ("a: 99999999999999999999", "is too large"),
        ("a: !!int abc", "f: not YAML: invalid literal"),
        ("a: 2020-13-01", "f: not YAML: month must be in 1..12"),
        ("a: !!timestamp abc", "f: not YAML: a value is not what its tag says"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (LAUGHS, "f:1: not YAML: its aliases make more than 100000 values of it"),
        ("a: &a [*a]", "an alias stands inside of what it repeats"),
        ("? [a]\n: 3", "found unhashable key"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: [", "f:1: not YAML"),
    ],
)
def test_what_is_no_plain_yaml_gets_one_line_at_once(text, message):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "f")
    assert time.monotonic() - start < 10 and len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_settings_that_several_parts_share_have_a_place():
    text = """
x-recipe: &recipe {epochs: 3, batch_size: 8}
.also: &also {fraction: 0.3}
train: {<<: *recipe, batch_size: 16}
reserved: *also
"""
    config = loads(text, registries=REGISTRIES)
    assert (config.train.epochs, config.train.batch_size) == (3, 16)
    assert config.reserved.fraction == 0.3


def test_an_empty_file_is_no_study(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="empty.yaml: is empty, want the settings of a study"):
        load(tmp_path / "empty.yaml", registries=REGISTRIES)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{3: [1]}", "want a mapping of settings to lists of values"),
        (f"{{lam: {list(range(200))}, eps: {list(range(200))}}}", "asks for 40000 entries"),
    ],
)
def test_sweeps_without_bound_or_names_are_refused(sweep, message):
    with pytest.raises(ConfigError, match=message):
        loads(f"defenses: [{{name: d3, sweep: {sweep}}}]", registries=REGISTRIES)


def test_messages_stay_short():
    with pytest.raises(
        ConfigError, match="^config: train: want a mapping, got 'xx.* … .*xx'$"
    ) as caught:
        loads(f"train: '{'x' * 5_000}'", registries=REGISTRIES)
    assert len(str(caught.value)) < 1600
