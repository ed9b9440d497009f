"""The database: engine, units of work, migrations. SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from wherry.errors import ConfigError, InputError, StoreError

_IMMEDIATE = "wherry_immediate"


class Unavailable(StoreError):
    """The database is away, locked or full, or chose this unit of work to end a deadlock: worth another try."""


class Store:
    """One database. Writing and reading happen in units of work.

    Args:
        url: SQLAlchemy URL; `postgresql://` means psycopg 3.

    Raises:
        ConfigError: the URL is not usable.
    """

    def __init__(self, url: str) -> None:
        self._engine = _make_engine(url)
        self._writing = self._engine.execution_options(**{_IMMEDIATE: True})
        self.name = f"database {make_url(url).render_as_string(hide_password=True)}"

    def migrate(self) -> None:
        """Bring the schema up to date.

        Raises:
            StoreError: the database cannot be reached, or is newer than this program.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with self._writing.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (SQLAlchemyError, CommandError) as error:
            raise StoreError(self.name, f"cannot be migrated ({_short(error)})") from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A unit of work: everything in it is committed together, or nothing.

        Raises:
            StoreError: the database failed; nothing was changed.
            InputError: a value that no column takes, such as text with a NUL; nothing was changed.
        """
        yield from self._session(self._writing)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A unit of work that only reads.

        Raises:
            StoreError: the database failed.
        """
        yield from self._session(self._engine)

    def _session(self, engine: Engine) -> Iterator[Session]:
        session = Session(engine, expire_on_commit=False)
        try:
            with session, session.begin():
                yield session
        except DataError as error:
            raise InputError("a value", f"cannot be stored or looked for ({_short(error)})") from error
        except SQLAlchemyError as error:
            kind = Unavailable if isinstance(error, OperationalError) else StoreError
            raise kind(self.name, _short(error)) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _short(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0][:200]


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(create_engine(parsed, connect_args={"timeout": 15}))
        return create_engine(parsed, pool_pre_ping=True, pool_size=5, max_overflow=10)
    except (ArgumentError, ImportError) as error:
        raise ConfigError("setting database_url", f"is not usable ({_short(error)})") from error


def _sqlite(engine: Engine) -> Engine:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=15000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A writer takes the lock at once: a reader that turns writer could only fail with "locked".
        immediate = connection.get_execution_options().get(_IMMEDIATE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
