"""Logits to weights: the step, the group, the checkpoint; nothing here prints or writes a report."""
