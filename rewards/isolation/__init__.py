"""Foreign scorers in processes of their own, each `attempt` within its `deadline`."""
