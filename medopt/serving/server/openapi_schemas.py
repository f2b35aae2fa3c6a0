"""The bodies of the REST server as JSON Schema 2020-12; a test holds every answer of a running server against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medopt.config import Covariate
from medopt.serving.server.form_data import FORM
from medopt.serving.server.service import IMAGE, OUTPUTS, SCAN

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_COUNTS: Schema = {"type": "array", "items": {"type": "integer"}}
_BYTES: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(properties: Mapping[str, Schema], optional: Sequence[str] = (), **more: Any) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required} | more


_STATES = _list(_ref("ReleaseState"))
_TENSOR = {"name": _TEXT, "datatype": {"enum": ["FP32", "FP64", "BYTES"]}, "shape": _COUNTS}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": True}

SCHEMAS: dict[str, Schema] = {
    "Error": _object({"error": _TEXT}, description="Why there is no answer; nothing of the request is quoted."),
    "Document": {"type": "object", "description": "This document."},
    "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "Live": _object({"live": {"const": True}}),
    "Ready": _object({"ready": {"type": "boolean"}, "releases": _STATES}),
    "ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}, "releases": _STATES}),
    "ReleaseState": _object(
        {"name": _TEXT, "version": _TEXT, "state": {"enum": ["LOADING", "READY", "UNAVAILABLE"]}, "reason": _TEXT}
    ),
    "ModelList": _object({"models": _list(_TEXT)}),
    "ModelMetadata": _object(
        {
            "name": _TEXT, "versions": _list(_TEXT), "releases": _STATES, "platform": _TEXT,
            "inputs": _list(_object(_TENSOR)), "outputs": _list(_object(_TENSOR)),
            "parameters": {"type": "object", "additionalProperties": _TEXT},
        },
        optional=("parameters",),
    ),
    "RepositoryIndex": _STATES,
    "Loaded": _object({"name": _TEXT, "load": {"const": True}, "versions": _list(_TEXT)}),
    "InferRequest": _object(
        {
            "id": _TEXT | {"maxLength": 128},
            "inputs": _list(_ref("InferInput")) | {"minItems": 1, "maxItems": 1},
            "outputs": _list(_object({"name": {"enum": list(OUTPUTS)}, "parameters": _PARAMETERS}, ("parameters",))),
            "parameters": _PARAMETERS,
        },
        optional=("id", "outputs", "parameters"),
    ),
    "InferInput": _object(
        {
            "name": {"enum": [SCAN, IMAGE]}, "datatype": {"enum": ["BYTES", "FP32"]},
            "shape": _COUNTS | {"minItems": 1}, "parameters": _PARAMETERS, "data": {},
        },
        optional=("parameters", "data"),
        description=f"{SCAN}: files, in JSON as base64 with the parameter content_type: base64; {IMAGE}: prepared.",
    ),
    "InferResponse": _object(
        {
            "model_name": _TEXT, "model_version": _TEXT, "id": _TEXT,
            "parameters": {"type": "object", "additionalProperties": _TEXT},
            "outputs": _list(_ref("InferOutput")),
        },
        optional=("id",),
    ),
    "InferOutput": _object(
        _TENSOR | {"parameters": _PARAMETERS, "data": _list({"type": ["string", "number", "null"]})},
        optional=("parameters", "data"),
        description="A declined scan has its reason in `declined`, an empty `decision`, and null in all other outputs.",
    ),
}  # fmt: skip
"""Each by its name in the document."""

BODIES: dict[str, dict[str, Any]] = {
    "infer": {
        FORM: {"schema": _object({"scan": _list(_BYTES), "id": _TEXT}, ("id",))},
        "application/octet-stream": {"schema": _BYTES},
        "application/json": {"schema": _ref("InferRequest")},
    },
    "index": {"application/json": {"schema": _object({"ready": {"type": "boolean"}}, ("ready",))}},
    "try": {FORM: {"schema": _object({"model": _TEXT, "scan": _BYTES})}},
    "key": {"application/x-www-form-urlencoded": {"schema": _object({"key": _TEXT})}},
}
"""The bodies that operations take: media types and their schemas."""


@dataclass(frozen=True, slots=True)
class Cases:
    """By release the images of a case, where there are several, and the covariates, where it asks for some."""

    images: Mapping[str, tuple[str, ...]]
    covariates: Mapping[str, tuple[Covariate, ...]]

    @property
    def names(self) -> list[str]:
        """The inputs and fields beside those that every release has."""
        beside = [one.column for covariates in self.covariates.values() for one in covariates]
        return list(dict.fromkeys([*(name for images in self.images.values() for name in images), *beside]))

    @property
    def most(self) -> int:
        """Inputs of one request at most."""
        models = self.images.keys() | self.covariates.keys()
        counts = [max(1, len(self.images.get(one, ()))) + len(self.covariates.get(one, ())) for one in models]
        return max(counts, default=1)

    @property
    def text(self) -> str:
        """Which inputs and fields a release takes, for a description."""
        texts = []
        if self.images:
            each = "; ".join(f"{model}: {', '.join(images)}" for model, images in self.images.items())
            texts.append(f"A case of these releases has several images, each a file under its name ({each}).")
        if self.covariates:
            each = "; ".join(f"{model}: {', '.join(map(_asked, found))}" for model, found in self.covariates.items())
            texts.append(f"These releases take covariates, each a text under its name, empty where unknown ({each}).")
        return " ".join(texts)


def _asked(covariate: Covariate) -> str:
    """A covariate's name and what it holds."""
    fitted = covariate.fitted
    if fitted is None or covariate.kind != "category":
        return f"{covariate.column} (a number)"
    return f"{covariate.column} ({' | '.join(fitted.levels)})"


def input_of_cases(cases: Cases) -> dict[str, Schema]:
    """InferInput and InferRequest where releases have cases of several images or covariates: an input for each."""
    if not cases.names:
        return {}
    plain = SCHEMAS["InferInput"]
    names = {"enum": [SCAN, IMAGE, *cases.names]}
    text = f"{plain['description']} {cases.text}"
    request = SCHEMAS["InferRequest"]
    inputs = request["properties"]["inputs"] | {"maxItems": cases.most}
    return {
        "InferInput": plain | {"properties": plain["properties"] | {"name": names}, "description": text},
        "InferRequest": request | {"properties": request["properties"] | {"inputs": inputs}},
    }


def files_of_cases(body: str, cases: Cases) -> dict[str, Any]:
    """The form of an operation that takes files: a field for each image of a case and each covariate, too."""
    if FORM not in BODIES[body] or not cases.names:
        return {}
    form = BODIES[body][FORM]["schema"]
    one = form["properties"]["scan"]
    fields = {name: one for images in cases.images.values() for name in images}
    texts = {each.column: _TEXT for found in cases.covariates.values() for each in found}
    required = [name for name in form["required"] if name != "scan" or not cases.images]
    several = {"properties": form["properties"] | texts | fields, "required": required, "description": cases.text}
    return {FORM: {"schema": form | several}}
