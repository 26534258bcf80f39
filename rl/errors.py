"""One error per stage: picklable, saying what was wrong, what was got, what is allowed and where to fix it."""

from __future__ import annotations


class MedrlError(Exception):
    """Base of all errors that a user can act on: the command line prints the text alone, exits with ``exit_status``."""

    exit_status = 1


class ConfigError(MedrlError):
    """The config, or a command-line override, asks for something that does not exist or does not fit together."""

    exit_status = 2


class TaskError(MedrlError):
    """A task source is missing, empty or malformed; names the file and the line."""

    exit_status = 2


class PolicyError(MedrlError):
    """A policy folder cannot be loaded by transformers or by vLLM."""

    exit_status = 2


class ScorerError(MedrlError):
    """A scorer cannot be built, or more trajectories stayed unscored than the run allows."""


class RolloutError(MedrlError):
    """A rollout worker died, or an engine answered what cannot be right."""


class LearnerError(MedrlError):
    """The update cannot go on: a non-finite loss, a mismatch of shapes, a rank that died."""


class PublicationError(MedrlError):
    """Weights did not reach an engine, or those that it has are not the ones that the learner published."""


class CheckpointError(MedrlError):
    """A checkpoint is missing, damaged, or belongs to another config."""

    exit_status = 2


class LogError(MedrlError):
    """A trajectory log is missing, damaged or of another schema, or was given what it could not read back."""

    exit_status = 2
