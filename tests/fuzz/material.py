"""What the cases work with: images, runs, saved models and checkpoints, good ones and damaged ones."""

import json
import os
import pickle
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import timm_mix  # noqa: F401
from timm_mix.commands import finetune, train
from timm_mix.hub import save_pretrained

__all__ = ["GOOD", "NET", "make_material"]

NET = ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1"]
GOOD = [
    *NET, "--aug", "none", "--img-size", "16", "--batch-size", "4", "--workers", "0", "--cpu", "--epochs", "1",
]  # fmt: skip


def make_material(root: Path) -> None:
    """Everything that a case reads; nothing of it may be changed by one."""
    _images(root)
    _odd_places(root)
    _recipes(root)
    _tables(root)
    data = ["--data-dir", str(root / "good"), "--output", str(root / "runs")]
    train.main([*GOOD, *data, "--experiment", "plain"])
    mixmo = ["--model", "mixmo", "--model-kwargs", "backbone=wrn16_2", "depth=10", "widen_factor=1", "--task", "mixmo"]
    train.main([*GOOD, *mixmo, *data, "--experiment", "mixmo"])
    finetune.main(["--model", f"local-dir:{root}/runs/plain/model", *data, "--experiment", "tuned", "--epochs", "1",
                   "--batch-size", "4", "--workers", "0", "--cpu", "--warmup-epochs", "0"])  # fmt: skip
    _damaged_checkpoints(root)
    _damaged_folders(root)


def _images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / "good" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) // (label + 1)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    first = root / "good" / "train" / "ant" / "0.png"
    for name, damage in {
        "torn": lambda path: path.write_bytes(first.read_bytes()[:60]),
        "text": lambda path: path.write_text("this is no image"),
        "empty": lambda path: path.write_bytes(b""),
        "nul": lambda path: path.write_bytes(bytes(4096)),
        "bomb": lambda path: path.write_bytes(_png_header(60000, 60000)),
        "zero_size": lambda path: path.write_bytes(_png_header(0, 0)),
        "deep": lambda path: Image.new("I;16", (16, 16), 40000).save(path),
        "crc": lambda path: path.write_bytes(_flip(first.read_bytes(), 60)),
        "link": lambda path: path.symlink_to("nowhere.png"),
    }.items():
        shutil.copytree(root / "good", root / name)
        path = root / name / "train" / "bee" / "9.png"
        damage(path)


def _png_header(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _odd_places(root: Path) -> None:
    (root / "nothing").mkdir()
    (root / "a_file").write_text("no folder")
    shutil.copytree(root / "good", root / "fifo")
    os.mkfifo(root / "fifo" / "train" / "ant" / "pipe.png")
    shutil.copytree(root / "good", root / "socket")
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(root / "socket" / "train" / "ant")  # the address of a socket is short
    listener.bind("ear.png")
    os.chdir(here)
    listener.close()
    shutil.copytree(root / "good", root / "loop")
    (root / "loop" / "train" / "ant" / "again").symlink_to(root / "loop" / "train")
    shutil.copytree(root / "good" / "train", root / "flat")
    shutil.copytree(root / "good", root / "one_class", ignore=shutil.ignore_patterns("bee", "cat"))
    shutil.copytree(root / "good", root / "hole")
    for path in (root / "hole" / "train" / "bee").iterdir():
        path.unlink()
    shutil.copytree(root / "good", root / "other_classes")
    (root / "other_classes" / "val" / "cat").rename(root / "other_classes" / "val" / "dog")
    shutil.copytree(root / "good", root / "strange names")
    (root / "strange names" / "train" / "ant").rename(root / "strange names" / "train" / "ant ' \" \n é")
    (root / "strange names" / "val" / "ant").rename(root / "strange names" / "val" / "ant ' \" \n é")


def _recipes(root: Path) -> None:
    (root / "recipes").mkdir()
    write = lambda name, text: (root / "recipes" / f"{name}.yaml").write_bytes(text)  # noqa: E731
    write("empty", b"")
    write("list", b"- lr\n- 0.1\n")
    write("word", b"hello\n")
    write("torn", b"lr: [0.1, \n")
    write("tab", b"lr:\t0.1\n\tepochs: 3\n")
    write("twice", b"lr: 0.1\nlr: 0.2\n")
    write("unknown", b"learning_rate: 0.1\n")
    write("python", f"lr: !!python/object/apply:os.system ['touch {root}/was_here']\n".encode())
    write("latin", "experiment: caf\xe9\n".encode("latin-1"))
    write("nul", b"lr: 0.1\0\n")
    write("deep", b"mix: " + b"[" * 20_000 + b"]" * 20_000)
    write("deep_map", b"mix: " + b"{a: " * 5_000 + b"1" + b"}" * 5_000)
    write("digits", b"epochs: " + b"9" * 6_000 + b"\n")
    write("float_digits", b"lr: " + b"9" * 6_000 + b"\n")
    write("bomb", b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n".encode() for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    ))  # fmt: skip
    write("wrong_type", b"epochs: many\n")
    write("none", b"lr: null\n")
    write("number_key", b"1: 2\n")
    write("merge", b"<<: 3\n")
    write("loop", b"mix: &a {b: *a}\n")
    write("mapping_of_flag", b"lr: {a: 1}\n")
    (root / "recipes" / "folder.yaml").mkdir()


def _tables(root: Path) -> None:
    (root / "tables").mkdir()
    names = [f"train/ant/{i}.png" for i in range(6)] + [f"train/bee/{i}.png" for i in range(6)]
    rows = "".join(
        f"{name},{'a;b' if i % 2 else 'b'},{'val' if i % 3 == 0 else 'train'}\n" for i, name in enumerate(names)
    )
    write = lambda name, text: (root / "tables" / f"{name}.csv").write_bytes(text)  # noqa: E731
    write("good", b"file,labels,split\n" + rows.encode())
    write("empty", b"")
    write("semicolons", b"file;labels\n")
    write("missing_file", b"file,label,split\nlost.png,a,train\n")
    write("short_row", b"file,label,split\ntrain/ant/0.png,a\n")
    write("quote", b'file,label,split\n"train/ant/0.png,a,train\n')
    write("bytes", b"file,label\n\xff\xfe,a\n")
    write("long", b"file,label\n" + b"x" * 200_000 + b",a\n")
    write("nul", b"file,label,split\ntrain/ant/0.png\0,a,train\n")
    write("not_a_switch", b"file,a,b\ntrain/ant/0.png,yes,0\n")
    write("folder", b"file,label,split\ntrain/ant,a,train\n")


def _damaged_checkpoints(root: Path) -> None:
    good = (root / "runs" / "plain" / "checkpoints" / "last.pt").read_bytes()
    folder = root / "checkpoints"
    folder.mkdir()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        (folder / f"torn_{share}.pt").write_bytes(good[: int(len(good) * share)])
    for place in (0.1, 0.3, 0.5, 0.7, 0.9):
        (folder / f"flipped_{place}.pt").write_bytes(_flip(good, int(len(good) * place)))
    (folder / "text.pt").write_text("weights")
    (folder / "zeros.pt").write_bytes(bytes(5000))
    torch.save({"a": 1}, folder / "another_dict.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    content = torch.load(root / "runs" / "plain" / "checkpoints" / "last.pt", weights_only=True)
    state = dict(content["state_dict"])
    first = next(iter(state))
    torch.save({"state_dict": {**state, first: torch.full_like(state[first], float("nan"))}}, folder / "nan.pt")
    torch.save({"state_dict": {k: v for k, v in state.items() if k != first}}, folder / "lacks.pt")
    torch.save({"state_dict": {**state, "more": torch.zeros(1)}}, folder / "more.pt")
    torch.save({"state_dict": {**state, first: torch.zeros(2, 2)}}, folder / "shape.pt")
    torch.save({"state_dict": {**state, first: "a string"}}, folder / "string.pt")
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), folder / "other_net.pt")
    with (folder / "pickle.pt").open("wb") as stream:
        pickle.dump(_Evil(root), stream)
    for key in content:
        torch.save({name: value for name, value in content.items() if name != key}, folder / f"without_{key}.pt")


class _Evil:
    """Leaves a file among the material, where the harness sees it, if it is ever unpickled with its code."""

    def __init__(self, root: Path):
        self.root = root

    def __reduce__(self):
        return os.system, (f"touch {self.root}/was_here",)


def _damaged_folders(root: Path) -> None:
    good = root / "runs" / "plain" / "model"
    config = json.loads((good / "config.json").read_text())
    weights = load_file(good / "model.safetensors")

    def folder(name: str, change=None, state=None) -> Path:
        made = root / "models" / name
        shutil.copytree(good, made)
        if change is not None:
            (made / "config.json").write_text(change if isinstance(change, str) else json.dumps(change))
        if state is not None:
            save_file(state, made / "model.safetensors")
        return made

    first = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    head = [name for name in weights if name.endswith("weight")][-1]
    folder("good")
    folder("no_json", "{")
    folder("list", "[]")
    folder("null", "null")
    folder("no_architecture", {key: value for key, value in config.items() if key != "architecture"})
    folder("other_architecture", {**config, "architecture": "resnet99"})
    folder("module", {**config, "architecture": "os.system"})
    folder("number", {**config, "architecture": 5})
    for name, args in {
        "hostile_args": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
        "hostile_checkpoint": {"checkpoint_path": "/etc/passwd"},
        "unknown_args": {"depht": 3},
        "huge_args": {"depth": 10**9},
        "args_list": [1, 2],
    }.items():
        folder(name, {**config, "model_args": args})
    folder("classes", {**config, "num_classes": 7})
    folder("negative_classes", {**config, "num_classes": -3})
    folder("text_classes", {**config, "num_classes": "three"})
    folder("labels", {**config, "label_names": ["ant"]})
    folder("nan", None, {**weights, first: torch.full_like(weights[first], float("nan"))})
    folder("lacks", None, {key: value for key, value in weights.items() if key != first})
    folder("more", None, {**weights, "more": torch.zeros(1)})
    folder("shape", None, {**weights, head: weights[head][:2].clone()})
    (folder("no_weights") / "model.safetensors").unlink()
    (folder("no_config") / "config.json").unlink()
    torn = folder("torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    wrong = folder("wrong_header") / "model.safetensors"
    wrong.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    save_pretrained(timm.create_model("test_resnet", num_classes=3), root / "models" / "other_net")
    (root / "models" / "suite.yaml").write_text(yaml.safe_dump({"runs": 3}))
