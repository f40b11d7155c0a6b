"""Errors in words, and services that refuse: nothing that arrives over DDS ends the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LONGEST = 400  # characters: some are a sender's, who may send a megabyte


def described(error: BaseException) -> str:
    """The error in words, also where it has none of its own, as a MemoryError may."""
    text = str(error)
    if not text and isinstance(error, MemoryError):
        text = "there is not enough memory"
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def shortened(text: str) -> str:
    """``text``, its middle left out where it is long."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def guard_services(node: Any) -> None:
    """Let each service of an rclpy ``node`` so far answer what it cannot take with a refusal.

    rclpy's own callbacks raise, which ends the process: for a ``ParameterValue.type`` that does not
    exist, for example.
    """
    for service in node.services:
        service.callback = _guarded(service.callback, node)


def _guarded(callback: Callable[[Any, Any], Any], node: Any) -> Callable[[Any, Any], Any]:
    from rcl_interfaces.msg import SetParametersResult

    def answer(request: Any, response: Any) -> Any:
        try:
            return callback(request, response)
        except Exception as error:
            text = f"{type(request).__name__} refused: {described(error)}"
            node.get_logger().warning(text, throttle_duration_sec=10.0)
            refused = SetParametersResult(successful=False, reason=described(error))
            if hasattr(response, "results"):  # of SetParameters: one for each, some are done
                missing = len(request.parameters) - len(response.results)
                response.results = [*response.results, *[refused] * missing]
            elif isinstance(getattr(response, "result", None), SetParametersResult):
                response.result = refused
            else:
                response = type(response)()
            return response

    return answer
