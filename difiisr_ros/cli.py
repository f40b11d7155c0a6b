"""The ``difiisr`` command: names the verbs, and decides exit codes.

0: all was made. 1: nothing was. 2: made with losses, or a wrong command line. 130: Ctrl-C; 143:
SIGTERM; 129: SIGHUP; these end a verb as an error does: what is not finished is taken away. Each
verb is one function in ``difiisr_ros/commands``, imported when it is called; so is all that takes
time to import, for Ctrl-C may come meanwhile.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

EXIT_NOTHING, EXIT_LOSSES = 1, 2
EXIT_BY_SIGNAL = 128  # and its number

VERBS = {
    "replay": "super-resolve every frame of a rosbag2 recording, without ROS",
    "info": "what a model is and what a frame costs, or what a recording shows of its camera",
    "evaluate": "judge models on recordings and images: report.html",
    "recorded": "say what a running node really did, from its recording",
    "bench": "time network, upscaler and node, beside other models",
    "demo": "play a thermal stream to the node over DDS and draw what comes back",
    "scene": "record the procedural thermal scene of the demo",
    "export": "write a model as an ONNX graph",
    "build-engine": "build a TensorRT engine for this machine",
    "convert": "convert published checkpoints for this package",
    "train": "train a model",
    "train-ablation": "train and compare the guidance settings of the paper",
    "train-detector": "fine-tune the detector that judges super-resolved frames",
    "train-segmenter": "fine-tune the segmenter that judges super-resolved frames",
}

# What a robot may lack.
_EXTRAS = {
    "evaluate": "eval",
    "train": "train",
    "train-ablation": "train,eval",
    "train-detector": "train,eval,onnx",
    "train-segmenter": "train,eval",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    try:
        with _signals_raise():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as error:
        number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
        print(f"difiisr: interrupted by {number.name}", file=sys.stderr)
        return EXIT_BY_SIGNAL + number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP, unless they are ignored, raise KeyboardInterrupt(number).

    What comes after the first does not disturb the clearing up; a second Ctrl-C ends at once.
    """

    def interrupt(number: int, _: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in usual}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(arguments: list[str]) -> int:
    """Run a command line; exceptions that say all there is to know become a line and a code."""
    from cyclopts import CycloptsError

    from difiisr_ros.allocator import keep_freed_memory

    keep_freed_memory()  # frame after frame
    if arguments[:1] == ["evaluate"] and "--recorded" in arguments:
        arguments = ["recorded", *(word for word in arguments[1:] if word != "--recorded")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        if not arguments:
            _app().help_print([])
            return EXIT_LOSSES
        if not arguments[0].startswith("-") and arguments[0] not in VERBS:
            known = ", ".join(VERBS)
            print(f"difiisr: no command {arguments[0]!r}; there are {known}", file=sys.stderr)
            return EXIT_LOSSES
        result = _app()(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        print(f"difiisr: {_in_one_line(error)}", file=sys.stderr)
        return EXIT_LOSSES
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NOTHING
    except ImportError as error:
        missing = error.__cause__ or error  # the former: of a verb that cannot be imported
        if not isinstance(missing, ModuleNotFoundError):
            raise
        extras = _EXTRAS.get(arguments[0])
        advice = f" (pip install '.[{extras}]' in the checkout)" if extras else ""
        print(f"difiisr: {missing}{advice}", file=sys.stderr)
        return EXIT_NOTHING
    except Exception as error:
        if not _is_users_error(error):
            raise
        text = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
        print(f"difiisr: {error or text}", file=sys.stderr)
        return EXIT_NOTHING


def _app() -> App:
    from importlib.metadata import version

    from cyclopts import App, Parameter

    app = App(
        name="difiisr",
        help="Thermal super-resolution x4: recordings, models, training.",
        version=version("difiisr_ros"),
        default_parameter=Parameter(negative=()),  # a switch is off unless it is given
        suppress_keyboard_interrupt=False,  # main says so and decides the code
    )
    for verb, text in VERBS.items():
        name = verb.replace("-", "_")
        app.command(f"difiisr_ros.commands.{name}:{name}", name=verb, help=text)
    return app


def _in_one_line(error: CycloptsError) -> str:
    """What is wrong with a command line, without what pydantic says of itself."""
    text = re.sub(
        r"\d+ validation errors? for \S+|\[type=.*?\]$", "", str(error), flags=re.MULTILINE
    )
    lines = [line.strip() for line in text.splitlines() if "errors.pydantic.dev" not in line]
    return " ".join(line for line in lines if line)


def _is_users_error(error: Exception) -> bool:
    """Whether the text of the error tells the user all there is to know."""
    if isinstance(error, (ValueError, OSError, FloatingPointError, OverflowError)):
        return True
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the latter: torch
        return True
    reader = sys.modules.get("rosbags.rosbag2")
    return reader is not None and isinstance(error, (reader.ReaderError, reader.WriterError))


if __name__ == "__main__":
    sys.exit(main())
