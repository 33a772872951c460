"""Print the tests that take too long for `make test`, from the times of a run of the tests.

    python -m pytest -m "not slow" --junitxml=times.xml
    python benchmarks/long_tests.py times.xml > tests/long.txt

`make test-long` runs the tests of tests/long.txt, and `make test` all others. A test is listed if
it took one second or more. The contract tests have a limit of their own, so that a new method is
tested by `make test`. A test that the run left out stays as it is in tests/long.txt.
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path

LIST = Path(__file__).parents[1] / "tests" / "long.txt"
SECONDS = 1.0
"""The time from which a test is long, on a core of 2 GHz that has no other work."""
CONTRACT_SECONDS = 10.0
"""The time from which a contract test is long."""


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("times", type=Path, metavar="XML", help="pytest's --junitxml")
    parser.add_argument(
        "--slowed", type=float, default=1, help="the factor by which other work slowed the run"
    )
    options = parser.parse_args()
    measured = {test: time / options.slowed for test, time in times(options.times).items()}
    before = {line for line in LIST.read_text(encoding="utf8").splitlines() if line}
    found = {test for test, seconds in measured.items() if seconds >= limit(test)}
    print("\n".join(sorted(found | (before - measured.keys()))))


def times(path: Path) -> dict[str, float]:
    """Return the seconds of every test of a report, by the test's id."""
    return {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(
            case.get("time", 0)
        )
        for case in ET.parse(path).iter("testcase")
    }


def limit(test: str) -> float:
    """Return the seconds from which a test is long."""
    return CONTRACT_SECONDS if test.startswith("tests/contracts/") else SECONDS


if __name__ == "__main__":
    main()
