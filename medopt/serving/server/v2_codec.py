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
from medopt.serving.server.inputs import ReleaseInputs, Tensor
from medopt.serving.server.limits import Refused
from medopt.serving.server.service import IMAGE, OUTPUTS, SCAN, InferenceRequest, InferenceResponse

_ID = 128
_SCANS = ReleaseInputs()


@dataclass(frozen=True, slots=True)
class OutputSelection:
    """What the response is to hold: the request's id, which outputs (none named: all), and which of them as binary.

    `binary` says it of those that are not named.
    """

    id: str = ""
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary: bool = False

    def names(self, release_outputs: Mapping[str, object]) -> list[str]:
        """The selected outputs of those that the release has; raises Refused for one that it has not."""
        if missing := [name for name in self.outputs if name not in release_outputs]:
            raise malformed(f"This release has no output {missing[0]}; it has {', '.join(release_outputs)}.")
        return [name for name in OUTPUTS if name in (self.outputs or release_outputs)]


def malformed(text: str) -> Refused:
    """The refusal of a request that does not follow the protocol."""
    return Refused("malformed", text)


def parse_request(
    body: bytes,
    header_length: str | None,
    content_type: str | None = None,
    max_scans: int = 64,
    inputs: ReleaseInputs = _SCANS,
) -> tuple[InferenceRequest, OutputSelection]:
    """A REST request; `header_length` is the header Inference-Header-Content-Length, where there is one.

    With the length 0 the whole body is one scan, as a file holds it; of a form (multipart/form-data) each file is one,
    or one image of a case. `inputs` are those of the release. Raises Refused.
    """
    if is_form(content_type):
        form = parse_form(body, content_type or "", max_scans * len(inputs.files) + len(inputs.covariates) + 1)
        return _from_form(form, header_length, inputs)
    if header_length is not None and header_length.strip() == "0":
        return inputs.whole(body), OutputSelection()
    length = len(body) if header_length is None else _length(header_length, len(body))
    try:
        message = orjson.loads(memoryview(body)[:length])
    except ValueError as error:
        raise malformed(_not_json(body[:length], error)) from None
    try:
        return _request(message, memoryview(body)[length:], inputs), _selection(message)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = type(error).__name__
        raise malformed(f"The request is not of the protocol: a field is absent or of a wrong type ({what}).") from None


def _not_json(body: bytes, error: ValueError) -> str:
    """What is wrong, and the advice that fits: bytes that begin as JSON were meant as JSON."""
    if not body.lstrip().startswith(b"{"):
        return (
            "The request is not JSON. For binary tensors give Inference-Header-Content-Length, the length of the JSON "
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


def _from_form(
    form: Form, header_length: str | None, inputs: ReleaseInputs
) -> tuple[InferenceRequest, OutputSelection]:
    if header_length is not None:
        raise malformed("A form has no Inference-Header-Content-Length: send the form, or the file alone.")
    if form.fields.keys() - {"id", *inputs.covariates} or not form.files:
        fields = " ".join(f"-F {name}=@FILE" for name in inputs.files)
        each = f"one for each of {', '.join(inputs.channels)}" if inputs.channels else "each a scan"
        fields += "".join(f" -F {name}=VALUE" for name in inputs.covariates)
        raise malformed(f'The form holds files, {each}, and an "id" if you like: curl {fields}.')
    return inputs.from_form(form.files, form.fields), OutputSelection(known_id(form.fields.get("id")))


def _length(text: str, most: int) -> int:
    if not text.strip().isdecimal() or int(text) > most:
        raise malformed("Inference-Header-Content-Length is not a number, or larger than the body.")
    return int(text)


def _request(message: Any, binary: memoryview, inputs: ReleaseInputs) -> InferenceRequest:
    """The inputs of a message; those with a binary_data_size follow the JSON in their order."""
    tensors: list[tuple[str, Tensor]] = []
    if not isinstance(message["inputs"], list):
        return inputs.request(())  # which refuses it
    sizes = [(tensor.get("parameters") or {}).get("binary_data_size") for tensor in message["inputs"]]
    if binary and not any(size is not None for size in sizes):
        raise malformed("There are bytes behind the JSON, and the input has no binary_data_size.")
    counts = [size for size in sizes if size is not None]
    if sum(counts) != len(binary) or any(isinstance(size, bool) or size < 0 for size in counts):
        raise malformed("binary_data_size is not the number of bytes behind the JSON.")
    for tensor, size in zip(message["inputs"], sizes, strict=True):
        name, shape = str(tensor["name"]), [int(side) for side in tensor["shape"]]
        inputs.check(name, str(tensor["datatype"]), shape)
        parameters = tensor.get("parameters") or {}
        if size is None:
            kind, data = str(parameters.get("content_type", "")), tensor["data"]
            is_text = name in inputs.covariates
            tensors.append((name, _texts(name, shape, data) if is_text else _from_json(name, shape, data, kind)))
            continue
        if "data" in tensor:
            raise malformed("The input has data in the JSON and bytes behind it: give one of them.")
        tensors.append((name, from_raw(name, shape, binary[:size])))
        binary = binary[size:]
    return inputs.request(tensors)


def from_raw(name: str, shape: Sequence[int], data: memoryview | bytes) -> Tensor:
    """An input whose values are bytes: little-endian float32, or files with four bytes of length before each."""
    count = math.prod(shape)
    if name != IMAGE:
        return _split(name, memoryview(data), count)
    if 4 * count != len(data):
        raise malformed(f"The input {IMAGE} has {len(data)} bytes, and its shape needs {4 * count}.")
    return np.frombuffer(data, "<f4").reshape(shape)


def _split(name: str, data: memoryview, count: int) -> tuple[bytes, ...]:
    scans, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        if at > len(data):
            break
        scans.append(bytes(data[at - length : at]))
    if at != len(data) or len(scans) != count or (name == SCAN and not all(scans)):
        raise malformed(
            f"The input {name} must be as many files or texts as its shape says, each after four bytes of its length "
            "(little-endian)."
        )
    return tuple(scans)


def _from_json(name: str, shape: Sequence[int], data: Any, content_type: str) -> Tensor:
    if name == IMAGE:
        images: FloatArray = np.asarray(data, np.float32)
        if images.size != math.prod(shape):
            raise malformed(f"The input {IMAGE} has {images.size} values, and its shape needs {math.prod(shape)}.")
        return images.reshape(shape)
    if content_type != "base64":
        raise malformed(
            f"JSON holds no bytes: send the input {name} as a binary tensor, or as base64 with the parameter "
            '"content_type": "base64".'
        )
    texts = [data] if isinstance(data, str) else data
    try:
        scans = tuple(base64.b64decode(text, validate=True) for text in texts)
    except (binascii.Error, ValueError, TypeError):
        raise malformed(f"The input {name} is not base64.") from None
    return as_many(name, scans, shape)


def _texts(name: str, shape: Sequence[int], data: Any) -> tuple[bytes, ...]:
    """The texts of a covariate's input; numbers are taken as they are written, and null is a missing one."""
    values = data if isinstance(data, list) else [data]
    if any(isinstance(value, bool) or not isinstance(value, str | int | float | None) for value in values):
        raise malformed(f"The input {name} holds texts or numbers.")
    return as_many(name, tuple(b"" if value is None else str(value).encode() for value in values), shape)


def as_many(name: str, files: tuple[bytes, ...], shape: Sequence[int]) -> tuple[bytes, ...]:
    """The files or texts as they are; raises Refused where the shape says another number."""
    if len(files) != math.prod(shape):
        raise malformed(f"The input {name} must be as many files or texts as its shape says.")
    return files


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
