"""Tests of the comparison of bfloat16 with float32: rows are paired by seed."""

from d3jax.results.tables import write_csv


def test_differences_are_of_the_same_seed_and_a_changed_side_is_said(tmp_path):
    import precision

    where = {"model": "net", "net": "width=8", "attack": "badnets", "defense": "d3"}
    rates = {
        "float32": {0: (0.6, 0.4, 0.3), 1: (0.5, 0.9, 0.1)},
        "bfloat16": {1: (0.52, 0.8, 0.1), 0: (0.61, 0.6, 0.2), 2: (0.1, 0.1, 0.1)},
    }
    for name, seeds in rates.items():
        rows = [
            where | {"seed": seed} | dict(zip(("acc", "asr", "ra"), values, strict=True))
            for seed, values in seeds.items()
        ]
        write_csv(tmp_path / name / "results.csv", rows, list(rows[0]))
    acc, asr, ra = precision.lines_of(tmp_path)
    assert acc == [
        "net width=8",
        "badnets",
        "d3",
        "ACC",
        "2",
        "55.0",
        "56.5",
        "+1.5 (+1.0 to +2.0)",
        "",
    ]
    assert asr[5:] == ["65.0", "70.0", "+5.0 (-10.0 to +20.0)", "yes"]
    assert ra[5:] == ["20.0", "15.0", "-5.0 (-10.0 to +0.0)", ""]
