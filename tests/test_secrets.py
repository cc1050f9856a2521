"""No secret is where people look or hand things on: params, a stage's environment, its output and results."""

import re
import secrets
import sys
from pathlib import Path

import pytest

from clip_core.params_file import known_keys
from clip_core.serve.client import KEY
from clip_core.serve.milvus import TOKEN
from flows.alerts import WEBHOOK
from flows.dag import SECRETS
from flows.database import VARIABLES
from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.toy_pipeline import new_toy_of_one_stage

HAVING = (WEBHOOK, KEY, "PREFECT_API_AUTH_STRING", *VARIABLES)  # the variables that may hold one of ours
RUN = "from flows.dag import bring_up_to_date; bring_up_to_date(['letters'])"
SHOW = "import os; print(os.environ); print(os.environ, file=open('letters.out', 'w'))\n"
NAMED = re.compile(r"secret|password|passwd|credential|api_?key|auth|webhook", re.IGNORECASE)


def test_a_stage_sees_no_secret_so_neither_its_output_nor_its_results_nor_dvc_hold_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "toy.py").write_text(SHOW)
    values = {name: secrets.token_urlsafe() for name in HAVING}
    for name, value in {**values, "PYTHONPATH": str(ROOT), "MINE": "a variable of the user"}.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    said = run_in(toy, sys.executable, "-c", RUN).stdout
    files = [file for file in toy.rglob("*") if file.is_file()]
    assert toy / "letters.out" in files and toy / "dvc.lock" in files
    assert "a variable of the user" in said and "a variable of the user" in (toy / "letters.out").read_text()
    for name, value in values.items():
        assert value not in said, name
        assert [file for file in files if value.encode() in file.read_bytes()] == [], name


def test_no_key_of_params_asks_for_a_secret() -> None:
    assert [key for key in known_keys() if NAMED.search(key)] == []


def test_every_variable_of_ours_that_sounds_like_a_secret_is_one_that_stages_do_not_see_but_that_of_milvus() -> None:
    code = [file for folder in ("clip_core", "flows", "stages") for file in (ROOT / folder).rglob("*.py")]
    ours = {name for file in code for name in re.findall(r'"(CLIP_[A-Z_]+)"', file.read_text(encoding="utf-8"))}
    secret = {name for name in ours if re.search("KEY|HOOK|SECRET|TOKEN|PASSWORD", name)}
    assert secret == {WEBHOOK, KEY, TOKEN}
    assert secret - set(SECRETS) == {TOKEN}  # the stage `index` asks Milvus
