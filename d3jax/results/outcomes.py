"""Outcomes: words for what a defence did to a backdoor, over the seeds of a study. No jax."""

from __future__ import annotations

from ..core.records import Row

KEEPS = 0.5  # the backdoor works if the ASR is at least this
GONE = 0.1  # the backdoor is removed if the ASR is below this, the chance rate of ten classes
READ = 0.8  # triggered images are recognised again if RA is at least this share of ACC
COSTLY = 0.1  # an ACC loss of at least this is a large loss
NEAR = 0.1  # ACC is near chance up to this share of the way from chance to 100 %

_NEAR, _KEEPS, _GONE, _READ = (f"{100 * limit:.0f} %" for limit in (NEAR, KEEPS, GONE, READ))

OUTCOMES = {
    "ACC near chance": f"row `none`: ACC is at most {_NEAR} of the way from chance to 100 %",
    "not repaired: no class flagged": "the search for a target class found none on any seed, so "
    "the defence changed nothing",
    "model lost": "ACC is near chance after the defence, and was not before",
    "backdoor works": f"row `none`: ASR is {_KEEPS} or more",
    "backdoor does not work": f"row `none`: ASR is below {_KEEPS}",
    "makes the backdoor work": f"ASR is {_KEEPS} or more, and was lower before the defence",
    "no backdoor to remove": f"ASR is below {_KEEPS} before and after the defence",
    "kept": f"ASR is {_KEEPS} or more after the defence",
    "moved to class …": f"{_KEEPS} or more of the triggered images are classified as this one "
    "class, which is not the target: the trigger still controls the model",
    "removed": f"ASR is below {_GONE} on every seed, and RA is at least {_READ} of ACC",
    "disabled: still misclassified": f"ASR is below {_GONE} on every seed, but on at least one RA "
    f"is below {_READ} of ACC: triggered images are classified as several wrong classes",
    "not weakened": "mean ASR did not fall",
    "weakened": "mean ASR fell",
}
"""The meaning of every outcome. The first that fits counts."""
ADDED = (
    "“on 1 of 3 seeds” is added to an outcome that does not hold for all seeds, and “large ACC "
    f"loss” where ACC falls by {100 * COSTLY:.0f} points or more."
)


def verdict(row: Row) -> str:
    """Return the outcome of a defence as text, such as "removed, large ACC loss".

    `row` is a row of `summarise`. If no seed has numbers, it is the `status` of a failure, or "".
    Without an ASR it covers only an ACC near chance and failed seeds.
    """
    what = "not finished" if row["status"].startswith("not finished") else "failed"
    failed = (
        f"{what} on {row['failed']} of {row['failed'] + row['n']} seeds" if row["failed"] else ""
    )
    if not row["n"]:
        return row["status"] if row["failed"] else ""
    guesses = "ACC near chance" if row["guesses"] else ""
    if row["guesses"] and (row["defense"] == "none" or row["guessed"]):
        return ", ".join(filter(None, (guesses, failed)))
    change = row["acc_change"]
    # Rounded, because in floats 0.8 − 0.9 is slightly above −0.1.
    costly = "large ACC loss" if change is not None and round(change, 6) <= -COSTLY else ""
    if row["asr"] is None:
        return ", ".join(filter(None, (guesses or costly, failed)))
    if row["untouched"] == row["n"]:
        return ", ".join(filter(None, ("not repaired: no class flagged", failed)))
    kept = "" if row["kept"] == row["n"] else f" on {row['kept']} of {row['n']} seeds"
    if row["guesses"]:
        return ", ".join(filter(None, ("model lost", failed)))
    if row["defense"] == "none":
        words = f"backdoor works{kept}" if row["kept"] else "backdoor does not work"
    elif row["worked"] == 0:
        words = f"makes the backdoor work{kept}" if row["kept"] else "no backdoor to remove"
    elif row["kept"]:
        words = f"kept{kept}"
    elif row["moved"]:
        also = "" if row["moved"] == row["n"] else f" on {row['moved']} of {row['n']} seeds"
        words = f"moved to class {row['moved_to']}{also}"
    elif row["asr_worst"] < GONE:
        words = "disabled: still misclassified" if row["misread"] else "removed"
    else:
        words = (
            "not weakened"
            if row["asr_change"] is not None and row["asr_change"] >= 0
            else "weakened"
        )
    return ", ".join(filter(None, (words, costly, guesses, failed)))
