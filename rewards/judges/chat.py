"""One request of the OpenAI chat protocol, read within bounds; what goes wrong says whether to wait or to give up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rewards.judge import Endpoint

if TYPE_CHECKING:
    import httpx2

_PASSING = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)


class ChatFault(Exception):
    """What was wrong with one attempt.

    ``rests`` tells the endpoint to rest, for ``rest_s`` where it said so; ``refused`` that it would say the same again.
    """

    def __init__(self, reason: str, *, rests: bool = False, rest_s: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.rests, self.rest_s, self.refused = rests, rest_s, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A message and why it ended; ``stopped_by`` is what the server names as the stop, "" where that was no string, and
    None where it does not say. ``completion_tokens`` is 0 where it does not say how many tokens it wrote."""

    message: Mapping[str, Any]
    finish_reason: str
    stopped_by: str | None
    completion_tokens: int


def chat_connections(endpoint: Endpoint) -> httpx2.AsyncClient:
    """Connections for as many calls as the endpoint takes at a time. The deadline is the caller's."""
    import httpx2

    most = endpoint.max_concurrency
    return httpx2.AsyncClient(
        timeout=None,
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        trust_env=not _is_local(endpoint.url),
        verify=endpoint.url.startswith("https"),  # reading the certificates takes .1 s
    )


async def chat_choice(
    http: httpx2.AsyncClient, endpoint: Endpoint, body: Mapping[str, Any], *, max_bytes: int
) -> Choice:
    """The first choice. Raises ChatFault, and ConfigError without a key."""
    import httpx2

    key = endpoint.with_key().key
    content = bytearray()
    try:
        async with http.stream(
            "POST",
            f"{endpoint.url.rstrip('/')}/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        ) as response:
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > max_bytes:
                    raise ChatFault(f"sent more than {max_bytes} bytes", refused=True)
    except httpx2.HTTPError as error:
        raise ChatFault(f"{type(error).__name__}: {error}".rstrip(": "), rests=True) from None
    if response.status_code != HTTPStatus.OK:
        raise _refusal(response, bytes(content).replace(key.encode(), b"***") if key else bytes(content))
    return _first_choice(bytes(content))


def _first_choice(content: bytes) -> Choice:
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        return Choice(
            message={**choice["message"]},
            finish_reason=str(choice.get("finish_reason")),
            stopped_by=_stopped_by(choice),
            completion_tokens=_completion_tokens(reply.get("usage")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ChatFault(f"sent no chat completion: {type(error).__name__}: {error}", refused=True) from None


def _stopped_by(choice: Mapping[str, Any]) -> str | None:
    for name in ("stop_reason", "matched_stop"):  # as vLLM says it, and as SGLang does
        if name in choice:
            return choice[name] if isinstance(choice[name], str) else ""
    return None


def _completion_tokens(usage: Any) -> int:
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


def _refusal(response: httpx2.Response, content: bytes) -> ChatFault:
    """What an answer other than 200 means: to wait, or to go elsewhere."""
    said = " ".join(content.decode(errors="replace").split())[:300]
    reason = f"HTTP {response.status_code} {said}".strip()
    if response.status_code in _PASSING or response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ChatFault(reason, rests=True, rest_s=retry_after_s(response.headers.get("retry-after", "")))
    return ChatFault(reason, refused=True)


def retry_after_s(header: str) -> float | None:
    """Seconds that the header asks to wait for, in either of its forms (RFC 9110, 10.2.3)."""
    if header.strip().isdecimal():
        return float(header[:10])
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _is_local(url: str) -> bool:
    """Whether no proxy can lie between here and there."""
    return url.split("//", 1)[-1].startswith(("127.", "localhost", "[::1]"))
