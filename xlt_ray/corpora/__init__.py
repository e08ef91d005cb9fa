"""Labelled rows by language: the corpus, what is wrong with it, and the mixture that training draws from."""
