"""What happened: audit log, metrics, anomalies."""
