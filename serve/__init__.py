"""Put a chosen model behind HTTP with Ray Serve.

Read `replica/service.py` (what an answer is made of), `http/api.py` (routes and what they refuse), `app.py` (the
deployment, and how a model is exchanged under load), `control/control.py` (start, roll out, roll back).
"""
