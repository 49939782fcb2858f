"""Batches to logits: one backbone, many members; nothing here knows a file or a task."""
