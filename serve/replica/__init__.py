"""What happens within a replica: admission, batching, answers, telemetry."""
