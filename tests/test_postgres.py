"""The platform on Debian's PostgreSQL, for a team: a deployment's run is recorded there, and no password is told."""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from clip_core.errors import UserError
from clip_core.guard import free_port
from flows.database import VARIABLES, check_database
from tests.conftest import run_in
from tests.prefect_api import ask, until
from tests.toy_pipeline import TOY, new_toy_of_one_stage, runs
from tests.toy_platform import deployments, platform

DEBIAN, USER = Path("/usr/lib/postgresql"), "postgres"


class Postgres(NamedTuple):
    address: str
    password: str
    query: list[str]  # the command that answers the SQL that follows it


@pytest.fixture(scope="module")
def postgres() -> Generator[Postgres]:
    """A new PostgreSQL on loopback, which wants a password."""
    programs = max(DEBIAN.glob("*/bin"), default=None)
    if programs is None:
        pytest.skip(f"no {DEBIAN}: apt-get install -y postgresql (as root)")
    as_user, owner = [], os.geteuid()
    if owner == 0:  # as which PostgreSQL does not run
        with suppress(KeyError):
            owner = pwd.getpwnam(USER).pw_uid
        if owner == 0 or not shutil.which("setpriv"):
            pytest.skip(f"as root, and there is no user {USER} or no setpriv")
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    password, port = secrets.token_urlsafe(), free_port()
    with tempfile.TemporaryDirectory(prefix="postgres") as folder:
        data, told = Path(folder, "data"), Path(folder, "password")
        told.write_text(password, encoding="utf-8")
        for path in (folder, told):
            os.chown(path, owner, -1)
        initdb = [programs / "initdb", "--pgdata", data, "--username=clip", "--auth=scram-sha-256", "--no-sync"]
        run_in(Path("/"), *as_user, *map(str, initdb), "--encoding=UTF8", f"--pwfile={told}")
        start = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", folder, "-c", "fsync=off"]
        with Path(folder, "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen([*as_user, *map(str, start)], stdout=log, stderr=log)
        address = f"127.0.0.1:{port}/postgres"
        query = [str(programs / "psql"), f"postgresql://clip:{password}@{address}", "-Atc"]
        try:
            until(lambda: subprocess.run([*query, "select 1"], capture_output=True).returncode == 0)
            yield Postgres(f"postgresql+asyncpg://clip:{password}@{address}", password, query)
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(60)


@pytest.mark.slow
def test_a_deployment_s_run_is_recorded_in_postgresql_and_its_password_is_in_no_file_and_no_line(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "toy.py").write_text(f"import os; print(os.environ)\n{TOY}", encoding="utf-8")
    deployments(toy, "nightly")
    with platform(toy, **{VARIABLES[1]: postgres.address}) as url:
        (deployment,) = ask(url, "deployments/filter")
        run = ask(url, f"deployments/{deployment['id']}/create_flow_run")["id"]
        asked = [*postgres.query, f"select state_name from flow_run where id = '{run}'"]
        until(lambda: run_in(toy, *asked).stdout.strip() == "Completed")
    assert runs(toy) == ["letters"] and not (toy / ".prefect" / "prefect.db").exists()
    files = [file for file in toy.rglob("*") if file.is_file()]
    assert toy / "platform.log" in files
    assert [file for file in files if postgres.password.encode() in file.read_bytes()] == []
    said = run_in(toy, *postgres.query, "select string_agg(message, ' ') from log").stdout
    assert "environ({" in said and postgres.password not in said  # what the stage saw


def test_a_database_that_refuses_or_does_not_answer_is_named_with_the_reason_and_without_the_password(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLES[0], postgres.address.replace(postgres.password, "another"))
    with pytest.raises(UserError, match=rf"{VARIABLES[0]}: .*clip:\*\*\*@.* password authentication failed"):
        check_database()
    monkeypatch.setenv(VARIABLES[0], re.sub(r":\d+/", f":{free_port()}/", postgres.address))
    with pytest.raises(UserError, match="without the variable the state is kept in") as refused:
        check_database()
    assert "Connect call failed" in str(refused.value) and postgres.password not in str(refused.value)
