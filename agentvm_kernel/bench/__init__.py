"""The benchmarks behind ``agentvm bench``: every figure beside its baseline, measured in turns in the same run."""

import enum


class Benchmark(enum.StrEnum):
    """What can be measured."""

    KERNEL = "kernel"
    CLONE = "clone"
    SNAPSHOT = "snapshot"
    ROLLBACK = "rollback"
    FORK = "fork"
    TIMETRAVEL = "timetravel"
    POOL = "pool"
    EGRESS = "egress"
    FILES = "files"
    FIREWALL = "firewall"
    SAMPLING = "sampling"
    ANOMALIES = "anomalies"
