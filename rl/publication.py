"""The way of weights from the learner to the engines: through the memory of hosts, or by NCCL from GPU to GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from policies.contract import Weights
from rl.errors import MedrlError, PublicationError
from rollouts.pool import RolloutPool

CHUNK_BYTES = 256 << 20
"""Size of a piece over NCCL, by one tensor at the most exceeded. Two at a time take memory on the GPU of either end."""


async def connect(learner: Any, pool: RolloutPool, *, tensor_parallel: int) -> None:
    """Bring rank 0 of the learner and all processes of all engines together in one NCCL group.

    Raises PublicationError where they do not meet within the deadlines of learner and engines.
    """
    host, port = await learner.address()
    group = {
        "master_address": host,
        "master_port": port,
        "world_size": 1 + len(pool.workers) * tensor_parallel,
        "packed": True,
        "packed_buffer_size_bytes": CHUNK_BYTES,
    }
    await _at_once(
        learner.connect(group), pool.connect(group, tensor_parallel=tensor_parallel), doing="bringing the GPUs together"
    )


async def transfer_weights(learner: Any, pool: RolloutPool, *, version: int, over: str) -> Weights:
    """Give every engine what the learner has not published yet, over ``host`` or ``nccl`` (see `connect`).

    Over NCCL that is what training may have changed, not what it has: no bit is compared before it is sent.
    """
    if over == "host":
        arrays, weights = await learner.weights()
        await pool.load_weights(arrays, version=version)
        return weights
    announced = await learner.gather()
    sent: Weights = await _at_once(
        learner.send(), pool.receive_weights(announced, version=version), doing=f"publishing version {version}"
    )
    return sent


async def _at_once(learner: Coroutine[Any, Any, Any], pool: Coroutine[Any, Any, Any], *, doing: str) -> Any:
    """What the learner answers. Either end waits for the other, so that the first failure ends the wait for both."""
    ends = [asyncio.ensure_future(learner), asyncio.ensure_future(pool)]
    try:
        answer, _ = await asyncio.gather(*ends)
        return answer
    except MedrlError as error:
        raise PublicationError(
            f"{doing} over NCCL failed: {error}. NCCL_DEBUG=INFO in the environment of Ray's workers has NCCL say more "
            f"in their logs; rollouts.weight_transfer=host does without it, also at a resume"
        ) from None
    finally:
        for end in ends:
            end.cancel()
