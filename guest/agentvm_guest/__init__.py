"""What runs inside a VM beside the user's code: PID 1, the agent and the start of ipykernel. Standard library only."""
