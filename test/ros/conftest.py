"""Environment of the ROS tests and of the processes they start, set before rclpy is imported."""

import os
import sys
from pathlib import Path

PROFILE = Path(__file__).resolve().parents[2] / "config" / "fastdds.xml"

# The pip wheels keep their ament index in the virtual environment.
os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
before_kilted = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
variable = f"{'FASTRTPS' if before_kilted else 'FASTDDS'}_DEFAULT_PROFILES_FILE"
os.environ.setdefault(variable, str(PROFILE))
