"""Directories of runs as a stranger may hand them over, by what is wrong with each."""

import json
import os
from pathlib import Path, PurePosixPath

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from tests.train.support.spoiling import (
    DATA,
    Liar,
    Spoil,
    change_manifest,
    checkpoint,
    description,
    elsewhere,
    first_tensor,
    flipped,
    in_checkpoint,
    linked,
    manifest_text,
    metadata,
    one_metric,
    path_of_first,
    places,
    rename,
    replaced,
    resize,
    value,
    written,
)
from tests.train.support.strange_pickles import FILES, STREAMS, saved

LAUGHS = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 60))
DEEP = '{"a":' * 900 + "1" + "}" * 900
NAMES = ["../config.yaml", "/etc/passwd", "..", "", "a\0b", "\x1b[31m", "\ud800", "x" * 5000, "manifest.json", "a/b"]
PLACES: list[object] = [
    *("../../../outside/secret", "/etc/passwd", "", ".", "..", f"./{DATA}", f"{DATA}/", "a\0b", "a\nb", "\x1b[31m"),
    *("\udc80", "x" * 300, "../" * 1000, 7, None, b"x", ("a",), PurePosixPath(DATA), Liar(DATA)),
]
OPTIONS: dict[str, object] = {
    "text": "high",
    "list": [1] * 10,
    "nested": [[[[[[1]]]]]],
    "dict": {"a": {"b": 1}},
    "huge": 10**30,
    "nan": float("nan"),
    "nothing": None,
    "matrix": torch.zeros(100, 100),
    "colors": "\x1b[31m" * 1000,
    "bytes": b"x" * 10,
    "set": {1, 2},
}
PARTS = ("config.yaml", "summary.json", "metrics.jsonl", "sample.txt", "loss.png")

RUNS: dict[str, Spoil] = {
    **{
        f"description that {name}": description(lambda _, content=content: content) for name, content in STREAMS.items()
    },
    **{
        f"description cut to {part}/8": description(lambda all, part=part: all[: len(all) * part // 8])
        for part in range(8)
    },
    **{f"description flipped {seed}": description(flipped(seed)) for seed in range(16)},
    **{f"place {place!r:.20}": elsewhere(place) for place in PLACES},
    **{f"place from {offset}": places(offset=offset) for offset in (-1, 10**9, 2**63, 2**100, 1.5, None, True)},
    **{f"place of {length}": places(length=length) for length in (-1, 0, 10**9, 2**100)},
    "place of two": metadata(lambda m: [setattr(v, "offset", 0) for v in m.storage_data.values()]),
    "extensions": places(transform_descriptors=["stream.zstd"]),
    "no place": metadata(lambda m: m.storage_data.popitem()),
    "one place more": metadata(
        lambda m: m.storage_data.update({MetadataIndex("x"): next(iter(m.storage_data.values()))})
    ),
    "no places": metadata(lambda m: setattr(m, "storage_data", None)),
    "places in a list": metadata(lambda m: setattr(m, "storage_data", [])),
    "no entries": metadata(lambda m: setattr(m, "state_dict_metadata", {})),
    "entries in a list": metadata(lambda m: setattr(m, "state_dict_metadata", [1])),
    "an attribute more": metadata(lambda m: setattr(m, "more", 1)),
    "version": metadata(lambda m: setattr(m, "version", "\x1b[31m" * 10)),
    **{f"shape {size!s:.20}": resize(size) for size in ((10**12,), (2**62, 2**62), (1,) * 65, (3, 3), (10**6, 10**6))},
    "no chunk": first_tensor(lambda t: setattr(t, "chunks", [])),
    "a chunk twice": first_tensor(lambda t: setattr(t, "chunks", t.chunks * 2)),
    "a chunk shared": first_tensor(lambda t: setattr(t, "chunks", t.chunks * 100_000)),
    "a smaller chunk": first_tensor(lambda t: setattr(t.chunks[0], "sizes", torch.Size([1] * len(t.size)))),
    "a chunk elsewhere": first_tensor(lambda t: setattr(t.chunks[0], "offsets", torch.Size([5] * len(t.size)))),
    "a chunk without dims": first_tensor(lambda t: setattr(t.chunks[0], "offsets", torch.Size([]))),
    "a chunk of negative numbers": first_tensor(lambda t: setattr(t.chunks[0], "offsets", (-1,) * len(t.size))),
    "chunks in a text": first_tensor(lambda t: setattr(t, "chunks", "chunks")),
    "another dtype": first_tensor(lambda t: setattr(t.properties, "dtype", torch.complex128)),
    "a sparse layout": first_tensor(lambda t: setattr(t.properties, "layout", torch.sparse_coo)),
    **{f"key {name!r:.20}": rename(name) for name in ("x" * 20_000, "\x1b[31m", "\ud800", 1, "")},
    "path to a far item": path_of_first(("model", 10**9)),
    "path below an item": path_of_first(("model", -1)),
    "path of another": path_of_first(("optimizer", "x")),
    "path in a list": path_of_first([]),
    "path without end": path_of_first(("a",) * 10_000),
    "path of nothing": path_of_first(()),
    **{f"weights: {name}": value("model.", content) for name, content in FILES.items()},
    **{f"lr: {name}": value(".lr", content) for name, content in FILES.items() if not name.startswith("file that")},
    **{f"lr is {name}": value(".lr", lambda of=of: saved(of)) for name, of in OPTIONS.items()},
    **{f"params are {name}": value(".params", lambda of=of: saved(of)) for name, of in OPTIONS.items()},
    "weights of another shape": value("model.", lambda: saved(torch.zeros(3, 3, 3))),
    "weights in a text": value("model.", lambda: saved("weights")),
    "random numbers": value("rng.cpu", lambda: saved(torch.zeros(5056, dtype=torch.uint8))),
    "random numbers of another kind": value("rng.cpu", lambda: saved(torch.zeros(5, 5))),
    **{
        f"manifest: file {name!r:.20}": lambda run, name=name: change_manifest(
            run, files={name: {"bytes": 1, "sha256": ""}}
        )
        for name in NAMES
    },
    **{
        f"manifest: step {step!r:.20}": lambda run, step=step: change_manifest(run, step=step)
        for step in (True, -1, 10**30, 40.0, "40", None, [40])
    },
    **{
        f"manifest: {text!r:.20}": manifest_text(text)
        for text in ("", "[" * 100_000, DEEP, "9" * 5000, "NaN", b"\xff\xfe", '{"a":1,' * 1000)
    },
    "manifest: seconds": lambda run: change_manifest(run, seconds="long"),
    "manifest: settings": lambda run: change_manifest(run, config=[1]),
    "manifest: deep settings": lambda run: change_manifest(run, config={"seed": json.loads("[" * 200 + "]" * 200)}),
    "manifest: colors": lambda run: change_manifest(run, config={"\x1b[31m": "\x1b]0;x\x07" * 9999}),
    "manifest: digest": lambda run: change_manifest(run, files={".metadata": {"bytes": "many", "sha256": 3}}),
    **{
        f"checkpoint: {name} is a pipe": in_checkpoint(os.mkfifo, name)
        for name in (DATA, ".metadata", "manifest.json", "more")
    },
    **{
        f"checkpoint: {name} is a link": in_checkpoint(
            lambda path: path.symlink_to(path.parents[3] / "outside" / "secret"), name
        )
        for name in (DATA, ".metadata", "manifest.json", "more")
    },
    **{
        f"checkpoint: {name} is a folder": in_checkpoint(os.mkdir, name)
        for name in (DATA, ".metadata", "manifest.json")
    },
    **{f"{name} is a link": linked(name) for name in PARTS},
    **{f"{name} is a link to nothing": replaced(name, lambda path: path.symlink_to("/nowhere/x")) for name in PARTS},
    **{f"{name} is a pipe": replaced(name, os.mkfifo) for name in (*PARTS, "checkpoints", "tensorboard")},
    **{f"{name} is a folder": replaced(name, os.mkdir) for name in PARTS},
    **{f"{name} is a linked folder": linked(name, folder=True) for name in ("checkpoints", "tensorboard")},
    **{f"{name} is a file": replaced(name, Path.touch) for name in ("checkpoints", "tensorboard")},
    "the checkpoint is a linked folder": lambda run: linked(f"checkpoints/{checkpoint(run).name}", folder=True)(run),
    "settings: laughs": written("config.yaml", LAUGHS),
    "settings: deep": written("config.yaml", "[" * 10_000),
    "settings: deep blocks": written("config.yaml", "".join(" " * i + "a:\n" for i in range(900))),
    "settings: python": written("config.yaml", "steps: !!python/object/apply:os.system ['touch executed']"),
    "settings: a huge number": written("config.yaml", f"steps: {'9' * 6000}"),
    "settings: no date": written("config.yaml", "steps: 2001-99-99"),
    "settings: itself": written("config.yaml", "model: &a [*a]"),
    "settings: bytes": written("config.yaml", b"\xff\xfe\x00steps"),
    "settings: zeros": written("config.yaml", bytes(10**7)),
    "settings: long": written("config.yaml", "steps: 1 #" + "x" * 10**7),
    "settings: colors": written("config.yaml", 'steps: "\\e[31m"'),
    **{
        f"metrics: {key} {of!r:.20}": one_metric(**{key: of})
        for key, of in (
            ("step", "1"),
            ("step", None),
            ("loss", "x"),
            ("loss", [1]),
            ("tokens_per_second", 0),
            ("seconds", 10**400),
            ("more", 1),
        )
    },
    "metrics: deep": written("metrics.jsonl", "[" * 100_000 + "\n1\n"),
    "metrics: bytes": written("metrics.jsonl", b"\xff\xfe\n\n"),
}
