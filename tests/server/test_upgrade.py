"""A database from before rollouts had several releases keeps its rollouts, and takes several releases from then on."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import wherry_server.store
from wherry_server.store.database import Store

OLD = """
INSERT INTO device (id, profile, labels, agent_version, enrolled, online, sequence, reported_sequence, refused,
    report_stream, report_number, slots, rejected, facts, drifting)
    VALUES ('cam-1', 'generic-amd64', '{}', '', '2026-01-01 00:00:00', false, 1, 0, 0, '', -1, '[]', '[]', '{}', 0);
INSERT INTO rollout (id, model, version, slot, selector, state, reason, created)
    VALUES (7, 'vision', '2', 'main', '{"everything": true}', 'failed', '', '2026-01-01 00:00:00');
INSERT INTO rollout_target (rollout, device, slot, wave, digest, state, sequence)
    VALUES (7, 'cam-1', 'main', 0, '', 'rejected', 1);
"""


def upgrade(url: str, revision: str) -> None:
    config = Config()
    folder = Path(wherry_server.store.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        if revision != "head":
            for statement in OLD.strip().split(";\n"):
                connection.exec_driver_sql(statement.rstrip(";\n"))
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def old(request, tmp_path) -> str:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/old.db"
    else:
        url = request.getfixturevalue("new_postgres").replace("postgresql://", "postgresql+psycopg://")
    upgrade(url, "0004")
    return url


def test_rows_of_before_stay_and_a_device_may_have_several_slots_in_a_rollout(old):
    store = Store(old)
    store.migrate()
    store.close()
    engine = sa.create_engine(old)
    with engine.begin() as connection:
        row = connection.exec_driver_sql("SELECT slot, position, state, own FROM rollout_target").one()
        assert tuple(row) == ("main", 0, "rejected", "rejected")
        assert connection.exec_driver_sql("SELECT together FROM rollout").scalar_one() == "[]"
        again = "INSERT INTO rollout_target (rollout, device, slot, position, wave, digest, state, own, sequence)"
        connection.exec_driver_sql(f"{again} VALUES (7, 'cam-1', 'text', 1, 0, '', 'rejected', 'rejected', 1)")
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql(f"{again} VALUES (7, 'cam-1', 'text', 2, 0, '', 'rejected', 'rejected', 1)")
    engine.dispose()
