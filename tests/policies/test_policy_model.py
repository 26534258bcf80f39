"""What the learner computes of a model, beside what `tests.policies.test_packing` holds against whole models."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from policies.policy_model import logits_head


def test_logits_are_bent_under_the_bound_of_a_model_that_has_one() -> None:
    head = torch.nn.Linear(4, 6)
    hidden = torch.linspace(-30, 30, 8).reshape(2, 4)
    for bound in (None, 3.0):
        config = SimpleNamespace(get_text_config=lambda bound=bound: SimpleNamespace(final_logit_softcapping=bound))
        causal = SimpleNamespace(config=config, get_output_embeddings=lambda: head)
        logits = logits_head(causal)(hidden)
        plain = head(hidden)
        assert torch.equal(logits, plain if bound is None else bound * (plain / bound).tanh())
        assert (plain.abs() > 3.0).any() and (bound is None or (logits.abs() <= 3.0).all())
