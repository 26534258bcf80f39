"""The evaluation suite: a `spec` for each benchmark, `run` on a policy or an endpoint, `results` with intervals."""
