"""Environment of the ROS tests and of the processes they start, set before rclpy is imported."""

import os

from difiisr_ros.node_process import dds_environment

os.environ.update({k: v for k, v in dds_environment().items() if k != "ROS_DOMAIN_ID"})
