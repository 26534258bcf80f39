"""What a learner must keep to go on exactly: float32 weights and optimizer state, however they are sharded.

DeepSpeed keeps them in another place in every mode. Here they are *fragments* of the trained parameters, so that what
any number of ranks wrote at any ZeRO stage can be read by any other number at any other stage.

    learner/rank_00000.safetensors    the fragments that rank 0 holds: NAME@START/weight, exp_avg, exp_avg_sq and step
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of the gradient and of its square; beside them stands ``step``, how many it has seen."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of one parameter's flattened elements, from ``start``, that this rank holds in float32.

    It stands at ``offset`` of the flattened ``master``, the tensor that the optimizer itself updates.
    """

    name: str
    start: int
    numel: int
    master: torch.Tensor
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This fragment's elements of ``master``, or of anything of its shape: a view."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def save_state(engine: Any, folder: Path, *, rank: int) -> None:
    """Write this rank's fragments into ``folder``; ranks that hold nothing of their own write nothing."""
    from safetensors.torch import save_file

    states = _optimizer(engine).state
    tensors: dict[str, torch.Tensor] = {}
    for fragment in _own(fragments(engine), engine, rank=rank):
        key, state = f"{fragment.name}@{fragment.start}", states.get(fragment.master, {})
        tensors[f"{key}/weight"] = fragment.of(fragment.master)
        tensors |= {f"{key}/{name}": fragment.of(state[name]) for name in MOMENTS if name in state}
        if "step" in state:
            tensors[f"{key}/step"] = state["step"].reshape(1)
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        save_file(copies, folder / f"rank_{rank:05d}.safetensors")


def load_state(engine: Any, folder: Path) -> None:
    """Put back what `save_state` wrote, by whatever ranks and at whatever stage. Raises CheckpointError.

    Elements that no rank wrote, and parameters of another name or size, are errors.
    """
    saved = SavedState(folder)
    with torch.no_grad():
        for fragment in fragments(engine):
            saved.read("weight", fragment, into=fragment.of(fragment.master))
            if saved.has_moments(fragment.name):
                state = _allocated(_optimizer(engine).state, fragment.master)
                state["step"].fill_(max(float(state["step"]), saved.step(fragment.name)))
                for name in MOMENTS:
                    saved.read(name, fragment, into=fragment.of(state[name]))
        _refresh_model(engine)


class SavedState:
    """The fragments of all ranks in a folder, found by parameter; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self._places: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        for path in sorted(folder.glob("rank_*.safetensors")):
            file = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118 - not a mapping
                parameter, _, kind = key.rpartition("/")
                name, _, start = parameter.rpartition("@")
                numel = file.get_slice(key).get_shape()[0]
                self._places[name, kind].append((int(start), numel, file, key))
        if not self._places:
            raise CheckpointError(f"{folder} holds no learner state (rank_*.safetensors)")

    def has_moments(self, name: str) -> bool:
        """Whether the optimizer had updated this parameter by then."""
        return (name, MOMENTS[0]) in self._places

    def step(self, name: str) -> float:
        return max(float(file.get_tensor(key)) for _, _, file, key in self._places[name, "step"])

    def read(self, kind: str, fragment: Fragment, *, into: torch.Tensor) -> None:
        """Fill ``into`` with the elements of ``fragment``, from wherever they were written."""
        missing = fragment.numel
        end = fragment.start + fragment.numel
        for start, numel, file, key in self._places[fragment.name, kind]:
            first, last = max(start, fragment.start), min(start + numel, end)
            if first < last:
                part = file.get_slice(key)[first - start : last - start]
                into[first - fragment.start : last - fragment.start].copy_(part)
                missing -= last - first
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {missing} of {fragment.numel} elements of {fragment.name} ({kind}); it was "
                f"written for another model, or a rank's file is missing"
            )


def fragments(engine: Any) -> Iterator[Fragment]:
    """What this rank holds of every trained parameter, for each of the ways in which DeepSpeed holds it."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            yield from _stage3_fragment(engine.optimizer, name, parameter)
        elif hasattr(parameter, "_hp_mapping"):
            yield from _stage12_fragment(engine.optimizer, name, parameter)
        else:
            yield Fragment(name, 0, parameter.numel(), parameter, 0)


def _stage3_fragment(optimizer: Any, name: str, parameter: Any) -> Iterator[Fragment]:
    """Every rank holds an equal share, the last one with padding."""
    group, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = share * torch.distributed.get_rank()
    if start < parameter.ds_numel:
        numel = min(share, parameter.ds_numel - start)
        yield Fragment(name, start, numel, optimizer.fp32_partitioned_groups_flat[group], offset)


def _stage12_fragment(optimizer: Any, name: str, parameter: Any) -> Iterator[Fragment]:
    """All parameters of a group lie end to end, cut into equal shares: a rank may hold none, a part, or all of one."""
    if (mapping := parameter._hp_mapping) is not None:
        within, own = mapping.lp_fragment_address, mapping.hp_fragment_address
        master = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        yield Fragment(name, within.start, within.numel, master, own.start)


def _own(held: Iterator[Fragment], engine: Any, *, rank: int) -> Iterator[Fragment]:
    """What this rank is to write: its shares, or everything on rank 0 alone where every rank holds everything."""
    return held if engine.zero_optimization_stage() or rank == 0 else iter(())


def _optimizer(engine: Any) -> Any:
    """torch's optimizer, under DeepSpeed's wrapper if there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _allocated(states: Any, master: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The optimizer's state of ``master``, which it makes itself only in its first step."""
    if not states.get(master):
        zeros = {name: torch.zeros_like(master, memory_format=torch.preserve_format) for name in MOMENTS}
        states[master] = {"step": torch.zeros((), dtype=torch.float32, device=master.device)} | zeros
    state: Mapping[str, torch.Tensor] = states[master]
    return state


def _refresh_model(engine: Any) -> None:
    """Have the model compute with the float32 weights that were put in place. A collective."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif engine.zero_optimization_stage():
        optimizer.update_lp_params()
