"""What a verb answers: a text for people, facts for programs (``--json``), and an exit code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from cyclopts import Parameter

from difiisr_models.files import json_text

_Json = Annotated[bool, Parameter(help="print one JSON object instead: docs/command_line.md.")]


@dataclass(frozen=True)
class Answer:
    """What a verb did; the command line prints it.

    Attributes:
        facts: for programs; docs/command_line.md has the keys.
        text: for people.
        code: the exit code.
        as_json: print the facts.
    """

    facts: Mapping[str, Any]
    text: str
    code: int = 0
    as_json: bool = False

    def __str__(self) -> str:
        return json_text(self.facts) if self.as_json and self.facts else self.text


def answers(verb: Callable[..., Answer]) -> Callable[..., Answer]:
    """``verb`` with the option ``--json``, which each verb has."""

    @functools.wraps(verb)
    def with_json(*arguments: Any, json: bool = False, **options: Any) -> Answer:
        return replace(verb(*arguments, **options), as_json=json)

    own = inspect.signature(verb)
    last = inspect.Parameter(
        "json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json
    )
    both = own.replace(parameters=[*own.parameters.values(), last])
    vars(with_json).update(__signature__=both)
    with_json.__annotations__ = verb.__annotations__ | {"json": _Json}
    return with_json
