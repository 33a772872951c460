"""Tests of YAML texts that are malformed, hostile or unusual."""

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
        (LAUGHS, "f:1: not YAML: its aliases expand it to more than 100000 values"),
        ("a: &a [*a]", "an alias appears inside the value that it repeats"),
        ("? [a]\n: 3", "found unhashable key"),
        ("a: 1\na: 2", "the key 'a' appears twice"),
        ("a: [", "f:1: not YAML"),
    ],
)
def test_texts_that_are_not_plain_yaml_quickly_get_a_one_line_error(text, message):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "f")
    assert time.monotonic() - start < 10 and len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_keys_that_begin_with_x_or_a_dot_may_hold_shared_settings():
    text = """
x-recipe: &recipe {epochs: 3, batch_size: 8}
.also: &also {fraction: 0.3}
train: {<<: *recipe, batch_size: 16}
reserved: *also
"""
    config = loads(text, registries=REGISTRIES)
    assert (config.train.epochs, config.train.batch_size) == (3, 16)
    assert config.reserved.fraction == 0.3


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="empty.yaml: is empty, want the settings of a study"):
        load(tmp_path / "empty.yaml", registries=REGISTRIES)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{3: [1]}", "want a mapping of settings to lists of at least one value"),
        (f"{{lam: {list(range(200))}, eps: {list(range(200))}}}", "asks for 40000 entries"),
        ("{lam: []}", "want a mapping of settings to lists of at least one value"),
        ("{label: [a, b]}", "label cannot be swept; write an entry for each"),
    ],
)
def test_sweeps_that_are_too_large_or_lack_names_are_refused(sweep, message):
    with pytest.raises(ConfigError, match=message):
        loads(f"defenses: [{{name: d3, sweep: {sweep}}}]", registries=REGISTRIES)


def test_messages_shorten_long_values():
    with pytest.raises(
        ConfigError, match="^config: train: want a mapping, got 'xx.* … .*xx'$"
    ) as caught:
        loads(f"train: '{'x' * 5_000}'", registries=REGISTRIES)
    assert len(str(caught.value)) < 1600


def test_a_key_that_appears_twice_is_an_error_with_the_line_of_the_second():
    with pytest.raises(ConfigError, match=r"^x\.yaml:4: .*the key 'seeds' appears twice"):
        parse_yaml("seeds: [0]\nmodel: a\n\nseeds: [1]", "x.yaml")
