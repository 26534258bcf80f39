"""LLM judges over the OpenAI protocol: their `config`, the `prompt` that quotes a trace, the bounded `client`."""
