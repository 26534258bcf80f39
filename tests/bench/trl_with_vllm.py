"""TRL's GRPOTrainer with its colocated vLLM, made to run on a CPU.

As released it does not: its engine claims a share of a GPU's memory; its weights are loaded one by one into linear
layers that vLLM has packed for the CPU and whose originals it has freed; and a prompt with a picture goes to the engine
with its image tokens already expanded, which the engine expands once more. Mended here are those three, by the engine
settings and the publication that medrl has itself. Sampling, batching, scoring, padding, loss and the training loop are
TRL's own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from policies.tokenizer import IMAGE, IMAGE_BREAK, IMAGE_END
from policies.vlm import load_policy
from policies.weights import checkpoint_weights, host_arrays
from rl.settings import engine_settings
from rollouts.engine import FORBID, VllmEngine
from tests.bench.setting import CORES
from tests.bench.trl_trainer import grpo_config, trl_rows

if TYPE_CHECKING:
    from tests.bench.step import Setting

ROWS_AT_A_TIME = 2
"""What `TrlUpdate` finds to be the fastest for such pictures: the vision tower attends over all of a pass at once."""


def make_trainer(setting: Setting, reward: Callable[[str], float], next_turn: Callable[[float], bool]) -> Any:
    """A trainer whose every step ends with ``next_turn``, given its seconds; it stops where that returns false."""
    import torch
    from datasets import Dataset, Features, Image, Value
    from transformers import TrainerCallback
    from trl.trainer import grpo_trainer

    warnings.simplefilter("ignore")  # about versions of vLLM
    torch.set_num_threads(CORES)
    config = setting.run_config()
    model, processor = load_policy(str(setting.policy_path))
    engine = VllmEngine(engine_settings(config, str(setting.policy_path)))
    grpo_trainer.VLLMGeneration = _generation_with(engine, processor)

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not next_turn(time.perf_counter() - self.began)

    rows = trl_rows(setting.tasks())
    message = {"role": Value("string"), "content": Value("string")}
    trajectories = config.tasks_per_step * config.group_size
    return grpo_trainer.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [reward(completion[0]["content"]) for completion in completions],
        args=grpo_config(
            setting.folder / "trl",
            group_size=config.group_size,
            completion_tokens=config.sampling.max_tokens,
            per_device_train_batch_size=ROWS_AT_A_TIME,
            gradient_accumulation_steps=trajectories // ROWS_AT_A_TIME,
            learning_rate=config.learner.learning_rate,
            max_steps=10**6,
            use_vllm=True,
            vllm_mode="colocate",
            generation_kwargs={"logit_bias": dict.fromkeys(engine.forbidden, FORBID)},
        ),
        train_dataset=Dataset.from_list(rows, features=Features({"prompt": [message], "images": [Image()]})),
        processing_class=processor,
        callbacks=[Turns()],
    )


def _generation_with(engine: VllmEngine, processor: Any) -> type:
    import torch
    from trl.generation.vllm_generation import VLLMGeneration

    pieces = set(processor.tokenizer.convert_tokens_to_ids([IMAGE, IMAGE_BREAK, IMAGE_END]))

    class Mended(VLLMGeneration):
        def _init_vllm(self) -> None:
            self.llm = engine.llm

        def sync_weights(self) -> None:
            arrays = host_arrays(checkpoint_weights(self.model))
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            engine.load_weights({"tensors": tensors}, version=0)

        def generate(self, prompts: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
            return super().generate([unexpanded(prompt) for prompt in prompts], *args, **kwargs)

    def unexpanded(prompt: Sequence[int]) -> list[int]:
        """One image token for each picture, which is what the engine expands."""
        pairs = zip([None, *prompt], prompt, strict=False)
        return [token for before, token in pairs if not (token in pieces and before in pieces)]

    return Mended
