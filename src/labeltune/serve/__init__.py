"""Runs behind HTTP: many on one backbone, in the forms that clients already speak."""
