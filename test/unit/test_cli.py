import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from thermal_bags import cut, messages, pixels, record

import difiisr_ros
from difiisr_ros import cli


def test_replay_says_what_it_did_and_what_is_damaged(tmp_path, difiisr):
    source = record(tmp_path / "in", frames=60)
    arguments = ["replay", source, tmp_path / "out", "--model", "bicubic"]
    said = difiisr(*arguments, "--image-topic", "/cam/image_raw").out
    assert "60 of 60 frames of /cam/image_raw on /cam/sr, 0 refused" in said
    assert len(messages(tmp_path / "out", "/cam/sr")) == 60
    cut(source, 0.7)
    error = difiisr(*arguments, "--force", code=2).err
    assert "damaged" in error
    assert str(source) in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["replay", "nowhere", "out", "--model", "bicubic"], "nowhere"),
        (["replay", "IN", "IN", "--model", "bicubic"], "IN"),
        (["replay", "IN", "out", "--model", "bicubic", "--image-topic", "/no"], "/cam/image_raw"),
        (["replay", "IN", "out", "--model", "no-such-model"], "no-such-model"),
        (["info", "no-such-model"], "no-such-model"),
        (["info"], "--bag"),
        (["info", "--bag", "IN", "--topic", "/no"], "/cam/image_raw"),
        (["replay", "IN", "out", "--model", "bicubic", "--no-data", "none"], "got 'none'"),
        (["info", "difiisr-rt-x4", "--device", "cpu", "--engine", "no.plan"], "needs a CUDA GPU"),
        (["info", "difiisr-rt-x4", "--engine", "no.plan", "--backend", "torch"], "is not used"),
        (["export", "difiisr-rt-x4", "IN", "--size", "16x16", "--force"], "is a folder"),
        (["export", "difiisr-rt-x4", "o", "--size", "16x16", "--batch", "0"], "1 and more, not 0"),
        (["export", "bicubic", "o", "--size", "16x16"], "no network"),
        (["fleet", "report", "gone", "--out", "out"], "no run of difiisr fleet"),
        (["adapt", "IN", "--out", "out"], "5 frames of 1 sizes; 80 or more of one size"),
        (["scene", "IN"], "--force"),
        (["convert", "no.pth", "no.ckpt", "out", "--schedule", "sinsr"], "no.pth"),
        (["train", "no-such-config.yaml"], "no-such-config.yaml"),
        (["info", "bicubic", "--parity", "tiny"], "--parity-data DIR"),
        (
            ["replay", "IN", "out", "--model", "bicubic", "--tile", "8"],
            "tile must be",
        ),
        (["evaluate", "IN", "--out", "out", "--annotations", "boxes.json"], "needs --detector"),
        *(
            (["evaluate", "IN", "--out", "out", "--models", model], said)
            for model, said in (
                ("bicubic@0.5", "@consistency=F"),
                ("difiisr-rt-x4@stps=2", "'stps=2'"),
                ("difiisr-rt-x4@2", "fidelity"),
                ("absent", "absent"),
                ("swinir.pth", "swinir.pth"),
            )
        ),
        (["evaluate", "gone", "--out", "out"], "gone"),
        (["evaluate", "IN", "--out", "out", "--topic", "/no"], "/cam/image_raw"),
        (["upscale", "gone.png", "out", "--model", "bicubic"], "gone.png"),
        (["upscale", "a.png", "a.png", "--force", "--model", "bicubic"], "is the input"),
        (["upscale", "a.png", "b.jpg", "--model", "bicubic"], "name a .tiff"),
        (["upscale", "a.png", "out", "--palette", "infrno"], "no palette 'infrno'"),
        (["upscale", ".", "out"], "choose a folder elsewhere"),
        (["upscale", "a.png", "b.txt"], "no kind of file that is written"),
        (["upscale", ".", "../b.png"], "is a folder"),
    ],
)
def test_where_nothing_is_made_one_line_says_why_and_the_exit_code_is_1(
    tmp_path, monkeypatch, difiisr, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "IN")
    Image.fromarray(pixels(0)).save("a.png")
    before = (tmp_path / "a.png").read_bytes()
    (error,) = difiisr(*arguments, code=1).err.splitlines()
    assert expected in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IN", "a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fleet"],
        ["nonsense"],
        ["scene", "out", "--frames", "0"],
        ["replay", "IN", "out", "--fidelity", "7"],
        ["replay", "IN", "out", "--seed", "-2"],
        ["replay", "IN"],
        ["info", "bicubic", "--backend", "abacus"],
        ["info", "bicubic", "--sharpness", "3"],
        ["info", "bicubic", "--threads", "9999"],
        ["info", "bicubic", "--size", "200000x200000"],
        ["export", "difiisr-rt-x4", "x.onnx", "--size", "16x16", "--batch", "²"],
        *(["bench", "--size", size] for size in ("640", "0x0", "120*160")),
        ["bench", "--rates", "-4"],
        ["bench", "--rates", "inf"],
        ["bench", "--seconds", "nan"],
        ["bench", "--runs", "0"],
        ["bench", "--threads", "100000"],
    ],
)
def test_bad_usage_exits_with_2(arguments, difiisr):
    output = difiisr(*arguments, code=2)
    is_help = arguments in ([], ["fleet"])
    assert "Usage" in output.out if is_help else "difiisr: " in output.err
    assert "Traceback" not in output.err


def test_version_json_and_completion(difiisr, json_of):
    assert difiisr("--version").out.strip() == difiisr_ros.__version__
    facts = json_of("info", "bicubic")
    assert (facts["name"], facts["parameters"]) == ("bicubic", 0)
    assert float(facts["cost"].split()[0]) < 1.0
    text = difiisr("--help").out
    assert "--install-completion" in text
    assert "130" in text


@pytest.mark.parametrize("verb", [v for v in cli.VERBS if v != "fleet"])
def test_each_verb_has_json_and_its_keys_are_documented(verb, difiisr):
    pytest.importorskip("rclpy") if verb == "soak" else None
    shown = difiisr(verb, "--help").out
    assert "--json" in shown
    assert "INT INT" not in shown
    page = Path(__file__).parents[2] / "docs" / "command_line.md"
    assert f"\n| `{verb}` | " in page.read_text(encoding="utf-8")


def test_a_replay_and_a_scene_are_told_to_people_and_programs(tmp_path, difiisr, json_of):
    assert json_of("scene", tmp_path / "in", "--frames", "3")["kelvin_per_count"] == 0.01
    said = difiisr("scene", tmp_path / "other", "--frames", "1", "--seed", "5").out
    assert "kelvin = 0.01 x counts" in said
    told = json_of("replay", tmp_path / "in", tmp_path / "out", "--model", "bicubic")
    assert (told["frames_in"], told["frames_out"], told["topic"]) == (3, 3, "/thermal/sr")
    assert json_of("info", "--bag", tmp_path / "in")["encoding"] == ["mono16"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("info bicubic --size 64x48 80x60", "difiisr: nothing takes 80x60\n"),
        ("replay IN out --consistency 3", "should be less than or equal to 1 or should be 'auto'"),
        ("export difiisr-rt-x4 x.onnx --size 160", "write WIDTHxHEIGHT, as in 640x512"),
        ("replay IN out --remove-pattern false", "write --remove-pattern=false"),
        ("export difiisr-rt-x4 x.onnx --input-size=120x160", "--size WIDTHxHEIGHT"),
        ("export difiisr-rt-x4 x.onnx --profile 120x160", "--size WIDTHxHEIGHT"),  # of old versions
    ],
)
def test_what_is_wrong_with_a_command_line_is_said_in_plain_words(words, said, difiisr):
    assert said in difiisr(*words.split(), code=2).err


def test_a_switch_is_turned_off(tmp_path, difiisr):
    source, out = record(tmp_path / "in"), tmp_path / "out"
    difiisr("replay", source, out, "--model=bicubic", "--remove-pattern=false")


def test_info_says_what_a_recording_shows_and_how_to_launch(tmp_path, difiisr):
    def lines_of(*arguments):
        """What ``info`` prints, by name."""
        said = difiisr("info", *arguments).out.splitlines()
        return dict(line.split(maxsplit=1) for line in said)

    frame, broken = pixels(1), pixels(1)
    broken[3, 4] = 7
    bag = record(tmp_path / "bag", images=[broken] * 5, encoding="16UC1")
    lines = lines_of("--bag", bag, "--topic", "/cam/image_raw")
    assert lines["topic"] == "/cam/image_raw, 5 images"
    assert (lines["encoding"], lines["size"], lines["rate"]) == ("16UC1", "24x18", "10 Hz")
    assert lines["measured"] == f"7 to {frame.max()} counts"
    assert lines["invalid"] == "0 pixels"
    assert lines["launch"] == "ros2 launch difiisr_ros sr.launch.py image:=/cam/image_raw"
    lines = lines_of("--bag", bag, "--no-data", "7,65535")
    assert lines["invalid"] == "1 pixels"
    assert lines["measured"].split()[0] == str(broken[broken > 7].min())
    assert lines["launch"].endswith("no_data:=7,65535")


def test_info_says_what_runs_the_model(difiisr):
    output = difiisr("info", "bicubic", "--backend", "tensorrt").out
    assert "backend     torch on cpu\n            not tensorrt: bicubic always" in output


def test_offline_commands_import_no_ros(tmp_path):
    arguments = ["replay", str(record(tmp_path / "in")), str(tmp_path / "out"), "--model=bicubic"]
    code = (
        "import sys; from difiisr_ros.cli import main; "
        f"main({arguments!r}); main(['info', 'bicubic']); sys.exit('rclpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (tmp_path / "out").exists()
