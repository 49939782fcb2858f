"""Continued pretraining on unlabelled text: documents to rows, rows to predicted tokens, weights to a plain folder."""
