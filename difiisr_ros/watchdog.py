"""What an active node says beside its counts: who else answers, and each trouble once."""

from __future__ import annotations

import time
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node

from difiisr_ros.diagnostics import Finding
from difiisr_ros.stream_statistics import WINDOW


def twin_of(node: Node, topic: str) -> str:
    """That another node has this one's name or publishes on its ``topic``, "" if none does."""
    own = node.get_name(), node.get_namespace()
    if node.get_node_names_and_namespaces().count(own) > 1:
        return (
            f"another node is named {node.get_fully_qualified_name()}: services and parameters "
            "reach either, each frame is answered twice; end one, or give it another name or "
            "namespace"
        )
    if (count := node.count_publishers(topic)) > 1:
        return f"{count} nodes publish {topic}: each frame is answered {count} times; end one"
    return ""


class FindingLog:
    """Logs each kind of finding once in the time that it looks back."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._logged: dict[str, float] = {}  # kind -> monotonic seconds

    def __call__(self, found: Sequence[Finding]) -> None:
        """Log those of ``found`` whose time has come."""
        now = time.monotonic()
        for kind, level, text in found:
            if now - self._logged.get(kind, -WINDOW) < WINDOW:
                continue
            self._logged[kind] = now
            if level == DiagnosticStatus.ERROR:  # rclpy wants one severity at a place
                self._node.get_logger().error(text)
            else:
                self._node.get_logger().warning(text)
