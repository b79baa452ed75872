"""Alembic's folder: how the registry's tables came to be, one revision after the other.

To change a table: change `models.py`, then add `versions/revision_NNNN.py` whose `down_revision` is the one before.
A revision that was released is never edited, and none goes back: evidence is not dropped.
"""
