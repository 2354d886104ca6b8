"""Checkpoints that are broken, misfiled or out of reach: each a one-line CheckpointError that says what is wrong."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HTTPError as HubTransportError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assay.config import BUNDLED_MODEL, EngineConfig
from assay.errors import CheckpointError
from assay.model.registry import load_model
from assay.model.weights import Checkpoint, read_json, resolve
from tests.tiny import load_plain, rewrite_weights, save_bert

LAYER = "bert.encoder.layer.0"
QUERY, KEY, VALUE = (f"{LAYER}.attention.self.{part}.weight" for part in ("query", "key", "value"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "model"
    save_bert(folder, num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def pristine_sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "sharded"
    save_bert(folder, num_hidden_layers=1, shard="20KB")
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def sharded(pristine_sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine_sharded, tmp_path / "sharded"))


def refusal(action: Callable[[], Any]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(CheckpointError) as caught:
        action()
    assert "\n" not in caught.value.message
    return caught.value.message


def load_refusal(folder: Path) -> str:
    return refusal(lambda: load_model(folder))


# Strict loading. Each case alters the tensors; the message must hold every one of the words.


def _drop(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def _put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.zeros(shape)

    return change


def _uneven_thirds(tensors: dict[str, Tensor]) -> None:
    """Query too short and key too long by as much: joined, they have the right shape and the wrong meaning."""
    tensors[QUERY], tensors[KEY] = torch.zeros(30, 36), torch.zeros(42, 36)


def _legacy_twin(tensors: dict[str, Tensor]) -> None:
    tensors["bert.embeddings.LayerNorm.gamma"] = torch.ones(36)


STRICT: dict[str, tuple[Callable[[dict[str, Tensor]], None], list[str]]] = {
    "missing matrix": (_drop("bert.pooler.dense.weight"), ["missing", "dense.weight"]),
    "missing bias": (_drop(f"{LAYER}.output.LayerNorm.bias"), ["missing", "norm.bias"]),
    "missing embedding": (_drop("bert.embeddings.word_embeddings.weight"), ["missing", "word_embeddings.weight"]),
    "no head": (_drop("classifier.weight"), ["classifier.weight"]),
    "left over": (_put("bert.adapter.weight", 2, 2), ["left over", "bert.adapter.weight"]),
    "left over layer": (
        _put("bert.encoder.layer.1.output.dense.bias", 36),
        ["left over", "bert.encoder.layer.1.output.dense.bias"],
    ),
    "two of a fused three": (_drop(KEY), ["missing", "qkv.weight", "query", "value"]),
    "both apart and fused": (
        _put(f"{LAYER}.attention.self.qkv.weight", 108, 36),
        ["left over", f"{LAYER}.attention.self.qkv.weight"],
    ),
    "doubled by a legacy name": (_legacy_twin, ["doubled", "bert.embeddings.LayerNorm"]),
    "misshapen matrix": (_put(f"{LAYER}.intermediate.dense.weight", 60, 35), ["misshapen", "intermediate", "60, 35"]),
    "transposed matrix": (_put(f"{LAYER}.output.dense.weight", 60, 36), ["misshapen", "output.dense.weight"]),
    "misshapen embedding": (
        _put("bert.embeddings.position_embeddings.weight", 64, 36),
        ["misshapen", "position_embeddings.weight", "64, 36", "128, 36"],
    ),
    "misshapen head bias": (_put("classifier.bias", 4), ["misshapen", "classifier.bias"]),
    "scalar head": (_put("classifier.weight"), ["classifier.weight"]),
    "misshapen value": (_put(VALUE, 30, 36), ["misshapen", "value"]),
    "a third of another width": (_put(QUERY, 36, 35), ["misshapen", "qkv.weight", "query", "36, 35"]),
    "uneven thirds": (_uneven_thirds, ["misshapen", "qkv.weight", "query", "30, 36"]),
}


@pytest.mark.parametrize("case", STRICT)
def test_strict_loading_names_the_tensor(folder: Path, case: str) -> None:
    change, words = STRICT[case]
    rewrite_weights(folder, change)
    message = load_refusal(folder)
    for word in words:
        assert word in message


def test_many_problems_are_counted_not_listed(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({f"extra.{i}": torch.zeros(1) for i in range(20)})

    rewrite_weights(folder, change)
    message = load_refusal(folder)
    assert "12 more" in message
    assert len(message) < 1000


def test_ignorable_tensors_are_ignored(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in (
            "lm_head.weight",
            "cls.predictions.bias",
            "cls.seq_relationship.weight",
            "bert.embeddings.position_ids",
            "bert.rotary_emb.inv_freq",
        ):
            tensors[name] = torch.zeros(3)

    rewrite_weights(folder, change)
    load_model(folder)


def test_every_parameter_leaves_meta_and_is_the_checkpoints(folder: Path) -> None:
    module = load_plain(folder).module
    tensors = load_file(folder / "model.safetensors")
    ours = dict(module.named_parameters())
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in ours.values())
    assert torch.equal(ours["trunk.layers.0.qkv.weight"], torch.cat([tensors[name] for name in (QUERY, KEY, VALUE)]))
    assert sum(p.numel() for p in ours.values()) == sum(tensor.numel() for tensor in tensors.values())


# Files.


def test_same_tensor_in_two_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    tensors = load_file(first)
    name = min(tensors)
    save_file(load_file(second) | {name: tensors[name]}, second, metadata={"format": "pt"})
    message = load_refusal(sharded)
    assert name in message
    assert first.name in message
    assert second.name in message


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    shard.unlink()
    assert shard.name in load_refusal(sharded)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "[]",
        "{}",
        '{"weight_map": null}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["b"]}}',
    ],
)
def test_broken_index(sharded: Path, text: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(text)
    assert index.name in load_refusal(sharded)


def test_index_that_leaves_the_folder(sharded: Path, folder: Path) -> None:
    """An index is data from strangers: it names files beside it, nothing else."""
    index = sharded / "model.safetensors.index.json"
    outside = str(folder / "model.safetensors")
    for name in (outside, "../model/model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"classifier.weight": name}}))
        assert "model.safetensors" in load_refusal(sharded)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors" in load_refusal(folder)


def test_weights_that_are_cut_while_they_are_read(folder: Path) -> None:
    """They were mapped once, and the process ended."""
    checkpoint = Checkpoint(folder)
    tensors = iter(checkpoint)
    next(tensors)
    os.truncate(folder / "model.safetensors", 4096)
    assert "model.safetensors cannot be read" in refusal(lambda: list(tensors))


def test_weights_that_are_written_anew_once_they_are_read(folder: Path) -> None:
    tensors = dict(Checkpoint(folder))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_garbage_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert "model.safetensors" in load_refusal(folder)


def test_weights_that_are_a_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "model.safetensors" in load_refusal(folder)


def test_only_pickled_weights_are_refused_in_clear_words(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = load_refusal(folder)
    assert ".bin" in message
    assert "safetensors" in message


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in load_refusal(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json" in load_refusal(folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"bert"', b"3", b"{", b"", b"\xff\xfe{}", b"{'a': 1}"])
def test_config_that_is_no_object(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in load_refusal(folder)


def test_config_that_is_a_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json" in refusal(lambda: read_json(folder / "config.json"))


def test_shapes_are_known_before_any_tensor_is_read(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in checkpoint}
    assert checkpoint.shapes["classifier.weight"] == (3, 36)


# Where a model's name leads.


def test_a_folder_is_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert load_model(resolve("./model")).labels
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == folder


def test_the_bundled_model_is_found_by_the_name_that_its_answers_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(EngineConfig().served_name) == BUNDLED_MODEL
    (tmp_path / "assay" / "emotions").mkdir(parents=True)
    assert resolve("assay/emotions") == Path("assay/emotions"), "a folder that is there goes first"


def test_a_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    message = refusal(lambda: resolve(str(path)))
    assert str(path) in message
    assert "folder" in message


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "./absent", "../absent", "a/b/c", "~/absent/model", "with space/x"]
)
def test_a_folder_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.model.hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub for a path"))
    assert name in refusal(lambda: resolve(name))


SHA, OLD_SHA = "a" * 40, "b" * 40


class FakeHub:
    """The three calls of the hub that a snapshot needs: revision, tree, files. Counts what was fetched."""

    def __init__(self, files: dict[str, bytes], cache: Path) -> None:
        self.files = files
        self.cache = cache
        self.fetched: list[str] = []
        self.revisions = {"main": SHA, "v1": OLD_SHA}
        self.refuse: tuple[int, str] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=partial(self.server.serve_forever, poll_interval=0.01))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        status, body, headers = self.respond(request.command, path)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def respond(self, method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        if self.refuse is not None:
            return self.refuse[0], b"{}", {"x-error-code": self.refuse[1]}
        api = "/api/models/owner/name"
        if path == api or path.startswith(f"{api}/revision/"):
            revision = path.removeprefix(api).removeprefix("/revision/") or "main"
            sha = self.revisions.get(revision)
            if sha is None:
                return 404, b"{}", {"x-error-code": "RevisionNotFound"}
            files = [{"rfilename": name} for name in self.files]
            return 200, json.dumps({"id": "owner/name", "sha": sha, "siblings": files}).encode(), {}
        if path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": f"{i:040x}"}
                for i, (name, body) in enumerate(self.files.items())
            ]
            return 200, json.dumps(tree).encode(), {}
        if path.startswith("/owner/name/resolve/"):
            sha, _, name = path.removeprefix("/owner/name/resolve/").partition("/")
            if method == "GET":
                self.fetched.append(name)
            etag = f"{list(self.files).index(name):040x}"
            return 200, self.files[name], {"etag": f'"{etag}"', "x-repo-commit": sha}
        return 404, b"{}", {"x-error-code": "RepoNotFound"}


@pytest.fixture
def hub(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {path.name: path.read_bytes() for path in pristine.iterdir()}
    files |= {
        "pytorch_model.bin": b"pickle",
        "onnx/config.json": b"{}",
        "onnx/model.safetensors": b"",
        "README.md": b"#",
        "modeling_evil.py": b"raise SystemExit",
    }
    fake = FakeHub(files, tmp_path / "cache")
    download = partial(huggingface_hub.snapshot_download, endpoint=fake.url, cache_dir=fake.cache, token=False)
    monkeypatch.setattr("assay.model.hub.snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield fake
    huggingface_hub.close_session()
    fake.close()


def test_a_hub_id_is_fetched_without_what_is_not_needed(hub: FakeHub) -> None:
    folder = resolve("owner/name")
    assert load_model(folder).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert not (folder / "onnx").exists()


def test_a_second_time_and_offline_it_comes_from_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("owner/name")
    hub.fetched.clear()
    assert resolve("owner/name") == folder
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve("owner/name") == folder
    assert resolve("owner/name", revision=SHA) == folder
    assert not hub.fetched


def test_revision_is_honoured(hub: FakeHub) -> None:
    assert resolve("owner/name", revision="v1").name == OLD_SHA
    assert resolve("owner/name").name == SHA
    message = refusal(lambda: resolve("owner/name", revision="v2"))
    assert "owner/name" in message
    assert "v2" in message or "revision" in message.lower()


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (404, "RepoNotFound", "repository"),
        (401, "RepoNotFound", "auth login"),
        (403, "GatedRepo", "gated"),
        (401, "GatedRepo", "gated"),
        (403, "", "owner/name"),
        (500, "", "owner/name"),
    ],
)
def test_what_the_hub_refuses(hub: FakeHub, status: int, code: str, word: str) -> None:
    hub.refuse = (status, code)
    message = refusal(lambda: resolve("owner/name"))
    assert "owner/name" in message
    assert word in message


def cached(folder: Path, cache: Path) -> Path:
    """A checkpoint as the hub's cache holds it."""
    storage = cache / "models--owner--name"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(SHA)
    shutil.copytree(folder, storage / "snapshots" / SHA)
    shutil.copytree(folder, storage / "snapshots" / OLD_SHA)
    return storage / "snapshots"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without network, and its cache folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_offline_from_the_cache(folder: Path, offline: Path) -> None:
    snapshots = cached(folder, offline)
    assert resolve("owner/name") == snapshots / SHA
    assert resolve("owner/name", revision=OLD_SHA) == snapshots / OLD_SHA
    assert load_model(resolve("owner/name")).labels


def test_offline_and_not_in_the_cache(folder: Path, offline: Path) -> None:
    assert "owner/name" in refusal(lambda: resolve("owner/name"))
    cached(folder, offline)
    assert "owner/name" in refusal(lambda: resolve("owner/name", revision="v1"))


def test_the_hub_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = partial(
        huggingface_hub.snapshot_download, endpoint="http://127.0.0.1:9", cache_dir=tmp_path, token=False
    )
    monkeypatch.setattr("assay.model.hub.snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    message = refusal(lambda: resolve("owner/name"))
    assert "owner/name" in message
    assert "reached" in message
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    "error",
    [
        HubTransportError("peer closed connection without sending complete message body"),
        OSError(28, "No space left on device"),
        OSError(),
        ValueError("Consistency check failed: file should be of size 9 but has size 3"),
    ],
    ids=repr,
)
def test_a_download_that_breaks_off(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr("assay.model.hub.snapshot_download", fail)
    assert "owner/name" in refusal(lambda: resolve("owner/name"))


@pytest.mark.parametrize("name", ["a--b", "owner/na..me", "-owner/name", "owner/name.git", "x" * 200])
def test_a_name_that_the_hub_would_not_take(name: str, offline: Path) -> None:
    assert name in refusal(lambda: resolve(name))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path: Path, value: float) -> None:
    save_bert(tmp_path)
    rewrite_weights(tmp_path, lambda tensors: tensors["classifier.weight"][0].fill_(value))
    with pytest.raises(CheckpointError, match=r"not finite.*classifier\.weight"):
        load_model(tmp_path)


def test_bin_files_are_read_as_data_when_allowed(tmp_path: Path) -> None:
    save_bert(tmp_path)
    expected = dict(load_plain(tmp_path).module.named_parameters())
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    for part, legacy in ((0, False), (1, True)):
        shard = {name: state[name] for name in names[part::2]}
        torch.save(shard, tmp_path / f"pytorch_model-{part}.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        load_model(tmp_path)
    module = load_plain(tmp_path, allow_pickle=True).module
    assert all(torch.equal(parameter, expected[name]) for name, parameter in module.named_parameters())


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("content", ["code", "list", "garbage"])
def test_a_bin_file_of_anything_but_tensors_is_refused_and_not_run(tmp_path: Path, content: str) -> None:
    save_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    if content == "garbage":
        path.write_bytes(b"no pickle at all")
    else:
        torch.save({"x": _Evil(tmp_path / "marker")} if content == "code" else [1, 2], path)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(tmp_path, allow_pickle=True)
    assert not (tmp_path / "marker").exists()
