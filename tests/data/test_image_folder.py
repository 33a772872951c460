"""Tests of data sets from image folders, and of the one-line errors that name a bad folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3jax.core.errors import ConfigError
from d3jax.data import (
    FolderConfig,
    fingerprint,
    make_folder,
)
from d3jax.data.pictures import read_picture

from ..helpers.data_sets import check_contract, fails


def save_image(
    path: Path, color: tuple[int, int, int] = (90, 9, 0), size: tuple[int, int] = (10, 7)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


COLORS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cow": (0, 0, 200)}


def test_folder_with_train_and_test_is_read_with_sorted_classes(tmp_path):
    root = tmp_path / "beasts"
    for name in reversed(COLORS):  # written in the wrong order: classes must come out sorted
        for i in range(3):
            save_image(root / "train" / name / f"{i}.png", COLORS[name], size=(10 + i, 7))
    save_image(root / "test" / "cow" / "x.BMP", COLORS["cow"])
    save_image(root / "test" / "bee" / "y.jpg", COLORS["bee"])
    (root / "train" / ".cache").mkdir()
    with pytest.warns(UserWarning, match="has no images of ant"):
        dataset = make_folder(FolderConfig(path=str(root), size=8, flip=True, crop=1))
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
    save_image(root / "test" / "ant" / "z.png", COLORS["ant"])
    grey = make_folder(FolderConfig(path=str(root), size=4, channels=1))
    assert grey.info.shape == (4, 4, 1) and grey.train.images[0, 0, 0, 0] == round(
        0.299 * 200
    )  # the luma of red


def test_folder_without_test_is_split_by_class_and_seed(tmp_path):
    for row, name in enumerate(COLORS):
        for i in range(10):
            save_image(tmp_path / name / f"{i}.png", (row, i, 0), size=(4, 4))
    config = FolderConfig(path=str(tmp_path), size=4, test_fraction=0.3)
    dataset = make_folder(config)
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
        fingerprint(make_folder(config))
        == fingerprint(dataset)
        != fingerprint(make_folder(dataclasses.replace(config, seed=1)))
    )


def test_bad_folders_are_refused_by_name(tmp_path):
    def load(path, **options):
        return lambda: make_folder(FolderConfig(path=str(path), size=4, **options))

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
    with pytest.warns(UserWarning, match="has no images of bee"):
        check_contract(make_folder(FolderConfig(path=str(root), size=4)))
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
    deep.unlink()
    os.mkfifo(root / "train" / "bee" / "pipe.png")
    fails(load(root), "pipe.png", "no regular file")
    (root / "train" / "bee" / "pipe.png").unlink()
    (
        root / "train" / "c\ud800".encode(errors="surrogatepass").decode(errors="surrogateescape")
    ).mkdir()
    fails(load(root), root, "cannot be shown; rename it")

    pair = tmp_path / "pair"
    for name in ("ant", "bee"):
        save_image(pair / name / "0.png")
    fails(load(pair), pair, "test_images is empty")  # 20 % of two images is none
    fails(load(pair, test_fraction=0.5), pair / "ant", "no image is left to train on")
    with pytest.raises(ConfigError, match="channels: 2 is not one of 1, 3"):
        FolderConfig(path="x", channels=2)


def test_photos_are_rotated_by_their_exif_orientation(tmp_path):
    """With orientation 6, the right side of the stored array is the bottom of the picture."""
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[:, 4:] = 200
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=turned)
    picture = read_picture(tmp_path / "turned.png", 6, 4, 3)
    np.testing.assert_array_equal(picture, np.rot90(stored, -1))


def test_classes_that_are_numbers_are_in_numeric_order(tmp_path):
    for label in range(12):
        for part in ("train", "test"):
            save_image(tmp_path / part / str(label) / "0.png", (label + 5, 0, 0))
    dataset = make_folder(FolderConfig(path=str(tmp_path), size=4))
    assert dataset.info.classes == tuple(map(str, range(12)))
    np.testing.assert_array_equal(dataset.train.images[:, 0, 0, 0], np.arange(12) + 5)
    assert dataset.info.class_of("10") == dataset.info.class_of(10) == 10


def test_files_that_are_left_out_are_counted_in_a_warning(tmp_path):
    for name in ("ant", "bee"):
        for part in ("train", "val"):
            save_image(tmp_path / part / name / "0.png")
            (tmp_path / part / name / "0.png").rename(tmp_path / part / name / "0.jfif")
    for name in ("a.HEIC", "b.heic", "notes.txt", "README"):
        (tmp_path / "train" / "ant" / name).write_text("")
    (tmp_path / "train" / "bee" / "more").mkdir()
    counts = "1 folders inside of class folders, 2 with .heic, 1 with .txt, 1 with no ending"
    with pytest.warns(UserWarning, match=f"left out {counts}; known endings are"):
        dataset = make_folder(FolderConfig(path=str(tmp_path), size=4))
    assert len(dataset.train.labels) == len(dataset.test.labels) == 2


def test_missing_test_classes_and_a_second_test_folder_are_warned_about(tmp_path):
    for part in ("train", "test", "val"):
        for name in ("ant", "bee"):
            save_image(tmp_path / part / name / "0.png")
    (tmp_path / "test" / "bee" / "0.png").unlink()
    (tmp_path / "test" / "bee").rmdir()
    with pytest.warns(UserWarning) as said:
        make_folder(FolderConfig(path=str(tmp_path), size=4))
    texts = [str(one.message) for one in said]
    assert texts == [
        f"{tmp_path}: test/ is used, val/ is left out",
        f"{tmp_path / 'test'}: has no images of bee",
    ]


def test_mean_and_std_are_measured_unless_given(tmp_path):
    for part in ("train", "test"):
        for name, level in (("ant", 100), ("bee", 200)):
            save_image(tmp_path / part / name / "0.png", (level, 0, 50))
    info = make_folder(FolderConfig(path=str(tmp_path), size=4)).info
    assert info.mean == (round(150 / 255, 4), 0, round(50 / 255, 4))
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    info = make_folder(FolderConfig(path=str(tmp_path), size=4, **given)).info
    assert (info.mean, info.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_an_index_that_is_the_name_of_another_class_is_refused_as_target(tmp_path):
    for label in (1, 2, 9, 10):
        for part in ("train", "test"):
            save_image(tmp_path / part / str(label) / "0.png", (label, 0, 0))
    info = make_folder(FolderConfig(path=str(tmp_path), size=4)).info
    assert info.class_of("1") == 0 and info.class_of(0) == 0 and info.class_of(3) == 3
    with pytest.raises(ConfigError, match="target: 1 is unclear: the class with that index is '2'"):
        info.class_of(1)
    with pytest.raises(ConfigError, match="target: 10 is not a class.*0 to 3 or a name in quotes"):
        info.class_of(10)


def test_tiny_imagenet_is_read_as_it_is_published(tmp_path):
    for label, name in enumerate(("n01", "n02")):
        save_image(tmp_path / "train" / name / "images" / f"{name}_0.JPEG", (50 * label + 9, 0, 0))
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("")
    for label in (1, 0):
        save_image(tmp_path / "val" / "images" / f"val_{label}.JPEG", (50 * label + 9, 0, 0))
    save_image(tmp_path / "test" / "images" / "test_0.JPEG")
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_1.JPEG\tn02\t0\t0\t9\t9\nval_0.JPEG\tn01\t0\t0\t9\t9\n")
    config = FolderConfig(path=str(tmp_path), size=4)
    dataset = make_folder(config)
    assert dataset.info.classes == ("n01", "n02")
    assert dataset.train.labels.tolist() == [0, 1] and dataset.test.labels.tolist() == [1, 0]
    assert abs(int(dataset.test.images[0, 0, 0, 0]) - 59) < 4  # JPEG
    annotations.write_text("val_1.JPEG\tn03\n")
    fails(lambda: make_folder(config), f"{annotations}:1", "'n03' is not a training class")
