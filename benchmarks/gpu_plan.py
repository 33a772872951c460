"""The GPU queue: what to measure next, in order of value, with estimated seconds on an H200.

An estimate counts compilation. Each says where it comes from: a file of benchmarks/results, the
text of gpu_queue.md, arithmetic on these, or a guess. Does not import jax.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import NamedTuple

Seconds = tuple[float, float]
"""Seconds of a piece that is the first of its kind in a process, and of one that follows another.

The first one compiles the programs.
"""


class Entry(NamedTuple):
    """An entry of the queue: a part, the seconds of its pieces, and settings that differ.

    `start` is what passes before the first piece. `costs` has the seconds of a piece by its kind,
    which is its name up to a slash. Those of `none` are for the backdoored model of a table, which
    its first defence trains. `name` is added to the file name, and `set` has settings of the
    tables' studies.
    """

    part: str
    start: float
    costs: dict[str, Seconds]
    name: str = ""
    set: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return the entry's name in messages."""
        return f"{self.part}-{self.name}" if self.name else self.part

    @property
    def attack(self) -> str:
        """Return the attack of a table; "" for other parts."""
        first, _, attack = self.part.partition("-")
        if first not in ("table", "claim", "untrusted", "training"):
            return ""
        return "badnets" if attack == "abl" else attack


PROCESS = 15.0
"""Python, jax and CUDA start (a guess)."""
PROGRAM = 30.0
"""Compilation of one program: gpu_queue.md says 20 to 60 s; 20 and 24 s in the two files."""
DATA = 10.0
"""CIFAR-10 is read and hashed, and the evaluation compiled (a guess)."""
NONE = (110.0, 90.0)
"""A backdoored model: 108 s in table-badnets. Later ones need no compilation (a guess)."""

APART = ("loop.members=apart",)
"""As in the tables measured so far: seeds together are not measured at width 64 yet."""

UNWATCHED = (*APART, "loop.watch_every=0")
"""Repairs are not measured on the way, which is for plots of the report only."""

REPAIRS = {"finetune": (29.0, 29.0), "d3-paper": (24.0, 24.0), "d3-code": (35.0, 35.0)}
"""Sums over three seeds in table-badnets."""

CLAIM = {
    # One draw is a third of table-badnets' three: 10 s for fine-tuning. The others are multiples of
    # its passes (FT-SAM 2, ANP 3, i-BAU 2, SAU 16, by arithmetic), and 30 s for every
    # program that no piece before compiled.
    "clp": (5.0, 5.0),
    "fst-authors": (33.0, 3.0),
    "fst-backdoorbench": (40.0, 10.0),
    "nad-backdoorbench": (65.0, 35.0),
    "d3-paper": (40.0, 10.0),
    "d3-code": (40.0, 10.0),
    "finetune": (40.0, 10.0),
    "fp": (45.0, 15.0),
    "fp-oracle": (45.0, 15.0),
    "ft_sam": (55.0, 55.0),
    "ibau-backdoorbench": (80.0, 80.0),
    "anp-backdoorbench": (65.0, 65.0),
    "anp-oracle": (65.0, 65.0),
    "sau": (220.0, 220.0),
}
"""Guesses: one draw of reserved images, with the evaluation by relearning."""

UNTRUSTED = {
    "none": NONE,
    # Arithmetic: 3,900 + 11,580 steps of 256 images at about 75,000 images/s (92,829 at 512), four
    # programs, and 80 measurements of 0.15 s.
    "abl-backdoorbench": (185.0, 65.0),
    # From untrusted-badnets_…_cut_off.jsonl: first stage 41 s, two trials and the unlearning 21 s.
    # Stage 3 has 20 epochs of ⌊25,000 / 64⌋ = 390 steps. Step 390 came after 106 s, nearly all
    # compilation, and step 5,850 after 190 s. That is 15 ms a step, and 220 s for 7,800. Another
    # part ran beside it: 390 steps took 3 to 13 s. Half of the compilation, about 50 s, was for
    # periods that did not fill a call, which there are none of now. A later seed saves the other
    # half, and 10 s of each other program.
    "dlp": (232.0, 150.0),
}


TRAINING = {
    "none": NONE,
    # Arithmetic: 29,200 steps of 256 images at 75,000 images/s, one program.
    "pdb": (130.0, 100.0),
    # 20 epochs of batches of 64 at a guessed 30,000 images/s, and 100 of 256. Three programs.
    "nab-backdoorbench": (190.0, 100.0),
    # 132 epochs at 60,000 images/s, and four programs.
    "d_br-backdoorbench": (230.0, 110.0),
    # 105 epochs of batches of 64 at a guessed 25,000 images/s, with a second forward pass.
    "cbd-authors": (270.0, 210.0),
}
"""Guesses for training-time defences at full length."""


def table(attack: str, none: float = NONE[0]) -> Entry:
    """Return the entry of a table of D3; `none` are the seconds of its backdoored model."""
    costs = {"none": (none, none), **REPAIRS}
    return Entry(f"table-{attack}", PROCESS + DATA, costs, set=UNWATCHED)


def claim(attack: str) -> Entry:
    """Return the entry of a table of D3 beside other repairs; its models are those of `table`."""
    costs = {"none": NONE, **CLAIM}
    return Entry(f"claim-{attack}", PROCESS + DATA + PROGRAM, costs, set=UNWATCHED)


def untrusted(attack: str) -> Entry:
    """Return the entry of a table of DLP, with one backdoored model for each seed."""
    return Entry(f"untrusted-{attack}", PROCESS + DATA, UNTRUSTED, set=APART)


def training(attack: str) -> Entry:
    """Return the entry of a table of further training-time defences, with one seed."""
    return Entry(f"training-{attack}", PROCESS + DATA, TRAINING, set=APART)


def throughput(batch: int) -> Entry:
    """Return the entry of a comparison with PyTorch.

    The compilation is that of throughput-512, except for `compile`, which is a guess. The rounds
    are 7 of 50 steps, with the seconds a step of throughput-512 in proportion to the batch.
    """
    compiles = {
        "compile_graphs_bfloat16": (14, 5.8e-3),
        "compile_bfloat16": (20, 9.6e-3),
        "compile": (40, 11e-3),
        "bfloat16": (6, 9.7e-3),
        "channels_last": (0, 13.3e-3),
        "eager": (17, 13.6e-3),
    }
    ours = 11.4e-3 + 5.5e-3
    costs = {
        name: (seconds + 7 * 50 * (ours + step) * batch / 512,) * 2
        for name, (seconds, step) in compiles.items()
    }
    # PyTorch starts too (a guess), and our two programs took 14 and 20 s.
    return Entry(f"throughput-{batch}", PROCESS + 15 + 34, costs)


QUEUE = (
    # Its 5 s are those of gpu_queue.md.
    Entry("ceilings", PROCESS, {"all": (5.0, 5.0)}, name="again"),
    untrusted("badnets"),
    # Guesses: WRN-16-1 needs 1 ms a step, because it has too little work for the card. It has
    # 23,400 steps without a defence, and 3,900 and 23,160 with ABL. One and four programs.
    Entry(
        "untrusted-abl",
        PROCESS + DATA,
        {"none": (55.0, 55.0), "abl-authors": (150.0, 150.0)},
        set=APART,
    ),
    throughput(128),
    # Two programs; 1,200 steps of a guessed 10 ms.
    Entry("members", PROCESS, {f"width {width}": (75.0, 75.0) for width in (8, 16, 32)}),
    # Three programs and the evaluation; 6,300 member steps of a guessed 1 ms.
    Entry("lineages", PROCESS, {"all": (120.0, 120.0)}),
    # Three programs. At 100 classes, 600 steps of 4,832 images at 45,000 images/s (float32).
    Entry("inversion", PROCESS, {"10 classes": (100.0, 100.0), "100 classes": (160.0, 160.0)}),
    # D3's `paper` with its loss divided by λ + 1, as in the authors' program.
    Entry(
        "table-badnets",
        PROCESS + DATA,
        {"none": NONE, "d3-paper": REPAIRS["d3-paper"]},
        name="divided",
        set=("published={}", "defenses=[{name: d3, preset: paper, scale: true}]", *UNWATCHED),
    ),
    table("badnets"),
    table("blended"),
    claim("badnets"),
    claim("blended"),
    table("sig"),
    claim("sig"),
    table("wanet", 140.0),  # a guess: it also warps every batch
    table("lf", 230.0),  # a clean model as well, then a search of 500 steps
    table("input_aware", 300.0),  # a guess: three networks are trained
    table("ssba", 200.0),  # a guess: 6,000 steps train its encoder first
    claim("wanet"),
    claim("lf"),
    claim("input_aware"),
    claim("ssba"),
    untrusted("blended"),
    untrusted("sig"),
    untrusted("clean"),
    training("badnets"),
    training("blended"),
    training("sig"),
    training("clean"),
    throughput(256),
    throughput(1024),
    throughput(512),
    # Two programs; 1,200 steps of 5.5 ms, and of a guessed 11 ms streamed.
    Entry("streaming", PROCESS, {"all": (75.0, 75.0)}),
    Entry("profile", PROCESS, {"all": (35.0, 35.0)}),  # it compiled for 24 s
    Entry("ceilings", PROCESS, {"all": (5.0, 5.0)}),
)


def entry_of(part: str, name: str) -> Entry:
    """Return the entry of a part under a name; without one, an entry whose pieces cost nothing."""
    wanted = (one for one in QUEUE if (one.part, one.name) == (part, name))
    return next(wanted, Entry(part, 0.0, {}, name))


def cost(entry: Entry, piece: str, before: Collection[str], options: argparse.Namespace) -> float:
    """Return the seconds of a piece after those that its process has measured `before`.

    They include the training of the backdoored model that a defence needs, if it is not there.
    """
    kind, _, seed = piece.partition("/")
    again = any(one.partition("/")[0] == kind for one in before)
    seconds = entry.costs.get(kind, (0.0, 0.0))[again]
    if entry.attack and kind != "none" and not _has_model(entry, seed, before, options):
        seconds += entry.costs.get("none", (0.0, 0.0))[bool(before)]
    return seconds


def _has_model(
    entry: Entry, seed: str, before: Collection[str], options: argparse.Namespace
) -> bool:
    """Return whether an earlier piece or process has trained the backdoored model of a seed."""
    if any(one.partition("/")[2] == seed for one in before):
        return True
    victim = f"{entry.attack}-victim-{seed or 'seed0'}"
    return any((options.work / "models").glob(f"*-{victim}-*/model"))


def next_seconds(entry: Entry, todo: Sequence[str], options: argparse.Namespace) -> float:
    """Return the seconds until an entry that starts now has its cheapest piece that is left."""
    return entry.start + min(cost(entry, piece, (), options) for piece in todo)


def all_seconds(entry: Entry, todo: Sequence[str], options: argparse.Namespace) -> float:
    """Return the seconds of all pieces of an entry that are left, in one process."""
    return entry.start + sum(cost(entry, piece, todo[:i], options) for i, piece in enumerate(todo))
