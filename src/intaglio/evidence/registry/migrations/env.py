"""Run by alembic for each upgrade, on the connection and in the transaction that `schema.upgrade` hands over."""

from alembic import context

from intaglio.evidence.registry.models import Base
from intaglio.evidence.registry.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    compare_server_default=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
