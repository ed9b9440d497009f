"""Alembic's entry: runs on the connection that `Store.migrate` hands over, or offline to print SQL."""

from alembic import context

from wherry_server.store.schema import Base

connection = context.config.attributes.get("connection")
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection is not None and connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
