"""Registered models: versions, the champion, promotion, and fetching one to serve it."""
