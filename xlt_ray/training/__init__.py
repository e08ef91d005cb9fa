"""Training on Ray: what a run trains on, its loop, checkpoints and probes."""
