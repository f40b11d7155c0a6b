"""Play a bag through the live node and record its result with ros2 bag.

ros2 launch difiisr_ros replay.launch.py bag:=recording output:=recording_sr
"""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

SR_LAUNCH = Path(__file__).resolve().with_name("sr.launch.py")

# name: (default, description); None: must be given
ARGUMENTS = {
    "bag": (None, "rosbag2 to play"),
    "output": (None, "rosbag2 folder to record to; must not exist"),
    "image": ("/thermal/image_raw", "image topic of the bag"),
    "camera_info": ("/thermal/camera_info", "camera_info topic of the bag"),
    "result": ("/thermal/sr", "topic of the result; its camera_info is on <result>/camera_info"),
    "model": ("", "model name or path; empty leaves it to config/sr.yaml"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty leaves it to config/sr.yaml"),
    "rate": ("1.0", "speed of playing; below 1 gives a slow model time for every frame"),
    "delay": ("10.0", "seconds before playing, for the model to load"),
    "linger": ("5.0", "seconds to go on recording after the last message was played"),
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, include the node, play, record, and shut down when all is played."""
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SR_LAUNCH)),
        launch_arguments={
            "image": value["image"],
            "camera_info": value["camera_info"],
            "output": value["result"],
            "model": value["model"],
            "device": value["device"],
            "use_sim_time": "true",
        }.items(),
    )
    record = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--storage", "mcap", "--output", value["output"]),
            *("--regex", ["^", value["result"], "(/camera_info)?$"]),
        ],
        output="screen",
    )
    play = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "play", value["bag"], "--clock", "--rate", value["rate"]),
            *("--topics", value["image"], value["camera_info"]),
        ],
        output="screen",
    )
    finish = TimerAction(
        period=value["linger"], actions=[Shutdown(reason="the whole bag has been played")]
    )
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in ARGUMENTS.items()
            ),
            node,
            record,
            TimerAction(period=value["delay"], actions=[play]),
            RegisterEventHandler(OnProcessExit(target_action=play, on_exit=[finish])),
        ]
    )
