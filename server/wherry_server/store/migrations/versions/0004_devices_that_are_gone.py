"""Devices that are gone for good: what must outlive them"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "removed_device",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("removed", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sequence", BIG, nullable=False),
        sa.Column("denied_until", sa.DateTime(timezone=True), nullable=False),
    )
