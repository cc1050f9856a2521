"""Set-up of Triton: there once, quick afterwards, and a remedy for everything that may be missing."""

import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from clip_core.serve import install
from tests.conftest import ENVIRONMENT, ROOT
from tests.test_full_disk import on_a_disk_of


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CLIP_TRITON_HOME", str(tmp_path / "triton"))
    return tmp_path / "triton"


def test_set_up_that_is_done_is_quick() -> None:
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "clip_core.serve.install"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "installing" not in result.stdout
    assert time.monotonic() - started < 5  # a fraction of a second on a quiet machine


def test_the_stub_gets_the_overlays_numpy_and_the_main_environments_rest() -> None:
    python = install.triton_home() / "environment" / "bin" / "python3"
    code = "import numpy, onnxruntime, PIL, tokenizers; print(numpy.__version__, onnxruntime.__file__)"
    version, file = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert version.startswith("1.26.")
    assert file.startswith(sysconfig.get_path("purelib"))


def test_the_pins_carry_hashes_and_no_address() -> None:
    text = install.LOCK.read_text()
    assert "nvidia-pytriton==" in text
    assert "numpy==1." in text
    assert text.count("--hash=sha256:") > 2
    assert "http" not in text


def test_a_python_without_a_shared_library_is_named_with_the_remedy(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sysconfig.get_config_vars(), "INSTSONAME", "libpython3.11.a")
    with pytest.raises(ValueError, match=r"no shared libpython.*apt-get install libpython3.*pyenv.*uv venv"):
        install.install()
    assert not elsewhere.exists()


INSTALL = """
import os, sys
from pathlib import Path
from clip_core.errors import UserError
from clip_core.serve import install
small = Path(sys.argv[1])
os.environ["CLIP_TRITON_HOME"] = str(small / "triton")
try:
    install.install()
    sys.exit("installed without room")
except UserError as error:
    print(error)
print(list(small.iterdir()))
"""


def test_a_disk_without_room_is_named(tmp_path: Path) -> None:
    said, left = on_a_disk_of(2**20, tmp_path / "small", INSTALL, tmp_path / "small")
    assert said == f"{tmp_path / 'small'}: 1 MiB free, Triton needs 953; make room"
    assert left == "[]"


def test_a_registry_that_fails_leaves_nothing_and_says_what_to_do(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    with pytest.raises(ValueError, match=r"(?s)uv pip install failed.*Remedy: check the connection"):
        install.install()
    assert [path.name for path in elsewhere.parent.iterdir()] == []


def test_a_missing_uv_is_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_keywords: None)
    with pytest.raises(ValueError, match="no `uv` beside this Python"):
        install.install()
    assert not elsewhere.exists()


def test_another_python_or_another_lock_is_installed_anew(tmp_path: Path) -> None:
    assert not install.is_installed(tmp_path)
    (tmp_path / "installed.json").write_text('{"lock": "an older one"}')
    assert not install.is_installed(tmp_path)
    assert install.is_installed(install.triton_home())
