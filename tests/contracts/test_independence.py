"""Tests that code names no attack or defence outside its own package and the registries."""

import ast
from pathlib import Path

import d3jax
from d3jax.attacks import ATTACKS
from d3jax.defenses import DEFENSES, DETECTIONS

PACKAGE = Path(d3jax.__file__).parent
OWN = {"attacks", "defenses", "inversion", "evolution", "examine"}
"""Packages that contain the methods, and the examination, which chooses some of them."""
NO_ATTACK = {"clean", "unknown"}
"""The control and a model's unknown trigger are roles of a study, not methods."""
WORDS = {"filter", "inversion", "released", "strip", "unit"}
"""Names that the code also uses in another sense, such as a strip of pictures."""


def words_of(path):
    """Yield the names, the imported names and the whole strings in the code of a file."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.alias):
            yield node.name


def test_no_code_outside_the_method_packages_names_a_method():
    registries = (ATTACKS | DEFENSES | DETECTIONS).items()
    names = {name for name, _ in registries} - NO_ATTACK - WORDS
    configs = {config.__name__ for _, (config, _) in registries}
    configs -= {"CleanConfig", "UnknownConfig", "InversionConfig"}
    found = [
        (str(path.relative_to(PACKAGE)), word)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in OWN
        for word in words_of(path)
        if word in names | configs
    ]
    allowed = {("testing.py", "badnets"), ("config/study.py", "badnets")}
    defaults = {("config/study.py", name) for name in ("finetune", "d3")}
    assert set(found) <= allowed | defaults, found


def test_words_of_finds_names_and_imports():
    words = set(words_of(PACKAGE / "defenses" / "__init__.py"))
    assert {"spectral", "SpectralConfig", "strip"} <= words
