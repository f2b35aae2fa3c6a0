"""The inputs of a release by name, and the tensors of a request as its cases; no error quotes what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

from medopt.core.records import FloatArray
from medopt.release.layout import ReleaseInfo
from medopt.serving.server.limits import Refused
from medopt.serving.server.service import IMAGE, SCAN, InferenceRequest

Tensor = FloatArray | tuple[bytes, ...]
_MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class ReleaseInputs:
    """What a release takes: `image` (FP32, prepared), or files: `scan`, or an input for each image of a case.

    `may_miss`: a case may lack an image (prepare.missing_channel: zeros). An input that is left out is missing in every
    case, and an empty file in one. `covariates` are inputs, too: a text a case, which may be left out or empty.
    """

    channels: tuple[str, ...] = ()
    may_miss: bool = False
    covariates: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: ReleaseInfo) -> Self:
        """Those of a release."""
        names = tuple(one.column for one in info.covariates)
        return cls(info.prepare.channel_names, info.prepare.missing_channel == "zeros", names)

    @property
    def files(self) -> tuple[str, ...]:
        """The inputs that hold files, of the type BYTES."""
        return self.channels or (SCAN,)

    @property
    def text(self) -> str:
        """The inputs, for a sentence."""
        beside = f", and beside them {', '.join(self.covariates)} (BYTES, texts)" if self.covariates else ""
        return f"{IMAGE} (FP32, prepared) or {', '.join(self.files)} (BYTES, files){beside}"

    def check(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        """Raises Refused for an input that the release does not have."""
        if name != IMAGE and name not in (*self.files, *self.covariates):
            raise Refused("malformed", f"The inputs are {self.text}; this release has no other.")
        expected = "FP32" if name == IMAGE else "BYTES"
        if datatype != expected:
            raise Refused("malformed", f"The input {name} is of {expected}.")
        if not shape or min(shape) < 1 or len(shape) > 8:
            raise Refused("malformed", f"The shape of the input {name} must hold positive numbers.")
        if name != IMAGE and len(shape) > 1 and max(shape[1:]) > 1:
            raise Refused("malformed", f"The input {name} has the shape (N,): N files.")

    def request(self, tensors: Sequence[tuple[str, Tensor]]) -> InferenceRequest:
        """The tensors, which were checked, as a request. Raises Refused where they do not make up cases."""
        given = dict(tensors)
        is_twice = len(given) < len(tensors)
        beside = {
            name: tuple(map(_text, cast(tuple[bytes, ...], given.pop(name))))
            for name in self.covariates
            if name in given
        }
        if is_twice or not given or (IMAGE in given and len(given) > 1):
            which = "each input once: " if self.channels else "exactly one input: "
            raise Refused("malformed", f"Give {which}{self.text}.")
        files: dict[str, tuple[bytes, ...]] = {}
        for name, tensor in given.items():
            if not isinstance(tensor, tuple):
                return self._with(InferenceRequest(images=tensor), beside)
            files[name] = tensor
        scans = self._cases(files) if self.channels else self._whole(files[SCAN])
        return self._with(InferenceRequest(scans=scans), beside)

    def _with(self, request: InferenceRequest, beside: Mapping[str, tuple[str, ...]]) -> InferenceRequest:
        """The request with the covariates of its cases. Raises Refused where there are more or fewer of them."""
        for name, texts in beside.items():
            if len(texts) != request.count:
                raise Refused("malformed", f"The input {name} has {len(texts)} values for {request.count} cases.")
        rows = zip(*beside.values(), strict=True)
        return replace(request, covariates=tuple(dict(zip(beside, row, strict=True)) for row in rows))

    def from_form(self, files: Sequence[tuple[str, bytes]], fields: Mapping[str, str]) -> InferenceRequest:
        """The files of a form. Each is a scan; of cases of several images the k-th of each name makes up case k.

        `fields` hold the covariates, of a form of one case alone.
        """
        request = self._of_files(files)
        beside = {name: (_text(fields[name].encode()),) for name in self.covariates if name in fields}
        if beside and request.count != 1:
            names = ", ".join(beside)
            raise Refused("malformed", f"A form with covariates ({names}) holds one case: send a form for each.")
        return self._with(request, beside)

    def _of_files(self, files: Sequence[tuple[str, bytes]]) -> InferenceRequest:
        if not self.channels:
            return InferenceRequest(scans=tuple(content for _, content in files))
        if any(name not in self.channels for name, _ in files):
            fields = " ".join(f"-F {name}=@FILE" for name in self.channels)
            raise Refused("malformed", f"A case of this release has {len(self.channels)} images: curl {fields}.")
        by_name: dict[str, tuple[bytes, ...]] = {}
        for name, content in files:
            by_name[name] = (*by_name.get(name, ()), content)
        return InferenceRequest(scans=self._cases(by_name))

    def whole(self, body: bytes) -> InferenceRequest:
        """A body that is one scan; raises Refused where a case has several images."""
        if not body:
            raise Refused("malformed", "The body is empty; with Inference-Header-Content-Length: 0 it is one scan.")
        if self.channels:
            raise Refused(
                "malformed",
                f"The body is one file, and a case of this release has {len(self.channels)} images: send a form or an "
                f"input for each of {', '.join(self.channels)}.",
            )
        return InferenceRequest(scans=(body,))

    def _whole(self, files: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if not all(files):
            raise Refused("malformed", f"The input {SCAN} must hold files, none of them empty.")
        return files

    def _cases(self, files: Mapping[str, tuple[bytes, ...]]) -> tuple[tuple[bytes, ...], ...]:
        if absent := [name for name in self.channels if name not in files and not self.may_miss]:
            raise Refused(
                "malformed",
                f"The input {absent[0]} is missing: a case of this release has {', '.join(self.channels)}.",
            )
        counts = {len(column) for column in files.values()}
        if len(counts) > 1:
            numbers = ", ".join(f"{len(column)} of {name}" for name, column in files.items())
            raise Refused("malformed", f"The inputs hold files of a different number of cases: {numbers}.")
        (count,) = counts
        columns = [files.get(name, (b"",) * count) for name in self.channels]
        cases = tuple(zip(*columns, strict=True))
        for number, case in enumerate(cases, start=1):
            if not any(case):
                raise Refused("malformed", f"Case {number} of {count} has none of its images.")
            if not (self.may_miss or all(case)):
                empty = self.channels[case.index(b"")]
                raise Refused("malformed", f"The input {empty} of case {number} of {count} is an empty file.")
        return cases


def _text(value: bytes) -> str:
    """A covariate's cell; raises Refused for what can be none."""
    if len(value) > _MAX_TEXT:
        raise Refused("malformed", f"The value of a covariate is longer than {_MAX_TEXT} bytes.")
    return value.decode("utf-8", "replace")
