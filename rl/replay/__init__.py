"""From the log back: `rescore` trajectories, `update` a step again, `compare` two scorings, `explain` a gradient."""
