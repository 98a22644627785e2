"""The base before it is fetched: the same shapes from a directory, a hub and a hub's cache."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import FailureError, InputError
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.params.params import ModelParams
from pipeline.params.reading import read_params
from pipeline.planning.model_source import examined_base
from pipeline.planning.source import Source
from pipeline.stages import fetch
from tests.hub_server import COMMIT, Hub, serve_hub
from tests.models import tiny_llama
from tests.support import ROOT

REPO = "org/tiny"
HUB_SOURCE = f"hf:{REPO}@{COMMIT}"


def model_params(source: str) -> ModelParams:
    return ModelParams(source=source, license=None, gguf_pre_tokenizer=None)


def read_source(workspace: Workspace, model: ModelParams) -> Source:
    with examined_base(workspace, model) as base:
        return base.source


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub(Hub({REPO: tiny_llama(tmp_path / "model", shards=2)})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_a_hub_model_is_read_without_its_weights(hub: Hub, tmp_path: Path) -> None:
    remote = read_source(Workspace(tmp_path), model_params(HUB_SOURCE))
    ranged = [it for it in hub.requests if it.path.endswith(".safetensors") and it.method == "GET"]
    assert ranged
    assert all("Range" in it.headers or "range" in it.headers for it in ranged)
    local = read_source(Workspace(tmp_path), model_params("model"))
    assert remote == local
    assert local.shape.num_weights > 100_000


def test_the_tokenizer_of_a_hub_model_is_read_without_its_weights(hub: Hub, tmp_path: Path) -> None:
    with examined_base(Workspace(tmp_path), model_params(HUB_SOURCE)) as base:
        remote = tokenizer_of(base.directory)
        assert not list(base.directory.glob("*.safetensors"))
    assert not base.directory.exists()
    assert remote.get_vocab() == tokenizer_of(tmp_path / "model").get_vocab()


@pytest.mark.slow
def test_offline_the_cache_is_enough(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_download(
        REPO, revision=COMMIT, endpoint=hub.endpoint, cache_dir=constants.HF_HUB_CACHE
    )
    expected = read_source(Workspace(tmp_path), model_params(HUB_SOURCE))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert read_source(Workspace(tmp_path), model_params(HUB_SOURCE)) == expected
    assert hub.requests == []


def test_what_is_fetched_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    params = read_params(ROOT / PARAMS_FILE)
    fetch.run(workspace, params.model_copy(update={"model": model_params(HUB_SOURCE)}))
    hub.requests.clear()
    assert read_source(workspace, model_params(HUB_SOURCE)).shape.vocab_size == 320
    assert hub.requests == []


def test_the_demo_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo" / "model", tmp_path / "demo" / "model")
    found = read_source(Workspace(tmp_path), model_params("demo"))
    assert found.shape.hidden_size == 256
    assert found.experts_per_token is None


def test_experts_of_a_mixture_come_from_the_configuration(tmp_path: Path) -> None:
    model_dir = tiny_llama(tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 2}))
    assert read_source(Workspace(tmp_path), model_params("model")).experts_per_token == 2


def test_a_missing_directory_and_a_broken_header_are_one_line(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'none': no such directory"):
        read_source(Workspace(tmp_path), model_params("none"))
    weights = hub.repos[REPO] / "model-00001-of-00002.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    with pytest.raises((InputError, FailureError), match=weights.name) as caught:
        read_source(Workspace(tmp_path), model_params(HUB_SOURCE))
    assert "\n" not in str(caught.value)
