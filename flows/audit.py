"""`make audit`: licences and known vulnerabilities of all packages that requirements.lock names, which make an SBOM.

`tool.audit` in pyproject.toml has the families of licences that are allowed, and the packages accepted by name.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from clip_core.code import installed_version
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.project import project_root

SBOM = Path("reports/sbom.json")
LOCKED = re.compile(r"^([\w.-]+)==([^\s;\\]+)(?:.*\\\n(?:    --hash=sha256:\w+.*\n?)+)?", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:(\w+)")


class Package(NamedTuple):
    """A package of the lock."""

    name: str
    version: str
    hashes: tuple[str, ...]  # the sha256 of each of its files
    licence: str | None  # None: this version is not installed here, so nobody can look


def main() -> None:
    project = project_root()
    lock = project / "requirements.lock"
    packages = read_lock(lock)
    rules = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["audit"]
    atomic_write(project / SBOM, json.dumps(sbom(packages), indent=1) + "\n")
    print(f"{project / SBOM}: {len(packages)} packages (CycloneDX)")
    if absent := [f"{one.name} {one.version}" for one in packages if one.licence is None]:
        print(f"licences: not installed here, so not looked at: {', '.join(absent)}")
    outside = list(not_allowed(packages, rules["licences"], rules["accepted"]))
    print(f"licences: {len(packages) - len(absent) - len(outside)} packages are as pyproject.toml allows")
    found, not_looked_at = vulnerabilities(lock)
    print(f"vulnerabilities: {not_looked_at or 'looked for in every package'}")
    if wrong := outside + found:
        raise UserError("\n".join(["the audit found:", *wrong]))


def read_lock(lock: Path) -> list[Package]:
    """All packages, also those for other systems; UserError where one has no hash."""
    found = list(LOCKED.finditer(lock.read_text(encoding="utf-8")))
    packages = [Package(one[1], one[2], tuple(HASH.findall(one[0])), licence_of(one[1], one[2])) for one in found]
    if bare := [one.name for one in packages if not one.hashes]:
        raise UserError(f"{lock}: without a hash: {', '.join(bare)}; take the file back from git")
    return packages


def licence_of(name: str, version: str) -> str | None:
    """What the installed package says of itself, "unknown" where that is nothing; None where it is not installed."""
    try:
        if installed_version(name) != version.partition("+")[0]:
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    about = importlib.metadata.metadata(name)
    classifiers = [text for text in about.get_all("Classifier", []) if text.startswith("License :: ")]
    named = [text.rpartition(" :: ")[2] for text in classifiers if text != "License :: OSI Approved"]
    first_line = (about["License"] or "").strip().partition("\n")[0]
    return about["License-Expression"] or " AND ".join(named) or first_line or "unknown"


def not_allowed(packages: Sequence[Package], families: Sequence[str], accepted: dict[str, str]) -> Iterator[str]:
    """A line for each package whose licence is of no allowed family and that is not accepted by its name."""
    for one in packages:
        by_name = any(fnmatch(one.name, pattern) for pattern in accepted)
        if one.licence is not None and not by_name and not is_allowed(one.licence, families):
            yield (
                f"{one.name} {one.version}: licence {one.licence!r} is of no family in tool.audit.licences of "
                "pyproject.toml; do without the package, or accept it there by its name with the reason"
            )


def is_allowed(licence: str, families: Sequence[str]) -> bool:
    """Whether each part of "A AND (B OR C)" offers an allowed one."""
    family = re.compile(rf"\b({'|'.join(map(re.escape, families))})\b", re.IGNORECASE)
    return all(any(map(family.search, part.split(" OR "))) for part in licence.split(" AND "))


def vulnerabilities(lock: Path) -> tuple[list[str], str]:
    """A line for each that pip-audit knows of; and what it has not looked at with the reason, "" where all was."""
    tool = shutil.which("pip-audit", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        return [], "skipped: no `pip-audit` on PATH; `uv tool install pip-audit` brings it"
    command = [tool, "--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
    done = subprocess.run([*command, f"--requirement={lock}"], capture_output=True, encoding="utf-8")
    try:
        looked = json.loads(done.stdout)["dependencies"]
    except json.JSONDecodeError:  # no network
        return [], f"skipped: pip-audit says: {' '.join(done.stderr.split())[-300:]}"
    found = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {', '.join(vulnerability['fix_versions'])}"
        for one in looked
        for vulnerability in one.get("vulns", [])
    ]
    skipped = [one["skip_reason"] for one in looked if "skip_reason" in one]
    return found, f"{len(skipped)} of {len(looked)} packages skipped, as: {skipped[0]}" if skipped else ""


def sbom(packages: Sequence[Package]) -> dict:
    """The packages as CycloneDX has them: the same lock and licences are the same bytes."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "clip-core"}},
        "components": [
            {
                "type": "library",
                "bom-ref": f"pkg:pypi/{one.name}@{one.version}",
                "name": one.name,
                "version": one.version,
                "purl": f"pkg:pypi/{one.name}@{one.version}",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in one.hashes],
            }
            | ({"licenses": [{"license": {"name": one.licence}}]} if one.licence else {})
            for one in packages
        ],
    }


if __name__ == "__main__":
    with told_to_the_user():
        main()
