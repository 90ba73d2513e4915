"""Pickles and files of torch.save as an attacker would write them, byte by byte."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable

import torch

CALLS = {  # what an attacker would like to be called: module, name, argument
    "os system": ("os", "system", "touch executed"),
    "posix mkdir": ("posix", "mkdir", "executed"),
    "eval": ("builtins", "eval", "open('executed', 'w')"),
    "exec": ("builtins", "exec", "open('executed', 'w')"),
    "import": ("builtins", "__import__", "antigravity"),
    "getattr": ("builtins", "getattr", "x"),
    "open": ("builtins", "open", "executed"),
    "popen": ("subprocess", "Popen", "touch"),
    "loads": ("pickle", "loads", "x"),
    "torch load": ("torch", "load", "x"),
    "hub": ("torch.hub", "load", "x"),
    "import module": ("importlib", "import_module", "this"),
    "attrgetter": ("operator", "attrgetter", "x"),
    "partial": ("functools", "partial", "x"),
    "code": ("types", "CodeType", "x"),
    "dotted": ("torch", "serialization.os.system", "touch executed"),
    "dtype with a dot": ("torch", "float32.__class__", "x"),
    "path": ("pathlib", "Path", "/etc/passwd"),
    "surrogates": ("\udc80", "\udc80", "x"),
    "escapes": ("\x1b]0;title\x07", "\x1b[31m", "x"),
    "long": ("m" * 100_000, "n" * 100_000, "x"),
}


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def call(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def on_class(module: str, name: str) -> bytes:
    """Set an attribute of a class itself."""
    return f"\x80\x02c{module}\n{name}\n".encode("latin1") + b"}" + text("_parts") + b"K\x01sb."


def doubled(levels: int) -> bytes:
    """Tuples of two equal tuples, many times: few bytes, and 2 ** levels values."""
    content = b"\x80\x04)q\x00"
    for _ in range(levels):
        content += b"h\x00\x86q\x00"
    return content + b"."


def doubled_lists(levels: int) -> bytes:
    content = b"\x80\x02]q\x00"
    for _ in range(levels):
        content += b"]q\x01h\x00ah\x00aq\x00"
    return content + b"."


STREAMS: dict[str, bytes] = {
    **{f"calls {name}": call(*what) for name, what in CALLS.items()},
    **{
        f"changes {name}": on_class(module, name)
        for module, name in [
            ("pathlib", "PosixPath"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
            ("torch.distributed.checkpoint.metadata", "Metadata"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
        ]
    },
    "INST": b"(S'touch executed'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text("touch executed") + b"o.",
    "EXT": b"\x82\x01.",
    "an id of elsewhere": b"\x80\x02" + text("/etc/passwd") + b"Q.",
    "memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memo that is not there": b"\x80\x02h\x05.",
    "bytes of exabytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.",
    "text of exabytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0f.",
    "frame of exabytes": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a number of gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number of bytes": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "a deep key": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    "deep lists": b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b".",
    "marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "many lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "doubled tuples": doubled(60),
    "tripled lists": doubled_lists(40),
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dict in itself": b"\x80\x02}q\x00" + text("x") + b"h\x00s.",
    "no stop": b"\x80\x02N",
    "more after the stop": b"\x80\x02N.cos\nsystem\n.",
    "two values": b"\x80\x02NN.",
    "nothing": b"",
    "no value": b"\x80\x02.",
    "append to nothing": b"\x80\x02a.",
    "append to a text": b"\x80\x02" + text("x") + b"Na.",
    "an odd dict": b"\x80\x02}(Nu.",
    "text that is none": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "global without end": b"c" + b"x" * 10_000,
    "an old protocol": b"(lp0\nI1\na.",
    "buffers": b"\x80\x05\x97.",
    "zeros": bytes(1000),
}


def archive(content: bytes, records: dict[str, bytes] | None = None, *, packed: bool = False) -> bytes:
    """A file of torch.save with a pickle and storages."""
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as out:
        out.writestr("archive/data.pkl", content)
        for name, record in (records or {}).items():
            out.writestr(f"archive/{name}", record)
    return file.getvalue()


def tensor(*, size: tuple[int, ...] = (2,), strides: tuple[int, ...] = (1,), offset: int = 0, count: int = 2) -> bytes:
    """A tensor of float32, with any numbers."""

    def number(value: int) -> bytes:
        return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    args = b"(" + storage + number(offset) + numbers(size) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)Rt"
    return archive(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + args + b"R.", {"data/0": bytes(8)})


def saved(value: object, **more: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **more)
    return file.getvalue()


def _sparse() -> bytes:
    return saved(torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (10**12,), check_invariants=False))


FILES: dict[str, Callable[[], bytes]] = {
    **{f"file that {name}": lambda content=content: archive(content) for name, content in STREAMS.items()},
    "bytearray": lambda: archive(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."),
    "bytearray of builtins": lambda: archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."),
    "Tensor of terabytes": lambda: archive(b"\x80\x02ctorch\nTensor\n\x8a\x06\x00\x00\x00\x00\x00\x02\x85R."),
    "storage beyond its bytes": lambda: tensor(count=1_000_000, size=(1_000_000,)),
    "shape beyond its storage": lambda: tensor(size=(10**11,)),
    "strides beyond its storage": lambda: tensor(strides=(1000,)),
    "strides of nothing": lambda: tensor(size=(10**10,), strides=(0,)),
    "strides below it": lambda: tensor(strides=(-1,)),
    "offset beyond its storage": lambda: tensor(offset=10**12),
    "offset below it": lambda: tensor(offset=-100),
    "shape below zero": lambda: tensor(size=(-2,)),
    "shape that overflows": lambda: tensor(size=(2**40, 2**40), strides=(1, 1)),
    "sizes and strides of other lengths": lambda: tensor(strides=(1, 1)),
    "a packed pickle": lambda: archive(b"\x80\x02" + text("a" * 100_000_000) + b".", packed=True),
    "packed numbers": lambda: archive(b"\x80\x02N.", {"data/0": bytes(100_000_000)}, packed=True),
    "no pickle": lambda: archive(b"").replace(b"data.pkl", b"data.txt"),
    "another archive": lambda: saved([1])[:-22] + archive(b"N.")[-22:],
    "a name that is no text": lambda: saved([1]).replace(b"data.pkl", b"\xff\xfe\xff\xfe.pkl"),
    "a name in UTF-8 that is none": lambda: archive(b"\x80\x02N.", {"\u00e9": b""}).replace(b"\xc3\xa9", b"\xff\xff"),
    "cut archive": lambda: saved(torch.zeros(100))[:-50],
    "cut archive of a tensor": lambda: saved(torch.zeros(100))[100:],
    "old format": lambda: saved(torch.zeros(2), _use_new_zipfile_serialization=False),
    "sparse tensor": _sparse,
    "module": lambda: saved(torch.nn.Linear(1, 1)),
    "class": lambda: saved(io.BytesIO),
    "plain pickle": lambda: pickle.dumps([1]),
    "no file": lambda: b"hello",
}
