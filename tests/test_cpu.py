"""What has to stand in the environment before jax starts."""

import pytest

from d3jax import cpu


@pytest.fixture(params=["0.10.2", "0.11.0", "0.11.2", "0.12.0"])
def version(request, monkeypatch):
    monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name: request.param)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    return request.param


def test_onednn_only_where_it_was_tried(version):
    """A flag that a release does not know would end the process."""
    added = cpu.settings({})
    assert ("XLA_FLAGS" in added) == version.startswith("0.11.") and "GLIBC_TUNABLES" in added
    assert cpu.settings(added) == {}


def test_what_the_user_set_stays(version):
    own = {"GLIBC_TUNABLES": "glibc.malloc.check=1", "XLA_FLAGS": "--xla_cpu_experimental_onednn_custom_call=false"}
    assert cpu.settings(own) == {}
    flags = cpu.settings({"XLA_FLAGS": "--xla_dump_to=there"}).get("XLA_FLAGS", "--xla_dump_to=there")
    assert flags.endswith("--xla_dump_to=there")
