"""Tests of poisoned sets as files: written, read again, and studied as somebody else's."""

import numpy as np
import pytest
from PIL import Image

from d3jax import export
from d3jax.attacks import released
from d3jax.core.errors import AttackError, D3JaxError, DataError
from d3jax.core.images import as_float, as_levels
from d3jax.core.types import DataInfo, Split
from d3jax.data.released import Released, read_released, write_released

from ..helpers import studies

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}]
train: {steps: 60, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 80}
defenses: [{name: finetune, schedule: {steps: 4}}]
detections: [spectral]
loop: {log_every: 2}
"""
INFO = DataInfo("some", (8, 8, 3), tuple("abcd"), (0.5,) * 3, (0.2,) * 3)
RNG = np.random.default_rng(0)
TRAIN = Split(RNG.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8), np.arange(40) % 4)
TEST = Split(RNG.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8), np.arange(12) % 4)
WANTED = np.array([0, 0, 2, 3])
ROWS = np.flatnonzero(TEST.labels == 1)
TRIGGERED = 255 - TEST.images[ROWS]
FLAGS = np.arange(40) < 5
WHOLE = Released(TRAIN, TEST, None, FLAGS, ~FLAGS, TRAIN.labels, TRIGGERED, ROWS, WANTED)


def written(path, **changes):
    write_released(path, WHOLE._replace(**changes))
    return str(path)


def test_a_released_set_is_read_as_it_was_written(tmp_path):
    found = read_released(tmp_path / "set.npz") if written(tmp_path / "set.npz") else None
    for name in ("poisoned", "covers", "original_labels", "triggered_images", "wanted_labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(WHOLE, name))
    np.testing.assert_array_equal(found.train.images, TRAIN.images)


def test_the_stamp_is_the_triggered_image_of_the_same_test_image(tmp_path):
    attack = released(path=written(tmp_path / "set.npz")).build(INFO)
    images = as_float(TEST.images[::-1].copy())
    stamped = np.asarray(as_levels(attack.stamp(attack.init(None), images)))
    expected = TEST.images.copy()
    expected[ROWS] = TRIGGERED
    np.testing.assert_array_equal(stamped, expected[::-1])
    assert attack.relabel(np.arange(4)).tolist() == WANTED.tolist()
    np.testing.assert_array_equal(attack.select(None, TRAIN.labels), FLAGS)


def test_grey_images_may_lack_the_axis_of_channels(tmp_path):
    train, test = (split._replace(images=split.images[..., 0]) for split in (TRAIN, TEST))
    path = written(tmp_path / "g.npz", train=train, test=test, triggered_images=TRIGGERED[..., 0])
    attack = released(path=path).build(DataInfo("grey", (8, 8, 1), tuple("abcd"), (0.5,), (0.2,)))
    stamped = attack.stamp(attack.init(None), as_float(test.images[..., None]))
    np.testing.assert_array_equal(as_levels(stamped)[ROWS, ..., 0], TRIGGERED[..., 0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("persistent: 0.1", "persistent: 0.1 stamps other images than the test images"),
        ("drift: {rotation: 5.0}", "trigger_first: false stamps other images"),
    ],
)
def test_evolutions_that_need_the_trigger_function_are_refused(tmp_path, settings, words):
    path = written(tmp_path / "set.npz")
    config = studies.read(
        STUDY,
        ("dataset", f"{{name: npz, path: {path}}}"),
        ("attacks", f"[{{name: released, path: {path}}}]"),
        ("reserved", "{count: 8}"),
        ("train.batch_size", "8"),
        ("defenses", "[]"),
        ("fresh", "0.5"),
        ("evolutions", f"[{{name: evolution, updates: 1, batch_size: 8, {settings}}}]"),
    )
    with pytest.raises(D3JaxError, match=words):
        studies.run(config, tmp_path / "run")


def test_without_flags_or_triggers_nothing_is_claimed(tmp_path):
    unknown = {name: None for name in Released._fields[3:]}
    attack = released(path=written(tmp_path / "set.npz", **unknown)).build(INFO)
    assert not attack.select(None, TRAIN.labels).any()
    assert not attack.eligible(np.arange(4)).any()
    images = as_float(TEST.images)
    np.testing.assert_array_equal(attack.stamp(attack.init(None), images), images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"poisoned": FLAGS[:7]}, r"poisoned is \[7\], want \[40\]"),
        ({"poisoned": TRAIN.labels}, "poisoned is int64, want bool"),
        ({"triggered_rows": None}, "has triggered_images, wanted_labels but no triggered_rows"),
        ({"triggered_rows": ROWS + 9}, "triggered_rows leaves the 12 test images"),
        ({"triggered_images": TRIGGERED[:, :4]}, "triggered_images is uint8"),
        (
            {"wanted_labels": np.array([0, 9, 2, 3])},
            r"wanted_labels is \[0, 9, 2, 3\], want 4 classes",
        ),
        (
            {"triggered_images": TRIGGERED[:2], "triggered_rows": ROWS[:2]},
            "triggered_images lacks 1 of the 3 test images whose label the attacker changes",
        ),
        ({"wanted_labels": np.arange(4)}, "lacks 0 of the 0 test images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises(D3JaxError, match=words):
        released(path=written(tmp_path / "set.npz", **changes)).build(INFO)


def test_another_data_set_is_refused(tmp_path):
    attack = released(path=written(tmp_path / "set.npz")).build(INFO)
    with pytest.raises(AttackError, match="has 40 training images, the data set .* has 39"):
        attack.select(None, TRAIN.labels[:39])
    with pytest.raises(AttackError, match="another label .* for 40 of 40 training images"):
        attack.select(None, (TRAIN.labels + 1) % 4)
    with pytest.raises(DataError, match="no such file"):
        released(path=str(tmp_path / "none.npz")).build(INFO)


def test_a_study_of_the_exported_set_gives_the_same_rates(tmp_path, capsys):
    config = studies.read(STUDY)
    first = studies.run(config, tmp_path / "run")
    source = str(tmp_path / "run" / "config.yaml")
    out = str(tmp_path / "poison.npz")
    assert export.main(["--dataset", "--config", source, "badnets/seed0", out]) == 0
    assert "400 training images, 40 poisoned, 0 covers" in capsys.readouterr().out
    info = config.dataset.config.build().info
    changes = [
        ("dataset", f"{{name: npz, path: {out}, mean: {list(info.mean)}, std: {list(info.std)}}}"),
        ("attacks", f"[{{name: released, path: {out}}}]"),
    ]
    again = studies.run(studies.read(STUDY, *changes), tmp_path / "again")
    for mine, theirs in zip(first, again, strict=True):
        assert (mine["acc"], mine["asr"], mine["ra"]) == (
            theirs["acc"],
            theirs["asr"],
            theirs["ra"],
        )
    assert first[0]["asr"] > 0.5


def test_the_pictures_have_the_labels_of_the_manifest(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(STUDY)
    out, source = tmp_path / "pictures", str(tmp_path / "config.yaml")
    assert export.main(["--dataset", "--config", source, "badnets/seed0", str(out)]) == 0
    lines = (out / "manifest.csv").read_text().splitlines()
    assert lines[0] == "file,part,row,label,true_label,poisoned,cover"
    rows = [line.split(",") for line in lines[1:]]
    assert sum(row[5] == "1" for row in rows if row[1] == "train") == 40
    poisoned = next(row for row in rows if row[1] == "train" and row[5] == "1" and row[4] != "0")
    assert poisoned[3] == "0"
    pixels = np.asarray(Image.open(out / poisoned[0]))
    assert (pixels[-3:, -3:] == 255).all()
    assert all((out / row[0]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("name", "out", "words"),
    [
        ("badnet/seed0", "a.npz", "is no attack of the study"),
        ("badnets/seed0", "a.csv", "ends in .npz, or the name of a new folder"),
    ],
)
def test_a_wrong_name_is_refused(tmp_path, capsys, name, out, words):
    (tmp_path / "config.yaml").write_text(STUDY)
    source = str(tmp_path / "config.yaml")
    assert export.main(["--dataset", "--config", source, name, str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err
