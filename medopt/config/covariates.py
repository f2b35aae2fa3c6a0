"""Clinical covariates of a study: columns of the manifest that answer together with the image."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medopt.config.section import Section

CovariateKind = Literal["number", "category"]
AGE, SEX = "PatientAge", "PatientSex"
OTHER_USE = ("image", "scan", "id", "model", "label", "number", "split", "fold", "site", "path", "decision")
"""Names that manifests and servers use for something else; so do those that end in _id or _uid."""
_KINDS: dict[str, CovariateKind] = {"AS": "number", "DS": "number", "IS": "number", "CS": "category"}


class FittedCovariate(Section):
    """What the training cases gave of a covariate; the run fills it in, and writes over what stands here."""

    mean: float = 0.0
    """Of a number: what is subtracted."""
    spread: float = 1.0
    """Of a number: the standard deviation, by which it is divided."""
    low: float = 0.0
    high: float = 0.0
    """Of a number: its range."""
    levels: list[str] = []
    """Of a category: its values, the most frequent first."""
    has_missing: bool = False
    """Whether it was missing in a case, so that a missing value has a coefficient of its own."""


class Covariate(Section):
    """A column of the manifest that answers together with the image."""

    column: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_ ]{0,40}$")]
    """Its column in the manifest, and its name in requests and answers."""
    kind: CovariateKind | None = None
    """number or category. None: that of `tag`; else number where all cells of the training cases are numbers. Grades
    that are written as numbers and have no order need category."""
    tag: str = ""
    """Keyword of the DICOM element (PatientAge, PatientSex, PatientSize, PatientWeight, or another of VR AS, DS, IS or
    CS) that gives the value in service where the request has none; "": the request alone."""
    fitted: FittedCovariate | None = None
    """What the training cases gave; the run fills it in."""

    @field_validator("column")
    @classmethod
    def _has_no_other_use(cls, name: str) -> str:
        if name.lower() in OTHER_USE or name.lower().endswith(("_id", "_uid")):
            raise ValueError(f"{name} cannot name a covariate: manifests or servers use this name for something else")
        return name

    @field_validator("tag")
    @classmethod
    def _readable(cls, keyword: str) -> str:
        """An element whose value is a number or a code."""
        if keyword and _representation(keyword) not in _KINDS:
            raise ValueError(
                f"tag: {keyword!r} is not the keyword of a DICOM element that holds a number or a code (VR AS, DS, IS, "
                "CS), as PatientAge, PatientSex, PatientSize and PatientWeight do"
            )
        return keyword

    @model_validator(mode="after")
    def _kind_of_the_element(self) -> Self:
        of_tag = _KINDS[_representation(self.tag)] if self.tag else None
        if of_tag and self.kind not in (None, of_tag):
            raise ValueError(f"kind {self.kind}, and the DICOM element {self.tag} holds a {of_tag}")
        return self

    @property
    def known_kind(self) -> CovariateKind | None:
        """Its kind, where the study says it or its DICOM element does."""
        return self.kind or (_KINDS[_representation(self.tag)] if self.tag else None)

    @property
    def encoded(self) -> int:
        """Columns of numbers that it becomes; 0 before the training cases were looked at."""
        if self.fitted is None:
            return 0
        return (len(self.fitted.levels) if self.kind == "category" else 1) + self.fitted.has_missing

    @property
    def is_age(self) -> bool:
        """Whether its cells are ages, in years or as DICOM writes them: by its element or its name."""
        return self.kind != "category" and (self.tag == AGE or (not self.tag and self.column.lower() == "age"))

    @property
    def is_sex(self) -> bool:
        """Whether its cells are sexes: by its element or its name."""
        return self.kind != "number" and (self.tag == SEX or (not self.tag and self.column.lower() == "sex"))


def _representation(keyword: str) -> str:
    """The VR of an element by its keyword; "" where DICOM has none of that name."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword  # most study files need no dictionary

    tag = tag_for_keyword(keyword)
    return "" if tag is None else dictionary_VR(tag)


def as_covariates(value: Any) -> Any:
    """A bare name in the list is a covariate whose kind the training cases tell."""
    return [{"column": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


def refuse_repeated(covariates: list[Covariate], targets: list[str]) -> None:
    """Raise ValueError where a covariate stands there twice, or is what the study asks for."""
    names = [one.column.lower() for one in covariates]
    if twice := [one.column for one in covariates if names.count(one.column.lower()) > 1]:
        raise ValueError(f"covariates has {twice[0]} twice")
    if answers := [one.column for one in covariates if one.column in targets]:
        raise ValueError(f"covariates has {answers[0]}, which is what the study asks for: the answer would be given")
