"""The reward service over HTTP: rows in, scores with their reasons out. What scores them is the caller's (`build_app`).

POST /score        one row or an array of rows (row.schema.json)     → the same of scores, in order
POST /get_reward   OpenRLHF's ``{"query": […], "prompts": […], "labels": […]}``  → ``{"rewards": […], …}``
GET  /health       which scorers, of which versions; needs no token
GET  /metrics      for Prometheus
GET  /openapi.json, /docs
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from rewards.rows import check_row, load_json, row_trajectory, score_row
from rl.types import ScoredTrajectory, Trajectory, Unscored

Scoring = Callable[[Sequence[Trajectory]], Awaitable[Sequence[ScoredTrajectory | Unscored]]]

TOKEN_VARIABLE = "MEDRL_REWARDS_TOKEN"
_ROW_SCHEMA = json.loads(importlib.resources.files("rewards").joinpath("row.schema.json").read_text(encoding="utf-8"))
_ROWS_SCHEMA = {"oneOf": [_ROW_SCHEMA, {"type": "array", "items": _ROW_SCHEMA}]}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_OPENRLHF_SCHEMA = {
    "type": "object",
    "required": ["query", "prompts", "labels"],
    "properties": {"query": _TEXTS, "prompts": _TEXTS, "labels": {"type": "array"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """``token`` empty lets everyone in. A request may hold ``max_body_mb`` MiB and ``max_rows`` rows."""

    token: str = field(default="", repr=False)
    max_body_mb: float = 16.0
    max_rows: int = 256


def build_app(score: Scoring, *, versions: Mapping[str, str], settings: HttpSettings) -> FastAPI:
    """The application. ``score`` gives one outcome per trajectory, in order; ``versions`` goes by scorer.

    Answers 400 for what is no JSON, 401 without the token, 413 for too much, 422 for a row of another shape or an id
    that occurs twice.
    """
    app = FastAPI(title="medrl rewards", description=__doc__, dependencies=[Depends(_check_token)])
    app.state.settings = settings
    counts = _Counts()

    async def scored(rows: Sequence[Any]) -> Sequence[ScoredTrajectory | Unscored]:
        began = time.perf_counter()
        outcomes = await score(_trajectories(rows, max_rows=settings.max_rows))
        counts.add(outcomes, time.perf_counter() - began)
        return outcomes

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The scorers that are there, with their versions."""
        return {"status": "ok", "scorers": dict(versions)}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts of outcomes and times, in Prometheus' text format."""
        return Response(generate_latest(counts.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/score", openapi_extra=_body(_ROWS_SCHEMA))
    async def score_rows(content: Content) -> Any:
        """Score one row, or an array of rows. A row without a reward says why; it is not an error."""
        rows = content if isinstance(content, list) else [content]
        scores = [score_row(outcome) for outcome in await scored(rows)]
        return scores if isinstance(content, list) else scores[0]

    @app.post("/get_reward", openapi_extra=_body(_OPENRLHF_SCHEMA))
    async def get_reward(content: Content, answer_type: str = "text") -> dict[str, Any]:
        """OpenRLHF's remote reward. A label is an answer key (a JSON object) or the value of one of ``answer_type``.

        OpenRLHF knows no "unscored": where a completion got no reward, the answer is 503, and its client asks again.
        """
        outcomes = await scored(_openrlhf_rows(content, answer_type=answer_type))
        reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Unscored)]
        if reasons:
            raise HTTPException(503, f"{len(reasons)} of {len(outcomes)} got no reward; the first: {reasons[0]}")
        rewards = [outcome.reward for outcome in outcomes if isinstance(outcome, ScoredTrajectory)]
        return {"rewards": rewards, "scores": rewards, "extra_logs": _values(outcomes)}

    return app


async def _check_token(request: Request) -> None:
    """A bearer token, or the password of basic authorization, which is all that OpenRLHF's URL can carry."""
    token = request.app.state.settings.token
    if not token or request.url.path == "/health":
        return
    kind, _, credentials = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        credentials = _password(credentials)
    if kind.lower() not in ("bearer", "basic") or not secrets.compare_digest(credentials.encode(), token.encode()):
        raise HTTPException(401, f"the token of {TOKEN_VARIABLE} is needed", headers={"WWW-Authenticate": "Bearer"})


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials).decode().partition(":")[2]
    except ValueError:  # not base64, or not of text
        return ""


async def _json(request: Request) -> Any:
    """The body as JSON, read no further than what is allowed."""
    max_bytes = int(request.app.state.settings.max_body_mb * 2**20)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise HTTPException(413, f"a request may hold {max_bytes} bytes")
    try:
        return load_json(bytes(body))
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


Content = Annotated[Any, Depends(_json)]


def _trajectories(rows: Sequence[Any], *, max_rows: int) -> list[Trajectory]:
    if len(rows) > max_rows:
        raise HTTPException(413, f"a request may hold {max_rows} rows; got {len(rows)}")
    trajectories: dict[str, Trajectory] = {}
    for index, row in enumerate(rows):
        try:
            check_row(row)
            if row["id"] in trajectories:
                first = list(trajectories).index(row["id"])
                raise ValueError(f"the id {row['id']!r} was used in row {first}; every row needs an id of its own")
            trajectories[row["id"]] = row_trajectory(row)
        except ValueError as error:
            raise HTTPException(422, f"row {index}: {error}") from error
    return list(trajectories.values())


def _openrlhf_rows(content: Any, *, answer_type: str) -> list[dict[str, Any]]:
    """A query is the prompt and, behind it, the completion. Raises HTTPException for what is not OpenRLHF's request."""
    fields = content if isinstance(content, Mapping) else {}
    queries, prompts, labels = (fields.get(name) for name in ("query", "prompts", "labels"))
    if not (isinstance(queries, list) and isinstance(prompts, list) and isinstance(labels, list)):
        raise HTTPException(422, "the lists query, prompts and labels are needed, as OpenRLHF sends them")
    if not len(queries) == len(prompts) == len(labels):
        raise HTTPException(422, f"{len(queries)} queries, {len(prompts)} prompts and {len(labels)} labels")
    return [
        {
            "id": str(index),
            "question": prompt,
            "completion": query.removeprefix(prompt) if isinstance(query, str) and isinstance(prompt, str) else query,
            "answer": _answer(label, answer_type=answer_type),
        }
        for index, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True))
    ]


def _answer(label: Any, *, answer_type: str) -> Any:
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = load_json(label)
        except ValueError as error:
            raise HTTPException(422, f"a label that looks like an answer key is none: {error}") from error
    return label if isinstance(label, Mapping) else {"type": answer_type, "value": label}


def _values(outcomes: Sequence[ScoredTrajectory | Unscored]) -> dict[str, list[float]]:
    """Each scorer's values, of those that scored every completion: a list with gaps could not be told from zeros."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, record in outcome.scores.items():
            if record.score is not None:
                values.setdefault(name, []).append(record.score.value)
    return {name: of_all for name, of_all in values.items() if len(of_all) == len(outcomes)}


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class _Counts:
    """What ``/metrics`` says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._trajectories = Counter(
            "medrl_trajectories", "Trajectories by outcome.", ["outcome"], registry=self.registry
        )
        self._scores = Counter(
            "medrl_scores", "Scores by scorer and outcome.", ["scorer", "outcome"], registry=self.registry
        )
        self._seconds = Histogram("medrl_score_seconds", "Time of a score.", ["scorer"], registry=self.registry)
        self._requests = Histogram("medrl_request_seconds", "Time of a scoring request.", registry=self.registry)

    def add(self, outcomes: Sequence[ScoredTrajectory | Unscored], duration_s: float) -> None:
        self._requests.observe(duration_s)
        for outcome in outcomes:
            kind = "scored" if isinstance(outcome, ScoredTrajectory) else "unscored"
            self._trajectories.labels(kind).inc()
            for name, record in outcome.scores.items():
                self._scores.labels(name, record.outcome).inc()
                self._seconds.labels(name).observe(record.duration_s)
