"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from halfreel_runtime.settings import (
    CommaList,
    LocalPath,
    ModelServerSettings,
    SettingsError,
    describe,
    load_settings,
    read_settings,
)


class VideoSettings(ModelServerSettings):
    port: int = Field(7602, ge=0, le=65535, description="Port.")
    frame_count: int = Field(25, ge=1, le=200, description="Frames of a clip.")
    preview: bool = Field(False, description="Sends previews.")
    addresses: CommaList = Field(("127.0.0.1:7601",), description="Where language models listen.")
    data: LocalPath = Field(Path("~/films").expanduser(), description="Where films lie.")
    timeout_s: float = Field(1.5, gt=0, description="How long to wait.")


def read(*argv: str, **environ: str) -> VideoSettings:
    return read_settings(VideoSettings, "video", list(argv), environ)


def test_a_flag_wins_over_the_environment_and_that_over_yaml(tmp_path: Path) -> None:
    path = tmp_path / "video.yaml"
    path.write_text("port: 1\nframe_count: 1\ntimeout_s: 1\naddresses: [a, b]\n")
    settings = read(
        "--config", str(path), "--port=3", HALFREEL_VIDEO_PORT="2", HALFREEL_VIDEO_FRAME_COUNT="2", HOME="/home"
    )
    assert (settings.port, settings.frame_count, settings.timeout_s) == (3, 2, 1.0)
    assert settings.addresses == ("a", "b")
    assert read(HALFREEL_VIDEO_CONFIG=str(path)).port == 1


def test_nothing_given_is_the_defaults() -> None:
    assert read() == VideoSettings()


def test_lists_switches_paths_and_seconds_are_read_from_text() -> None:
    settings = read("--preview", "--addresses", "a:1, b:2,", "--data", "~/x", HALFREEL_VIDEO_TIMEOUT_S="0.25")
    assert settings.preview is True
    assert settings.addresses == ("a:1", "b:2")
    assert settings.data == Path("~/x").expanduser()
    assert settings.timeout_s == 0.25
    assert read("--preview", "false", HALFREEL_VIDEO_PREVIEW="true").preview is False


@pytest.mark.parametrize(
    ("argv", "environ", "told"),
    [
        (["--fraem-count", "3"], {}, "--fraem-count is not a flag of this server; did you mean --frame-count?"),
        (["--frame", "3"], {}, "--frame is not a flag of this server; did you mean --frame-count?"),
        (["--xyzzy"], {}, "--xyzzy is not a flag of this server; --help lists them all"),
        (["stray"], {}, "stray is not a flag of this server"),
        (["--port"], {}, "argument --port: expected one argument"),
        (["--port", "99999"], {}, "--port is '99999'; input should be less than or equal to 65535"),
        (["--timeout-s", "nan"], {}, "--timeout-s is 'nan'; input should be"),
        (["--timeout-s", "inf"], {}, "--timeout-s is 'inf'; input should be"),
        ([], {"HALFREEL_VIDEO_PRT": "3"}, "HALFREEL_VIDEO_PRT is not an environment variable of this server; did"),
        (
            [],
            {"HALFREEL_VIDOE_PORT": "3"},
            "HALFREEL_VIDOE_PORT is not an environment variable of this server; did you",
        ),
        ([], {"HALFREEL_VIDEO_PORT": "x"}, "HALFREEL_VIDEO_PORT is 'x'; input should be a valid integer"),
        (
            [],
            {"HALFREEL_VIDEO_LOG_LEVEL": "loud"},
            "HALFREEL_VIDEO_LOG_LEVEL is 'loud'; input should be 'debug'",
        ),
        (["--config", "/nowhere.yaml"], {}, "the settings file /nowhere.yaml can't be read"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv: list[str], environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(*argv, **environ)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("frame_cuont: 3", "frame_cuont is not a setting; did you mean frame_count?"),
        ("port: [1]", "port is [1]; input should be a valid integer"),
        ("- port", "must hold names and values"),
        ("port: {", "is no YAML"),
        ("7: 8", "7 is not a setting"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "video.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        read("--config", str(path))
    assert told in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "video.yaml"
    path.write_text("# nothing yet\n")
    assert read("--config", str(path)) == VideoSettings()


def test_variables_of_others_are_left_alone() -> None:
    assert read(HALFREEL_LLM_PORT="1", HALFREEL_TOKEN_FILE="x", HALFREEL_GATEWAY_PRT="3", PATH="/bin").port == 7602


def test_settings_cannot_change_and_do_not_read_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("HALFREEL_VIDEO_PORT", "1")
    settings = VideoSettings()
    assert settings.port == 7602
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        VideoSettings(prot=3)  # type: ignore[call-arg]


def test_every_setting_is_described_for_help_and_docs(capsys: pytest.CaptureFixture[str]) -> None:
    docs = describe(VideoSettings, "video")
    assert {doc.name for doc in docs} == set(VideoSettings.model_fields)
    by_name = {doc.name: doc for doc in docs}
    timeout = by_name["timeout_s"]
    assert (timeout.env, timeout.flag) == ("HALFREEL_VIDEO_TIMEOUT_S", "--timeout-s")
    assert (timeout.type, timeout.default, timeout.unit) == ("number", "1.5", "seconds")
    assert by_name["addresses"].default == "127.0.0.1:7601"
    assert by_name["port_file"].type == "path"
    assert by_name["port_file"].default == "none"
    assert all(doc.description for doc in docs)
    with pytest.raises(SystemExit) as raised:
        load_settings(VideoSettings, "video", ["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert all(doc.flag in text and doc.env in text for doc in docs)


def test_load_settings_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load_settings(VideoSettings, "video", ["--prot", "3"])
    assert raised.value.code == 2
    assert capsys.readouterr().err == "halfreel-video: --prot is not a flag of this server; did you mean --port?\n"
