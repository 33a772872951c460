"""Tests of benchmarks/claims.py, which judges claims about evolving models from tables."""

from pathlib import Path

import pytest

from d3jax.results.tables import read_csv, write_csv

FOLDER = Path(__file__).parents[2] / "benchmarks"


def curves(folder: Path, lineages: dict[str, list[list[float]]], **lines: dict) -> Path:
    """Write the tables of a run folder for the given evolution runs, and return the folder.

    `lineages` has the ASRs of updates 0, 1 and so on, one list for each seed. `lines` has further
    columns of survival.csv.
    """
    evolved = [
        {
            "attack": "badnets",
            "evolution": label,
            "seed": seed,
            "update": update,
            "asr": asr,
            "score": 10 * asr,
        }
        | {"control": 0.05 if update else None, "stale_asr": curve[update - 1] if update else None}
        | {"stale_score": 10 * curve[update - 1] if update else None}
        for label, seeds in lineages.items()
        for seed, curve in enumerate(seeds)
        for update, asr in enumerate(curve)
    ]
    shared = {
        "attack": "badnets",
        "acc": 0.8,
        "lr_mean": 0.01,
        "steps": 6,
        "speedup": None,
        "speedup_bound": None,
    }
    shared |= {"baseline": None, "counts": None, "equal_mean": None}
    compared = [
        shared | {"evolution": label, "constant": "constant" in label} | lines.get(label, {})
        for label in lineages
    ]
    write_csv(folder / "evolution.csv", evolved, ())
    write_csv(folder / "survival.csv", compared, ())
    return folder


def against(baseline: str, counts: bool = True, **more: str) -> dict:
    """Return the columns of survival.csv that compare a run with a baseline."""
    return {"baseline": baseline, "counts": counts} | more


LOW, MEAN = against("constant-lr0.01"), against("constant-lr0.01", equal_mean="constant-lr0.03")


@pytest.mark.parametrize(
    ("claim", "lineages", "lines", "said"),
    [
        (
            1,
            {
                "lr0.01": [[1, 0.9, 0.4, 0.2, 0.1], [1, 0.9, 0.8, 0.2, 0.1]],
                "lr0.1": [[1, 0.4, 0, 0, 0]] * 2,
            },
            {},
            "holds",
        ),
        (
            1,
            {"lr0.01": [[1, 0.9, 0.8, 0.7, 0.1]] * 2, "lr0.1": [[1, 0.4, 0, 0, 0]] * 2},
            {},
            "only for lr0.1",
        ),
        (1, {"lr0.01": [[1, 0.9, 0.9, 0.9, 0.9]]}, {}, "does not hold"),
        # ASR falls and rises again.
        (1, {"lr0.01": [[1, 0.4, 0.8, 0.9, 0.9]]}, {}, "does not hold"),
        (
            1,
            {"lr0.01": [[1, 0.4, 0.1]], "statistics": [[1, 1, 1]]},
            {"statistics": {"lr_mean": 0.0}},
            "holds for lr0.01",
        ),
        # A seed on which the backdoor never worked does not count.
        (1, {"lr0.01": [[0.2, 0.2, 0.2], [1, 0.9, 0.9]]}, {}, "does not hold"),
        (1, {"lr0.01": [[0.2, 0.2, 0.2]]}, {}, "never worked"),
        (2, {"a-persistent0": [[1, 0.9, 0.4]], "a-persistent1": [[1, 0.9, 0.6]]}, {}, "a holds"),
        (
            2,
            {"a-persistent0": [[1, 0.9, 0.6], [1, 0.9, 0.4]], "a-persistent1": [[1, 0.9, 0.6]] * 2},
            {},
            "a does not hold, without further poison it stays on 1 of 2 seeds",
        ),
        (
            2,
            {
                "a-persistent0": [[1, 0.9, 0.4]],
                "a-persistent1": [[1, 0.4, 0.6]],
                "a-persistent2": [[1, 0.9, 0.6]],
            },
            {},
            "a only for a-persistent2",
        ),
        (
            2,
            {
                "a-persistent0": [[1, 0.9, 0.6]],
                "a-persistent1": [[1, 0.9, 0.6]],
                "b-persistent0": [[1, 0.4, 0.4]],
                "b-persistent1": [[1, 0.9, 0.6]],
            },
            {},
            "a does not hold, without further poison it stays on 1 of 1 seeds, b holds",
        ),
        (3, {"0": [[1, 0.9, 0.9]], "4": [[1, 0.9, 0.8]], "8": [[1, 0.9, 0.7]]}, {}, "holds"),
        (3, {"0": [[1, 0.9, 0.9]], "4": [[1, 0.9, 0.8]], "8": [[1, 0.9, 0.85]]}, {}, "only for 4"),
        # The second seed does not fall.
        (3, {"0": [[1, 0.9, 0.9]] * 2, "4": [[1, 0.9, 0.8], [1, 0.9, 0.9]]}, {}, "does not hold"),
        (
            4,
            {"constant-lr0.01": [[1, 0.9]], "cosine": [[1, 0.4]]},
            {"cosine": LOW},
            "at equal steps holds for cosine, at an equal mean rate does not hold",
        ),
        (
            4,
            {"constant-lr0.01": [[1, 0.9]], "cosine": [[1, 0.4], [1, 0.6]]},
            {"cosine": LOW},
            "at equal steps does not hold, at an equal mean rate does not hold",
        ),
        (
            4,
            {"constant-lr0.01": [[1, 0.9]], "wild": [[1, 0.0]]},
            {"wild": against("constant-lr0.01", False)},
            "at equal steps does not hold, at an equal mean rate does not hold",
        ),
        (
            4,
            {"constant-lr0.01": [[1, 0.9]], "constant-lr0.03": [[1, 0.6]], "sgdr-mean": [[1, 0.4]]},
            {"constant-lr0.03": LOW, "sgdr-mean": MEAN},
            "at equal steps does not hold, at an equal mean rate holds for sgdr-mean",
        ),
        (
            4,
            {"constant-lr0.01": [[1, 0.9]], "constant-lr0.03": [[1, 0.4]], "sgdr-mean": [[1, 0.4]]},
            {"constant-lr0.03": LOW, "sgdr-mean": MEAN},
            (
                "at equal steps does not hold (constant-lr0.03 does), "
                "at an equal mean rate does not hold"
            ),
        ),
        (5, {"lr0.01": [[1, 0.9, 0.8], [1, 1.0, 0.8]]}, {}, "holds"),
        # An ASR of 0.14 is 9 points above that of the control.
        (
            5,
            {"lr0.01": [[1, 0.9, 0.8], [1, 0.8, 0.95]], "lr0.1": [[1, 0.14, 0.2]]},
            {},
            "only for lr0.1",
        ),
        # ASR falls by less than a hundredth.
        (5, {"lr0.01": [[1, 0.995, 0.99]]}, {}, "does not hold"),
    ],
)
def test_claims_have_the_expected_verdict(claim, lineages, lines, said, tmp_path):
    import claims

    lines = {"constant-lr0.01": LOW} | lines if claim == 4 else lines
    text = claims.tell(claim, claims.read(curves(tmp_path, lineages, **lines)))
    assert text.splitlines()[0].endswith(f"** badnets: {said}.")


def test_claims_table_shows_the_updates_survived_on_each_seed(tmp_path):
    import claims

    found = claims.read(
        curves(tmp_path, {"slow": [[1.0, 0.9, 0.6], [1.0, 0.9, 0.2], [0.4, 0.1, 0.1]]})
    )
    lines = claims.tell(5, found).splitlines()
    assert lines[2].count("|") == lines[-1].count("|")
    assert (
        lines[-1]
        == "| badnets | slow | ≥2 1 | 100, 90, 40 | 60 20 | 5, 5 | 0.90, 0.44 | 80.0 | 0.06 | yes |"
    )


def test_claims_mark_rates_of_the_control_and_skip_missing_measurements(tmp_path):
    import claims

    folder = curves(tmp_path, {"0": [[1.0, 0.9, 0.8]], "4": [[1.0, 0.9, 0.6]]})
    path = folder / "evolution.csv"
    rows = [row | {"control": 0.3 if row["update"] == 2 else 0.0} for row in read_csv(path)]
    rows[1] |= {"stale_score": None}
    write_csv(path, rows, ())
    text = claims.tell(3, claims.read(folder))
    assert "badnets: nothing to say." in text and "| ≥2! |" in text and "| 0, 30 | – |" in text
