"""AGPD, a detector of poisoned samples by the gradients of activations (Yuan et al., ICLR 2025).

Source: arXiv 2312.06230. g(x) is the gradient of the logit of x's label by an activation, averaged
over its places. In a clean class all g(x) have similar directions, and in the target class there
are two groups. For each class and activation, c is the mean of g over clean images, and the seed s
is the sample with the lowest cos(g, c). Their gap measures how far the class is spread:

    gap = ‖(cos(g_i, c) − cos(g_i, g_s))_{i ≠ s}‖₂ / √n

The gaps tell which classes are suspected. In these, the group of poisoned samples grows from s.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from ...config.fields import check_fields, option
from ...core.checks import check_labelled
from ...core.errors import ConfigError, did_you_mean, names
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...data.batched import batched_map
from ...metrics.attack_success import predict
from ...runtime.compilation import fast
from ...training.loop import Hooks
