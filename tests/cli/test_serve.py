"""``finpercep serve``: what it refuses before anything starts, and what it starts."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.engine.serve import on_ray
from finpercep.engine.serve.settings import ServeSettings


def run(*arguments: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments], env={"FINPERCEP_TOKEN": "", **(env or {})})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been served."""
    calls: list[Any] = []

    @contextmanager
    def serving(model: str, settings: ServeSettings, **given: Any) -> Iterator[str]:
        calls.append((model, settings, given))
        yield f"http://{settings.host}:{settings.port}"

    monkeypatch.setattr(on_ray, "serving", serving)
    monkeypatch.setattr(on_ray, "wait_for_the_end", lambda: None)
    return calls


def test_options_become_settings(started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    options = ["--port", "9000", "--replicas", "2", "--queue-images", "128", "--dtype", "bf16", "--deterministic"]
    options += ["--token-file", str(tmp_path / "token")]
    result = run("--model", "finpercep-tiny", "--threads", "3", "--device", "cpu", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "finpercep-tiny: http://127.0.0.1:9000/score; metrics on port 8001; Ctrl-C ends\n"
    ((model, settings, given),) = started
    assert (model, given) == ("finpercep-tiny", {"device": "cpu", "cores": 3, "token": "secret", "address": None})
    assert settings == ServeSettings(port=9000, replicas=2, queue_images=128, dtype="bf16", deterministic=True)


def test_a_mixture_of_models(started: list[Any]) -> None:
    name = "finpercep-tiny + 0.5*finpercep-tiny/0"
    result = run("--device", "cpu", "--model", name)
    assert result.exit_code == 0, result.stderr
    assert [model for model, _, _ in started] == [name]


def test_the_token_of_the_environment(started: list[Any]) -> None:
    run("--device", "cpu", env={"FINPERCEP_TOKEN": "secret"})
    run("--device", "cpu")
    assert [given["token"] for _, _, given in started] == ["secret", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "host: expected 127.0.0.1, or a token for 0.0.0.0, which others reach\n"),
        (["--model", "finpercep-smal"], "finpercep-smal: no such model or folder; did you mean 'finpercep-small'"),
        (["--model", "finpercep-tiny + 2*finpercep-smal"], "finpercep-smal: no such model or folder; did you mean"),
        (["--dtype", "fp8"], "dtype: expected fp32, bf16, fp16, got 'fp8'\n"),
        (["--queue-images", "1"], "queue_images: expected at least request_images, 64, got 1\n"),
        (["--token-file", "gone"], "gone: No such file or directory\n"),
        (["--device", "nowhere"], "--device: expected a device of this machine, got nowhere: "),
    ],
)
def test_refused(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)


def test_a_damaged_model_is_said_before_ray_starts(started: list[Any], model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = run("--device", "cpu", "--model", str(folder))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{weights}: truncated or not a safetensors file: ")
    assert len(result.stderr.splitlines()) == 1
    assert started == []


def test_a_port_in_use_is_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "connect", lambda *_, **__: pytest.fail("started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--device", "cpu", "--port", str(port))
    assert result.exit_code == 1
    url = f"http://127.0.0.1:{port}"
    assert result.stderr == f"port: expected {url} to be free to listen at, got: Address already in use\n"
    on_ray.check_port(ServeSettings(port=port))


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    result = run("--token-file", str(tmp_path / "token"))
    assert (result.exit_code, result.stderr) == (2, f"{tmp_path / 'token'}: expected a token, got an empty file\n")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.startswith("serve needs Ray (")
    assert result.stderr.endswith("pip install 'finpercep[serve]'\n")


def test_more_replicas_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for the room without end."""
    ended: list[bool] = []
    machine = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0}, shutdown=lambda: ended.append(True))
    monkeypatch.setattr(on_ray, "connect", lambda *_, **__: machine)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = run("--device", "cpu", "--replicas", "4", "--threads", "1")
    assert result.exit_code == 2
    assert result.stderr == "replicas: expected at most 2 of 1 cores each on a machine of 2, got 4\n"
    assert ended == [True]
    on_ray.check_room({"CPU": 4.0, "GPU": 1.0}, 1, cores=4, device="cuda")
    with pytest.raises(ValueError, match=r"^replicas: expected at most 1, one for each GPU, got 2$"):
        on_ray.check_room({"CPU": 4.0, "GPU": 1.0}, 2, cores=1, device="cuda:0")
