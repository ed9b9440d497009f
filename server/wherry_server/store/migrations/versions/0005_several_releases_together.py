"""Rollouts of several releases that go together"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("device") as table:
        table.add_column(sa.Column("understands", sa.Text(), nullable=False, server_default="[]"))
    with op.batch_alter_table("desired_slot") as table:
        table.add_column(sa.Column("together", BIG))
        table.add_column(sa.Column("before", sa.String(200)))
        table.create_foreign_key("fk_desired_slot_before", "image", ["before"], ["path"])
    with op.batch_alter_table("rollout") as table:
        table.add_column(sa.Column("together", sa.Text(), nullable=False, server_default="[]"))
    with op.batch_alter_table("rollout_target") as table:
        table.add_column(sa.Column("position", BIG, nullable=False, server_default="0"))
        table.add_column(sa.Column("own", sa.String(16), nullable=False, server_default="pending"))
        table.drop_constraint("pk_rollout_target", type_="primary")
        table.create_primary_key("pk_rollout_target", ["rollout", "device", "slot"])
    op.execute("UPDATE rollout_target SET own = state")
