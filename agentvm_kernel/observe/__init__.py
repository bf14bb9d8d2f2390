"""What happened: audit log, metrics and (later) anomalies."""
