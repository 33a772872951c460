"""Tests of data sets from .npz files, and of the one-line errors that name a bad file."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.data import (
    NpzConfig,
    make_npz,
)

from ..helpers.data_sets import check_contract, fails, small_arrays


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_reads_what_was_written(tmp_path):
    a = small_arrays()
    config = NpzConfig(
        path=str(write(tmp_path / "birds.npz", **a)),
        class_names=("wren", "rook", "kite"),
        mean=(0.1, 0.2, 0.3),
        crop=2,
        flip=True,
        limit_train=5,
        limit_test=2,
    )
    dataset = make_npz(config)
    check_contract(dataset)
    np.testing.assert_array_equal(dataset.train.images, a["train_images"][:5])
    np.testing.assert_array_equal(dataset.train.labels, a["train_labels"][:5])
    np.testing.assert_array_equal(dataset.test.images, a["test_images"][:2])
    np.testing.assert_array_equal(dataset.test.labels, a["test_labels"][:2])
    info = dataset.info
    assert (info.name, info.classes, info.mean, info.crop, info.flip) == (
        "birds",
        config.class_names,
        config.mean,
        2,
        True,
    )
    np.testing.assert_allclose(
        info.std, (a["train_images"] / 255).std((0, 1, 2)), atol=6e-5
    )  # of all images, not of the first 5


def test_npz_grey_images_get_a_channel_and_limits_may_exceed_the_data(tmp_path):
    a = small_arrays(shape=(8, 6))
    a["train_labels"] = a["train_labels"].astype(np.uint8)
    dataset = make_npz(NpzConfig(path=str(write(tmp_path / "grey.npz", **a)), limit_train=1000))
    check_contract(dataset)
    assert dataset.info.shape == (8, 6, 1) and len(dataset.train.labels) == 12
    np.testing.assert_array_equal(dataset.train.images[..., 0], a["train_images"])


def replaced(key, value):
    return lambda a: {**a, key: value(a[key])}


BAD_ARRAYS = {
    "float images": (
        replaced("train_images", lambda x: x / 255),
        ["train_images is float64 [12, 8, 6, 3]", "want uint8"],
    ),
    "int16 test images": (
        replaced("test_images", lambda x: x.astype(np.int16)),
        ["test_images is int16", "want uint8"],
    ),
    "flat images": (
        replaced("train_images", lambda x: x.reshape(12, -1)),
        ["train_images is uint8 [12, 144]", "[N, H, W, C]"],
    ),
    "channels first": (
        replaced("train_images", lambda x: x.transpose(0, 3, 1, 2)),
        ["[12, 3, 8, 6]", "looks like [N, C, H, W]"],
    ),
    "no images": (
        replaced("train_images", lambda x: x[:0]),
        ["train_images is empty", "[0, 8, 6, 3]"],
    ),
    "no pixels": (
        replaced("test_images", lambda x: x[:, :0]),
        ["test_images is empty", "[4, 0, 6, 3]"],
    ),
    "float labels": (
        replaced("train_labels", lambda x: x * 1.0),
        ["train_labels is float64 [12]", "want integers"],
    ),
    "label column": (
        replaced("test_labels", lambda x: x[:, None]),
        ["test_labels is int64 [4, 1]", "want integers [N]"],
    ),
    "label scalar": (
        replaced("train_labels", lambda x: x[0]),
        ["train_labels is int64 []", "want integers [N]"],
    ),
    "one-hot labels": (
        replaced("train_labels", lambda x: np.eye(3, dtype=int)[x]),
        ["train_labels is int64 [12, 3]"],
    ),
    "too few labels": (
        replaced("train_labels", lambda x: x[:-1]),
        ["train_labels has 11 rows for 12 images"],
    ),
    "other test shape": (
        replaced("test_images", lambda x: x[:, :4]),
        ["test images are [4, 6, 3]", "want [8, 6, 3]"],
    ),
    "negative label": (
        replaced("train_labels", lambda x: x - 1),
        ["train_labels[0] is -1", "is no class number", "maps labels"],
    ),
    "absurd label": (
        replaced("train_labels", lambda x: x + 10**9),
        ["train_labels[0] is 1000000000", "is no class number", "maps labels"],
    ),
    "class only in test": (
        replaced("test_labels", lambda x: x + 1),
        ["test_labels[2] is 3", "want 0..2"],
    ),
    "one class": (
        lambda a: {**a, "train_labels": a["train_labels"] * 0, "test_labels": a["test_labels"] * 0},
        ["only 1 class"],
    ),
    "missing array": (
        lambda a: {k: v for k, v in a.items() if k != "test_labels"},
        ["no array test_labels", "train_images"],
    ),
    "other names": (
        lambda a: {"x": a["train_images"], "y": a["train_labels"]},
        ["no array train_images", "['x', 'y']"],
    ),
}


@pytest.mark.parametrize("damage, words", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_npz_bad_arrays_are_refused_by_name(damage, words, tmp_path):
    path = write(tmp_path / "bad.npz", **damage(small_arrays()))
    fails(lambda: make_npz(NpzConfig(path=str(path))), path, *words)


def test_npz_options_that_contradict_the_arrays_are_refused(tmp_path):
    path = str(write(tmp_path / "a.npz", **small_arrays()))
    fails(
        lambda: make_npz(NpzConfig(path=path, class_names=("cat", "dog"))),
        path,
        "train_labels[2] is 2",
        "want 0..1",
    )
    fails(
        lambda: make_npz(NpzConfig(path=path, mean=(0.5,))), path, "mean [0.5] has 1 values, want 3"
    )
    fails(
        lambda: make_npz(NpzConfig(path=path, std=(0.5,) * 4)), path, "std", "has 4 values, want 3"
    )
    with pytest.raises(ConfigError, match=r"mean.0: 125.3 is out of range"):
        NpzConfig(path=path, mean=(125.3, 123.0, 113.9))
    with pytest.raises(ConfigError, match=r"std.0: 0.0 is out of range"):
        NpzConfig(path=path, std=(0.0,))
    with pytest.raises(ConfigError, match="limit_train: -1 is out of range"):
        NpzConfig(path=path, limit_train=-1)


def test_npz_files_that_cannot_be_read_are_refused(tmp_path):
    good = write(tmp_path / "good.npz", **small_arrays()).read_bytes()
    middle = len(good) // 3
    files = {
        "empty": b"",
        "text": b"not a zip",
        "cut": good[:-30],
        "flipped": good[:middle]
        + bytes(255 - byte for byte in good[middle : middle + 8])
        + good[middle + 8 :],
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        fails(
            lambda path=path: make_npz(NpzConfig(path=str(path))),
            path,
            f"({len(content)} bytes)",
            "cannot be read as .npz",
        )
    np.save(tmp_path / "array.npy", np.zeros(3))
    fails(
        lambda: make_npz(NpzConfig(path=str(tmp_path / "array.npy"))),
        "array.npy",
        "cannot be read as .npz",
    )
    fails(
        lambda: make_npz(NpzConfig(path=str(tmp_path / "nowhere.npz"))),
        tmp_path / "nowhere.npz",
        "no such file",
        "train_images",
    )
    fails(lambda: make_npz(NpzConfig(path=str(tmp_path))), tmp_path, "is a folder")


class Payload:
    """An object that creates the file `path` when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["object array", "raw pickle"])
def test_npz_never_unpickles(kind, tmp_path):
    trace, path = tmp_path / "payload-ran", tmp_path / "evil.npz"
    if kind == "object array":
        write(path, **{**small_arrays(), "train_labels": np.array([Payload(trace)] * 12, object)})
        fails(lambda: make_npz(NpzConfig(path=str(path))), path, "train_labels", "Object arrays")
    else:
        path.write_bytes(pickle.dumps(Payload(trace)))
        fails(lambda: make_npz(NpzConfig(path=str(path))), path, "cannot be read as .npz")
    assert not trace.exists()
    # The control: the payload does run where pickles are allowed.
    if kind == "object array":
        with np.load(path, allow_pickle=True) as archive:
            archive["train_labels"]
    else:
        np.load(path, allow_pickle=True)
    assert trace.exists()
