"""Tests of reserved images that come from another data set than the study's."""

import numpy as np
import pytest

from d3jax.config.loading import dumps
from d3jax.core.errors import ConfigError
from d3jax.study.context import reserved_settings, reserved_split

from ..helpers import studies

OTHER = "{name: synthetic, size: 12, classes: 4, train: 200, test: 8, seed: 7}"


def test_reserved_images_are_those_of_the_other_data_set(tmp_path):
    config = studies.read(studies.TINY, ("reserved.from", OTHER), ("reserved.count", "30"))
    assert studies.read(dumps(config)) == config
    context = studies.opened(config, tmp_path)
    found = reserved_split(context, 0)
    assert len(found.labels) == 30 and context.elsewhere is not None
    pool = {image.tobytes() for image in np.asarray(context.elsewhere.images)}
    own = {image.tobytes() for image in np.asarray(context.dataset.train.images)}
    drawn = {image.tobytes() for image in np.asarray(found.images)}
    assert drawn <= pool and not drawn & own
    plain = studies.opened(studies.read(studies.TINY, ("reserved.count", "30")), tmp_path)
    assert reserved_settings(context) != reserved_settings(plain)
    rest = {key: value for key, value in reserved_settings(context).items() if key != "from"}
    assert rest == reserved_settings(plain)


def test_several_sources_are_joined(tmp_path):
    more = OTHER.replace("seed: 7", "seed: 8, label: more")
    config = studies.read(studies.TINY, ("reserved.from", f"[{OTHER}, {more}]"))
    elsewhere = studies.opened(config, tmp_path).elsewhere
    assert elsewhere is not None and len(elsewhere.labels) == 400


def test_a_source_with_other_classes_is_refused(tmp_path):
    other = OTHER.replace("classes: 4", "classes: 5")
    config = studies.read(studies.TINY, ("reserved.from", other))
    with pytest.raises(ConfigError, match=r"reserved.from: synthetic has images of .* 5 classes"):
        studies.opened(config, tmp_path)
