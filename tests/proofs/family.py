"""The tests that are too long for `make test`: those marked slow, as of the family's larger models."""

import re
import subprocess
import sys

SLOW = ("vit-l-14", "vit-l-14-336", "vit-h-14")


def prove() -> dict:
    """The tests that have passed."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "slow", "tests"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    passed = re.findall(r"^(\S+) PASSED", result.stdout, re.MULTILINE)
    assert {name for name in SLOW for test in passed if f"[{name}]" in test} == set(SLOW)
    return {"passed": passed}
