"""A page to try a release by hand (`medopt serve --try`): a form for one file, and the answer with its heat map.

No script runs in it and nothing is kept: the file lives as long as its answer is computed. Where the server has a key
the page asks for it once, and the browser then has a cookie that ends with this process or after eight hours.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from medopt import __version__
from medopt.core.records import has_one_output
from medopt.metrics.thresholds import MEDIAN
from medopt.release.layout import ModelInfo, ReleaseInfo
from medopt.release.predictor import UNDECIDED, Answer
from medopt.serving.server.auth import Key
from medopt.serving.server.form_data import is_form, parse_form
from medopt.serving.server.html_page import HEADERS, PAGE_HEADERS, page_template
from medopt.serving.server.inputs import ReleaseInputs
from medopt.serving.server.limits import HTTP, MEBI, Kind, Refused
from medopt.serving.server.openapi import HTML, Operation
from medopt.serving.server.pictures import PictureMaker, Pictures
from medopt.serving.server.releases import ServedRelease
from medopt.serving.server.request_body import check_announced, drain, read_body
from medopt.serving.server.service import RequestLog, Service, content_digest, identity, log_refusal

PATH = "/try"
_COOKIE, _SESSION_SECONDS = "medopt-try", 8 * 3600
_MAX_KEY_FORM, _MAX_PARTS = 4096, 64
_TEMPLATE = page_template("medopt.serving.server", "try.html")


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label's probability and the one from which it is decided (None: it has no threshold)."""

    label: str
    probability: float
    threshold: float | None


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """What the page says about a scan."""

    question: str
    intended_use: str
    decision: str
    declined: str
    rows: Sequence[LabelRow]
    rule: str
    pictures: Sequence[tuple[str, str]]
    """Labels with PNG files in base64."""
    picture_note: str
    missing: Sequence[str]
    """Covariates that counted as missing."""
    identity: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CaseForm:
    """The fields of a release that takes more than one file, or covariates.

    `files`: names, and whether each is needed; `texts`: covariates with their values, none of a number.
    """

    files: Sequence[tuple[str, bool]]
    texts: Sequence[tuple[str, Sequence[str]]]

    @property
    def is_plain(self) -> bool:
        """Whether it is the form of one file."""
        return len(self.files) == 1 and not self.texts


def case_form(info: ReleaseInfo) -> CaseForm:
    """The form of a release."""
    inputs = ReleaseInputs.of(info)
    fitted = [(one.column, one.fitted.levels if one.fitted else []) for one in info.covariates]
    return CaseForm([(name, not (inputs.channels and inputs.may_miss)) for name in inputs.files], fitted)


class TryPage:
    """The page's routes. `key` is the server's."""

    def __init__(self, service: Service, key: Key) -> None:
        self._service, self._key = service, key
        self._pictures, self._sessions = PictureMaker(service.limits), Sessions()

    def operations(self) -> list[Operation]:
        """The routes; the page itself asks for the key."""
        refusals: tuple[Kind, ...] = tuple(kind for kind in HTTP if kind != "encoding")
        return [
            Operation("GET", PATH, self.page, {200: HTML}, ("key",), without_key=True),
            Operation("POST", PATH, self.answer, {200: HTML}, refusals, "try", without_key=True),
            Operation(
                "POST", f"{PATH}/key", self.unlock, {303: ""}, ("malformed", "size", "slow"), "key", without_key=True
            ),
        ]

    async def page(self, request: Request) -> Response:
        """The form for a file, or for the key."""
        if not self._unlocked(request):
            return self._locked("wrong" in request.query_params)
        return self._rendered(request)

    async def unlock(self, request: Request) -> Response:
        """Take the key, and go back to the page."""
        body = await read_body(request, replace(self._service.limits, max_body=_MAX_KEY_FORM), lambda _: None)
        try:
            given = parse_qs(body.decode("ascii", "replace"), max_num_fields=10).get("key", [""])[0]
        except ValueError:
            raise Refused("malformed", "The form holds the field key alone.") from None
        try:
            self._key.check({"x-api-key": given.strip()})
        except Refused as refused:
            log_refusal("page", refused)
            return RedirectResponse("../try?wrong=1", 303, HEADERS)
        response = RedirectResponse("../try", 303, HEADERS)
        secure = request.url.scheme == "https"
        response.set_cookie(
            _COOKIE, self._sessions.begin(), path=None, httponly=True, secure=secure,
            samesite="strict",
        )  # fmt: skip
        return response

    async def answer(self, request: Request) -> Response:
        """Answer the scan of a form, for a person to read."""
        if not self._unlocked(request):
            log_refusal("page", Refused("key", "The page was sent without the key."))
            return self._locked(False)
        try:
            if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise Refused("malformed", "This form is not the page's own. Load the page again.")
            with self._service.logged("page") as log:
                model, answer = await self._answer(request, log)
        except Refused as refused:
            log_refusal("page", refused)
            if refused.kind in ("size", "busy"):
                await drain(request, self._service.limits)
            return self._rendered(request, error=refused)
        return self._rendered(request, model, answer)

    async def _answer(self, request: Request, log: RequestLog) -> tuple[str, PageAnswer]:
        service, content_type = self._service, request.headers.get("content-type", "")
        check_announced(request, service.limits.max_body)
        if not is_form(content_type):
            raise Refused("malformed", "The page sends its form as multipart/form-data.")
        with service.receiving() as take:
            with service.uploading():
                body = await read_body(request, service.limits, take)
            with service.admitted(1):
                form = await service.in_reader(parse_form, body, content_type, _MAX_PARTS)
                del body
                served = service.registry.find(form.fields.get("model", ""))
                log.model, log.version = served.name, served.verified.version
                sent = ReleaseInputs.of(served.verified.release.info).from_form(form.files, form.fields)
                if len(sent.scans) != 1:
                    raise Refused("malformed", "Choose one file: of a series the .zip of its files.")
                log.digest = await service.in_reader(content_digest, *sent.files)
                (answer,) = await service.answers(served, sent, log, taken=1)
                pictures = await self._pictures.of(served, sent.scans[0], answer)
        return served.name, page_answer(served, answer, pictures)

    def _unlocked(self, request: Request) -> bool:
        try:
            self._key.check(request.headers)
        except Refused:
            return self._sessions.is_open(request.cookies.get(_COOKIE, ""))
        return True

    def _locked(self, wrong: bool) -> Response:
        error = "This is not the server's API key." if wrong else ""
        text = _TEMPLATE.render(locked=True, error=error, answer=None, version=__version__)
        return HTMLResponse(text, HTTP["key"], PAGE_HEADERS | {"WWW-Authenticate": "Bearer"})

    def _rendered(
        self, request: Request, model: str = "", answer: PageAnswer | None = None, error: Refused | None = None
    ) -> Response:
        service, headers = self._service, dict(PAGE_HEADERS)
        if error is not None and error.kind == "busy":
            headers["Retry-After"] = "1"
        if error is not None and error.kind in ("size", "busy", "slow"):
            headers["Connection"] = "close"
        states, infos = service.registry.states(), service.registry.infos()
        forms = {name: case_form(info) for name, info in infos.items()}
        text = _TEMPLATE.render(
            locked=False,
            models=[name for name, form in forms.items() if form.is_plain],
            cases={name: form for name, form in forms.items() if not form.is_plain},
            waiting=[state for state in states if state.state != "READY"],
            chosen=model,
            max_mb=service.limits.max_body / MEBI,
            answer=answer,
            error=error.text if error else "",
            version=__version__,
        )
        return HTMLResponse(text, HTTP[error.kind] if error else 200, headers)


class Sessions:
    """Cookies that say that the key was given: when they end, signed with a secret of this process."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def begin(self) -> str:
        """A new cookie's value."""
        end = str(int(time.time()) + _SESSION_SECONDS)
        return f"{end}.{self._signature(end)}"

    def is_open(self, value: str) -> bool:
        """Whether this process gave that value, and it has not ended."""
        end, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(end).encode()):
            return False
        return int(end) > time.time()

    def _signature(self, end: str) -> str:
        return hmac.new(self._secret, end.encode(), hashlib.sha256).hexdigest()


def page_answer(served: ServedRelease, answer: Answer, pictures: Pictures) -> PageAnswer:
    """What the page says about an answer; of a declined scan the reason alone."""
    release = served.verified.release
    info, model = release.info, release.info.models[release.kind]
    rows = [] if answer.declined else label_rows(info, model, answer)
    decision = answer.decision.replace(";", ", ").replace(f"{UNDECIDED}:", f"{UNDECIDED}: ") or "none of the findings"
    if answer.number is not None:
        decision = f"{answer.number.quantity} {answer.number.text}: {decision}"
    return PageAnswer(
        info.question,
        info.intended_use,
        "" if answer.declined else decision,
        answer.declined or "",
        rows,
        rule_of(info, model),
        [(label, base64.b64encode(png).decode()) for label, png in pictures.by_label],
        pictures.note,
        answer.missing,
        identity(served),
    )


def label_rows(info: ReleaseInfo, model: ModelInfo, answer: Answer) -> list[LabelRow]:
    """Each label with its probability and threshold: of a binary study the finding's, of a multi-class study none."""
    thresholds = dict(zip(info.reported_labels, model.operating_point.thresholds, strict=False))
    return [LabelRow(label, answer.probabilities[label], thresholds.get(label)) for label in info.labels]


def rule_of(info: ReleaseInfo, model: ModelInfo) -> str:
    """How the release decides, in a sentence or two."""
    point = model.operating_point
    low, high = (f"{100 * side:.1f} %" for side in point.band or (0, 0))
    if point.threshold is None:
        which = "median grade" if point.rule == MEDIAN else "most probable label"
        text = f"The {which} is the decision."
        if point.band is not None:
            text = f"{text[:-1]}; where its probability is below {high}, the case is left {UNDECIDED}."
        elif point.sets is not None:
            text += f" The case is left {UNDECIDED} where another label is possible too, or none is."
    elif has_one_output(info.task) and point.band is not None:
        text = f"The decision is {info.labels[1]} from a probability of {high} on and {info.labels[0]} below {low}; "
        text += f"between them the case is left {UNDECIDED}."
    elif has_one_output(info.task):
        text = f"The decision is {info.labels[1]} from a probability of {100 * point.thresholds[0]:.1f} % on."
    else:
        text = "Each finding is decided from its own threshold on."
        if point.sets is not None:
            text += f" It is left {UNDECIDED} where both its presence and its absence are possible, or none is."
    if point.sets is not None:
        text += f" {point.sets.promise}"
    return f"{text} The operating point ({point.rule}) was chosen on validation."
