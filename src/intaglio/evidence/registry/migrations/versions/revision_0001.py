"""The first tables: owners, models, commitments, spent batches, verifications, verdicts, seal checks."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "owners",
        *_entry(),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
        sa.UniqueConstraint("public_key", name="uq_owners_public_key"),
    )
    op.create_table(
        "models",
        *_entry(),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("input_shape", sa.JSON, nullable=False),
        sa.Column("classes", sa.Integer, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("sha256", name="uq_models_sha256"),
    )
    op.create_table(
        "commitments",
        *_entry(),
        sa.Column("mark_id", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("envelope", sa.Text, nullable=False),
        sa.Column("stamp", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_commitments"),
        sa.UniqueConstraint("mark_id", name="uq_commitments_mark_id"),
        sa.ForeignKeyConstraint(["owner"], ["owners.public_key"], name="fk_commitments_owner"),
        sa.ForeignKeyConstraint(["model_sha256"], ["models.sha256"], name="fk_commitments_model_sha256"),
    )
    op.create_index("ix_commitments_owner", "commitments", ["owner"])
    op.create_index("ix_commitments_model_sha256", "commitments", ["model_sha256"])
    op.create_table(
        "spent_batches",
        *_entry(),
        sa.Column("mark_id", sa.String(200), nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("suspect", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_spent_batches"),
        sa.UniqueConstraint("mark_id", "batch", name="uq_spent_batches_mark_id_batch"),
    )
    op.create_table(
        "verifications",
        *_entry(),
        sa.Column("mark_id", sa.String(200), nullable=False),
        sa.Column("suspect", sa.Text, nullable=False),
        sa.Column("hits", sa.Integer, nullable=False),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("p_value", sa.Float(53), nullable=False),
        sa.Column("verified", sa.Boolean, nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verifications"),
    )
    op.create_index("ix_verifications_mark_id", "verifications", ["mark_id"])
    op.create_table(
        "verdicts",
        *_entry(),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("flagged", sa.Boolean, nullable=False),
        sa.Column("p_value", sa.Float(53), nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
    )
    op.create_index("ix_verdicts_model_sha256", "verdicts", ["model_sha256"])
    op.create_table(
        "seal_checks",
        *_entry(),
        sa.Column("seal_id", sa.String(200), nullable=False),
        sa.Column("suspect", sa.Text, nullable=False),
        sa.Column("intact", sa.Boolean, nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_seal_checks"),
    )
    op.create_index("ix_seal_checks_seal_id", "seal_checks", ["seal_id"])


def _entry() -> tuple[sa.Column[int], sa.Column[datetime]]:
    return (
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    )
