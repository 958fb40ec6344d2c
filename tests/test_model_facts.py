"""Facts of a model come from small files and headers, and hostile files get a clear answer."""

import builtins
import functools
import json
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from mergekit.common import ModelReference
from preflight_models import LLAMA, llama_shapes, write_adapter, write_model, write_safetensors
from safetensors.torch import save_file

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.model_facts import read_model
from mergekit_collapse.preflight.tensor_headers import read_header


def facts_of(path, **options):
    return read_model(ModelReference.parse(str(path)), **options)


def complaint(path, **options):
    with pytest.raises(EvaluationError) as caught:
        facts_of(path, **options)
    assert "; " in str(caught.value), "what to do is missing"
    return str(caught.value)


def head_of(path):
    """Bytes before the data."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def shard(folder, names=("a.safetensors", "b.safetensors")):
    """Split a model into two files with an index."""
    shapes = llama_shapes(LLAMA)
    parts = [dict(list(shapes.items())[i::2]) for i in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        write_safetensors(folder / name, part)
    (folder / "model.safetensors").unlink()
    placed = {t: name for name, part in zip(names, parts, strict=True) for t in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


def test_facts_of_a_llama(tmp_path):
    facts = facts_of(write_model(tmp_path / "m", dtype="BF16", num_key_value_heads=1))
    assert facts.architecture == "LlamaForCausalLM"
    assert (facts.hidden_size, facts.layers, facts.heads, facts.kv_heads) == (8, 2, 2, 1)
    assert (facts.vocab_size, facts.embedding_rows, facts.intermediate_size) == (260, 260, 16)
    assert facts.dtypes == ("BF16",)
    assert facts.tensors["model.layers.1.self_attn.k_proj.weight"] == (4, 8)
    numbers = sum(torch.Size(shape).numel() for shape in facts.tensors.values())
    assert facts.checkpoint.total_bytes == 2 * numbers
    assert facts.settings["rope_parameters.rope_theta"] == 10000.0
    assert facts.tokenizer_digest is not None


def test_header_agrees_with_the_writer_of_safetensors(tmp_path):
    tensors = {
        "a": torch.zeros(3, 4),
        "b": torch.zeros((), dtype=torch.int64),
        "c": torch.zeros(0, 5, dtype=torch.bfloat16),
        "d": torch.zeros(7, dtype=torch.bool),
        "e": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.shapes == {name: tuple(t.shape) for name, t in tensors.items()}
    assert sum(header.bytes_of_dtype.values()) == sum(t.nbytes for t in tensors.values())


def test_no_tensor_data_is_read(tmp_path, monkeypatch):
    """A model of 140 GB, and not one byte past its header."""
    size = 1 << 16
    folder = write_model(tmp_path / "m", hidden_size=size, intermediate_size=size * 2)
    weights = folder / "model.safetensors"
    length = weights.stat().st_size
    assert length > 140e9
    assert weights.stat().st_blocks * 512 < 1e6, "this file system has no sparse files"
    read, plain_open = {}, builtins.open

    def counting_open(path, *args, **options):
        file = plain_open(path, *args, **options)
        if os.fspath(path) == str(weights):
            plain_read = file.read

            class Counted:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def read(self, count):
                    content = plain_read(count)
                    read[str(path)] = file.tell()
                    return content

            assert options.get("buffering") == 0
            return Counted()
        return file

    monkeypatch.setattr(builtins, "open", counting_open)
    facts = facts_of(folder)
    monkeypatch.undo()
    assert read == {str(weights): head_of(weights)}
    assert facts.checkpoint.total_bytes == length - head_of(weights)


def test_shards_and_symbolic_links(tmp_path):
    index = shard(write_model(tmp_path / "m"))
    assert facts_of(tmp_path / "m").tensors == facts_of(write_model(tmp_path / "whole")).tensors
    # The hub's cache holds links out of the folder.
    blob = shutil.move(tmp_path / "m" / "a.safetensors", tmp_path / "blob")
    (tmp_path / "m" / "a.safetensors").symlink_to(blob)
    assert facts_of(tmp_path / "m").embedding_rows == 260
    blob.unlink()
    assert "1 of the 2 shards" in complaint(tmp_path / "m")
    assert index.exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..\\x", "C:\\x", "", 7, None])
def test_an_index_cannot_lead_out(tmp_path, name):
    index = shard(write_model(tmp_path / "m"))
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    assert "leads out of the model's folder" in complaint(tmp_path / "m")


def test_an_index_that_lies(tmp_path):
    index = shard(write_model(tmp_path / "m"))
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "a.safetensors"
    index.write_text(json.dumps(content))
    assert "model.layers.9.mlp.up_proj.weight in a.safetensors" in complaint(tmp_path / "m")
    index.write_text("{}")
    assert "has no weight_map" in complaint(tmp_path / "m")


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is truncated: 0 bytes"),
        (b"\x01\x02", "is truncated: 2 bytes"),
        ((10**9).to_bytes(8, "little") + b"{}", "header of 1,000,000,000 bytes in a file of 10"),
        ((2**64 - 1).to_bytes(8, "little"), "announces a header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_impossible_lengths(tmp_path, content, said):
    write_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(content)
    assert said in complaint(tmp_path / "m")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{", "broken safetensors header"),
        (b"\xff\xfe{}", "broken safetensors header"),
        (b"[]", "not a JSON object"),
        (b"[" * 200_000, "broken safetensors header"),
        ({"a": 1}, "'a' is not described"),
        ({"a": {**ONE, "shape": [-2]}}, "lacks a valid"),
        ({"a": {**ONE, "shape": [2.0]}}, "lacks a valid"),
        ({"a": {**ONE, "data_offsets": [8, 0]}}, "lies at [8, 0]"),
        ({"a": {**ONE, "data_offsets": [0]}}, "lies at [0]"),
        ({"a": {**ONE, "shape": [3]}}, "has 8 bytes"),
        ({"a": ONE}, "is truncated: "),
    ],
)
def test_broken_headers(tmp_path, header, said):
    write_model(tmp_path / "m")
    header_file(tmp_path / "m" / "model.safetensors", header)
    assert said in complaint(tmp_path / "m")


def test_a_file_longer_than_its_header_says(tmp_path):
    write_model(tmp_path / "m")
    header_file(tmp_path / "m" / "model.safetensors", {"a": ONE}, data=b"0" * 9)
    assert "longer than its header says" in complaint(tmp_path / "m")


def test_a_truncated_shard(tmp_path):
    write_model(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    said = complaint(tmp_path / "m")
    assert "is truncated" in said
    assert str(weights) in said


def test_a_pipe_is_not_waited_for(tmp_path):
    write_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "m" / "model.safetensors")
    assert "is not a regular file" in complaint(tmp_path / "m")


def test_folders_that_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no config.json, nothing at all" in complaint(empty)
    assert "there is no such folder" in complaint("./absent")
    (tmp_path / "file").write_text("x")
    assert "is a file, but a model is a folder" in complaint(tmp_path / "file")
    (empty / "model.Q4_K_M.GGUF").write_bytes(b"GGUF")
    assert "convert them to safetensors" in complaint(empty)
    adapter = write_adapter(tmp_path / "lora", "base")
    assert "write it behind its base" in complaint(adapter)
    (write_model(tmp_path / "both") / "adapter_config.json").write_text("{}")
    assert "both a model and an adapter" in complaint(tmp_path / "both")


def test_weights_that_mergekit_does_not_look_for(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "found consolidated.safetensors" in complaint(folder)
    shutil.copy(folder / "consolidated.safetensors", folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "remove the stale one" in complaint(folder)


def test_pickled_weights(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1000)}, folder / "pytorch_model.bin")
    facts = facts_of(folder)
    assert facts.checkpoint.file_format == "bin"
    assert facts.tensors is None
    assert facts.embedding_rows is None
    os.truncate(folder / "pytorch_model.bin", 2000)
    assert "pytorch_model.bin is truncated" in complaint(folder)


def test_pickled_shards_have_names_from_the_index(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "x.bin")
    placed = dict.fromkeys(llama_shapes(LLAMA), "x.bin")
    index = {"metadata": {"total_size": 4}, "weight_map": placed}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    facts = facts_of(folder)
    assert facts.tensors["lm_head.weight"] is None
    assert facts.checkpoint.total_bytes == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ("[" * 200_000, "not valid JSON"),
        ("{}", "has no model_type"),
        ('{"model_type": "wonder"}', "does not know model type 'wonder'"),
        ('{"model_type": "wonder", "auto_map": {"AutoModel": "x.Y"}}', "--trust-remote-code"),
        (json.dumps(LLAMA | {"hidden_size": "big"}), "not valid for model type 'llama'"),
        (json.dumps(LLAMA | {"num_attention_heads": 0}), "not valid for model type 'llama'"),
        (json.dumps(LLAMA | {"architectures": None}), "must name one architecture"),
        (json.dumps(LLAMA | {"architectures": ["A", "B"]}), "must name one architecture"),
    ],
)
def test_bad_configs(tmp_path, content, said):
    write_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(content)
    assert said in complaint(tmp_path / "m")


def test_a_config_that_is_not_utf8(tmp_path):
    write_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(b'{"a": "\xff"}')
    assert "config.json is not valid JSON" in complaint(tmp_path / "m")


def test_overridden_architecture(tmp_path):
    folder = write_model(tmp_path / "m", architectures=None)
    reference = ModelReference(
        model={"path": str(folder)}, override_architecture="MistralForCausalLM"
    )
    assert read_model(reference).architecture == "MistralForCausalLM"


def test_adapter_facts(tmp_path):
    base = write_model(tmp_path / "base")
    adapter = write_adapter(tmp_path / "lora", base, rank=3)
    found = facts_of(f"{base}+{adapter}").adapter
    assert (found.declared_base, found.rank) == (str(base), 3)
    assert found.targets["model.layers.1.self_attn.q_proj.weight"] == (8, 8)
    (adapter / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    assert "is a 'IA3' adapter" in complaint(f"{base}+{adapter}")
    assert "no adapter_config.json" in complaint(f"{base}+{base}")


def test_half_an_adapter(tmp_path):
    base = write_model(tmp_path / "base")
    odd = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": [2, 8]}
    adapter = write_adapter(tmp_path / "lora", base, shapes=odd)
    assert "half of the LoRA pair for model.layers.0.mlp.up_proj" in complaint(f"{base}+{adapter}")


def test_hub_id_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = complaint("someone/some-model", cache_dir=str(tmp_path))
    assert "someone/some-model: is not a folder here, and the hub cannot be reached" in said
    assert "go online" in said


def test_hub_id_offline_but_cached(tmp_path, monkeypatch):
    commit = "0" * 40
    repository = tmp_path / "models--someone--some-model"
    write_model(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    facts = facts_of("someone/some-model", cache_dir=str(tmp_path))
    assert facts.embedding_rows == 260


class Hub(SimpleHTTPRequestHandler):
    """As much of the hub as a preflight asks for; counts the bytes of weights it serves."""

    sent = 0
    commit = "1" * 40

    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        folder = self.directory
        if path.startswith("/api/models/someone/some-model"):
            files = [
                {"rfilename": n, "size": os.stat(f"{folder}/{n}").st_size}
                for n in os.listdir(folder)
            ]
            body = {"id": "someone/some-model", "sha": self.commit, "siblings": files, "tags": []}
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        name = path.rpartition("/")[2]
        if path.startswith("/api/") or not os.path.exists(f"{folder}/{name}"):
            return self.answer(404, b"", X_Error_Code="RepoNotFound")
        marks = {"ETag": f'"{name}"', "X_Repo_Commit": self.commit}
        with open(f"{folder}/{name}", "rb") as file:
            if not self.headers["Range"]:
                assert not name.endswith(".safetensors"), "a whole weight file was asked for"
                return self.answer(200, file.read(), **marks)
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            file.seek(int(start))
            body = file.read(int(end) - int(start) + 1)
        type(self).sent += len(body)
        return self.answer(206, body, **marks)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "served", hidden_size=1 << 16, intermediate_size=1 << 17)
    Hub.sent = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    for kind in ("http", "https", "all"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind}_proxy".upper(), raising=False)
    huggingface_hub.close_session()
    yield folder
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def test_hub_id_is_read_by_ranges(hub, tmp_path):
    facts = facts_of("someone/some-model@main", cache_dir=str(tmp_path / "cache"))
    assert facts.hidden_size == 1 << 16
    assert Hub.sent == head_of(hub / "model.safetensors")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert "is neither a folder here nor a public model" in complaint("someone/else")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels"])
def test_a_config_that_would_fill_the_memory(tmp_path, key):
    write_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(LLAMA | {key: 10**40}))
    assert f"config.json says {key} is 1000" in complaint(tmp_path / "m")
