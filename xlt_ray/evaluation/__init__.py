"""Scores of a language with their intervals, comparisons of two models, and gates."""
