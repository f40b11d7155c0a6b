"""Play a bag through the live node and record camera and result with ros2 bag.

ros2 launch difiisr_ros replay.launch.py bag:=recording
difiisr evaluate recording_sr --recorded --out report

The node and its diagnostics live in simulated time, the bag's; the recorder in the machine's own,
so that the time from a camera message to its result is what the node took.
"""

from collections.abc import Callable
from pathlib import Path
from runpy import run_path

from launch.actions import (
    ExecuteProcess,
    IncludeLaunchDescription,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

SR_LAUNCH = Path(__file__).resolve().with_name("sr.launch.py")
_shared = run_path(str(SR_LAUNCH))  # no launch file can be imported
dds_profile, beside = _shared["dds_profile"], _shared["beside"]

# True for diagnostics of a node that is active, or that cannot be (the text says why).
NODE_HAS_STARTED = (
    "any('super-resolution' in s.name and s.message not in ('unconfigured', 'inactive') "
    "for s in m.status)"
)

# name: (default, description); None: must be given
ARGUMENTS = {
    "bag": (None, "rosbag2 to play"),
    "output": ("", "rosbag2 folder to record to; must not exist (empty: the bag's name with _sr)"),
    "image": ("/thermal/image_raw", "image topic of the bag"),
    "camera_info": ("", "camera_info topic of the bag (empty: camera_info beside the image)"),
    "result": ("/thermal/sr", "topic of the result; its camera_info is on <result>/camera_info"),
    "model": ("", "model name or path; empty leaves it to config/sr.yaml"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty leaves it to config/sr.yaml"),
    "rate": ("1.0", "speed of playing; below 1 gives a slow model time for every frame"),
    "delay": ("3.0", "seconds between the player's start and its first message, for discovery"),
    "linger": ("5.0", "seconds to go on recording after the last message was played"),
}


def unless_ending(action) -> Callable:  # noqa: ANN001
    """Do this when a process has ended, but not because all end: launch bears one end only."""
    return lambda event, context: None if context.is_shutdown else [action]


def replay(value: dict[str, str]) -> list:
    """Return node and recorder, then the player, then the end."""
    image, result = value["image"], value["result"].rstrip("/")
    info = value["camera_info"] or beside(image, "camera_info")
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SR_LAUNCH)),
        launch_arguments={
            **{"image": image, "camera_info": info, "output": result, "use_sim_time": "true"},
            **{name: value[name] for name in ("model", "device")},
        }.items(),
    )
    # The recorder takes each topic with the QoS that is offered, once there is a publisher.
    topics = (image, info, f"{result}(/image_raw|/camera_info)?", "/diagnostics")
    record = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--regex", f"^({'|'.join(topics)})$"),
            *("--output", value["output"] or f"{Path(value['bag']).absolute()}_sr"),
        ],
        name="record",
        output="screen",
    )
    wait = ExecuteProcess(
        cmd=[
            *("ros2", "topic", "echo", "--no-daemon", "--once", "--filter", NODE_HAS_STARTED),
            *("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"),
        ],
        name="wait",
        output="log",
    )
    play = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "play", value["bag"], "--clock", "--rate", value["rate"]),
            *("--delay", value["delay"], "--disable-keyboard-controls"),
            *("--topics", image, info),
        ],
        name="play",
        additional_env=dds_profile(),  # it is the camera
        output="screen",
    )
    finish = TimerAction(
        period=float(value["linger"]), actions=[Shutdown(reason="the whole bag has been played")]
    )
    return [
        # Handlers first, for an end that comes at once.
        RegisterEventHandler(
            OnProcessExit(
                target_action=lambda action: action not in (wait, play),
                on_exit=unless_ending(Shutdown(reason="node or recorder has ended")),
                handle_once=True,
            )
        ),
        RegisterEventHandler(OnProcessExit(target_action=wait, on_exit=[play])),
        RegisterEventHandler(OnProcessExit(target_action=play, on_exit=unless_ending(finish))),
        node,
        record,
        wait,
    ]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then what is made of them."""
    return _shared["described"](__file__, ARGUMENTS, replay, *_shared["ARGUMENTS"])
