"""Running programs in a VM without a notebook: processes, files in and out, and the command `agentvm run`."""
