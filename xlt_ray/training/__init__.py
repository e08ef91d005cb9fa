"""Train on Ray: assemble and check a run, fine-tune it or fit a probe, and keep checkpoints."""
