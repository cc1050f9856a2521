"""`make audit`: the SBOM is CycloneDX's and has all of the lock; what is not allowed or known to be open is named."""

import json
import shutil
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from clip_core.errors import UserError
from flows import audit
from flows.audit import Package
from tests.conftest import ROOT

LOCK = """\
good==1.0 ; sys_platform == 'linux' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via other
other==2.0.post1 \\
    --hash=sha256:cc
    # via
    #   good
    #   third==9
"""


def test_the_sbom_of_our_lock_is_what_cyclonedx_takes_and_has_every_package_with_its_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    made = audit.sbom(audit.read_lock(ROOT / "requirements.lock"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made)) is None
    assert len(made["components"]) == len([line for line in lock.splitlines() if line[:1].isalnum()])
    assert sum(len(one["hashes"]) for one in made["components"]) == lock.count("--hash=sha256:")
    (torch,) = (one for one in made["components"] if one["name"] == "torch")
    assert "BSD-3-Clause" in torch["licenses"][0]["license"]["name"]


def test_a_lock_is_read_with_all_hashes_and_one_without_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)
    assert audit.read_lock(lock) == [
        Package("good", "1.0", ("aa", "bb"), None),
        Package("other", "2.0.post1", ("cc",), None),
    ]
    lock.write_text(LOCK + "bare==3.0\n")
    with pytest.raises(UserError, match=r"without a hash: bare; take the file back from git"):
        audit.read_lock(lock)


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("MIT License", True),
        ("BSD-3-Clause", True),
        ("Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", True),
        ("BSD-2-Clause OR GPL-2.0-or-later", True),
        ("BSD-2-Clause AND (GPL-3.0 OR MIT)", True),
        ("BSD-2-Clause AND GPL-2.0-or-later", False),
        ("GNU General Public License v2 (GPLv2)", False),
        ("LIMITED USE", False),  # MIT is inside a word
        ("unknown", False),
    ],
)
def test_a_licence_is_allowed_when_each_part_of_it_offers_an_allowed_family(licence: str, allowed: bool) -> None:
    assert audit.is_allowed(licence, ["MIT", "BSD", "Apache"]) is allowed


def test_a_package_outside_is_named_unless_it_was_accepted_or_is_not_installed() -> None:
    packages = [Package(name, "1.0", ("aa",), "GPL-3.0") for name in ("strict", "nvidia-x")]
    packages += [Package("free", "1.0", ("aa",), "MIT"), Package("elsewhere", "1.0", ("aa",), None)]
    (told,) = audit.not_allowed(packages, ["MIT"], {"nvidia-*": "its own terms"})
    assert told.startswith("strict 1.0: licence 'GPL-3.0' is of no family in tool.audit.licences of pyproject.toml")


@pytest.fixture
def pip_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that says what is written beside it, as pip-audit does."""
    command = tmp_path / "pip-audit"
    command.write_text(f"#!/bin/sh\ncat {tmp_path}/said 2>/dev/null || {{ echo no network >&2; exit 1; }}\n")
    command.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path: str(command) if command.exists() else None)
    return command


def test_a_known_vulnerability_is_named_with_what_mends_it_and_what_was_skipped_with_the_reason(
    pip_audit: Path, tmp_path: Path
) -> None:
    open_ = {"name": "good", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1", "2.0"]}]}
    skipped = {"name": "other", "skip_reason": "Dependency not found on PyPI"}
    pip_audit.with_name("said").write_text(json.dumps({"dependencies": [open_, skipped]}))
    found, not_looked_at = audit.vulnerabilities(tmp_path / "requirements.lock")
    assert found == ["good 1.0: CVE-1, mended in 1.1, 2.0"]
    assert not_looked_at == "1 of 2 packages skipped, as: Dependency not found on PyPI"


def test_without_pip_audit_or_network_vulnerabilities_are_skipped_with_the_reason(
    pip_audit: Path, tmp_path: Path
) -> None:
    lock = tmp_path / "requirements.lock"
    assert audit.vulnerabilities(lock) == ([], "skipped: pip-audit says: no network")
    pip_audit.unlink()
    found, told = audit.vulnerabilities(lock)
    assert not found and told.startswith("skipped: no `pip-audit` on PATH")


def test_our_own_packages_pass_and_the_sbom_lies_in_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("params.yaml", "dvc.yaml", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    audit.main()
    assert "packages are as pyproject.toml allows" in capsys.readouterr().out
    assert json.loads((tmp_path / "reports" / "sbom.json").read_text())["components"]
