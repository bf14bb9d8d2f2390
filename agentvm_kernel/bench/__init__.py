"""The benchmarks behind ``agentvm bench``: every figure beside its baseline, measured in turns in the same run."""
