"""The first schema"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_token",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_token_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_api_token_name")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("thing", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_at"), ["at"], unique=False)

    op.create_table(
        "device",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("enrolled", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked", sa.DateTime(timezone=True), nullable=True),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reported_sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("report_stream", sa.String(length=100), nullable=False),
        sa.Column("report_number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("report_received", sa.DateTime(timezone=True), nullable=True),
        sa.Column("slots", sa.Text(), nullable=False),
        sa.Column("rejected", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("drifting", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
    )
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_drifting"), ["drifting"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_online"), ["online"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_profile"), ["profile"], unique=False)

    op.create_table(
        "enrol_token",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=True),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.DateTime(timezone=True), nullable=True),
        sa.Column("key_sha256", sa.String(length=64), nullable=True),
        sa.Column("certificate", sa.Text(), nullable=True),
        sa.Column("certificate_expires", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrol_token")),
        sa.UniqueConstraint("hash", name=op.f("uq_enrol_token_hash")),
    )
    with op.batch_alter_table("enrol_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_enrol_token_device"), ["device"], unique=False)

    op.create_table(
        "image",
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("counter", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("manifest_bytes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("published", sa.DateTime(timezone=True), nullable=False),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_image")),
        sa.UniqueConstraint("model", "profile", "counter", name=op.f("uq_image_model")),
    )
    with op.batch_alter_table("image", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_image_digest"), ["digest"], unique=False)
        batch_op.create_index("ix_image_model_version", ["model", "version"], unique=False)

    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outbox_device"), ["device"], unique=False)

    op.create_table(
        "repository_file",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("stored", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_repository_file")),
    )
    op.create_table(
        "repository_state",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("root", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("targets", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("snapshot", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("timestamp", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("expires", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repository_state")),
    )
    op.create_table(
        "rollout",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=32), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    with op.batch_alter_table("rollout", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rollout_state"), ["state"], unique=False)

    op.create_table(
        "assignment",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signed", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_assignment_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_assignment")),
    )
    with op.batch_alter_table("assignment", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_assignment_signed"), ["signed"], unique=False)

    op.create_table(
        "deployment",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_deployment_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "id", name=op.f("pk_deployment")),
    )
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.create_index("ix_deployment_device_updated", ["device", "updated"], unique=False)
        batch_op.create_index("ix_deployment_updated", ["updated", "device", "id"], unique=False)

    op.create_table(
        "desired_slot",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=32), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_desired_slot_device"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["path"], ["image.path"], name=op.f("fk_desired_slot_path")),
        sa.PrimaryKeyConstraint("device", "slot", name=op.f("pk_desired_slot")),
    )
    with op.batch_alter_table("desired_slot", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_desired_slot_path"), ["path"], unique=False)

    op.create_table(
        "device_key",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("issued", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_device_key_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "sha256", name=op.f("pk_device_key")),
    )
    op.create_table(
        "device_label",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=256), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_device_label_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "name", name=op.f("pk_device_label")),
    )
    with op.batch_alter_table("device_label", schema=None) as batch_op:
        batch_op.create_index("ix_device_label_name_value", ["name", "value"], unique=False)

    op.create_table(
        "host_usage",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("bucket", sa.DateTime(timezone=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sample", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_host_usage_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "bucket", name=op.f("pk_host_usage")),
    )
    with op.batch_alter_table("host_usage", schema=None) as batch_op:
        batch_op.create_index("ix_host_usage_bucket", ["bucket"], unique=False)

    op.create_table(
        "record_count",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("bucket", sa.DateTime(timezone=True), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("received", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dropped", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_record_count_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "bucket", "type", name=op.f("pk_record_count")),
    )
    with op.batch_alter_table("record_count", schema=None) as batch_op:
        batch_op.create_index("ix_record_count_bucket", ["bucket"], unique=False)

    op.create_table(
        "rollout_target",
        sa.Column("rollout", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=32), nullable=False),
        sa.Column("wave", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=True),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("assigned", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_rollout_target_device"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["path"], ["image.path"], name=op.f("fk_rollout_target_path")),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_target_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "device", name=op.f("pk_rollout_target")),
    )
    with op.batch_alter_table("rollout_target", schema=None) as batch_op:
        batch_op.create_index("ix_rollout_target_device_state", ["device", "state"], unique=False)
        batch_op.create_index("ix_rollout_target_rollout_state", ["rollout", "state"], unique=False)

    op.create_table(
        "slot_usage",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("bucket", sa.DateTime(timezone=True), nullable=False),
        sa.Column("slot", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("counter", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("first", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last", sa.DateTime(timezone=True), nullable=False),
        sa.Column("requests", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("failures", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("latency", sa.Text(), nullable=False),
        sa.Column("latency_sum_us", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_slot_usage_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "bucket", "slot", "model", "counter", name=op.f("pk_slot_usage")),
    )
    with op.batch_alter_table("slot_usage", schema=None) as batch_op:
        batch_op.create_index("ix_slot_usage_bucket", ["bucket"], unique=False)

    op.create_table(
        "telemetry_stream",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("stream", sa.String(length=100), nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_telemetry_stream_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "stream", name=op.f("pk_telemetry_stream")),
    )


def downgrade() -> None:
    op.drop_table("telemetry_stream")
    with op.batch_alter_table("slot_usage", schema=None) as batch_op:
        batch_op.drop_index("ix_slot_usage_bucket")

    op.drop_table("slot_usage")
    with op.batch_alter_table("rollout_target", schema=None) as batch_op:
        batch_op.drop_index("ix_rollout_target_rollout_state")
        batch_op.drop_index("ix_rollout_target_device_state")

    op.drop_table("rollout_target")
    with op.batch_alter_table("record_count", schema=None) as batch_op:
        batch_op.drop_index("ix_record_count_bucket")

    op.drop_table("record_count")
    with op.batch_alter_table("host_usage", schema=None) as batch_op:
        batch_op.drop_index("ix_host_usage_bucket")

    op.drop_table("host_usage")
    with op.batch_alter_table("device_label", schema=None) as batch_op:
        batch_op.drop_index("ix_device_label_name_value")

    op.drop_table("device_label")
    op.drop_table("device_key")
    with op.batch_alter_table("desired_slot", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_desired_slot_path"))

    op.drop_table("desired_slot")
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.drop_index("ix_deployment_updated")
        batch_op.drop_index("ix_deployment_device_updated")

    op.drop_table("deployment")
    with op.batch_alter_table("assignment", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_assignment_signed"))

    op.drop_table("assignment")
    with op.batch_alter_table("rollout", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollout_state"))

    op.drop_table("rollout")
    op.drop_table("repository_state")
    op.drop_table("repository_file")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_outbox_device"))

    op.drop_table("outbox")
    with op.batch_alter_table("image", schema=None) as batch_op:
        batch_op.drop_index("ix_image_model_version")
        batch_op.drop_index(batch_op.f("ix_image_digest"))

    op.drop_table("image")
    with op.batch_alter_table("enrol_token", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_enrol_token_device"))

    op.drop_table("enrol_token")
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_device_profile"))
        batch_op.drop_index(batch_op.f("ix_device_online"))
        batch_op.drop_index(batch_op.f("ix_device_drifting"))

    op.drop_table("device")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_at"))

    op.drop_table("audit")
    op.drop_table("api_token")
