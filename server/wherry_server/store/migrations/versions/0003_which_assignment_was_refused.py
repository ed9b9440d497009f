"""Which assignment a device refused"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("device") as table:
        table.add_column(sa.Column("refused", BIG, nullable=False, server_default="0"))
