"""The messages of an ONNX file, as far as they are read. Source: onnx/onnx.proto of https://github.com/onnx/onnx.

What people write for people (doc strings, metadata) is passed over, graphs inside of attributes are only seen to be there.
"""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.graphs.onnx.wire import Fields

MESSAGES: Mapping[str, Fields] = {
    "model": {7: ("graph", "graph"), 8: ("opsets", "*opset")},
    "opset": {1: ("domain", "text"), 2: ("version", "int")},
    "graph": {
        1: ("nodes", "*node"), 5: ("tensors", "*tensor"), 11: ("inputs", "*value"), 12: ("outputs", "*value"),
        15: ("sparse", "*blob"),
    },
    "node": {
        1: ("inputs", "*text"), 2: ("outputs", "*text"), 3: ("name", "text"), 4: ("op", "text"), 5: ("attributes", "*attribute"),
        7: ("domain", "text"),
    },
    "attribute": {
        1: ("name", "text"), 2: ("f", "float"), 3: ("i", "int"), 4: ("s", "bytes"), 5: ("t", "tensor"), 6: ("g", "blob"),
        7: ("floats", "*float"), 8: ("ints", "*int"), 9: ("strings", "*bytes"), 10: ("tensors", "*blob"), 11: ("graphs", "*blob"),
        20: ("type", "int"),
    },
    "tensor": {
        1: ("dims", "*int"), 2: ("dtype", "int"), 3: ("segment", "blob"), 4: ("floats", "*blob"), 5: ("int32s", "*int"),
        7: ("int64s", "*int"), 8: ("name", "text"), 9: ("raw", "blob"), 10: ("doubles", "*blob"), 11: ("uint64s", "*int"),
        13: ("external", "*entry"), 14: ("location", "int"),
    },
    "entry": {1: ("key", "text"), 2: ("value", "text")},
    "value": {1: ("name", "text"), 2: ("type", "type")},
    "type": {1: ("tensor", "tensor_type")},
    "tensor_type": {1: ("dtype", "int"), 2: ("shape", "shape")},
    "shape": {1: ("dims", "*dim")},
    "dim": {1: ("size", "int"), 2: ("name", "text")},
}  # fmt: skip

# Number of a type of elements → its name in files, ours, and how many bits one has.
DTYPES: Mapping[int, tuple[str, str, int]] = {
    1: ("float", "f32", 32), 2: ("uint8", "u8", 8), 3: ("int8", "i8", 8), 4: ("uint16", "u16", 16), 5: ("int16", "i16", 16),
    6: ("int32", "i32", 32), 7: ("int64", "i64", 64), 9: ("bool", "bool", 8), 10: ("float16", "f16", 16),
    11: ("double", "f64", 64), 12: ("uint32", "u32", 32), 13: ("uint64", "u64", 64), 16: ("bfloat16", "bf16", 16),
    17: ("float8e4m3fn", "f8e4m3", 8), 19: ("float8e5m2", "f8e5m2", 8),
}  # fmt: skip
