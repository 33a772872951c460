"""Published archives become an .npz, from small archives of the same layout."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from d3jax.config.loading import loads
from d3jax.core.errors import DataError
from d3jax.data import NpzConfig, published
from d3jax.data.__main__ import main
from d3jax.data.published import PUBLISHED, altered, config_line, download
from d3jax.study.registries import REGISTRIES

RNG = np.random.default_rng(0)
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def images(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def cifar(path: Path, folder: str, members: dict[str, tuple], names: str, classes: list[str]):
    """Write an archive in CIFAR's binary layout of (labels [N, L], images [N, H, W, C]) by name."""
    with tarfile.open(path, "w:gz") as archive:
        for name, (labels, pixels) in members.items():
            flat = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
            rows = np.concatenate([labels, flat], 1)
            add(archive, f"{folder}/{name}", rows.astype(np.uint8).tobytes())
        add(archive, f"{folder}/{names}", "\n".join(classes).encode() + b"\n\n")


def picture(array: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def make(name: str, source: Path, out: Path, *more: str) -> dict[str, np.ndarray]:
    assert main([name, "--from", str(source), "--out", str(out), *more]) == 0
    with np.load(out) as file:
        return dict(file)


def test_cifar10_is_read_from_its_binary_version(tmp_path, capsys):
    labels = np.arange(20).reshape(-1, 1) % 10
    parts = {f"data_batch_{n}.bin": (labels, images(20, 32, 32, 3)) for n in range(1, 6)}
    test = {"test_batch.bin": (labels[::-1], images(20, 32, 32, 3))}
    path = tmp_path / "mine.tar.gz"
    cifar(path, "cifar-10-batches-bin", parts | test, "batches.meta.txt", CIFAR10)
    arrays = make("cifar10", path, tmp_path / "c.npz")
    wanted = np.concatenate([pixels for _, pixels in parts.values()])
    np.testing.assert_array_equal(arrays["train_images"], wanted)
    np.testing.assert_array_equal(arrays["test_labels"], labels[::-1, 0])
    printed = capsys.readouterr()
    assert "not the published checksum" in printed.err
    line = next(line for line in printed.out.splitlines() if line.startswith("dataset:"))
    data = loads(line, registries=REGISTRIES).dataset.config.build()
    assert data.info.classes == tuple(CIFAR10) and (data.info.crop, data.info.flip) == (4, True)


def test_cifar100_has_its_fine_labels(tmp_path):
    labels = np.stack([np.arange(100) // 5, np.arange(100)], 1)
    members = {name: (labels, images(100, 32, 32, 3)) for name in ("train.bin", "test.bin")}
    classes = [f"class{n}" for n in range(100)]
    path = tmp_path / "cifar-100-binary.tar.gz"
    cifar(path, "cifar-100-binary", members, "fine_label_names.txt", classes)
    arrays = make("cifar100", tmp_path, tmp_path / "c.npz")
    np.testing.assert_array_equal(arrays["train_labels"], np.arange(100))
    assert arrays["class_names"].tolist() == classes


def test_svhn_has_the_digit_zero_first(tmp_path):
    labels = np.array([[10], [1], [2], [3], [4], [5], [6], [7], [8], [9]])
    pixels = images(10, 32, 32, 3)
    for part in ("train", "test"):
        content = {"X": pixels.transpose(1, 2, 3, 0), "y": labels}
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", content)
    arrays = make("svhn", tmp_path, tmp_path / "s.npz")
    np.testing.assert_array_equal(arrays["train_labels"], np.arange(10))
    np.testing.assert_array_equal(arrays["train_images"], pixels)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read(name, tmp_path):
    pixels, labels = images(10, 28, 28), np.arange(10, dtype=np.uint8)
    for part in ("train", "t10k"):
        for what, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            with gzip.open(tmp_path / f"{part}-{what}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())
    arrays = make(name, tmp_path, tmp_path / "m.npz")
    np.testing.assert_array_equal(arrays["test_images"], pixels[..., None])
    assert arrays["train_labels"].tolist() == list(range(10))


def test_gtsrb_is_resized(tmp_path):
    grey = np.full((20, 30, 3), 90, np.uint8)
    grey[0, 0] = 0
    with zipfile.ZipFile(tmp_path / "GTSRB-Training_fixed.zip", "w") as archive:
        for label in range(43):
            archive.writestr(f"GTSRB/Training/{label:05d}/00000_00000.ppm", picture(grey, "PPM"))
            archive.writestr(f"GTSRB/Training/{label:05d}/GT-{label:05d}.csv", "Filename;ClassId")
    with zipfile.ZipFile(tmp_path / "GTSRB_Final_Test_Images.zip", "w") as archive:
        archive.writestr("GTSRB/Final_Test/Images/00000.ppm", picture(grey, "PPM"))
    with zipfile.ZipFile(tmp_path / "GTSRB_Final_Test_GT.zip", "w") as archive:
        archive.writestr("GT-final_test.csv", "Filename;Width;ClassId\n00000.ppm;30;14\n")
    arrays = make("gtsrb", tmp_path, tmp_path / "g.npz", "--size", "16")
    assert arrays["train_images"].shape == (43, 16, 16, 3)
    assert arrays["train_labels"].tolist() == list(range(43))
    assert arrays["class_names"][arrays["test_labels"][0]] == "stop"


def test_tiny_imagenet_tests_on_its_validation_images(tmp_path):
    top, ids = "tiny-imagenet-200", ["n02", "n01", "n03"]
    noise = images(1, 64, 64, 3)[0]
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr(f"{top}/wnids.txt", "\n".join(ids))
        words = "n01\tgoldfish, Carassius\nn02\tcrane\nn03\tcrane"
        archive.writestr(f"{top}/words.txt", words)
        for name in ids:
            for number in range(2):
                member = f"{top}/train/{name}/images/{name}_{number}.JPEG"
                archive.writestr(member, picture(noise, "JPEG"))
        archive.writestr(f"{top}/val/images/val_0.JPEG", picture(noise, "JPEG"))
        archive.writestr(f"{top}/val/val_annotations.txt", "val_0.JPEG\tn03\t0\t0\t9\t9\n")
    arrays = make("tiny_imagenet", tmp_path, tmp_path / "t.npz")
    assert arrays["class_names"].tolist() == ["goldfish", "crane (n02)", "crane (n03)"]
    assert arrays["train_labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert arrays["test_labels"].tolist() == [2] and arrays["test_images"].shape[1:] == (64, 64, 3)


def test_what_is_not_the_archive_is_refused_in_one_line(tmp_path, capsys):
    for name, entry in PUBLISHED.items():
        for archive in entry.archives:
            (tmp_path / archive.name).write_bytes(b"<html>Not found</html>" * 50)
        out = tmp_path / f"{name}.npz"
        assert main([name, "--from", str(tmp_path), "--out", str(out)]) == 2
        assert f"not the published archive of {name}" in capsys.readouterr().err
        assert not out.exists()


def test_mistakes_are_named_before_anything_is_read(tmp_path, capsys):
    there = tmp_path / "there.npz"
    there.write_bytes(b"")
    for words, said in (
        (["cifar10", "--out", str(there)], "exists"),
        (["cifar10", "--out", str(tmp_path / "c.zip")], "ends in .npz"),
        (["cifar10", "--out", str(tmp_path / "c.npz"), "--size", "8"], "one size already"),
        (["svhn", "--out", str(tmp_path / "c.npz"), "--from", str(tmp_path)], "train_32x32.mat"),
        (["imagenet", "--out", str(tmp_path / "c.npz")], "invalid choice"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["there.npz"]


def test_a_download_is_kept_only_with_its_checksum(tmp_path, monkeypatch):
    sent = [b"changed", b"right"]
    monkeypatch.setattr(
        published.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(sent.pop(0))
    )
    md5 = "7a3328e5ac1bb2d1ac0a4b4b2b8c4c0f"
    right = published._archives("https://example.org/", {"a.gz": md5})
    monkeypatch.setitem(PUBLISHED, "mnist", PUBLISHED["mnist"]._replace(archives=right))
    with pytest.raises(DataError, match=r"example\.org/a\.gz: sent a file with MD5"):
        download("mnist", tmp_path / "d", lambda line: None)
    assert not (tmp_path / "d" / "a.gz").exists()
    import hashlib

    right = published._archives("https://example.org/", {"a.gz": hashlib.md5(b"right").hexdigest()})
    monkeypatch.setitem(PUBLISHED, "mnist", PUBLISHED["mnist"]._replace(archives=right))
    said: list[str] = []
    files = download("mnist", tmp_path / "d", said.append)
    assert said == ["downloading https://example.org/a.gz"] and not altered("mnist", files)
    assert download("mnist", tmp_path / "d", said.append) == files and len(said) == 1


def test_an_address_that_does_not_answer_is_one_error(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr(published.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"cannot be downloaded \(no network\).*--from"):
        download("cifar10", tmp_path, lambda line: None)


def test_every_published_set_has_usual_settings():
    for name in PUBLISHED:
        line = config_line(name, "a.npz")
        config = loads(line, registries=REGISTRIES).dataset.config
        assert isinstance(config, NpzConfig) and config.path == "a.npz" and config.mean
