"""Operate a server: start it, roll a model out and back, compare two under load."""
