"""Image data sets of Hugging Face `datasets`, on disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from d3jax.config.loading import loads
from d3jax.core.errors import ConfigError, DataError
from d3jax.data import HfConfig
from d3jax.study.registries import REGISTRIES

from ..helpers.data_sets import check_contract

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
NAMES = ["cat", "dog", "frog"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the cache of `datasets` out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def split(pixels=PIXELS, labels=LABELS, image="img", label="label", named=True):
    pictures = [Image.fromarray(array) for array in pixels]
    kind = datasets.ClassLabel(names=NAMES) if named else datasets.Value("int64")
    features = datasets.Features({image: datasets.Image(), label: kind})
    rows = {image: pictures, label: list(map(int, labels))}
    return datasets.Dataset.from_dict(rows, features=features)


def saved(tmp_path, **settings):
    path = tmp_path / "animals"
    datasets.DatasetDict(train=split(**settings), test=split(**settings)).save_to_disk(path)
    return path


def test_a_saved_set_is_read_bit_for_bit(tmp_path):
    dataset = HfConfig(path=str(saved(tmp_path)), crop=1, flip=True).build()
    check_contract(dataset)
    np.testing.assert_array_equal(dataset.train.images, PIXELS)
    np.testing.assert_array_equal(dataset.test.labels, LABELS)
    assert (dataset.info.name, dataset.info.classes) == ("animals", tuple(NAMES))
    assert (dataset.info.crop, dataset.info.flip) == (1, True)


def test_parquet_files_are_read(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    for part in ("train", "test"):
        split().to_parquet(folder / f"{part}-00000-of-00001.parquet")
    dataset = loads(f"dataset: hf:{folder}", registries=REGISTRIES).dataset.config.build()
    np.testing.assert_array_equal(dataset.train.images, PIXELS)


def test_images_are_resized_and_made_grey_if_asked(tmp_path):
    config = HfConfig(path=str(saved(tmp_path)), size=4, channels=1)
    assert config.build().train.images.shape == (12, 4, 4, 1)


def test_columns_are_found_or_named(tmp_path):
    path = saved(tmp_path, image="picture", label="kind", named=False)
    with pytest.raises(DataError, match=r"0 columns of ClassLabel.*label.*picture, kind"):
        HfConfig(path=str(path)).build()
    dataset = HfConfig(path=str(path), label="kind").build()
    assert dataset.info.classes == ("0", "1", "2")
    with pytest.raises(DataError, match="no column 'sort'"):
        HfConfig(path=str(path), label="sort").build()
    with pytest.raises(DataError, match="holds no images"):
        HfConfig(path=str(path), image="kind", label="kind").build()


def test_what_cannot_be_read_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"hf:{tmp_path / 'none'}: cannot be read"):
        HfConfig(path=str(tmp_path / "none")).build()
    with pytest.raises(DataError, match="test_split: no split 'validation'; it has train, test"):
        HfConfig(path=str(saved(tmp_path)), test_split="validation").build()
    with pytest.raises(ConfigError, match="is the training split"):
        HfConfig(path="x", test_split="train")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install.*hf"):
        HfConfig(path="x").build()


def test_images_of_several_sizes_are_refused_without_a_size(tmp_path):
    other = np.zeros((8, 8, 3), np.uint8)
    path = tmp_path / "mixed"
    mixed = split([*PIXELS[:3], other], [0, 1, 2, 0])
    datasets.DatasetDict(train=mixed, test=mixed).save_to_disk(path)
    with pytest.raises(DataError, match=r"img\[3\]: .*it is 8×8, the others are 8×6"):
        HfConfig(path=str(path)).build()
    assert HfConfig(path=str(path), size=8).build().train.images.shape == (4, 8, 8, 3)
