"""The keys of a run's config with their defaults: one dataclass per room of the house. Read `RunConfig` first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KEYWORD_KEYS = {"async": "async_"}
"""Keys that are Python keywords, and the fields that they are read into; users write and see the keys alone."""


@dataclass
class LoraConfig:
    """Low-rank adapters (peft). Rank 0 trains all weights."""

    rank: int = 0
    alpha: float = 16.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])


@dataclass
class PolicyConfig:
    """The vision-language model that is trained."""

    path: str = ""
    """Folder or hub id of any VLM that transformers and vLLM both know; empty builds ``preset``."""
    preset: str = "tiny"
    """Seed-style VLM to build where ``path`` is empty: ``tiny`` or ``smollm2``."""
    dtype: str = "bfloat16"
    """``float32`` or ``bfloat16``: of the learner's forward and of the engine."""
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class WarmstartConfig:
    """Supervised stage before RL: teaches the format of the trace, not the answer. ``steps`` 0 leaves it out."""

    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    labelled_cases: int = 24
    """Real cases with their real conclusion; kept small by design, and disjoint from the evaluation cases."""
    labelled_share: float = 0.1
    """Share of the examples that are drawn from the labelled cases; the others are made-up records."""


@dataclass
class TasksConfig:
    """Where tasks come from and how they are drawn."""

    source: str = "cytology"
    """``cytology`` (built in), a ``.jsonl`` or ``.parquet`` file, a Hugging Face data set folder or id, or a
    folder of images with their questions."""
    mapping: str = ""
    """YAML that maps the source's columns to a task (see configs/tasks/); empty for the built-in source."""
    eval_source: str = ""
    """A second source for evaluation; empty takes the source's own evaluation split."""
    balance: bool = True
    """Draw as many tasks of each stratum (for the cytology cases: each answer) into every step."""
    limit: int = 0
    """Use only the first ``limit`` training tasks; 0 uses all."""
    tuning_share: float = 0.0
    """Hold this share of the training tasks out of every stage and evaluate on them instead of on the evaluation tasks:
    for choosing settings, so that the evaluation tasks stay unseen until they are chosen."""
    max_image_pixels: int = 4_194_304
    """Larger images are refused with their file and line, not silently shrunk."""


@dataclass
class SamplingConfig:
    """How completions are drawn in training."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    """Most tokens of a trajectory, those of all its turns together."""
    stop: list[str] = field(default_factory=lambda: ["</answer>"])
    """Strings that end a turn, and stay in it."""


@dataclass
class RolloutsConfig:
    """Ray actors with one vLLM engine each."""

    workers: int = 1
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    threads: int = 1
    """CPU threads of one engine; more spin against each other unless a core each is free."""
    tensor_parallel: int = 1
    max_model_len: int = 1024
    max_num_seqs: int = 64
    kv_cache_mb: int = 256
    """CPU only: size of the engine's key-value cache. On a GPU ``gpu_memory_utilization`` rules."""
    gpu_memory_utilization: float = 0.5
    max_images: int = 4
    """Most images of a trajectory: its task's, and those that tools show."""
    tools: dict[str, Any] = field(default_factory=dict)
    """Name → ``{use, …parameters of the tool}``: what the policy may call between its turns (see
    rollouts/tools/config.py)."""
    tools_dir: str = ""
    """Folder that relative paths of the tools start from; filled in with the folder of the config."""
    max_tool_calls: int = 8
    """Most calls of a trajectory that are answered; the policy is told that there are no more."""
    tool_timeout_s: float = 60.0
    """A remote tool that does not answer for so long leaves the trajectory unscored."""
    enforce_eager: bool = True
    weight_transfer: str = "host"
    """How published weights reach the engines: by way of the ``host``, its memory and Ray's object store, or over
    ``nccl`` from GPU to GPU, which takes whole GPUs for learner and engines."""
    max_logprob_difference: float = 0.01
    """Largest mean difference between learner and engine logprobs after a publication; beyond it the run stops."""
    timeout_s: float = 600.0
    """A worker that does not answer for so long is taken for dead."""


@dataclass
class RewardsConfig:
    """Scorers and how their scores become one reward: ``Π gates × Σ w·s / Σ w + shaping``."""

    path: str = ""
    """A YAML with this same section, in a file of its own; empty takes what stands here."""
    base_dir: str = ""
    """Folder that relative paths of the scorers start from; filled in with the folder of the file that named them."""
    judges: dict[str, Any] = field(default_factory=dict)
    """Name → ``{endpoints: [{url, model, api_key_env}, …], votes, …}``, or ``{policy}`` for a vLLM engine that the run
    starts (see rewards/judge.py); scorers name them as their ``judge``."""
    scorers: dict[str, Any] = field(default_factory=dict)
    """Name → ``{use, weight, gate or shaping, when, timeout_s, …parameters of the scorer}``."""
    length_penalty: float = 0.0
    """Most that an overlong completion can lose."""
    length_soft_tokens: int = 0
    """The penalty rises linearly from here to ``sampling.max_tokens``; 0 switches it off."""
    max_unscored_fraction: float = 0.1
    """Above this share of unscored trajectories in a step the run stops and names the scorer."""
    workers: int = 1
    """Ray actors of the reward service."""
    timeout_s: float = 30.0
    """Default deadline of one score."""
    cache: str = ""
    """File that keeps the scores of deterministic scorers across restarts; empty keeps them in memory alone. On a disk
    of the node that scores (SQLite); relative to the working folder."""


@dataclass
class AdvantageConfig:
    """From rewards to advantages (see rl/advantage.py)."""

    baseline: str = "group_mean"
    """``group_mean`` (GRPO) or ``leave_one_out`` (RLOO)."""
    scale: str = "none"
    """``std`` (GRPO), ``none`` (Dr. GRPO, arXiv:2503.20783) or ``batch``."""
    per_reward: bool = False
    """Normalise every scorer on its own within the group before weighting (GDPO)."""


@dataclass
class RolloutCorrectionConfig:
    """Importance correction between the engine's and the learner's logprobs."""

    mode: str = "truncate"
    """``none``, ``truncate`` (weights capped at ``cap``) or ``mask`` (tokens beyond ``cap`` left out)."""
    level: str = "token"
    """``token``, or ``sequence``: the product over a trajectory's tokens."""
    cap: float = 2.0


@dataclass
class LossConfig:
    """The policy loss (see rl/loss.py)."""

    objective: str = "ppo"
    """``ppo`` (clipped surrogate) or ``cispo``, whose authors have no lower bound: ``clip_low`` 1."""
    importance: str = "token"
    """``token`` (GRPO) or ``sequence`` (GSPO)."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 0.0
    """Bound on the ratio for negative advantages; 0 switches it off, otherwise > 1."""
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0
    aggregation: str = "token_mean"
    """``token_mean``, ``sequence_mean`` or ``constant`` (divided by ``sampling.max_tokens`` × samples)."""
    rollout_correction: RolloutCorrectionConfig = field(default_factory=RolloutCorrectionConfig)


@dataclass
class DynamicSamplingConfig:
    """Refill groups without signal (all rewards equal), as DAPO does (arXiv:2503.14476)."""

    enabled: bool = False
    max_rounds: int = 3


@dataclass
class AsyncConfig:
    """Generation ahead of the update."""

    max_staleness: int = 0
    """Most training steps between the weights that wrote a token and those that are trained on it. 0 is strictly
    on-policy; n ≥ 1 writes the trajectories of the next n steps while the learner updates, see the README."""


@dataclass
class LearnerConfig:
    """The DeepSpeed engine: one Ray actor per rank."""

    ranks: int = 1
    gpus_per_rank: float = 0.0
    cpus_per_rank: float = 1.0
    threads: int = 1
    zero_stage: int = 0
    """What DeepSpeed shards over the ranks (0 to 3). In bfloat16 0 and 1 are run as 2, the first stage at which it sums
    the gradients of an update's passes in float32."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory; from ``zero_stage`` 1 on."""
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises to its full value."""
    decay_steps: int = 0
    """Optimizer step by which the learning rate has fallen, along half a cosine, to a tenth; 0 keeps it constant."""
    weight_decay: float = 0.0
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = 1.0
    minibatches: int = 1
    """Optimizer steps per batch of trajectories; above 1 the later ones are off-policy and the clip does its work."""
    micro_batch_tokens: int = 8192
    """Most tokens in one forward pass of one rank; what does not fit is accumulated."""
    packing: bool = True
    """One sequence per group with its prompt once; false gives one padded row per trajectory, as a policy needs whose
    decoder has layers with a sliding window or without attention."""
    attention: str = "auto"
    """How packed sequences attend (see policies/attention.py): ``sdpa``, ``flex`` or ``flash``; ``auto`` takes ``flex``
    on a GPU and ``sdpa`` without one."""
    timeout_s: float = 1800.0


@dataclass
class EvaluationConfig:
    """Greedy evaluation on held-out tasks."""

    every_steps: int = 10
    """0 evaluates before and after training only."""
    max_tasks: int = 0
    """0 takes all evaluation tasks."""


@dataclass
class CheckpointConfig:
    """When to save, and how many checkpoints to keep (0 keeps all)."""

    every_steps: int = 20
    keep: int = 2


@dataclass
class LoggingConfig:
    """Sinks besides ``metrics.jsonl``."""

    tensorboard: bool = True
    wandb_project: str = ""
    mlflow_experiment: str = ""
    trajectories: bool = True


@dataclass
class RayConfig:
    """``address`` empty starts a local Ray; otherwise, or where RAY_ADDRESS is set, joins that cluster."""

    address: str = ""
    num_cpus: int = 0
    object_store_mb: int = 256


@dataclass
class RunConfig:
    """Everything that a run depends on."""

    output_dir: str = "runs/default"
    seed: int = 0
    resume: bool = False
    max_steps: int = 100
    tasks_per_step: int = 16
    group_size: int = 8
    """G, trajectories per task."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    warmstart: WarmstartConfig = field(default_factory=WarmstartConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    async_: AsyncConfig = field(default_factory=AsyncConfig)
    """The section ``async`` (see `KEYWORD_KEYS`)."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
