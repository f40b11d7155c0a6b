"""ROS 2 side of the thermal super-resolution package: node, message codecs, replay."""

import os

# Read once, when torch loads: threads that wait for each other then sleep instead of spinning, and
# leave the cores to the robot's other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
