"""MLflow: what a run records is kept in an outbox beside it and sent by a process of its own."""
