"""Sweeps: from the overrides of `burgersgd train --multirun` to fleets, and back to one run folder per job."""
