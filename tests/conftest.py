"""Four fake CPU devices, a model small enough to compile in a second, and data that it learns."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from d3jax.attacks import BadNetsConfig, badnets
from d3jax.base import DataInfo, Model
from d3jax.config import OptimConfig, TrainConfig
from d3jax.data import SyntheticConfig, synthetic
from d3jax.models.linen import Head, batch_norm, model_of, normalise
from d3jax.training import train_backdoored


class _Small(nn.Module):
    info: DataInfo

    @nn.compact
    def __call__(self, images, train):
        x = normalise(images, self.info)
        for i in range(2):
            x = nn.Conv(8 << i, (3, 3), 2, use_bias=False, name=f"conv{i}")(x)
            x = batch_norm(train, jnp.float32)(x)
            x = nn.relu(x) if i == 0 else x  # signed features, as PreActResNet18's
        features = x.reshape(len(x), -1)
        return Head(self.info.num_classes, name="head")(features), {"penultimate": features}


def small_model(info: DataInfo) -> Model:
    """Two strided convolutions and a linear layer."""
    return model_of(_Small(info), info)


@pytest.fixture(scope="session")
def dataset():
    return synthetic(SyntheticConfig(size=12, channels=3, classes=4, train=400, test=130, noise=0.15))


@pytest.fixture(scope="session")
def model(dataset):
    return small_model(dataset.info)


@pytest.fixture(scope="session")
def attack(dataset):
    return badnets(BadNetsConfig(rate=0.1), dataset.info)


@pytest.fixture(scope="session")
def victim(dataset, model, attack):
    """A backdoored small model: nearly perfect on clean and on triggered images."""
    config = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    return train_backdoored(jax.random.key(0), model, dataset, attack, config)
