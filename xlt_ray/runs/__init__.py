"""Whole runs, from a configuration to a report: train, measure, sweep."""
