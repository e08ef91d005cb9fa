"""Techniques whose part in training is a loss beside the task's."""
