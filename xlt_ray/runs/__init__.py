"""Do whole runs, from a configuration to a report, measure bundles, and sweep over numbers of shots."""
