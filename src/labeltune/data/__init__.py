"""Files to batches: rows with addresses, text, units, tokens, windows; nothing here knows a model."""
