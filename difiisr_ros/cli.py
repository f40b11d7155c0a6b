"""The ``difiisr`` command: names the verbs, and decides exit codes.

0: all was made. 1: nothing was. 2: made with losses, or a wrong command line. 130: Ctrl-C; 143:
SIGTERM; 129: SIGHUP; these end a verb as an error does: what is not finished is taken away. Each
verb is one function in ``difiisr_ros/commands``, imported when it is called; so is all that takes
time to import, for Ctrl-C may come meanwhile.
"""

from __future__ import annotations

import gc
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from difiisr_ros.process_setup import interrupts_noted, keep_freed_memory
from difiisr_ros.refusals import described

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

EXIT_NOTHING, EXIT_LOSSES = 1, 2
EXIT_BY_SIGNAL = 128  # and its number
OLD_SIZES = ("--input-size", "--profile", "--sizes")

# verb: what it does, and the extras it needs, which a robot may lack
VERBS = {
    "upscale": ("super-resolve images and videos in files", "images"),
    "replay": ("super-resolve every frame of a rosbag2 recording, without ROS", ""),
    "info": ("what a model is and what a frame costs, or what a recording shows of its camera", ""),
    "evaluate": ("judge models on recordings and images: report.html", "eval"),
    "fleet": ("replay or evaluate many recordings, on one machine or a cluster", "fleet,eval"),
    "recorded": ("say what a running node really did, from its recording", "eval"),
    "video": ("judge models on films: what the frames before add", "eval"),
    "bench": ("time network, upscaler and node, beside other models", "eval"),
    "demo": ("play a thermal stream to the node over DDS and draw what comes back", "images"),
    "soak": (
        "drive a node with all that may happen to it, for minutes or hours, and watch it",
        "ros",
    ),
    "scene": ("record the scene of the demo: a pan over an infrared photograph", "images"),
    "export": ("write a model as an ONNX graph", ""),
    "quantise": ("write a model again, in 8 bits for CPUs too", "onnx,eval"),
    "build-engine": ("build a TensorRT engine for this machine", ""),
    "convert": ("convert published checkpoints for this package", ""),
    "train": ("train a model", "train"),
    "adapt": ("fit a model to a camera of which there is no high resolution", "train,images"),
    "train-ablation": ("train and compare the guidance settings of the paper", "train,eval"),
    "train-detector": (
        "fine-tune the detector that judges super-resolved frames",
        "train,eval,onnx",
    ),
    "train-segmenter": ("fine-tune the segmenter that judges super-resolved frames", "train,eval"),
}

# Verbs in files that are not called as they are.
_FILES = {
    "replay": "replay_recording",
    "evaluate": "evaluate_models",
    "train": "train_model",
    "scene": "demo",
    **dict.fromkeys(("export", "quantise", "build-engine", "convert"), "model_files"),
    **dict.fromkeys(("train-detector", "train-segmenter"), "train_readers"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    if argv is not None:
        sys.argv[1:] = argv  # what is written names its command
    with interrupts_noted() as interrupts:
        try:
            code = _code_of(sys.argv[1:])
        except BaseException:
            if not interrupts:  # else an import made an error of its own of it
                raise
    if interrupts:
        code = EXIT_BY_SIGNAL + interrupts[0]
    if argv is None:
        gc.freeze()  # the process ends: to look through all that torch made takes a second
    if code > EXIT_BY_SIGNAL:
        name = signal.Signals(code - EXIT_BY_SIGNAL).name
        print(f"difiisr: interrupted by {name}", file=sys.stderr)
    return code


def _code_of(arguments: list[str]) -> int:
    from cyclopts import CycloptsError, UnusedCliTokensError

    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler reads it as it is imported
    keep_freed_memory()  # frame after frame
    for verb in ("recorded", "video") if arguments[:1] == ["evaluate"] else ():
        if f"--{verb}" in arguments:
            arguments = [verb, *(word for word in arguments[1:] if word != f"--{verb}")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        answer = _app()(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        if text := str(answer or ""):
            print(text)
        if answer is None:  # help, which is right where it was asked for
            return 0 if any(word.startswith("-") for word in arguments) else EXIT_LOSSES
        return answer.code
    except CycloptsError as error:
        is_old = any(word.partition("=")[0] in OLD_SIZES for word in arguments)
        text = "sizes are written --size WIDTHxHEIGHT" if is_old else _in_one_line(error)
        if isinstance(error, UnusedCliTokensError):
            text = f"nothing takes {shlex.join(error.unused_tokens or [])}"
            for switch, word in pairwise(arguments):
                if word in ("true", "false"):
                    text = f"write {switch}={word}: a switch takes no word of its own"
        print(f"difiisr: {text}", file=sys.stderr)
        return EXIT_LOSSES
    except KeyboardInterrupt as error:
        return EXIT_BY_SIGNAL + (error.args[0] if error.args else signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NOTHING
    except ImportError as error:
        missing = error.__cause__  # of a verb that cannot be imported
        missing = missing if isinstance(missing, ModuleNotFoundError) else error
        if not isinstance(missing, ModuleNotFoundError):
            raise
        _, extras = VERBS.get(arguments[0], ("", ""))
        advice = f" (pip install '.[{extras}]' in the checkout)" if extras else ""
        print(f"difiisr: {missing}{advice}", file=sys.stderr)
        return EXIT_NOTHING
    except Exception as error:
        if not _is_users_error(error):
            raise
        print(f"difiisr: {str(error) or described(error)}", file=sys.stderr)
        return EXIT_NOTHING


def _app() -> App:
    from importlib.metadata import version

    from cyclopts import App, Parameter

    app = App(
        name="difiisr",
        help="""Thermal super-resolution x4: images, recordings, models, training.

        Exit codes: 0 all was made, 1 nothing was, 2 made with losses, or a wrong command line, 130
        after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
        """,
        version=version("difiisr_ros"),
        default_parameter=Parameter(negative=(), show_default=_shown_default),
        suppress_keyboard_interrupt=False,  # main says so and decides the code
    )
    app.register_install_completion_command()
    for verb, (text, _) in VERBS.items():
        name = verb.replace("-", "_")
        file = _FILES.get(verb, name)
        app.command(f"difiisr_ros.commands.{file}:{name}", name=verb, help=text)
    return app


def _shown_default(value: Any) -> str | None:
    """What help says of a default: nothing where it is nothing."""
    if value is True:
        return "on; off with =false"
    if value is None or value is False or value in ("", []):
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _in_one_line(error: CycloptsError) -> str:
    """What is wrong with a command line, without what pydantic says of itself."""
    text = re.sub(
        r"\d+ validation errors? for \S+|\[type=.*?\]$", "", str(error), flags=re.MULTILINE
    )
    noise = re.compile(r".*errors\.pydantic\.dev.*|constrained-\w+|literal\[.*\]|")
    lines = [line.strip() for line in text.splitlines()]
    first, *others = " ".join(line for line in lines if not noise.fullmatch(line)).split(" Input ")
    return " or ".join([f"{first} Input {others[0]}", *others[1:]] if others else [first])


def _is_users_error(error: Exception) -> bool:
    """Whether the text of the error tells the user all there is to know."""
    known = (ValueError, OSError, EOFError, ArithmeticError, MemoryError)
    # of torch, of ~nobody, and of a link to itself
    texts = "can't allocate memory", "determine home directory", "Symlink loop"
    return isinstance(error, known) or any(text in str(error) for text in texts)


if __name__ == "__main__":
    sys.exit(main())
