"""Where Prefect's server keeps its state: SQLite in `.prefect`, or the PostgreSQL that Prefect's own variable names."""

import asyncio
import os

from clip_core.errors import UserError

VARIABLES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")  # the first one counts
PATIENCE = 10  # seconds


def check_database() -> None:
    """Raises UserError where the PostgreSQL that the user named does not let us in; its password is not told."""
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    if variable is None or not (address := os.environ[variable]).startswith("postgres"):
        return
    from asyncpg import PostgresError
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        asyncio.run(connect(address))
    except (OSError, PostgresError, SQLAlchemyError) as error:  # a timeout is an OSError
        reason = getattr(error, "orig", None) or error
        raise UserError(
            f"{variable}: no way into PostgreSQL at {make_url(address).set(query={})}: {reason}. Mend the variable or "
            "start the database; without the variable the state is kept in .prefect"
        ) from None


async def connect(address: str) -> None:
    """Opens a connection and closes it."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(address, connect_args={"timeout": PATIENCE})
    try:
        async with engine.connect():
            pass
    finally:
        await engine.dispose()
