"""Requests at the limits of the protocol and of the server's memory: exactly at each limit, and one beyond."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from medopt.serving.server.inputs import ReleaseInputs
from medopt.serving.server.limits import GRPC, HTTP, MEBI, Admission, Refused, ServerLimits
from medopt.serving.server.service import OUTPUTS, InferenceResponse
from medopt.serving.server.v2_codec import (
    OutputSelection,
    datatype,
    from_raw,
    known_id,
    parse_request,
    to_raw,
    wants_ready,
    write_response,
)


def ask(tensor: dict[str, Any], binary: bytes = b"", **message: Any) -> Any:
    head = json.dumps({"inputs": [tensor]} | message).encode()
    return parse_request(head + binary, str(len(head)) if binary else None)


def image(values: Any = (1.0, 2.0), shape: tuple[Any, ...] = (1, 2), **more: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "FP32", "shape": list(shape), "data": list(values)} | more


def scans(*files: Any, shape: Any = None, **more: Any) -> dict[str, Any]:
    texts = [base64.b64encode(file).decode() if isinstance(file, bytes) else file for file in files]
    base = {"name": "scan", "datatype": "BYTES", "shape": shape or [len(files)], "data": texts}
    return base | {"parameters": {"content_type": "base64"}} | more


def refused(*request: Any, **message: Any) -> str:
    with pytest.raises(Refused) as found:
        ask(*request, **message)
    assert found.value.kind == "malformed"
    return found.value.text


def test_values_in_json_and_behind_it_are_the_same() -> None:
    values = np.array([[0.5, -2.0], [3.0, 4.25]], np.float32)
    for request in (
        ask(image(values.tolist(), (2, 2))),
        ask(image(values.ravel().tolist(), (2, 2))),
        ask(
            {"name": "image", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
            values.astype("<f4").tobytes(),
        ),
    ):
        found, selection = request
        assert found.images.dtype == np.float32 and np.array_equal(found.images, values)
        assert (found.count, found.scans) == (2, ())
        assert selection == OutputSelection("", {}, binary=False)
    assert np.asarray(from_raw("image", [2], struct.pack("<2f", 1.5, -2))).tolist() == [1.5, -2]


def test_a_shape_has_one_to_eight_positive_sides() -> None:
    for sides in (1, 8):
        ReleaseInputs().check("image", "FP32", [1] * sides)
    for shape in ([], [1] * 9, [0], [2, 0], [-1], [1, -1]):
        with pytest.raises(Refused, match="must hold positive numbers"):
            ReleaseInputs().check("image", "FP32", shape)
    ReleaseInputs().check("scan", "BYTES", [3])
    ReleaseInputs().check("scan", "BYTES", [3, 1])
    for shape in ([3, 2], [1, 1, 2]):
        with pytest.raises(Refused, match="has the shape"):
            ReleaseInputs().check("scan", "BYTES", shape)
    for name, kind, reason in (
        ("scan", "FP32", "is of BYTES"),
        ("image", "BYTES", "is of FP32"),
        ("x", "FP32", "inputs"),
    ):
        with pytest.raises(Refused, match=reason):
            ReleaseInputs().check(name, kind, [1])


def test_values_and_shape_must_agree_to_the_byte() -> None:
    for count in (1, 3):
        assert "values, and its shape needs 2" in refused(image([1.0] * count))
    for size in (4, 7, 9, 12):
        with pytest.raises(Refused, match=f"has {size} bytes, and its shape needs 8"):
            from_raw("image", [1, 2], bytes(size))
    tensor = {"name": "image", "datatype": "FP32", "shape": [2]}
    for size in (7, 9):
        text = refused(tensor | {"parameters": {"binary_data_size": size}}, bytes(8))
        assert text == "binary_data_size is not the number of bytes behind the JSON."
    assert "no binary_data_size" in refused(image(), bytes(8))
    assert "give one of them" in refused(image((1.0, 2.0), (2,)) | {"parameters": {"binary_data_size": 8}}, bytes(8))
    assert "of the protocol" in refused({"name": "image", "datatype": "FP32", "shape": [2]})
    head = json.dumps({"inputs": [image()]}).encode()
    assert parse_request(head, f" {len(head)} ")[0].count == 1
    for length in (str(len(head) + 1), "-1", "x", "", "1.0"):
        with pytest.raises(Refused, match="is not a number, or larger than the body"):
            parse_request(head, length)


def test_base64_is_taken_whole_or_not_at_all() -> None:
    assert ask(scans(b"ab", b"\xff\x00"))[0].scans == (b"ab", b"\xff\x00")
    one = scans(b"file")
    assert ask(one | {"data": one["data"][0]})[0].scans == (b"file",)
    for junk in ("YW*I=", "YWI", "Y W I =", "YWI=\n", "ü", 7, None):
        assert "is not base64" in refused(scans(junk)), junk
    assert "none of them empty" in refused(scans(b"a", b""))
    for shape in ([1], [3]):
        assert "as many files" in refused(scans(b"a", b"b", shape=shape))
    assert "JSON holds no bytes" in refused(scans(b"a") | {"parameters": {}})


def test_files_after_their_lengths_leave_no_byte_over() -> None:
    whole = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 1) + b"c"
    assert from_raw("scan", [2], whole) == (b"ab", b"c")
    for broken in (whole + b"\0", whole[:-1], whole + struct.pack("<I", 0), whole[:6], whole + b"\0\0\0", b""):
        with pytest.raises(Refused, match="as many files"):
            from_raw("scan", [2], broken)
    with pytest.raises(Refused):
        from_raw("scan", [1], whole)


def test_exactly_one_input_of_the_protocol() -> None:
    for inputs in ([], [image(), image()], {"a": 1}):
        with pytest.raises(Refused, match="exactly one input"):
            parse_request(json.dumps({"inputs": inputs}).encode(), None)
    for message in ({}, {"inputs": [{}]}, [], {"inputs": [image() | {"shape": "x"}]}):
        with pytest.raises(Refused, match="not of the protocol"):
            parse_request(json.dumps(message).encode(), None)
    with pytest.raises(Refused, match=r"not valid at character \d+: JSON has no NaN"):
        parse_request(b'{"inputs": [NaN]}', None)
    with pytest.raises(Refused, match=r"not valid at character \d+\.$"):
        parse_request(b'{"inputs": [}', None)
    with pytest.raises(Refused, match="The request is not JSON"):
        parse_request(b"\x89PNG", None)


def test_outputs_are_selected_and_an_id_has_128_characters() -> None:
    everything = ask(image(), parameters={"binary_data_output": True})[1]
    assert everything == OutputSelection("", {}, binary=True)
    some = ask(
        image(),
        id="7",
        parameters={"binary_data_output": True},
        outputs=[{"name": "logits"}, {"name": "decision", "parameters": {"binary_data": False}}],
    )[1]
    assert some == OutputSelection("7", {"logits": True, "decision": False}, binary=True)
    assert some.names(dict.fromkeys(OUTPUTS)) == ["decision", "logits"]  # in the servers' order
    assert OutputSelection().names(dict.fromkeys(OUTPUTS)) == list(OUTPUTS)
    with pytest.raises(Refused, match="has no output logits"):
        some.names({"decision": None})
    assert "The outputs are" in refused(image(), outputs=[{"name": "labels"}])
    assert known_id("x" * 128) == "x" * 128
    assert (known_id(None), known_id(5)) == ("", "5")
    with pytest.raises(Refused, match="longer than 128"):
        known_id("x" * 129)


def test_a_reply_in_json_and_in_bytes() -> None:
    arrays = {
        "probabilities": np.array([[0.25, 0.5, 0.25]]),
        "decision": np.array([b"yes"], object),
        "declined": np.array([b""], object),
        "logits": np.array([[1.0, -2.0, 0.5]]),
    }
    reply = InferenceResponse("m", "3", arrays, {"p": 1})
    body, length = write_response(reply, OutputSelection())
    assert length is None
    message = json.loads(body)
    assert list(message) == ["model_name", "model_version", "parameters", "outputs"]
    assert [(out["name"], out["datatype"], out["shape"], out["data"]) for out in message["outputs"]] == [
        ("probabilities", "FP64", [1, 3], [0.25, 0.5, 0.25]),
        ("decision", "BYTES", [1], ["yes"]),
        ("declined", "BYTES", [1], [""]),
        ("logits", "FP64", [1, 3], [1.0, -2.0, 0.5]),
    ]
    body, length = write_response(reply, OutputSelection("7", {"logits": True, "decision": True}))
    message = json.loads(body[:length])
    assert (message["id"], message["model_name"], message["model_version"]) == ("7", "m", "3")
    assert [out["parameters"]["binary_data_size"] for out in message["outputs"]] == [7, 24]
    assert not any("data" in out for out in message["outputs"])
    assert body[length:] == b"\x03\0\0\0yes" + struct.pack("<3d", 1, -2, 0.5)
    assert (datatype(arrays["logits"]), datatype(arrays["decision"])) == ("FP64", "BYTES")
    assert to_raw(np.array([1], ">f4")) == struct.pack("<d", 1)


def test_the_index_takes_ready_as_a_boolean_alone() -> None:
    assert [wants_ready(body) for body in (b"", b" \n", b"{}", b'{"ready": true}', b'{"ready": false}')] == [
        *(False, False, False, True, False)
    ]
    for body in (b'{"ready": 1}', b'{"ready": "true"}', b"[]", b"{"):
        with pytest.raises(Refused):
            wants_ready(body)


def test_the_memory_and_the_queue_are_filled_exactly_and_given_back() -> None:
    limits = ServerLimits(max_queue=4, max_body=64 * MEBI)
    assert (limits.max_bytes, ServerLimits(max_body=MEBI).max_bytes) == (256 * MEBI, 256 * MEBI)
    assert ServerLimits(max_body=100 * MEBI).max_bytes == 400 * MEBI
    counted = Admission(limits)
    for _ in range(10):  # four requests of 64 MiB fill it, again and again
        for _ in range(4):
            counted.take(1, 64 * MEBI)
        assert (counted.images, counted.bytes) == (4, 256 * MEBI)
        with pytest.raises(Refused, match=r"The memory for requests is full \(256 of 256 MiB in hand\)") as full:
            counted.take(0, 1)
        assert full.value.kind == "busy"
        with pytest.raises(Refused, match=r"The queue is full \(4 of 4 images in hand\)"):
            counted.take(1)
        counted.take(0)
        for _ in range(4):
            counted.give(1, 64 * MEBI)
        assert (counted.images, counted.bytes) == (0, 0)
    counted.take(4)
    with pytest.raises(Refused):
        counted.check_queue()
    counted.give(4)
    counted.check_queue()
    counted.check_queue(4)
    with pytest.raises(Refused) as large:
        counted.take(5)
    assert large.value.kind == "size"
    assert (counted.images, counted.bytes) == (0, 0)


def test_each_kind_of_refusal_has_its_code() -> None:
    assert HTTP == {
        **{"malformed": 400, "key": 401, "unknown": 404, "size": 413, "encoding": 415, "busy": 429},
        **{"internal": 500, "not_ready": 503, "slow": 504},
    }
    assert HTTP.keys() == GRPC.keys()


def test_the_bounds_that_a_server_has_by_default() -> None:
    found = ServerLimits()
    assert (found.max_queue, found.max_body, found.max_unpacked) == (64, 2**26, 2**30)
    assert (found.max_files, found.max_pixels, found.window_bytes) == (5000, 2**28, 2**16)
    assert (found.gather_seconds, found.body_seconds, found.window_seconds) == (0.002, 60, 10)
    assert (found.read_seconds, found.answer_seconds, found.grace_seconds) == (30, 120, 30)
    assert 1 <= found.readers <= 8


CASES = ReleaseInputs(("t1", "adc"))
GAPS = ReleaseInputs(("t1", "adc"), may_miss=True)


def named(name: str, *files: bytes, **more: Any) -> dict[str, Any]:
    return scans(*files) | {"name": name} | more


def cases(inputs: ReleaseInputs, *tensors: dict[str, Any], binary: bytes = b"") -> Any:
    head = json.dumps({"inputs": list(tensors)}).encode()
    return parse_request(head + binary, str(len(head)) if binary else None, inputs=inputs)[0].scans


def form(*files: tuple[str, bytes]) -> tuple[bytes, None, str]:
    parts = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files
    )
    return parts + b"--b--\r\n", None, "multipart/form-data; boundary=b"


def test_the_images_of_a_case_come_under_their_names_in_any_order() -> None:
    expected = ((b"a", b"c"), (b"b", b"d"))
    assert cases(CASES, named("adc", b"c", b"d"), named("t1", b"a", b"b")) == expected
    first, second = to_raw(np.array([b"a", b"b"], object)), to_raw(np.array([b"c", b"d"], object))

    def behind(name: str, data: bytes) -> dict[str, Any]:
        tensor = {"name": name, "datatype": "BYTES", "shape": [2]}
        return tensor | {"parameters": {"binary_data_size": len(data)}}

    assert cases(CASES, behind("adc", second), behind("t1", first), binary=second + first) == expected
    with pytest.raises(Refused, match="not the number of bytes"):
        cases(CASES, behind("adc", second), behind("t1", first), binary=second + first + b"x")
    sent = form(("adc", b"c"), ("t1", b"a"), ("t1", b"b"), ("adc", b"d"))
    assert parse_request(*sent, inputs=CASES)[0].scans == expected
    prepared, _ = parse_request(json.dumps({"inputs": [image()]}).encode(), None, inputs=CASES)
    assert prepared.images.tolist() == [[1, 2]] and prepared.files == []


def test_what_is_no_case_of_several_images_is_refused() -> None:
    both = (named("t1", b"a"), named("adc", b"c"))
    for tensors, reason in (
        ([both[0]], "The input adc is missing: a case of this release has t1, adc"),
        ([*both, both[0]], r"each input once: image \(FP32, prepared\) or t1, adc"),
        ([*both, image()], "each input once"),
        ([], "each input once"),
        ([scans(b"a")], "The inputs are image .* or t1, adc"),
        ([both[0], named("adc", b"c", b"d")], "a different number of cases: 1 of t1, 2 of adc"),
        ([both[0], named("adc", b"")], "The input adc of case 1 of 1 is an empty file"),
        ([both[0] | {"datatype": "FP32"}, both[1]], "The input t1 is of BYTES"),
    ):
        with pytest.raises(Refused, match=reason):
            cases(CASES, *tensors)
    with pytest.raises(Refused, match="has 2 images: send a form or an input for each of t1, adc"):
        parse_request(b"file", "0", inputs=CASES)
    with pytest.raises(Refused, match="has 2 images: curl -F t1=@FILE -F adc=@FILE"):
        parse_request(*form(("scan", b"a"), ("t1", b"b")), inputs=CASES)


def test_an_image_may_be_missing_where_the_release_says_so() -> None:
    assert cases(GAPS, named("adc", b"c", b"d")) == ((b"", b"c"), (b"", b"d"))
    assert cases(GAPS, named("t1", b"", b"a"), named("adc", b"c", b"")) == ((b"", b"c"), (b"a", b""))
    assert parse_request(*form(("adc", b"c")), inputs=GAPS)[0].scans == ((b"", b"c"),)
    with pytest.raises(Refused, match="Case 2 of 2 has none of its images"):
        cases(GAPS, named("t1", b"a", b""), named("adc", b"c", b""))
