"""Put a chosen model behind HTTP with Ray Serve.

Read `service.py` (what an answer is made of), `api.py` (routes and what they refuse), `app.py` (the deployment, and how
a model is exchanged under load), `control.py` (start, roll out, roll back).
"""
