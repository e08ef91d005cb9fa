"""Predict test rows, compute scores per language with intervals, and compare models."""
