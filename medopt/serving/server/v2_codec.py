"""Open Inference Protocol v2 over REST: bytes to a request, and a response to bytes; JSON with binary tensors.

Source: https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension
(protocol/extension_binary_data.md). No error quotes what was sent.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from medopt.core.records import FloatArray
from medopt.serving.server.form_data import Form, is_form, parse_form
from medopt.serving.server.limits import Refused
from medopt.serving.server.service import IMAGE, OUTPUTS, SCAN, InferenceRequest, InferenceResponse

TYPES = {IMAGE: "FP32", SCAN: "BYTES"}
_ID = 128


@dataclass(frozen=True, slots=True)
class OutputSelection:
    """What the response is to hold: the request's id, which outputs (none named: all), and which of them as binary.

    `binary` says it of those that are not named.
    """

    id: str = ""
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary: bool = False

    def names(self, given: Mapping[str, object]) -> list[str]:
        """The selected outputs of those that the release has; raises Refused for one that it has not."""
        if missing := [name for name in self.outputs if name not in given]:
            raise malformed(f"This release has no output {missing[0]}; it has {', '.join(given)}.")
        return [name for name in OUTPUTS if name in (self.outputs or given)]


def malformed(text: str) -> Refused:
    """The refusal of a request that does not follow the protocol."""
    return Refused("malformed", text)


def parse_request(
    body: bytes, header_length: str | None, content_type: str | None = None, max_scans: int = 64
) -> tuple[InferenceRequest, OutputSelection]:
    """A REST request; `header_length` is the header Inference-Header-Content-Length, where there is one.

    With the length 0 the whole body is one scan, as a file holds it; of a form (multipart/form-data) each file is one.
    Raises Refused.
    """
    if is_form(content_type):
        return _from_form(parse_form(body, content_type or "", max_scans + 1), header_length)
    if header_length is not None and header_length.strip() == "0":
        return InferenceRequest(scans=_whole(body)), OutputSelection()
    length = len(body) if header_length is None else _length(header_length, len(body))
    try:
        message = orjson.loads(memoryview(body)[:length])
    except ValueError as error:
        raise malformed(_not_json(body[:length], error)) from None
    try:
        return _input(message, memoryview(body)[length:]), _selection(message)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = type(error).__name__
        raise malformed(f"The request is not of the protocol: a field is absent or of a wrong type ({what}).") from None


def _not_json(body: bytes, error: ValueError) -> str:
    """What is wrong, and the advice that fits: bytes that begin as JSON were meant as JSON."""
    if not body.lstrip().startswith(b"{"):
        return (
            "The request is no JSON. For binary tensors give Inference-Header-Content-Length, the length of the JSON "
            "before them; with 0, the whole body is one scan."
        )
    position = getattr(error, "pos", None)
    place = "" if position is None else f" at character {position + 1}"
    if re.search(rb"[\[,:]\s*-?(NaN|Infinity|nan|inf)\b", body):
        return f"The request's JSON is not valid{place}: JSON has no NaN and no Infinity, and the model takes neither."
    return f"The request's JSON is not valid{place}."


def wants_ready(body: bytes) -> bool:
    """Whether the request for the repository's index is {"ready": true}; an empty body asks for all. Raises Refused."""
    if not body.strip():
        return False
    try:
        message = orjson.loads(body)
        ready = message.get("ready", False)
    except (ValueError, AttributeError):
        raise malformed('The request for the index is empty, or JSON such as {"ready": true}.') from None
    if not isinstance(ready, bool):
        raise malformed('"ready" is true or false.')
    return ready


def _whole(body: bytes) -> tuple[bytes, ...]:
    if not body:
        raise malformed("The body is empty; with Inference-Header-Content-Length: 0 it is one scan.")
    return (body,)


def _from_form(form: Form, header_length: str | None) -> tuple[InferenceRequest, OutputSelection]:
    if header_length is not None:
        raise malformed("A form has no Inference-Header-Content-Length: send the form, or the file alone.")
    if form.fields.keys() - {"id"} or not form.files:
        raise malformed('The form holds files, each a scan, and an "id" if you like: curl -F scan=@FILE.')
    return InferenceRequest(scans=form.files), OutputSelection(known_id(form.fields.get("id")))


def _length(text: str, most: int) -> int:
    if not text.strip().isdecimal() or int(text) > most:
        raise malformed("Inference-Header-Content-Length is no number, or larger than the body.")
    return int(text)


def _input(message: Any, binary: memoryview) -> InferenceRequest:
    inputs = message["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise malformed(f"Give exactly one input: {IMAGE} (FP32, prepared) or {SCAN} (BYTES, files).")
    tensor = inputs[0]
    name, shape = str(tensor["name"]), [int(side) for side in tensor["shape"]]
    check_input(name, str(tensor["datatype"]), shape)
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size")
    if size is not None:
        if "data" in tensor:
            raise malformed("The input has data in the JSON and bytes behind it: give one of them.")
        if size != len(binary):
            raise malformed("binary_data_size is not the number of bytes behind the JSON.")
        return from_raw(name, shape, binary)
    if len(binary):
        raise malformed("There are bytes behind the JSON, and the input has no binary_data_size.")
    return _from_json(name, shape, tensor["data"], str(parameters.get("content_type", "")))


def check_input(name: str, datatype: str, shape: Sequence[int]) -> None:
    """Raises Refused for an input that no release has."""
    if name not in TYPES:
        raise malformed(f"The inputs are {IMAGE} (FP32, prepared) and {SCAN} (BYTES, files); give one of them.")
    if datatype != TYPES[name]:
        raise malformed(f"The input {name} is of {TYPES[name]}.")
    if not shape or min(shape) < 1 or len(shape) > 8:
        raise malformed(f"The shape of the input {name} must hold positive numbers.")
    if name == SCAN and len(shape) > 1 and max(shape[1:]) > 1:
        raise malformed(f"The input {SCAN} has the shape (N,): N files.")


def from_raw(name: str, shape: Sequence[int], data: memoryview | bytes) -> InferenceRequest:
    """An input whose values are bytes: little-endian float32, or files with four bytes of length before each."""
    count = math.prod(shape)
    if name == SCAN:
        return InferenceRequest(scans=_split(memoryview(data), count))
    if 4 * count != len(data):
        raise malformed(f"The input {IMAGE} has {len(data)} bytes, and its shape needs {4 * count}.")
    return InferenceRequest(images=np.frombuffer(data, "<f4").reshape(shape))


def _split(data: memoryview, count: int) -> tuple[bytes, ...]:
    scans, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        if at > len(data):
            break
        scans.append(bytes(data[at - length : at]))
    if at != len(data) or len(scans) != count or not all(scans):
        raise malformed(
            f"The input {SCAN} must be as many files as its shape says, each after four bytes of its length "
            "(little-endian), and none of them empty."
        )
    return tuple(scans)


def _from_json(name: str, shape: Sequence[int], data: Any, content_type: str) -> InferenceRequest:
    if name == IMAGE:
        images: FloatArray = np.asarray(data, np.float32)
        if images.size != math.prod(shape):
            raise malformed(f"The input {IMAGE} has {images.size} values, and its shape needs {math.prod(shape)}.")
        return InferenceRequest(images=images.reshape(shape))
    if content_type != "base64":
        raise malformed(
            f"JSON holds no bytes: send the input {SCAN} as a binary tensor, or as base64 with the parameter "
            '"content_type": "base64".'
        )
    texts = [data] if isinstance(data, str) else data
    try:
        scans = tuple(base64.b64decode(text, validate=True) for text in texts)
    except (binascii.Error, ValueError, TypeError):
        raise malformed(f"The input {SCAN} is not base64.") from None
    if len(scans) != math.prod(shape) or not all(scans):
        raise malformed(f"The input {SCAN} must be as many files as its shape says, none of them empty.")
    return InferenceRequest(scans=scans)


def _selection(message: Any) -> OutputSelection:
    everything = bool((message.get("parameters") or {}).get("binary_data_output", False))
    outputs = {}
    for output in message.get("outputs") or []:
        binary = (output.get("parameters") or {}).get("binary_data")
        outputs[known_output(str(output["name"]))] = everything if binary is None else bool(binary)
    return OutputSelection(known_id(message.get("id")), outputs, everything)


def known_output(name: str) -> str:
    """The name of an output; raises Refused where there is none of that name."""
    if name not in OUTPUTS:
        raise malformed(f"The outputs are {', '.join(OUTPUTS)}.")
    return name


def known_id(value: Any) -> str:
    """A request's id, which is sent back and nothing else; raises Refused where it is too long."""
    text = str(value or "")
    if len(text) > _ID:
        raise malformed(f"The request's id is longer than {_ID} characters.")
    return text


def write_response(response: InferenceResponse, selection: OutputSelection) -> tuple[bytes, int | None]:
    """A REST body, and the length of the JSON in it where binary tensors follow."""
    outputs, pieces = [], []
    for name in selection.names(response.arrays):
        array = response.arrays[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype(array), "shape": list(array.shape)}
        if selection.outputs.get(name, selection.binary):
            pieces.append(to_raw(array))
            tensor["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            tensor["data"] = [value.decode() for value in array] if array.dtype == object else array.ravel().tolist()
        outputs.append(tensor)
    message = {"model_name": response.model, "model_version": response.version, "parameters": response.parameters}
    if selection.id:
        message["id"] = selection.id
    head = orjson.dumps(message | {"outputs": outputs})  # a NaN becomes null
    return (b"".join([head, *pieces]), len(head)) if pieces else (head, None)


def datatype(array: NDArray[Any]) -> str:
    """As the protocol names it."""
    return "BYTES" if array.dtype == object else "FP64"


def to_raw(array: NDArray[Any]) -> bytes:
    """A tensor's bytes, as `from_raw` reads them."""
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel())
    return np.ascontiguousarray(array, "<f8").tobytes()
