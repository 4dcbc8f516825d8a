"""From a configuration to a run that can start: its parts, checked one by one, and the prepared runs of a fleet."""
