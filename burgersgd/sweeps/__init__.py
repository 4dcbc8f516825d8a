"""Sweeps: the overrides of `burgersgd train --multirun` become jobs, trained in fleets, with a run folder each."""
