"""Every source gives a checked data set; every bad file gives one line that names it; reserved sets are exact draws."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d3jax.config.loading import loads
from d3jax.config.recipes import ReservedConfig
from d3jax.core.errors import ConfigError, DataError
from d3jax.core.types import Dataset, Split
from d3jax.data import (
    DATASETS,
    DigitsConfig,
    FolderConfig,
    NpzConfig,
    SyntheticConfig,
    TfdsConfig,
    digits,
    fingerprint,
    folder,
    from_arrays,
    npz,
    reserve,
    synthetic,
    tfds,
)

tfds_cache = sys.modules["d3jax.data.tfds"]


def small_arrays(n: int = 12, shape: tuple[int, ...] = (8, 6, 3)) -> dict[str, np.ndarray]:
    """A valid data set of 3 classes: what the tests write, then damage."""
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (n, *shape), np.uint8),
        "train_labels": np.arange(n) % 3,
        "test_images": rng.integers(0, 256, (4, *shape), np.uint8),
        "test_labels": np.arange(4) % 3,
    }


def fails(make, *words: str) -> str:
    """The message of the DataError that `make()` raises: one line that holds every one of `words`."""
    with pytest.raises(DataError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    return message


def nearest_mean_accuracy(dataset: Dataset) -> float:
    """Test accuracy of the simplest classifier there is: whether labels and images belong together at all."""
    train, test = (
        split.images.reshape(len(split.images), -1) / 255 for split in (dataset.train, dataset.test)
    )
    means = np.stack(
        [train[dataset.train.labels == label].mean(0) for label in range(dataset.info.num_classes)]
    )
    nearest = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    return float((nearest == dataset.test.labels).mean())


def check_contract(dataset: Dataset) -> None:
    info = dataset.info
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8 and split.images.shape == (
            len(split.labels),
            *info.shape,
        )
        assert (
            split.labels.dtype == np.int32
            and split.labels.min() >= 0
            and split.labels.max() < info.num_classes
        )
    assert len(info.mean) == len(info.std) == info.shape[2] and min(info.std) > 0
    assert hash(info) is not None and all(
        type(name) is str for name in info.classes
    )  # static under jit


# --- digits and synthetic ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits16() -> Dataset:
    return digits(DigitsConfig())


def test_digits_are_the_real_ones_each_once(digits16):
    from sklearn.datasets import load_digits

    check_contract(digits16)
    assert digits16.train.images.shape == (1438, 16, 16, 1) and digits16.test.images.shape == (
        359,
        16,
        16,
        1,
    )
    images = np.concatenate([digits16.train.images, digits16.test.images])
    labels = np.concatenate([digits16.train.labels, digits16.test.labels])
    np.testing.assert_array_equal(
        images, np.repeat(np.repeat(images[:, ::2, ::2], 2, 1), 2, 2)
    )  # nearest: 2×2 blocks
    raw = load_digits()
    want = np.column_stack([np.rint(raw.data / 16 * 255), raw.target])
    got = np.column_stack([images[:, ::2, ::2].reshape(1797, 64), labels])
    assert sorted(map(tuple, want)) == sorted(map(tuple, got))
    assert nearest_mean_accuracy(digits16) > 0.8


def test_digits_split_is_fixed_and_stratified(digits16):
    assert fingerprint(digits(DigitsConfig())) == fingerprint(digits16)
    train, test = (np.bincount(split.labels) for split in (digits16.train, digits16.test))
    assert np.all(np.abs(test - 0.2 * (train + test)) < 1)


@pytest.mark.parametrize("size, crop", [(8, 0), (16, 1), (32, 2)])
def test_digits_bilinear_is_smooth_and_scales(size, crop, digits16):
    smooth = digits(DigitsConfig(size=size, resize="bilinear"))
    check_contract(smooth)
    assert (
        smooth.info.shape == (size, size, 1) and smooth.info.crop == crop and not smooth.info.flip
    )
    np.testing.assert_array_equal(smooth.train.labels, digits16.train.labels)
    if size == 16:
        steps = [
            np.abs(np.diff(d.train.images.astype(int), axis=2)).max() for d in (smooth, digits16)
        ]
        assert steps[0] < steps[1] == 255


def test_digits_size_must_be_a_multiple_of_8():
    with pytest.raises(ConfigError, match="^size: 20 is not a multiple of 8"):
        DigitsConfig(size=20)
    with pytest.raises(ConfigError, match="resize: 'cubic' is not one of nearest, bilinear"):
        DigitsConfig(resize="cubic")


def test_synthetic_is_balanced_learnable_and_follows_its_seed():
    config = SyntheticConfig(
        size=12, channels=2, classes=7, train=1003, test=105
    )  # two blocks: 1000 and 3
    dataset = synthetic(config)
    check_contract(dataset)
    assert dataset.train.images.shape == (1003, 12, 12, 2) and dataset.test.images.shape == (
        105,
        12,
        12,
        2,
    )
    counts = np.bincount(dataset.train.labels)
    assert len(counts) == 7 and counts.max() - counts.min() <= 1
    assert set(np.bincount(dataset.test.labels)) == {15}
    assert nearest_mean_accuracy(dataset) > 0.95
    assert fingerprint(synthetic(config)) == fingerprint(dataset)
    other = synthetic(dataclasses.replace(config, seed=1))
    assert np.any(other.train.images != dataset.train.images) and np.any(
        other.train.labels != dataset.train.labels
    )
    more = synthetic(dataclasses.replace(config, train=50))
    np.testing.assert_array_equal(
        more.test.images, dataset.test.images
    )  # the test set does not move with the training set


def test_synthetic_noise_and_shift_mean_what_they_say():
    base = SyntheticConfig(size=8, channels=1, classes=2, train=400, test=4, noise=0, shift=0)
    still = synthetic(base).train
    assert len(np.unique(still.images, axis=0)) == 2  # one prototype per class
    moved = synthetic(dataclasses.replace(base, shift=1)).train
    assert len(np.unique(moved.images, axis=0)) == 2 * 9
    noisy = synthetic(dataclasses.replace(base, noise=0.05)).train
    inside = (still.images > 60) & (
        still.images < 195
    )  # far from the ends, where nothing is clipped
    assert np.std((noisy.images - still.images.astype(float))[inside] / 255) == pytest.approx(
        0.05, rel=0.02
    )


# --- from_arrays: the one check all sources share --------------------------------------------------------------------


def test_from_arrays_measures_and_counts():
    a = small_arrays(1200)
    a["train_images"][..., 1] = 77
    dataset = from_arrays(
        (a["train_images"], a["train_labels"]), (jnp.asarray(a["test_images"]), a["test_labels"])
    )
    check_contract(dataset)
    assert dataset.info.classes == ("0", "1", "2")
    pixels = a["train_images"] / 255
    np.testing.assert_allclose(dataset.info.mean, pixels.mean((0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(
        dataset.info.std, np.maximum(pixels.std((0, 1, 2)), 1 / 255), atol=6e-5
    )


def test_fingerprint_sees_every_part():
    a = small_arrays()

    def make(**changes):
        b = {key: array.copy() for key, array in a.items()}
        for key, value in changes.items():
            b[key].flat[-1] = value
        return from_arrays(
            (b["train_images"], b["train_labels"]),
            (b["test_images"], b["test_labels"]),
            classes="abc",
        )

    base = make()
    others = [make(**{key: (int(array.flat[-1]) + 1) % 3}) for key, array in a.items()]
    changes = ({"crop": 1}, {"name": "x"}, {"mean": (0.0,) * 3})
    others += [base._replace(info=dataclasses.replace(base.info, **change)) for change in changes]
    others += [
        base._replace(train=Split(base.train.images.reshape(12, 6, 8, 3), base.train.labels))
    ]
    prints = [fingerprint(dataset) for dataset in (base, *others)]
    assert len(set(prints)) == len(prints) and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    assert (
        fingerprint(base._replace(train=Split(*map(jnp.asarray, base.train)))) == prints[0]
    )  # wherever the arrays live


# --- npz -----------------------------------------------------------------------------------------------------------


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_reads_what_was_written(tmp_path):
    a = small_arrays()
    config = NpzConfig(
        path=str(write(tmp_path / "birds.npz", **a)),
        class_names=("wren", "rook", "kite", "unseen"),
        mean=(0.1, 0.2, 0.3),
        crop=2,
        flip=True,
        limit_train=5,
        limit_test=2,
    )
    dataset = npz(config)
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
    )  # of all, not of the first 5


def test_npz_grey_images_get_a_channel_and_limits_may_exceed(tmp_path):
    a = small_arrays(shape=(8, 6))
    a["train_labels"] = a["train_labels"].astype(np.uint8)
    dataset = npz(NpzConfig(path=str(write(tmp_path / "grey.npz", **a)), limit_train=1000))
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
        ["train_labels[0] is -1", "want 0.."],
    ),
    "absurd label": (
        replaced("train_labels", lambda x: x + 10**9),
        ["train_labels[0] is 1000000000", "want 0..11"],
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
def test_npz_bad_arrays_are_named(damage, words, tmp_path):
    path = write(tmp_path / "bad.npz", **damage(small_arrays()))
    fails(lambda: npz(NpzConfig(path=str(path))), path, *words)


def test_npz_options_that_contradict_the_arrays(tmp_path):
    path = str(write(tmp_path / "a.npz", **small_arrays()))
    fails(
        lambda: npz(NpzConfig(path=path, class_names=("cat", "dog"))),
        path,
        "train_labels[2] is 2",
        "want 0..1",
    )
    fails(lambda: npz(NpzConfig(path=path, mean=(0.5,))), path, "mean [0.5] has 1 values, want 3")
    fails(lambda: npz(NpzConfig(path=path, std=(0.5,) * 4)), path, "std", "has 4 values, want 3")
    with pytest.raises(ConfigError, match="mean: 125.3 is out of range"):
        NpzConfig(path=path, mean=(125.3, 123.0, 113.9))
    with pytest.raises(ConfigError, match="std: 0.0 is out of range"):
        NpzConfig(path=path, std=(0.0,))
    with pytest.raises(ConfigError, match="limit_train: -1 is out of range"):
        NpzConfig(path=path, limit_train=-1)


def test_npz_files_that_are_none(tmp_path):
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
            lambda path=path: npz(NpzConfig(path=str(path))),
            path,
            f"({len(content)} bytes)",
            "cannot be read as .npz",
        )
    np.save(tmp_path / "array.npy", np.zeros(3))
    fails(
        lambda: npz(NpzConfig(path=str(tmp_path / "array.npy"))),
        "array.npy",
        "cannot be read as .npz",
    )
    fails(
        lambda: npz(NpzConfig(path=str(tmp_path / "nowhere.npz"))),
        tmp_path / "nowhere.npz",
        "no such file",
        "train_images",
    )
    fails(lambda: npz(NpzConfig(path=str(tmp_path))), tmp_path, "no such file")


class Payload:
    """Creates the file `path` when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["object array", "raw pickle"])
def test_npz_never_unpickles(kind, tmp_path):
    trace, path = tmp_path / "payload-ran", tmp_path / "evil.npz"
    if kind == "object array":
        write(path, **{**small_arrays(), "train_labels": np.array([Payload(trace)] * 12, object)})
        fails(lambda: npz(NpzConfig(path=str(path))), path, "train_labels", "Object arrays")
    else:
        path.write_bytes(pickle.dumps(Payload(trace)))
        fails(lambda: npz(NpzConfig(path=str(path))), path, "cannot be read as .npz")
    assert not trace.exists()
    # The control: the payload does run where pickles are allowed.
    if kind == "object array":
        with np.load(path, allow_pickle=True) as archive:
            archive["train_labels"]
    else:
        np.load(path, allow_pickle=True)
    assert trace.exists()


# --- folder --------------------------------------------------------------------------------------------------------


def save_image(
    path: Path, color: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (10, 7)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


COLORS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cow": (0, 0, 200)}


def test_folder_with_train_and_test(tmp_path):
    root = tmp_path / "beasts"
    for name in reversed(COLORS):  # written in the wrong order: classes must come out sorted
        for i in range(3):
            save_image(root / "train" / name / f"{i}.png", COLORS[name], size=(10 + i, 7))
    save_image(root / "test" / "cow" / "x.BMP", COLORS["cow"])
    save_image(root / "test" / "bee" / "y.jpg", COLORS["bee"])
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    dataset = folder(FolderConfig(path=str(root), size=8, flip=True, crop=1))
    check_contract(dataset)
    assert dataset.info.name == "beasts" and dataset.info.classes == ("ant", "bee", "cow")
    assert dataset.info.shape == (8, 8, 3) and dataset.info.flip and dataset.info.crop == 1
    assert dataset.train.labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
    ] and dataset.test.labels.tolist() == [1, 2]
    for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
        np.testing.assert_array_equal(
            image, np.broadcast_to(list(COLORS.values())[label], (8, 8, 3))
        )
    assert np.abs(dataset.test.images[0].astype(int) - COLORS["bee"]).max() < 5  # JPEG
    grey = folder(FolderConfig(path=str(root), size=4, channels=1))
    assert grey.info.shape == (4, 4, 1) and grey.train.images[0, 0, 0, 0] == round(
        0.299 * 200
    )  # the luma of red


def test_folder_without_test_is_split_by_class_and_seed(tmp_path):
    for row, name in enumerate(COLORS):
        for i in range(10):
            save_image(tmp_path / name / f"{i}.png", (row, i, 0), size=(4, 4))
    config = FolderConfig(path=str(tmp_path), size=4, test_fraction=0.3)
    dataset = folder(config)
    check_contract(dataset)
    assert np.bincount(dataset.train.labels).tolist() == [7, 7, 7] and np.bincount(
        dataset.test.labels
    ).tolist() == [3, 3, 3]
    pairs = [
        (int(im[0, 0, 0]), int(im[0, 0, 1]), int(lb))
        for split in dataset[:2]
        for im, lb in zip(*split, strict=True)
    ]
    assert sorted(pairs) == [
        (row, i, row) for row in range(3) for i in range(10)
    ]  # every image once, with its label
    assert (
        fingerprint(folder(config))
        == fingerprint(dataset)
        != fingerprint(folder(dataclasses.replace(config, seed=1)))
    )


def test_folder_bad_ones_are_named(tmp_path):
    def load(path, **options):
        return lambda: folder(FolderConfig(path=str(path), size=4, **options))

    fails(load(tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    (tmp_path / "bare").mkdir()
    fails(load(tmp_path / "bare"), tmp_path / "bare", "no folders inside")

    root = tmp_path / "set"
    for part, name in (("train", "ant"), ("train", "bee")):
        save_image(root / part / name / "0.png")
    fails(load(root), root, "only one of train/ and test/")
    save_image(root / "test" / "elk" / "0.png")
    fails(load(root), root / "test" / "elk", "not a training class", "ant, bee")
    (root / "test" / "elk").rename(root / "test" / "ant")
    check_contract(folder(FolderConfig(path=str(root), size=4)))
    (root / "test" / "bee").mkdir()
    fails(load(root), root / "test" / "bee", "no images", ".png")

    whole = (root / "train" / "ant" / "0.png").read_bytes()
    for name, content in {"text.png": b"hello", "empty.jpg": b"", "cut.png": whole[:-30]}.items():
        file = root / "train" / "ant" / name
        file.write_bytes(content)
        fails(load(root), file, "not a readable image")
        file.unlink()
    deep = root / "train" / "bee" / "deep.png"
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(deep)
    fails(load(root), deep, "not a readable image", "want 8 bits")

    pair = tmp_path / "pair"
    for name in ("ant", "bee"):
        save_image(pair / name / "0.png")
    fails(load(pair), pair, "test_images is empty")  # 20 % of two images is none
    fails(load(pair, test_fraction=0.5), pair / "ant", "no image is left to train on")
    with pytest.raises(ConfigError, match="channels: 2 is not one of 1, 3"):
        FolderConfig(path="x", channels=2)


# --- tfds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mocked(monkeypatch):
    """tensorflow_datasets with random images in place of downloads, and prepared in place of needing TensorFlow."""
    import tensorflow_datasets

    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "is_prepared", lambda self: True)
    with tensorflow_datasets.testing.mock_data(num_examples=40):
        yield tensorflow_datasets


def test_tfds_prepares_once_then_needs_nothing(mocked, tmp_path, monkeypatch):
    builder, asked = mocked.core.DatasetBuilder, []
    read = builder.as_data_source
    monkeypatch.setattr(
        builder,
        "as_data_source",
        lambda self, split: asked.append(split) or read(self, split=split),
    )
    monkeypatch.setenv("D3JAX_CACHE", str(tmp_path / "cache"))
    config = TfdsConfig("cifar10")
    first = tfds(config)
    check_contract(first)
    assert asked == ["train", "test"]  # the mock gives both the same images
    assert (
        first.train.images.shape == (40, 32, 32, 3)
        and first.info.name == "cifar10"
        and first.info.num_classes == 10
    )
    assert (first.info.mean, first.info.crop, first.info.flip) == (
        (0.4914, 0.4822, 0.4465),
        4,
        True,
    )
    source = mocked.builder("cifar10").as_data_source(split="train")
    np.testing.assert_array_equal(first.train.images, [source[i]["image"] for i in range(40)])
    np.testing.assert_array_equal(first.train.labels, [source[i]["label"] for i in range(40)])
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["cifar10.npz"]

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it now fails
    assert fingerprint(tfds(config)) == fingerprint(first)
    fails(lambda: tfds(TfdsConfig("mnist")), "tfds:mnist", "pip install d3jax[tfds]")


def test_tfds_unknown_sets_are_measured(mocked, tmp_path):
    dataset = tfds(TfdsConfig("emnist/mnist", cache_dir=str(tmp_path)))
    check_contract(dataset)
    assert [file.name for file in tmp_path.iterdir()] == ["emnist-mnist.npz"]
    assert dataset.info.shape == (28, 28, 1) and not dataset.info.flip and dataset.info.crop == 0
    assert dataset.info.mean[0] == pytest.approx(dataset.train.images.mean() / 255, abs=1e-4)


def test_tfds_without_tensorflow_says_what_to_install_before_it_downloads(tmp_path, monkeypatch):
    import tensorflow_datasets

    def download(*_, **__):
        raise AssertionError("started a download that cannot be used")

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", download)
    config = TfdsConfig(
        "cifar10", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    fails(lambda: tfds(config), "tfds:cifar10", "pip install d3jax[tfds]", "tensorflow")
    assert not list((tmp_path / "cache").iterdir())


def test_tfds_sets_that_do_not_fit(mocked, tmp_path, monkeypatch):
    def load(name):
        return lambda: tfds(TfdsConfig(name, cache_dir=str(tmp_path)))

    fails(load("cats_vs_dogs"), "tfds:cats_vs_dogs", "vary in size", "[None, None, 3]", "folder")
    fails(load("div2k"), "tfds:div2k", "no image and no label", "hr")
    fails(load("cifra10"), "tfds:cifra10", "not found")

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(mocked.core.DatasetBuilder, "download_and_prepare", offline)
    fails(load("mnist"), "tfds:mnist", "cannot prepare it: ConnectionError: no route to host")
    assert not list(tmp_path.iterdir())  # no failure leaves a cache behind


def test_tfds_cache_is_written_whole_or_not_at_all(mocked, tmp_path, monkeypatch):
    def full_disk(path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    config = TfdsConfig("mnist", cache_dir=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(tfds_cache.np, "savez", full_disk)
        fails(
            lambda: tfds(config),
            tmp_path / "cache" / "mnist.npz",
            "cannot be written",
            "No space left",
        )
    assert not list((tmp_path / "cache").iterdir())
    check_contract(tfds(config))
    (tmp_path / "cache" / "mnist.npz").write_bytes(b"damaged by someone else")
    fails(lambda: tfds(config), tmp_path / "cache" / "mnist.npz", "delete this cache")
    (tmp_path / "file").touch()
    fails(
        lambda: tfds(TfdsConfig("mnist", cache_dir=str(tmp_path / "file"))),
        tmp_path / "file",
        "cannot be written",
    )


def test_tfds_names():
    assert TfdsConfig.from_argument("cifar10") == {"dataset": "cifar10"}
    for name in ("", "../secret", "a b", "-x"):
        with pytest.raises(ConfigError, match="^dataset: "):
            TfdsConfig(name)


# --- registry ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


def test_registry_is_readable_from_yaml():
    assert set(DATASETS) == {"digits", "synthetic", "npz", "folder", "tfds"}
    rest = {"models": ["preact_resnet18"], "attacks": ["badnets"], "defenses": ["finetune", "d3"]}
    registries = {kind: dict.fromkeys(names, Nothing) for kind, names in rest.items()}
    registries["datasets"] = {name: config for name, (config, _) in DATASETS.items()}
    assert loads("dataset: tfds:cifar10", registries=registries).dataset.config == TfdsConfig(
        "cifar10"
    )
    chosen = loads(
        "dataset: {name: npz, path: a.npz, mean: [0.5], class_names: [a, b]}", registries=registries
    ).dataset.config
    assert chosen == NpzConfig("a.npz", mean=(0.5,), class_names=("a", "b"))
    with pytest.raises(ConfigError, match=r"dataset\.path: is missing"):
        loads("dataset: folder", registries=registries)
    with pytest.raises(ConfigError, match=r"dataset\.size: 20 is not a multiple of 8"):
        loads("dataset: {name: digits, size: 20}", registries=registries)


def test_import_is_light():
    code = "import sys, d3jax.data; print({'sklearn', 'PIL', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "set()"


# --- the reserved set ----------------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def split_of(labels) -> Split:
    return Split(np.zeros((len(labels), 1, 1, 1), np.uint8), np.array(labels, np.int32))


@settings(deadline=None, max_examples=60)
@given(LABELS, st.data(), st.booleans(), st.integers(0, 3))
def test_reserve_is_exact_and_repeatable(labels, data, stratified, seed):
    count = data.draw(st.integers(1, len(labels)))
    config = ReservedConfig(count=count, stratified=stratified)
    rows = reserve(split_of(labels), config, seed, 5)
    assert np.issubdtype(rows.dtype, np.integer) and len(rows) == count
    assert (
        np.all(np.diff(rows) > 0) and rows[0] >= 0 and rows[-1] < len(labels)
    )  # sorted, none twice, all inside
    np.testing.assert_array_equal(rows, reserve(split_of(labels), config, seed, 5))
    if stratified:
        share = count / len(labels) * np.bincount(labels, minlength=5)
        assert np.all(np.abs(np.bincount(np.array(labels)[rows], minlength=5) - share) < 1)


def test_reserve_fraction_count_and_seed():
    split = split_of(np.arange(1000) % 10)
    assert len(reserve(split, ReservedConfig(), 0, 10)) == 50
    assert len(reserve(split, ReservedConfig(fraction=0.0126), 0, 10)) == 13  # rounded
    assert len(reserve(split, ReservedConfig(fraction=0.5, count=7), 0, 10)) == 7  # count wins
    assert reserve(split, ReservedConfig(fraction=1.0), 0, 10).tolist() == list(range(1000))
    for stratified in (False, True):
        a, b = (reserve(split, ReservedConfig(stratified=stratified), seed, 10) for seed in (0, 1))
        assert set(a) != set(b)
        assert set(a) <= set(
            reserve(split, ReservedConfig(stratified=stratified, fraction=0.1), 0, 10)
        )
    plain = np.bincount(split.labels[reserve(split, ReservedConfig(), 0, 10)], minlength=10)
    assert plain.tolist() != [5] * 10  # a random draw is not balanced, a stratified one is
    assert (
        np.bincount(split.labels[reserve(split, ReservedConfig(stratified=True), 0, 10)]).tolist()
        == [5] * 10
    )
    on_device = Split(split.images, jnp.asarray(split.labels))
    np.testing.assert_array_equal(
        reserve(on_device, ReservedConfig(), 0, 10), reserve(split, ReservedConfig(), 0, 10)
    )


def test_reserve_stratified_rare_classes_keep_their_share():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    rows = reserve(split_of(labels), ReservedConfig(fraction=0.1, stratified=True), 0, 4)
    assert np.bincount(labels[rows], minlength=4).tolist() == [90, 9, 1, 0]


def test_reserve_refuses_what_it_cannot_give():
    fails(
        lambda: reserve(split_of([0, 1, 2]), ReservedConfig(count=4), 0, 3),
        "4 images asked for",
        "has 3",
    )
    fails(
        lambda: reserve(split_of([0, 1, 2]), ReservedConfig(fraction=0.1), 0, 3),
        "0.1 of 3 training images is none",
    )
