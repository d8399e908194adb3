"""YAML → graph → processes: config, launcher, workers, message accounting, subscribe."""
