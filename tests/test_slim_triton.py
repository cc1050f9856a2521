"""deploy/triton: the packages that it names, and no others, are enough to serve a release."""

import os
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

from clip_core.serve.install import LOCK, PACKAGES, triton_home
from clip_core.serve.queries import classify, search, similar
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release, triton_of

FOLDER = ROOT / "deploy" / "triton"
PINS = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", (FOLDER / "requirements.txt").read_text(encoding="utf-8")))


def test_a_release_serves_with_the_named_packages_and_no_others(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(triton_home(), home, symlinks=True, copy_function=os.link)
    packages = home / "environment" / PACKAGES
    (packages / "zz_main.pth").unlink()  # the way to the project's environment
    for name in PINS.keys() - {"numpy"}:  # which is Triton's own
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    monkeypatch.setenv("CLIP_TRITON_HOME", str(home))

    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    command = [str(home / "environment/bin/python"), "-c", "import onnxruntime, pydantic; import torch"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr

    picture = release.store.image_bytes(0)
    with triton_of(release, folder=tmp_path / "served") as triton:
        assert search(triton.client, ["红色"])[0].release == release.id
        assert similar(triton.client, [picture])[0].release == release.id
        assert classify(triton.client, [picture], ["红色", "圆形"]).scores.shape == (1, 2)


def test_the_named_packages_are_those_that_were_tested() -> None:
    ours = dict(re.findall(r"(?m)^([\w-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8")))
    (numpy,) = re.findall(r"(?m)^numpy==([\w.]+)", LOCK.read_text(encoding="utf-8"))
    assert {name: ours[name] for name in PINS} | {"numpy": numpy} == PINS
