"""Answer texts in a replica: admission, batching, answers, telemetry."""
