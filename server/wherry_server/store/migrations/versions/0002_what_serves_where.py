"""What serves where, telemetry by version, who acted, and what devices newly report"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("device") as table:
        table.add_column(sa.Column("lock", sa.Text(), nullable=True))
        table.add_column(sa.Column("facts", sa.Text(), nullable=False, server_default="{}"))
    revoked = sa.text("revoked IS NOT NULL")
    op.create_index("ix_device_revoked", "device", ["id"], sqlite_where=revoked, postgresql_where=revoked)
    with op.batch_alter_table("audit") as table:
        table.add_column(sa.Column("actor", sa.String(length=100), nullable=False, server_default=""))
        table.create_index("ix_audit_action_id", ["action", "id"])
        table.create_index("ix_audit_thing_id", ["thing", "id"])
        table.create_index("ix_audit_actor_id", ["actor", "id"])
    with op.batch_alter_table("deployment") as table:
        for name, length in (("slot", 32), ("model", 64), ("version", 64)):
            table.add_column(sa.Column(name, sa.String(length=length), nullable=False, server_default=""))
        table.create_index("ix_deployment_model_updated", ["model", "updated"])
    _make_tables()
    _fill_deployments()
    _fill_serving()
    _fill_totals()


def _make_tables() -> None:
    op.create_table(
        "serving_slot",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("counter", BIG, nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("healthy", sa.Boolean(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_serving_slot_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "slot", name=op.f("pk_serving_slot")),
    )
    counted = ["model", "version", "profile", "healthy", "device"]
    op.create_index("ix_serving_slot_model_version", "serving_slot", counted)
    op.create_table(
        "model_usage",
        sa.Column("step", BIG, nullable=False),
        sa.Column("bucket", TIME, nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=32), nullable=False),
        sa.Column("counter", BIG, nullable=False),
        sa.Column("requests", BIG, nullable=False),
        sa.Column("failures", BIG, nullable=False),
        sa.Column("latency", sa.Text(), nullable=False),
        sa.Column("latency_sum_us", BIG, nullable=False),
        sa.Column("memory_sum", BIG, nullable=False),
        sa.Column("memory_samples", BIG, nullable=False),
        sa.PrimaryKeyConstraint("step", "bucket", "model", "version", "slot", name=op.f("pk_model_usage")),
    )
    op.create_index("ix_model_usage_model_step_bucket", "model_usage", ["model", "step", "bucket"])
    op.create_table(
        "record_total",
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("received", BIG, nullable=False),
        sa.Column("dropped", BIG, nullable=False),
        sa.PrimaryKeyConstraint("type", name=op.f("pk_record_total")),
    )


def _fill_deployments() -> None:
    """Slot, model and version out of the reports that are there."""
    connection = op.get_bind()
    found = connection.execute(sa.text("SELECT device, id, report FROM deployment")).all()
    change = sa.text(
        "UPDATE deployment SET slot = :slot, model = :model, version = :version WHERE device = :device AND id = :id"
    )
    for device, ident, text in found:
        report = json.loads(text)
        release = report["release"]
        connection.execute(
            change,
            {
                "device": device, "id": ident, "slot": report["slot"],
                "model": release["model"], "version": release["version"],
            },
        )  # fmt: skip


def _fill_serving() -> None:
    """A row for every slot that serves something, out of the reports that are there."""
    connection = op.get_bind()
    query = "SELECT id, slots, profile, COALESCE(report_received, enrolled) FROM device WHERE revoked IS NULL"
    found = connection.execute(sa.text(query)).all()
    add = sa.text(
        "INSERT INTO serving_slot (device, slot, model, version, counter, digest, profile, healthy, since) "
        "VALUES (:device, :slot, :model, :version, :counter, :digest, :profile, :healthy, :since)"
    )
    for device, text, profile, since in found:
        for slot in json.loads(text):
            if slot.get("serving"):
                chosen = {name: slot["serving"][name] for name in ("model", "version", "counter", "digest")}
                own = {"device": device, "slot": slot["slot"], "profile": profile, "since": since}
                connection.execute(add, chosen | own | {"healthy": bool(slot.get("healthy"))})


def _fill_totals() -> None:
    op.execute(
        "INSERT INTO record_total (type, received, dropped) "
        "SELECT type, SUM(received), SUM(dropped) FROM record_count GROUP BY type"
    )
