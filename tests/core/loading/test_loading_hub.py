"""Names that lead to the local Hugging Face cache or to a hub that answers, refuses or is silent."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest
from local_hub import COMMIT, REPO, Hub, put_in_cache
from running import write_tiny_llama

from xatlas import XatlasError, manager, testing
from xatlas.loading import download, model_files
from xatlas.loading.download import ModelSource
from xatlas.loading.loader import load
from xatlas.loading.model_names import available, resolve


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "xatlas"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def aliases(monkeypatch, tiny):
    known = {
        "tiny": ModelSource("tiny", REPO, "hub", "on the hub"),
        "tiny-mini": ModelSource("tiny-mini", str(tiny), "folder", "a folder"),
        "gone": ModelSource("gone", "/no/such/folder", "folder", "a folder that was deleted"),
    }
    monkeypatch.setattr(manager, "models", lambda: known)


@pytest.fixture
def endpoint(monkeypatch):
    from huggingface_hub import constants

    def point(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    return point


@pytest.fixture
def hub(tiny, endpoint):
    handler = type("ThisHub", (Hub,), {"model": tiny, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint(f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def closed_port(endpoint):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    endpoint(f"http://127.0.0.1:{number}")


def quiet(line: str) -> None:
    pass


def test_cached_model_needs_no_hub(cache, aliases, closed_port, tiny):
    put_in_cache(cache, tiny)
    found = resolve(REPO)
    assert (found.slug, found.revision, found.architecture) == ("someone--tiny-llama", COMMIT, "LlamaForCausalLM")
    assert not found.chat_template
    assert resolve("tiny").slug == "tiny"
    assert resolve(f"tiny@{COMMIT}").slug == f"tiny--{COMMIT}"
    assert available() == {"tiny": "cached", "tiny-mini": "local", "gone": "missing"}


def test_a_cached_revision_is_not_another(cache, aliases, closed_port, tiny):
    put_in_cache(cache, tiny)
    with pytest.raises(XatlasError, match="not in the local cache"):
        resolve(f"{REPO}@v1")
    snapshot = put_in_cache(cache, tiny, f"{REPO}-of-old", "f" * 40)
    refs = snapshot.parents[1] / "refs"
    (refs / "main").rename(refs / "v1")
    assert resolve(f"{REPO}-of-old@v1").revision == "f" * 40
    with pytest.raises(XatlasError, match="not in the local cache"):
        resolve(f"{REPO}-of-old")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_incomplete_snapshot_is_not_used(cache, aliases, closed_port, tiny, name):
    (put_in_cache(cache, tiny) / name).unlink()
    with pytest.raises(XatlasError, match="not in the local cache"):
        resolve(REPO)


def test_missing_shard_is_noticed(cache, aliases, closed_port, tiny):
    snapshot = put_in_cache(cache, tiny)
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    shards = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (snapshot / "model.safetensors.index.json").write_text(shards)
    assert download.cached_snapshot(REPO, None) is None
    (snapshot / "model-00002-of-00002.safetensors").touch()
    assert download.cached_snapshot(REPO, None) == snapshot


def test_closed_port_is_unreachable_and_says_what_works(cache, aliases, closed_port):
    with pytest.raises(XatlasError) as caught:
        resolve("tiny")
    message = str(caught.value)
    for part in (f"'tiny' ({REPO})", "is unreachable", "xatlas models fetch tiny", "Models that work now: tiny-mini."):
        assert part in message
    assert "\n" not in message


def test_hub_that_accepts_and_never_answers(cache, aliases, endpoint, monkeypatch):
    monkeypatch.setattr(download, "HUB_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(XatlasError, match=r"did not answer within|is unreachable .*Timeout"):
            resolve(REPO)


@pytest.mark.timeout(60)
def test_name_lookup_that_hangs_is_given_up(cache, aliases, endpoint, monkeypatch):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait()
        raise OSError("never found")

    monkeypatch.setattr(download, "HUB_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    endpoint("http://some.invalid")
    try:
        with pytest.raises(XatlasError, match=r"some\.invalid did not answer within"):
            resolve(REPO)
    finally:
        release.set()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "knows no such model"),
        (401, "", "knows no such model"),
        (404, "RevisionNotFound", "no such revision"),
        (403, "GatedRepo", "gated: ask for access"),
        (403, "", r"refused access \(HTTP 403\)"),
        (503, "", "HTTP 503"),
    ],
)
def test_refusals_are_told_apart(cache, aliases, hub, status, code, words):
    hub.status, hub.error_code = status, code
    with pytest.raises(XatlasError, match=words):
        resolve(f"{REPO}@v1", progress=quiet)
    assert hub.asked == [f"/api/models/{REPO}/revision/v1"]


def test_wrong_token_is_no_unknown_model(cache, aliases, hub):
    hub.status, hub.error_message = 401, "Invalid credentials in Authorization header"
    with pytest.raises(XatlasError, match=r"refused access \(HTTP 401\): check the token"):
        resolve(REPO)


def test_unknown_name_suggests_an_alias(cache, aliases, hub):
    hub.status, hub.error_code = 404, "RepoNotFound"
    with pytest.raises(XatlasError, match=r"Did you mean 'tiny-mini'\?"):
        resolve("tinymini")


def test_gate_that_closes_on_the_files_only(cache, aliases, hub):
    hub.gated_files = True
    with pytest.raises(XatlasError, match="gated: ask for access"):
        resolve(REPO, progress=quiet)


@pytest.mark.parametrize("shards", [False, True])
def test_a_download_leaves_pickles_and_other_copies_of_the_weights_alone(cache, aliases, hub, tiny, tmp_path, shards):
    hub.model = shutil.copytree(tiny, tmp_path / "there")
    if shards:
        weights = (hub.model / "model.safetensors").rename(hub.model / "model-00001-of-00001.safetensors")
        index = {"weight_map": {"model.norm.weight": weights.name}}
        (hub.model / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.extra_files = ("pytorch_model.bin", "onnx/model.onnx", "original/model.safetensors", "README.md")
    hub.extra_files += ("consolidated.safetensors", "model.fp16.safetensors")
    lines: list[str] = []
    found = resolve(REPO, progress=lines.append)
    assert {path.name for path in found.folder.iterdir()} == {path.name for path in hub.model.iterdir()}
    assert found.revision == COMMIT
    assert len(lines) == 1
    asked = len(hub.asked)
    assert resolve(REPO) == found
    assert len(hub.asked) == asked, "a cached model asked the hub"


def test_lora_weights_beside_a_model_on_the_hub_are_not_passed_over(cache, aliases, hub, tiny, tmp_path):
    hub.model = shutil.copytree(tiny, tmp_path / "both")
    (hub.model / "adapter_config.json").write_text("{}")
    with pytest.raises(XatlasError, match="holds LoRA weights beside the model"):
        resolve(REPO, progress=quiet)


def test_repository_of_pickles_is_refused_before_any_download(cache, aliases, hub):
    hub.extra_files, hub.hidden_files = ("pytorch_model.bin",), ("model.safetensors",)
    with pytest.raises(XatlasError, match="only pickles, which are never loaded"):
        resolve(REPO, progress=quiet)
    assert len(hub.asked) == 1


def test_a_plan_gets_the_config_alone_and_counts_as_with_the_weights(cache, aliases, hub, tiny):
    from typer.testing import CliRunner

    from xatlas.cli import app

    resolve(REPO, fetch="config", progress=quiet)
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
    rows = []
    for name in ("tiny", str(tiny)):
        done = CliRunner().invoke(app, ["plan", "-m", name, "--probes", "layer_ablation", "--json"])
        rows += json.loads(done.stdout)
    assert [row["state"] for row in rows] == ["needs download", "to do"]
    assert rows[0]["key"] is None
    assert rows[0]["GB"] == rows[1]["GB"]
    assert rows[0]["minutes"] == pytest.approx(rows[1]["minutes"], abs=1)
    whole = resolve(REPO, progress=quiet)  # the config in the cache does not pass for the model
    assert whole.weights_hash


def test_an_untrained_model_takes_config_and_tokenizer_from_the_hub_alone(cache, aliases, hub, tiny):
    hub.extra_files = ("pytorch_model.bin", "model-00001-of-00002.safetensors", "adapter_config.json")
    lines: list[str] = []
    planned = resolve("tiny~untrained:2", fetch="config", progress=lines.append)
    names = {path.name for path in tiny.iterdir()}
    assert {path.name for path in planned.folder.iterdir()} == names - {"model.safetensors"}
    assert not [path for path in hub.asked if path.endswith((".safetensors", ".bin", "adapter_config.json"))]
    assert (planned.slug, planned.revision, planned.untrained) == ("tiny~untrained-2", COMMIT, 2)
    asked = len(hub.asked)
    assert resolve("tiny~untrained:2") == planned
    assert len(hub.asked) == asked, "a cached model asked the hub"
    assert load(planned, device="cpu").model.num_parameters()
    hub.extra_files = ()
    whole = resolve("tiny", progress=quiet)  # what is in the cache does not pass for the model
    assert resolve("tiny~untrained:2") == planned
    assert whole.identity != planned.identity
    hub.extra_files, hub.hidden_files = ("pytorch_model.bin",), ("model.safetensors",)
    assert resolve(f"{REPO}@v2~untrained", progress=quiet).slug == "someone--tiny-llama--v2~untrained-0"


def test_a_config_that_a_plan_left_is_not_all_that_an_untrained_model_needs(cache, aliases, hub, tiny):
    resolve("tiny", fetch="config", progress=quiet)
    names = {path.name for path in resolve("tiny~untrained", progress=quiet).folder.iterdir()}
    assert names == {path.name for path in tiny.iterdir()} - {"model.safetensors"}


def test_an_untrained_model_that_the_hub_does_not_give_is_one_line(cache, aliases, closed_port):
    with pytest.raises(XatlasError, match="run 'xatlas models fetch tiny~untrained'"):
        resolve("tiny~untrained:1")


def test_a_plan_without_a_hub_is_one_line(cache, aliases, closed_port):
    with pytest.raises(XatlasError, match=r"cannot get the model 'tiny' .*is unreachable"):
        resolve("tiny", fetch="config")


def test_a_plan_refuses_what_a_run_would(cache, aliases, hub):
    hub.extra_files, hub.hidden_files = ("pytorch_model.bin",), ("model.safetensors",)
    with pytest.raises(XatlasError, match="only pickles, which are never loaded"):
        resolve(REPO, fetch="config", progress=quiet)


def test_offline_switch_is_named(cache, aliases, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(XatlasError, match="HF_HUB_OFFLINE is set"):
        resolve(REPO)


def test_not_asking_the_hub(cache, aliases, hub):
    with pytest.raises(XatlasError, match="not to be asked"):
        resolve(REPO, fetch="nothing")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nothing", "no model folder"),
        ("a/b/c", "no model folder"),
        ("x.gguf", "no model folder or GGUF file"),
        ("a b", "no alias, path or hub id"),
        ("tiny-mini@v1", "has no revisions"),
        ("tiny-mini+nowhere", "no LoRA weights in 'nowhere'"),
        ("gone", "does not exist"),
        ("tiny_mini", "Did you mean 'tiny-mini'"),
        ("Tiny-Mini@main", "Did you mean 'tiny-mini'"),
        ("~nosuchuser/model", "home folder in '~nosuchuser/model' is not known"),
        ("tiny-mini+~nosuchuser/lora", "home folder in '~nosuchuser/lora' is not known"),
        ("x" * 300, "no alias, path or hub id"),
        ("./" + "x" * 300, "no model folder"),
        ("tiny-mini+" + "x" * 300, "no LoRA weights"),
        ("a\0b", r"'a\\x00b' is no alias"),
        ("a\nb", r"'a\\nb' is no alias"),
        ("./a\0b", r"no model folder"),
        ("tiny-mini+a\0b", "no LoRA weights"),
    ],
)
def test_names_that_mean_nothing_never_reach_the_hub(cache, aliases, hub, name, words):
    with pytest.raises(XatlasError, match=words) as caught:
        resolve(name)
    assert hub.asked == []
    assert str(caught.value).isprintable()


def test_revision_with_slashes_reaches_the_hub(cache, aliases, hub):
    found = resolve(f"{REPO}@refs/pr/1", progress=quiet)
    assert hub.asked[0] == f"/api/models/{REPO}/revision/refs%2Fpr%2F1"
    assert found.slug == "someone--tiny-llama--refs-pr-1"
    assert resolve("tiny@refs/pr/1", progress=quiet).slug == "tiny--refs-pr-1"


def test_user_without_a_home_needs_a_cache_folder(monkeypatch):
    import pwd

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XATLAS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(XatlasError, match="set XATLAS_CACHE"):
        model_files.cache_folder()


def test_long_folder_names_give_short_slugs_that_differ(tiny, tmp_path):
    names = [str(shutil.copytree(tiny, tmp_path / ("x" * 200 + end))) for end in "ab"]
    slugs = {resolve(name).slug for name in names}
    assert len(slugs) == 2
    assert all(len(slug) < 200 for slug in slugs)


def test_resolving_imports_neither_torch_nor_transformers(cache, tiny):
    code = (
        "import sys; from xatlas.loading.model_names import resolve; from xatlas.loading.model_names import available; "
        f"resolve({str(tiny)!r}); available(); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_data_set_is_read_from_the_hub_or_refused_in_a_line(cache, hub, tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    from xatlas.plugins.training.data import named_by_contents, split

    (tmp_path / "words").mkdir()
    rows = [{"prompt": f"The number {n} is", "completion": f" {n}"} for n in range(20)]
    (tmp_path / "words" / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub.model = tmp_path / "words"
    settings = {"HF_ENDPOINT": constants.ENDPOINT, "HF_DATASETS_CACHE": tmp_path / "read", "HF_HUB_OFFLINE": False}
    for name, value in settings.items():
        monkeypatch.setattr(datasets.config, name, value)
    model = testing.tiny_model(manager.adapters()["LlamaForCausalLM"], "LlamaForCausalLM")
    taught, held = split(model, "someone/words")
    assert (len(taught), len(held)) == (18, 2)
    assert model.tokenizer.decode(taught[3].response[:-1]) == " 3"
    named = named_by_contents("someone/words")
    assert named == f"someone/words@{COMMIT}"
    assert split(model, named)[0] == taught
    hub.status, hub.error_code = 404, "RepoNotFound"
    with pytest.raises(XatlasError, match=r"'someone/other' could not be loaded: the hub knows no such data set"):
        split(model, "someone/other")
