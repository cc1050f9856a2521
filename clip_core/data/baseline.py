"""Renews the baseline that validation measures drift from.

python -m clip_core.data.baseline <data/valid> <file>
"""

import argparse
from pathlib import Path

from clip_core.data.drift import write_baseline
from clip_core.errors import told_to_the_user


def main() -> None:
    parser = argparse.ArgumentParser(description="write the histograms that later data are compared with")
    parser.add_argument("valid", type=Path, help="the folder of clean data, data/valid")
    parser.add_argument("file", type=Path, help="the baseline, which validate.baseline in params.yaml names")
    arguments = parser.parse_args()
    with told_to_the_user(OSError):
        histograms = write_baseline(arguments.valid, arguments.file)
    told = ", ".join(f"{sum(counts):,} of {name}" for name, counts in histograms.items())
    print(f"{arguments.file}: values counted: {told}")


if __name__ == "__main__":
    main()
