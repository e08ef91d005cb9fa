"""Translate texts word by word, and read each text in several ways where it is measured or served."""
