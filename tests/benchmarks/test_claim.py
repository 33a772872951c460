"""Tests of the program that ranks repairs."""

import csv
import statistics

import pytest

ATTACKS = ("badnets-10", "blended-10", "sig-10")
NET = {"dataset": "cifar10", "model": "wide_resnet", "net": "depth=16 width=1"}


@pytest.fixture
def claim():
    import claim

    return claim


def row(attack, defense, der: float | None = None, asr: float | None = 0.05, acc=0.8, **more):
    rates = {"acc": acc, "acc_non_target": acc, "asr": asr, "ra": 0.7, "der": der, "seconds": 2.0}
    return {**NET, "attack": attack, "defense": defense, "seed": 0, "attack_seed": 0} | rates | more


def write(path, rows):
    columns = dict.fromkeys(name for one in rows for name in one)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def study(folder, ders, **more):
    """Write a run folder in which every repair has a DER for each attack."""
    rows = [row(attack, "none", asr=0.97, status="ok") for attack in ATTACKS]
    for repair, values in ders.items():
        rows += [
            row(attack, repair, der, status="ok", **more)
            for attack, der in zip(ATTACKS, values, strict=False)
        ]
    write(folder / "results.csv", rows)


def cells(text, start):
    """Return the cells of the first line of a table that begins with `start`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rank_orders_repairs_by_mean_der_and_compares_them_with_d3(claim, tmp_path):
    study(tmp_path, {"finetune": (0.5, 0.6, 0.7), "d3-code": (0.9, 0.9, 0.6), "clp": (0.8, 0.9)})
    text = claim.rank(claim.Measured(tmp_path))
    assert text.index("| d3-code |") < text.index("| finetune |")
    assert cells(text, "d3-code")[1].startswith("80.0 (60.0 to 90.0)")
    assert cells(text, "finetune")[5].startswith("−20.0 (−40.0 to 10.0)")
    assert "Run on fewer attacks: clp." in text and "| clp |" not in text


def test_oracles_and_weak_backdoors_have_no_place_in_the_rank(claim, tmp_path):
    study(tmp_path, {"finetune": (0.5, 0.6, 0.7)})
    rows = claim.read_csv(tmp_path / "results.csv")
    rows += [row(attack, "fp-oracle", 0.99, rule="oracle", status="ok") for attack in ATTACKS]
    rows += [row("wanet-10", "none", asr=0.6), row("wanet-10", "finetune", 0.1)]
    write(tmp_path / "results.csv", rows)
    measured = claim.Measured(tmp_path)
    assert measured.attacks == list(ATTACKS)
    assert "fp-oracle" not in claim.rank(measured)
    text = claim.report(tmp_path)
    assert "fp-oracle (oracle)" in text
    assert "wanet-10 (the backdoor is weak: not ranked)" in text


def test_the_interval_narrows_with_the_number_of_attacks(claim):
    low, high = claim.interval([0.0, 1.0] * 50)
    assert 0.35 < low < 0.45 and 0.55 < high < 0.65
    wide = claim.interval([0.0, 1.0])
    assert wide == (0.0, 1.0)


def test_add_keeps_old_rows_and_leaves_out_failed_runs(claim, tmp_path):
    study(tmp_path / "first", {"finetune": (0.5, 0.6, 0.7)})
    study(tmp_path / "second", {"finetune": (0.1, 0.1, 0.1), "clp": (0.8, 0.9, 0.9)}, suspects=7)
    rows = claim.read_csv(tmp_path / "second" / "results.csv")
    write(tmp_path / "second" / "results.csv", [*rows, row("sig-10", "nc", status="failed")])
    relearned = [{"attack": "sig-10", "defense": "clp", "seed": 0, "asr": 0.4}]
    write(tmp_path / "second" / "relearned.csv", relearned)
    claim.main(["add", *map(str, (tmp_path / "first", tmp_path / "second")), "--to", str(tmp_path)])
    kept = claim.Measured(tmp_path)
    assert kept.repairs == ["finetune", "clp"]
    assert {row["suspects"] for row in kept.rows} == {None, 7}
    assert statistics.fmean(kept.der("finetune").values()) == pytest.approx(0.6)
    assert cells(claim.each_attack(kept, "sig-10"), "clp")[7] == "40.0"


def test_the_report_has_the_cost_on_a_clean_model(claim, tmp_path):
    study(tmp_path, {"finetune": (0.5, 0.6, 0.7), "clp": (0.8, 0.9, 0.9)})
    rows = claim.read_csv(tmp_path / "results.csv")
    rows += [row("clean", "none", asr=None, acc=0.9), row("clean", "clp", asr=None, acc=0.88)]
    write(tmp_path / "results.csv", rows)
    clean = claim.report(tmp_path).split("## Clean model")[1]
    assert "ACC before the repair: 90.0." in clean and cells(clean, "clp")[3] == "−2.0"


def test_times_are_multiples_of_fine_tuning(claim, tmp_path, capsys):
    rows = [row("sig-10", "none"), row("sig-10", "finetune", seconds=8.0), row("sig-10", "clp")]
    for one in rows:
        one["status"] = "ok"
    write(tmp_path / "results.csv", [*rows, row("sig-10", "nc", status="failed")])
    claim.main(["times", str(tmp_path)])
    text = capsys.readouterr().out
    assert cells(text, "clp") == ["clp", "2", "0.25"] and "nc" not in text
    write(tmp_path / "results.csv", [rows[0], rows[2]])
    with pytest.raises(SystemExit, match="no finished row of finetune; repairs there: clp"):
        claim.main(["times", str(tmp_path)])
