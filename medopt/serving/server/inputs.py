"""The inputs of a release by name, and the tensors of a request as its cases; no error quotes what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from medopt.config import Prepare
from medopt.core.records import FloatArray
from medopt.serving.server.limits import Refused
from medopt.serving.server.service import IMAGE, SCAN, InferenceRequest

Tensor = FloatArray | tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReleaseInputs:
    """What a release takes: `image` (FP32, prepared), or files: `scan`, or an input for each image of a case.

    `may_miss`: a case may lack an image (prepare.missing_channel: zeros). An input that is left out is missing in every
    case, and an empty file in one.
    """

    channels: tuple[str, ...] = ()
    may_miss: bool = False

    @classmethod
    def of(cls, prepare: Prepare) -> Self:
        """Those of a release's chain."""
        return cls(prepare.channel_names, prepare.missing_channel == "zeros")

    @property
    def files(self) -> tuple[str, ...]:
        """The inputs that hold files, of the type BYTES."""
        return self.channels or (SCAN,)

    @property
    def text(self) -> str:
        """The inputs, for a sentence."""
        return f"{IMAGE} (FP32, prepared) or {', '.join(self.files)} (BYTES, files)"

    def check(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        """Raises Refused for an input that the release does not have."""
        if name != IMAGE and name not in self.files:
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
        if len(given) < len(tensors) or not given or (IMAGE in given and len(given) > 1):
            which = "each input once: " if self.channels else "exactly one input: "
            raise Refused("malformed", f"Give {which}{self.text}.")
        files: dict[str, tuple[bytes, ...]] = {}
        for name, tensor in given.items():
            if not isinstance(tensor, tuple):
                return InferenceRequest(images=tensor)
            files[name] = tensor
        return InferenceRequest(scans=self._cases(files) if self.channels else self._whole(files[SCAN]))

    def from_form(self, files: Sequence[tuple[str, bytes]]) -> InferenceRequest:
        """The files of a form. Each is a scan; of cases of several images the k-th of each name makes up case k."""
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
