"""ROS 2 side of the thermal super-resolution package: node, message codecs, replay."""
