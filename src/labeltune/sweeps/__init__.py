"""Sweeps: many trainings over one frozen backbone, side by side, with tables that can be trusted."""
