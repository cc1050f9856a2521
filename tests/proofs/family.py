"""The models that are too large for `make test`: loaded alone, in both precisions, in and out to the bit."""

import re
import subprocess
import sys

SLOW = ("vit-l-14", "vit-h-14")  # vit-l-14-336 has all that the first of them has


def prove() -> dict:
    """The tests that have passed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-m",
        "slow",
        "tests/test_family.py",
        "tests/test_pretrained_shapes.py",
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    passed = re.findall(r"^(\S+) PASSED", result.stdout, re.MULTILINE)
    assert {name for name in SLOW for test in passed if f"[{name}]" in test} == set(SLOW)
    return {"passed": passed}
