"""The walls of the house, read from the imports: who may know whom, and that names are clear."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"difiisr_models": "models", "difiisr_ros": "difiisr_ros", "difiisr_training": "training"}
COMMANDS = "difiisr_ros.commands"

ROS = {
    "rclpy", "rosbags", "mcap", "mcap_ros2", "cv_bridge", "ament_index_python", "launch",
    "launch_ros",
}  # fmt: skip
ROS_ENDINGS = ("_msgs", "_msgs_py", "_interfaces", "_srvs")

UNCLEAR = {
    "judge", "samples", "targets", "tables", "panels", "crops", "page", "run", "rows", "space",
    "utils", "helpers", "common", "base", "tasks", "actors", "live", "transfer", "ranges",
    "bag_remains", "freed_memory",
}  # fmt: skip


def modules():
    """Installed name -> file, of all product code."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name):
    """Full names of the modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = names & MODULES.keys()
            found |= inner | ({node.module} if len(inner) < len(names) else set())
    return found


IMPORTS = {name: imports(name) for name in MODULES}


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def is_ros(name):
    top = name.split(".")[0]
    return top in ROS or top.endswith(ROS_ENDINGS)


def walls(importer):
    """What a module may not import, as (reason, test of a name)."""
    if not within(importer, "difiisr_ros"):
        yield "ROS, bags and messages", is_ros
        yield "the robot side", lambda name: within(name, "difiisr_ros")
    if not (within(importer, COMMANDS) or within(importer, "difiisr_training")):
        yield "training", lambda name: within(name, "difiisr_training")
    if not within(importer, COMMANDS):
        yield "the top floor", lambda name: within(name, COMMANDS)
    yield "scripts and tests", lambda name: name.split(".")[0] in ("benchmarks", "test", "scripts")


def test_imports_point_one_way():
    found = [
        f"{importer} may not know {what}: {name}"
        for importer, imported in IMPORTS.items()
        for what, forbidden in walls(importer)
        for name in sorted(filter(forbidden, imported))
    ]
    assert not found, "\n".join(found)


def room(name):
    """The folder a module lies in; a file beside the folders of a package is a room of its own."""
    parts = name.split(".")
    folder = ".".join(parts[:2])
    return folder if len(parts) > 1 else name


def test_there_are_no_circles_between_rooms():
    edges = {room(name): set() for name in MODULES}
    for name, imported in IMPORTS.items():
        edges[room(name)] |= {room(other) for other in imported & MODULES.keys()} - {room(name)}

    def circle(path):
        for other in sorted(edges[path[-1]]):
            if other in path:
                return [*path[path.index(other) :], other]
            if other not in seen:
                seen.add(other)
                if found := circle([*path, other]):
                    return found
        return None

    for start in edges:
        seen = {start}
        found = circle([start])
        assert not found, " -> ".join(found)


def test_no_file_name_is_there_twice():
    names = Counter(path.name for path in MODULES.values() if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_class_name_is_there_twice():
    places = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: at for name, at in places.items() if len(at) > 1} == {}


def test_file_names_say_their_job():
    unclear = [str(path.relative_to(ROOT)) for path in MODULES.values() if path.stem in UNCLEAR]
    command_lines = [name for name in MODULES if name.endswith(".cli")]
    assert unclear == []
    assert command_lines == ["difiisr_ros.cli"]
