"""From a configuration to a run that can start: its parts, checked one by one; the runs of a fleet, prepared together."""
