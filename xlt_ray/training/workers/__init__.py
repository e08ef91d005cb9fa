"""The workers of Ray Train: how they connect, and what is said of those that die or are waited for."""
