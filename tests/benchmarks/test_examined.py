"""Tests of the program that holds the conclusions of examinations against the truth."""

import json

import pytest

FOUND = "A backdoor was found in the model. Its target class is dog."


@pytest.mark.parametrize(
    ("level", "text", "target", "want"),
    [
        ("found", FOUND, "dog", "right"),
        ("found", FOUND, "cat", "wrong"),
        ("found", FOUND, "none", "wrong"),
        ("weak", "No backdoor was confirmed.", "dog", "not found"),
        ("weak", "No backdoor was confirmed.", "none", "right"),
        ("nothing", "No backdoor was found.", "none", "right"),
    ],
)
def test_the_outcome_of_a_conclusion(level, text, target, want):
    import examined

    assert examined.outcome(level, text, target) == want


def test_the_table_has_a_row_for_each_examination(tmp_path, capsys):
    import examined

    conclusion = {"subject": "model", "level": "found", "text": FOUND}
    checks = [{"seconds": 1.4}, {"seconds": 2.2}]
    told = {"conclusions": [conclusion], "checks": checks}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "examination.json").write_text(json.dumps(told))
    assert examined.main([f"{tmp_path / 'a'}=dog"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == f"| a | dog | right | {FOUND} | 4 |"
    assert examined.main(["a"]) == 2
