"""Data sets from folders of pictures; every bad folder gives one line that names it."""

from __future__ import annotations

import dataclasses
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

from ..helpers.data_sets import check_contract, fails


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


def test_bad_folders_are_named(tmp_path):
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

    pair = tmp_path / "pair"
    for name in ("ant", "bee"):
        save_image(pair / name / "0.png")
    fails(load(pair), pair, "test_images is empty")  # 20 % of two images is none
    fails(load(pair, test_fraction=0.5), pair / "ant", "no image is left to train on")
    with pytest.raises(ConfigError, match="channels: 2 is not one of 1, 3"):
        FolderConfig(path="x", channels=2)
