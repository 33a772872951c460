"""Tests of checkpoints: round trips, damaged files, and checkpoints of another model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.core.errors import CheckpointError, DamagedError
from d3jax.core.types import TrainState, Variables
from d3jax.runtime import checkpoint


def state_of(seed=0, width=3):
    params = {
        "stem": {"kernel": jax.random.normal(jax.random.key(seed), (200, width))},
        "head": {"bias": jnp.arange(2)},
    }
    tx = optax.sgd(0.1, momentum=0.9)
    return TrainState(jnp.int32(seed), Variables(params, {}), tx.init(params), jax.random.key(seed))


def same(one, other):
    flat = checkpoint.flatten(one), checkpoint.flatten(other)
    return flat[0].keys() == flat[1].keys() and all(
        np.array_equal(flat[0][name], flat[1][name]) for name in flat[0]
    )


def test_round_trip_keeps_everything(tmp_path):
    state = state_of(5)
    checkpoint.save(tmp_path / "a", state, {"lines": [{"step": 1}]})
    back, note = checkpoint.load(tmp_path / "a", state_of(0))
    assert same(back, state) and note == {"lines": [{"step": 1}]}
    assert jax.random.key_impl(back.key) == jax.random.key_impl(state.key) and jax.random.bits(
        back.key
    ) == jax.random.bits(state.key)


def test_a_checkpoint_of_another_model_is_refused_and_its_tensors_listed(tmp_path):
    checkpoint.save(tmp_path / "a", {"stem": jnp.ones(3), "old": jnp.ones(2)})
    with pytest.raises(
        CheckpointError,
        match=(
            r"another model: it lacks new; it also has old; "
            r"stem is float32\[3\], not float32\[4\]"
        ),
    ):
        checkpoint.load(tmp_path / "a", {"stem": jnp.ones(4), "new": jnp.ones(2)})


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.load(tmp_path / "a", {})


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax's threads raise it when a read fails
def test_every_truncated_or_altered_file_is_detected_or_harmless(tmp_path):
    """Each file in turn is cut in half, emptied, deleted, or has one byte flipped.

    Loading then raises an error or returns equal arrays.
    """
    state, like = state_of(5), state_of(0)
    checkpoint.save(tmp_path / "a", state, {"note": 1})
    noticed = 0
    for file in files_of(tmp_path / "a"):
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 255
        for damage in (whole[: len(whole) // 2], b"", None, bytes(flipped)):
            file.unlink() if damage is None else file.write_bytes(damage)
            try:
                back, _ = checkpoint.load(tmp_path / "a", like)
                assert same(back, state)
            except DamagedError as error:
                noticed += 1
                assert str(tmp_path / "a") in str(error) and "\n" not in str(error)
            file.write_bytes(whole)
    assert noticed >= 8
    assert same(checkpoint.load(tmp_path / "a", like)[0], state)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_rolling_checkpoints_keep_the_newest_and_skip_damaged_ones(tmp_path):
    rolling = checkpoint.Rolling(tmp_path / "steps", keep=2)
    assert rolling.steps() == []
    for step in (10, 20, 30):
        rolling.save(step, state_of(step), {"lines": [step]})
    assert rolling.steps() == [20, 30]
    for file in files_of(tmp_path / "steps" / "30"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.warns(UserWarning, match="going back"):
        assert rolling.load(30, state_of()) is None
    state, note = rolling.load(20, state_of())
    assert same(state, state_of(20)) and note == {"lines": [20], "step": 20}
    assert rolling.steps() == [20] and (tmp_path / "steps" / "30.damaged").is_dir()
    with pytest.raises(CheckpointError, match="another model"):
        rolling.load(20, state_of(width=4))
    for step in (40, 50, 30):  # step 30 replaces the later steps of an earlier run
        rolling.save(step, state_of(step), {"lines": [step]})
    assert rolling.steps() == [30]
    rolling.clear()
    assert rolling.steps() == []


@pytest.mark.parametrize(
    "error",
    [OSError(24, "Too many open files"), MemoryError(), ValueError("RESOURCE_EXHAUSTED: out")],
)
def test_errors_of_the_machine_leave_checkpoints_in_place(tmp_path, monkeypatch, error):
    rolling = checkpoint.Rolling(tmp_path / "steps")
    rolling.save(1, state_of(), {})

    def fails(*_):
        raise error

    monkeypatch.setattr(checkpoint.ocp, "load", fails)
    with pytest.raises(type(error)):
        rolling.load(1, state_of())
    assert rolling.steps() == [1]


def test_saving_replaces_an_earlier_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "a", {"x": jnp.ones(2)})
    checkpoint.save(tmp_path / "a", {"y": jnp.zeros(3)})
    assert checkpoint.load(tmp_path / "a", {"y": jnp.ones(3)})[0]["y"].tolist() == [0, 0, 0]
    assert json.dumps(checkpoint.load(tmp_path / "a", {"y": jnp.ones(3)})[1]) == "{}"
