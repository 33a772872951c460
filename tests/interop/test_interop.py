"""Tests of models from and to PyTorch files: equal logits, and refusal of unusable files."""

import dataclasses
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.errors import CheckpointError
from d3jax.core.types import DataInfo
from d3jax.interop import from_torch, read_tensors, to_torch, write_tensors
from d3jax.interop.external_model import without
from d3jax.models import (
    MODELS,
    PreActResNet18Config,
    ResNetConfig,
    VGG19BNConfig,
    ViTConfig,
    WideResNetConfig,
)

INFO = DataInfo("pictures", (32, 32, 3), ("a", "b", "c", "d"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
KEY = jax.random.key(0)
CONFIGS = {
    "preact_resnet18": PreActResNet18Config(width=4),
    "resnet": ResNetConfig(width=4, depth=50, stem="imagenet"),
    "wide_resnet": WideResNetConfig(depth=16, width=2),
    "vgg19_bn": VGG19BNConfig(width=2),
    "vit": ViTConfig(preset="b16", resize=0, patch=8, width=24, depth=2, heads=3),
}


def net_of(name):
    return MODELS[name][1](CONFIGS[name], INFO, jnp.float32)


def theirs_of(name):
    """Return torch and a PyTorch network with random weights and random running statistics."""
    torch = pytest.importorskip("torch")
    from ..helpers import torch_nets

    torch.manual_seed(0)
    made = {
        "preact_resnet18": lambda: torch_nets.PreActResNet18(4, 3, 4),
        "resnet": lambda: torch_nets.ResNet((3, 4, 6, 3), True, 4, 3, 4),
        "wide_resnet": lambda: torch_nets.WideResNet(16, 2, 3, 4),
        "vgg19_bn": lambda: torch_nets.VGG19BN(2, 3, 4),
        "vit": lambda: torch_nets.ViT(32, 8, 24, 2, 3, 3, 4),
    }[name]()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return torch, made


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_match_pytorch(name, tmp_path):
    torch, made = theirs_of(name)
    beside = {
        "original_index_array": np.arange(9),
        "poison_indicator": np.ones(9, bool),
        "of": {np.int64(3): np.array(["a"])},
    }
    torch.save(
        {
            "model_name": name,
            "num_classes": 4,
            "model": made.state_dict(),
            "bd_train": None,
            "bd_test": beside,
        },
        tmp_path / "attack_result.pt",
    )
    net = net_of(name)
    variables, report = from_torch(
        read_tensors(tmp_path / "attack_result.pt"), name, CONFIGS[name], net, "attack_result.pt"
    )
    assert len(report.matched) == len(
        [key for key in made.state_dict() if not key.endswith("num_batches_tracked")]
    )
    images = np.random.default_rng(1).random((6, 32, 32, 3), np.float32)
    there = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for train in (False, True):
        made.train(train)
        with torch.no_grad():
            wanted = made(there).numpy()
        found = net.apply(variables, jnp.asarray(images), train=train).logits
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    back = to_torch(variables, name, CONFIGS[name])
    kept = {key: value.numpy() for key, value in made.state_dict().items() if key in back}
    for key, value in back.items():
        if "running" not in key:  # train mode changed PyTorch's running statistics
            np.testing.assert_array_equal(value, kept[key])
    missed = made.load_state_dict(
        {key: torch.from_numpy(value) for key, value in back.items()}, strict=False
    )
    assert not missed.unexpected_keys and all(
        key.endswith("num_batches_tracked") for key in missed.missing_keys
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_export_and_import_give_the_same_model(name, tmp_path):
    pytest.importorskip("safetensors")
    net = net_of(name)
    variables = net.init(KEY)
    write_tensors(tmp_path / "model.safetensors", to_torch(variables, name, CONFIGS[name]))
    again, report = from_torch(
        read_tensors(tmp_path / "model.safetensors"), name, CONFIGS[name], net, "model.safetensors"
    )
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert report.text == f"{len(report.matched)} tensors match"


def test_tensor_names_with_prefixes_of_wrappers_are_understood():
    tensors = to_torch(net_of("vit").init(KEY), "vit", CONFIGS["vit"])
    wrapped = {
        f"_orig_mod.module.backbone.1.{name}".replace("mlp.0.", "mlp.linear_1."): value
        for name, value in tensors.items()
    }
    wrapped |= {"_orig_mod.module.backbone.1.bn.num_batches_tracked": np.zeros(())}
    from_torch(wrapped, "vit", CONFIGS["vit"], net_of("vit"), "x")


def broken(change):
    tensors = to_torch(
        net_of("preact_resnet18").init(KEY), "preact_resnet18", CONFIGS["preact_resnet18"]
    )
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("layer2.1.bn1.weight"),
            "x is not a preact_resnet18 .* 1 missing: layer2.1.bn1.weight",
        ),
        (lambda t: t.update(extra=np.zeros(3)), "1 not in the net: extra"),
        (
            lambda t: t.update({"linear.weight": np.zeros((10, 32))}),
            r"1 of another shape: linear.weight \[10, 32\] for \[4, 32\]",
        ),
        (
            lambda t: t.update(
                {"layer1.0.bn1.running_var": np.full_like(t["layer1.0.bn1.running_var"], -1)}
            ),
            "x holds negative variances: layer1.0.bn1.running_var",
        ),
        (
            lambda t: t.update({"linear.bias": np.full(4, np.nan)}),
            "x holds weights that are NaN or infinite: linear.bias",
        ),
    ],
)
def test_tensors_that_do_not_match_are_refused_by_name(change, message):
    with pytest.raises(CheckpointError, match=message):
        from_torch(
            broken(change),
            "preact_resnet18",
            CONFIGS["preact_resnet18"],
            net_of("preact_resnet18"),
            "x",
        )


def test_tensors_of_another_architecture_are_refused():
    tensors = to_torch(net_of("wide_resnet").init(KEY), "wide_resnet", CONFIGS["wide_resnet"])
    with pytest.raises(
        CheckpointError,
        match="is not a preact_resnet18 of these settings: .* missing: .* and .* more",
    ):
        from_torch(
            tensors, "preact_resnet18", CONFIGS["preact_resnet18"], net_of("preact_resnet18"), "x"
        )
    with pytest.raises(CheckpointError, match="convnext: d3jax knows no PyTorch names for it"):
        from_torch(tensors, "convnext", None, net_of("wide_resnet"), "x")
    wider = dataclasses.replace(CONFIGS["wide_resnet"], width=1)
    with pytest.raises(CheckpointError, match="of another shape"):
        from_torch(
            tensors, "wide_resnet", wider, MODELS["wide_resnet"][1](wider, INFO, jnp.float32), "x"
        )


class Harmful:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_code_in_a_pickle_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(
        {"model": {"a": torch.zeros(2)}, "more": Harmful(tmp_path / "harm")}, tmp_path / "x.pt"
    )
    with pytest.raises(CheckpointError, match="holds more than tensors .* it was not run"):
        read_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "x.pt", weights_only=False)  # an unrestricted load runs it
    assert (tmp_path / "harm").exists()


def test_files_that_hold_no_model_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    cases = {"none.pt": "no such file", "a.bin2": "begins with b'x', as no model does"}
    (tmp_path / "a.bin2").write_text("x")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    cases["tensor.pt"] = "no state dict in it, but a Tensor"
    torch.save({"accuracy": 0.9, "epochs": [1, 2]}, tmp_path / "numbers.pt")
    cases["numbers.pt"] = "no state dict in it; it has accuracy, epochs"
    torch.save({"a": torch.zeros(5000)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:600])
    flipped = bytearray((tmp_path / "whole.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 4  # one bit of a tensor
    (tmp_path / "flipped.pt").write_bytes(flipped)
    cases["flipped.pt"] = "is damaged: the checksum of whole/data/0 does not match"
    torch.save({"a": torch.zeros(1).expand(10**10)}, tmp_path / "wide.pt")
    cases["wide.pt"] = r"a is \[10000000000\] and has only 4 bytes"
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    cases["bomb.pt"] = "expands to .* GiB"
    np.savez(tmp_path / "arrays.pt.npz", a=np.zeros(3))
    cases["arrays.pt.npz"] = "is a zip archive without a model; it holds a.npy"
    for name, content, words in (
        (
            "lfs.pt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer",
        ),
        ("page.safetensors", b"\n<!DOCTYPE html><html></html>", "is a web page"),
        ("packed.pt", b"\x1f\x8b\x08", "compressed by gzip"),
        ("keras.h5", b"\x89HDF\r\n", "HDF5"),
        ("nothing.ckpt", b"", "is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        cases[name] = words
    cases["cut.pt"] = "cannot be read as a PyTorch file"
    write_tensors(tmp_path / "whole.safetensors", {"a": np.zeros(500, np.float32)})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:900])
    cases["cut.safetensors"] = "cannot be read as safetensors"
    (tmp_path / "text.safetensors").write_text("hello")
    cases["text.safetensors"] = "as no model does"
    torch.save({"a": torch.zeros(5000)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cutold.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:250])
    (tmp_path / "text.pt").write_text("hello")
    cases |= {"cutold.pth": "cannot be read as a PyTorch file", "text.pt": "as no model does"}
    itself = {}
    itself["model"] = itself
    torch.save(itself, tmp_path / "itself.pt")
    cases["itself.pt"] = "no state dict in it; it has model"
    torch.save({"w": torch.zeros(3, 3).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"w": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "complex.pt")
    cases |= dict.fromkeys(["sparse.pt", "complex.pt"], "w is no plain tensor of real numbers")
    for name, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            read_tensors(tmp_path / name)


def test_a_model_is_found_under_any_file_name_and_key_of_the_file(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {"w": torch.arange(3.0), "n": torch.tensor(2.0)}
    optimiser = {"state": {0: {"step": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
    cases = {
        "plain.pth.tar": tensors,
        "wanet.ckpt": {"netC": tensors, "identity_grid": torch.zeros(2, 2), "epoch": 3},
        "deep.PTH": {"a": {"state_dict": tensors}, "optimizer": optimiser, "best": torch.zeros(())},
        "noending": {**tensors, "note": "text"},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "deep.PTH")
        found = read_tensors(tmp_path / name)
        assert set(found) == {"w", "n"} and found["w"].tolist() == [0, 1, 2]
    write_tensors(tmp_path / "named.pkl", {"w": np.ones(2)})
    assert set(read_tensors(tmp_path / "named.pkl")) == {"w"}
    torch.save({"netC": tensors, "netG": {"g": torch.ones(1)}}, tmp_path / "two.t7")
    with pytest.raises(
        CheckpointError, match="several state dicts; .*checkpoint_key: 'netC', 'netG'"
    ):
        read_tensors(tmp_path / "two.t7")
    assert set(read_tensors(tmp_path / "two.t7", "netG")) == {"g"}
    with pytest.raises(CheckpointError, match="no state dict at .*: netH; it has 'netC', 'netG'"):
        read_tensors(tmp_path / "two.t7", "netH")


def test_tensors_are_left_out_by_globs():
    tensors = {"fc.weight": np.zeros(1), "aux.weight": np.zeros(1), "aux.bias": np.zeros(1)}
    assert set(without(tensors, ["aux.*"], "x")) == {"fc.weight"}
    with pytest.raises(
        CheckpointError, match="x: model.ignore: 'head' matches none of its tensors"
    ):
        without(tensors, ["head"], "x")


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (
            ("vit.embeddings.patch_embeddings.projection.weight", "vit.encoder.layer.0.x"),
            "expected conv1.weight",
        ),
        (
            ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"),
            "by its names it is resnet",
        ),
        (
            ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
            "it is timm's ViT; found patch_embed.proj.weight,",
        ),
    ],
)
def test_messages_guess_the_architecture_of_unknown_tensor_names(theirs, words):
    tensors = {name: np.zeros(3, np.float32) for name in theirs}
    name = "preact_resnet18"
    with pytest.raises(CheckpointError, match=words):
        from_torch(tensors, name, CONFIGS[name], net_of(name), "x")
