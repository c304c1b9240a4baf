"""Measures our code on all arrays of tests/golden and writes docs/parity.md.

python tests/parity.py
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "helpers"))


def main() -> None:
    from goldens import comparisons
    from goldens.page import PAGE, page

    found = []
    for entry in comparisons():
        for case in entry.cases:
            measured = entry.measure(case)
            worst = max(measured.outputs, measured.gradients or 0)
            print(f"{entry.array:32} {case:16} {worst:.1e}{'' if worst <= entry.bound else ' ABOVE ITS BOUND'}")
            found.append((entry, case, measured))
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
