"""The tests that are too long for `make test`: those marked slow, as of the family's larger models."""

import re
import subprocess
import sys

SLOW = (
    "vit-l-14",
    "vit-l-14-336",
    "vit-h-14",
    "siglip2-b-16-256",
    "siglip2-b-16-384",
    "siglip2-l-16-256",
    "siglip2-l-16-384",
    "siglip2-so400m-14-224",
    "siglip2-so400m-14-384",
    "siglip2-so400m-16-256",
    "siglip2-so400m-16-384",
)


def prove() -> dict:
    """The tests that have passed."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "slow", "tests"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    passed = re.findall(r"^(\S+) PASSED", result.stdout, re.MULTILINE)
    assert {name for name in SLOW for test in passed if f"[{name}]" in test} == set(SLOW)
    return {"passed": passed}
