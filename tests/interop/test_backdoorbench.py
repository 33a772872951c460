"""Tests of the reader of BackdoorBench's records, on records written by the rules of its format.

The tests that need PyTorch are skipped without it. The others give the reader the contents of the
file `attack_result.pt` as a dictionary.
"""

import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from d3jax.attacks import ReleasedConfig
from d3jax.config.loading import load
from d3jax.core.errors import CheckpointError, DataError
from d3jax.data.arrays import from_arrays
from d3jax.data.released import read_released
from d3jax.deployment import load_model
from d3jax.interop.backdoorbench import main
from d3jax.interop.backdoorbench_data import released_of_record
from d3jax.study.registries import REGISTRIES

CLASSES, TARGET, SIZE = 4, 2, 12
TRAIN, TEST = 60, 20
WHERE = "./record/badnet"
"""The folder of the record as its writer named it."""


@pytest.fixture
def clean(rng):
    """Return the clean arrays under the names of an .npz."""
    arrays = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % CLASSES
    return arrays


@pytest.fixture
def dataset(clean):
    return from_arrays(*((clean[f"{part}_images"], clean[f"{part}_labels"]) for part in PARTS))


PARTS = ("train", "test")


def stamped(images):
    images = images.copy()
    images[:, -3:, -3:] = 255
    return images


def stored(folder, name, count, rows, images, labels, own, order=None):
    """Write pictures as BackdoorBench does; return the state of the set with `count` images."""
    flags, entries = np.zeros(count), {}
    flags[rows] = 1
    for row, image, label, original in zip(rows, images, labels, own, strict=True):
        inside = f"{name}/{original}/{row}.png"
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / inside)
        entries[np.int64(row)] = {
            "path": f"{WHERE}/{inside}",
            "other_info": [int(label), int(original)],
        }
    container = {
        "save_folder_path": f"{WHERE}/{name}",
        "data_dict": entries,
        "save_file_format": ".png",
    }
    return {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(count) if order is None else order,
        "poison_indicator": flags,
        "save_folder_path": f"{WHERE}/{name}",
    }


def record_of(folder, clean, rows, labels, wanted, poisoned=None):
    """Return a record whose training `rows` have a trigger and these `labels`.

    `wanted` is the attacker's class for each class. `poisoned` are other images for the rows.
    """
    own, test = clean["train_labels"], clean["test_labels"]
    attacked = np.flatnonzero(wanted[test] != test)
    images = stamped(clean["train_images"])[rows] if poisoned is None else poisoned
    return {
        "model_name": "preactresnet18",
        "num_classes": CLASSES,
        "data_path": "./data/cifar10",
        "img_size": (SIZE, SIZE, 3),
        "clean_data": "cifar10",
        "bd_train": stored(folder, "bd_train_dataset", TRAIN, rows, images, labels, own[rows]),
        "bd_test": stored(
            folder,
            "bd_test_dataset",
            TEST,
            attacked,
            stamped(clean["test_images"])[attacked],
            wanted[test[attacked]],
            test[attacked],
            attacked,
        ),
    }


def all_to_one():
    return np.full(CLASSES, TARGET)


ROWS = np.array([1, 2, 7, 30, 31, 59])


@pytest.fixture
def badnets(tmp_path, clean):
    """Return the folder and the contents of a record in which `ROWS` are poisoned."""
    folder = tmp_path / "record" / "renamed"
    return folder, record_of(folder, clean, ROWS, np.full(len(ROWS), TARGET), all_to_one())


def expected(clean):
    """Return the arrays of the released set of `badnets`, computed from the clean arrays alone."""
    images, labels = clean["train_images"].copy(), clean["train_labels"].copy()
    images[ROWS], labels[ROWS] = stamped(images)[ROWS], TARGET
    rows = np.array([row for row in range(TEST) if row % CLASSES != TARGET])
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": clean["test_images"],
        "test_labels": clean["test_labels"],
        "poisoned": np.isin(np.arange(TRAIN), ROWS),
        "original_labels": clean["train_labels"],
        "triggered_images": stamped(clean["test_images"])[rows],
        "triggered_rows": rows,
        "wanted_labels": all_to_one(),
    }


def test_sets_of_a_record_are_read_exactly(badnets, dataset, clean):
    folder, found = badnets
    released = released_of_record(found, folder, dataset)
    wanted = expected(clean)
    there = dict(zip(list(wanted)[:4], (*released.train, *released.test), strict=True))
    there |= {name: getattr(released, name) for name in list(wanted)[4:]}
    for name, array in wanted.items():
        np.testing.assert_array_equal(there[name], array, err_msg=name)
    assert released.covers is None and released.classes == ("0", "1", "2", "3")


def test_training_set_follows_the_order_of_the_record(badnets, dataset, clean):
    folder, found = badnets
    order = np.array([59, 4, 1, 1])
    found["bd_train"]["original_index_array"] = order
    released = released_of_record(found, folder, dataset)
    wanted = expected(clean)
    for array, name in (
        (released.train.images, "train_images"),
        (released.train.labels, "train_labels"),
        (released.poisoned, "poisoned"),
        (released.original_labels, "original_labels"),
    ):
        np.testing.assert_array_equal(array, wanted[name][order], err_msg=name)


def test_crosses_are_covers_and_follow_the_poisoned_images_of_a_batch(tmp_path, dataset, clean):
    # Batches of 20 with 4 poisoned images and 6 crosses each, as WaNet has them. Labels are 0, 1,
    # 2, 3, …, so rows 2 and 22 are poisoned images of the target class, and 6, 26 crosses of it.
    rows = np.concatenate([np.arange(10), np.arange(20, 30)])
    labels = clean["train_labels"][rows].copy()
    labels[[0, 1, 2, 3, 10, 11, 12, 13]] = TARGET
    found = record_of(tmp_path, clean, rows, labels, all_to_one())
    released = released_of_record(found, tmp_path, dataset)
    assert np.flatnonzero(released.poisoned).tolist() == [0, 1, 2, 3, 20, 21, 22, 23]
    assert np.flatnonzero(released.covers).tolist() == [*range(4, 10), *range(24, 30)]


def test_clean_label_poison_is_poison_and_no_cover(tmp_path, dataset, clean):
    rows = np.flatnonzero(clean["train_labels"] == TARGET)[:5]
    found = record_of(tmp_path, clean, rows, np.full(5, TARGET), all_to_one())
    released = released_of_record(found, tmp_path, dataset)
    assert np.flatnonzero(released.poisoned).tolist() == rows.tolist()
    assert released.covers is None
    np.testing.assert_array_equal(released.train.labels, clean["train_labels"])


def test_all_to_all_wants_the_next_class_of_every_image(tmp_path, dataset, clean):
    following = (np.arange(CLASSES) + 1) % CLASSES
    found = record_of(tmp_path, clean, ROWS, following[clean["train_labels"][ROWS]], following)
    released = released_of_record(found, tmp_path, dataset)
    assert released.wanted_labels.tolist() == [1, 2, 3, 0]
    assert released.triggered_rows.tolist() == list(range(TEST))


def test_triggered_images_of_the_target_class_are_left_out(badnets, dataset, clean):
    folder, found = badnets
    found["bd_test"] = stored(
        folder,
        "bd_test_all_dataset",
        TEST,
        np.arange(TEST),
        stamped(clean["test_images"]),
        np.full(TEST, TARGET),
        clean["test_labels"],
    )
    released = released_of_record(found, folder, dataset)
    np.testing.assert_array_equal(released.triggered_rows, expected(clean)["triggered_rows"])


def test_attack_without_a_training_set_leaves_the_clean_one(badnets, dataset, clean):
    folder, found = badnets
    released = released_of_record({**found, "bd_train": None}, folder, dataset)
    np.testing.assert_array_equal(released.train.images, clean["train_images"])
    assert released.poisoned is None and len(released.triggered_rows) == 15


def entry_of(found, row=30):
    return found["bd_train"]["bd_data_container"]["data_dict"][row]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "secret.png",
        f"{WHERE}/other/0/1.png",
        f"{WHERE}/bd_train_dataset/../../../secret.png",
        f"{WHERE}/bd_train_dataset/link.png",
        f"{WHERE}/bd_train_dataset/linked/secret.png",
        f"{WHERE}/bd_train_dataset/0/\0.png",
    ],
)
def test_pictures_outside_of_the_record_are_not_read(path, badnets, dataset, tmp_path):
    folder, found = badnets
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "secret.png")
    (folder / "bd_train_dataset" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "bd_train_dataset" / "linked").symlink_to(tmp_path)
    entry_of(found)["path"] = path
    with pytest.raises(
        CheckpointError, match="bd_train names a file outside of the record"
    ) as error:
        released_of_record(found, folder, dataset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("base", ["/", ".", "./record/badnet/..", ""])
def test_folders_outside_of_the_record_are_not_read(base, badnets, dataset):
    folder, found = badnets
    found["bd_train"]["bd_data_container"]["save_folder_path"] = base
    entry_of(found, 1)["path"] = f"{base}/etc/passwd"
    with pytest.raises(CheckpointError, match="names a file outside of the record"):
        released_of_record(found, folder, dataset)


def test_missing_pictures_are_named(badnets, dataset):
    folder, found = badnets
    (folder / "bd_train_dataset/1/1.png").unlink()
    (folder / "bd_test_dataset/3/7.png").unlink()
    with pytest.raises(DataError, match="2 of 21 pictures are missing: .*3/7.png, .*1/1.png"):
        released_of_record(found, folder, dataset)


def test_pictures_of_another_size_are_refused(badnets, dataset):
    folder, found = badnets
    Image.new("RGB", (SIZE, SIZE + 1)).save(folder / "bd_train_dataset/1/1.png")
    with pytest.raises(DataError, match=r"1/1\.png: not a readable image: it is 13×12"):
        released_of_record(found, folder, dataset)


def test_data_set_of_other_labels_or_length_is_refused(badnets, clean):
    folder, found = badnets
    labels = clean["train_labels"].copy()
    labels[[1, 2]] = labels[[2, 1]]
    pairs = {part: (clean[f"{part}_images"], clean[f"{part}_labels"]) for part in PARTS}
    other = from_arrays((clean["train_images"], labels), pairs["test"])
    with pytest.raises(DataError, match=r"image 1 is of class 1, .* of class 2 \(2 of 6 labels"):
        released_of_record(found, folder, other)
    longer = from_arrays(pairs["test"], pairs["test"])
    with pytest.raises(DataError, match=r"bd_train is of 60 images, .* has 20"):
        released_of_record(found, folder, longer)


def without_entry(found):
    del found["bd_train"]["bd_data_container"]["data_dict"][30]


def of_early_version(found):
    found["bd_train"] = {"x": np.zeros((6, 3, 12, 12)), "y": np.zeros(6), "original_index": ROWS}


def set_to(value, *keys):
    """Return a function that sets the value at nested keys of `bd_train`."""

    def change(found):
        state = found["bd_train"]
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (without_entry, "bd_train is not as the newest version .* stores it .KeyError: 30"),
        (of_early_version, "bd_train is not as the newest version"),
        (set_to("text", "bd_data_container", "data_dict", 30, "other_info"), "not as the newest"),
        (set_to([2], "bd_data_container", "data_dict", 30, "other_info"), "not as the newest"),
        (set_to([10**12, 2], "bd_data_container", "data_dict", 30, "other_info"), "not as the"),
        (set_to([9, 2], "bd_data_container", "data_dict", 30, "other_info"), "labels from 2 to 9"),
        (set_to([0, 3], "bd_data_container", "data_dict", 7, "other_info"), "labelled 0 and 2"),
    ],
)
def test_damaged_records_are_refused_in_one_line(change, message, badnets, dataset):
    folder, found = badnets
    change(found)
    with pytest.raises(CheckpointError, match=message) as error:
        released_of_record(found, folder, dataset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [[0, TRAIN], [-1], [], [[0]]])
def test_rows_outside_of_the_data_set_are_refused(rows, badnets, dataset):
    folder, found = badnets
    found["bd_train"]["original_index_array"] = rows
    with pytest.raises(DataError, match="original_index_array leaves the 60 images"):
        released_of_record(found, folder, dataset)


def command(folder, tmp_path, out="read"):
    """Run the command on a record; return its exit code."""
    data = str(tmp_path / "clean.npz")
    return main([str(folder), "--data", data, "--out", str(tmp_path / out)])


def test_command_says_what_it_needs(tmp_path, clean, capsys, monkeypatch):
    np.savez(tmp_path / "clean.npz", **clean)
    assert command(tmp_path, tmp_path) == 2
    assert "want the folder of an attack of BackdoorBench" in capsys.readouterr().err
    (tmp_path / "attack_result.pt").write_bytes(b"\x80\x02}.")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command(tmp_path, tmp_path) == 2
    assert "needs torch" in capsys.readouterr().err
    (tmp_path / "read").mkdir()
    assert command(tmp_path, tmp_path) == 2
    assert "exists; remove it" in capsys.readouterr().err


def saved(badnets, tmp_path, clean, **changes):
    """Save a record with a random PreActResNet18 in half precision; return torch and the net."""
    torch = pytest.importorskip("torch")
    from ..helpers import torch_nets

    torch.manual_seed(0)
    net = torch_nets.PreActResNet18(4, 3, CLASSES).half().eval()
    weights = {f"module.{name}": value for name, value in net.state_dict().items()}
    folder, found = badnets
    torch.save({**found, "model": weights, **changes}, folder / "attack_result.pt")
    np.savez(tmp_path / "clean.npz", **clean)
    return torch, net.float()


def test_command_writes_data_model_and_study(badnets, tmp_path, clean, capsys):
    torch, net = saved(badnets, tmp_path, clean)
    assert command(badnets[0], tmp_path, "deep/read") == 0
    out, printed = tmp_path / "deep" / "read", capsys.readouterr().out

    wanted = expected(clean)
    with np.load(out / "poison.npz") as arrays:
        assert set(arrays) == {*wanted, "class_names"}
        for name, array in wanted.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
        assert arrays["train_images"].dtype == np.uint8 and arrays["poisoned"].dtype == bool

    mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]])

    def logits_of(images):
        there = (images / 255 - mean) / std
        with torch.no_grad():
            return net(torch.from_numpy(there.transpose(0, 3, 1, 2)).float()).numpy()

    model, variables, info = load_model(out / "model.safetensors")
    assert (info.mean, info.std, info.crop, info.flip) == ((*mean,), (*std,), 4, True)
    images = clean["test_images"]
    found = model.apply(variables, images.astype(np.float32) / 255, train=False).logits
    np.testing.assert_allclose(found, logits_of(images), rtol=1e-3, atol=1e-3)

    acc = (logits_of(images).argmax(-1) == clean["test_labels"]).mean()
    asr = (logits_of(wanted["triggered_images"]).argmax(-1) == TARGET).mean()
    assert "60 training images, 6 poisoned, 0 covers\n20 test images, 15 triggered" in printed
    assert f"preact_resnet18 (width 4)\nACC {acc:.2%}, ASR {asr:.2%}\n" in printed

    study = load(out / "study.yaml", registries=REGISTRIES)
    assert study.dataset.config.path == str(out / "poison.npz")
    assert study.model.checkpoint == str(out / "model.safetensors")
    assert study.attacks[0].config == ReleasedConfig(path=str(out / "poison.npz"))
    assert study.reserved_from[0].config.path == str(tmp_path / "clean.npz")
    assert [choice.name for choice in study.defenses] == ["finetune", "d3"]
    assert study.dataset.config.build().info.mean == (*mean,)
    attack = study.attacks[0].config.build(info)
    labels = study.dataset.config.build().train.labels
    assert attack.select(None, labels).tolist() == wanted["poisoned"].tolist()
    assert read_released(out / "poison.npz").covers is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"beside": pathlib.PurePosixPath("x")}, "only running its code could read"),
        ({"clean_data": "places"}, "clean_data: 'places' is not one of cifar10"),
        ({"img_size": (32, 32, 3)}, "images of 12×12 in 4 classes, .* is of 32×32 in 4"),
        ({"img_size": 12}, "img_size or num_classes is damaged"),
        ({"num_classes": 10}, "in 4 classes, .* in 10"),
    ],
)
def test_command_refuses_records_in_one_line(changes, message, badnets, tmp_path, clean, capsys):
    saved(badnets, tmp_path, clean, **changes)
    assert command(badnets[0], tmp_path) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and not (tmp_path / "read").exists()
    assert re.search(message, printed)


def test_file_that_is_no_saved_attack_is_refused(tmp_path, clean, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "attack_result.pt")
    np.savez(tmp_path / "clean.npz", **clean)
    assert command(tmp_path, tmp_path) == 2
    assert "no num_classes, clean_data, img_size, bd_test" in capsys.readouterr().err
