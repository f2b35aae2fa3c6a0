"""What names of labels mean: missing, one class in two spellings, the absence of the finding."""

from __future__ import annotations

import pytest

from medopt.core.errors import ConfigError, DataError
from medopt.manifest.label_words import absent_first, label_spellings


@pytest.mark.parametrize("missing", ["", " ", "n/a", "NA", "N/A", "NaN", "null", "#N/A", "?", "-", "unknown"])
def test_a_word_for_missing_is_no_class(missing):
    assert label_spellings(["yes", "no", missing]).classes[missing] == ""


def test_spellings_of_one_class_are_merged_and_said():
    cells = ["Lesion", "Lesion", "lesion", "LESION ", "No", "no", "No ", "No  "]
    merged = label_spellings(cells)
    assert {merged.classes[cell] for cell in cells} == {"Lesion", "No"}
    assert len(merged.notes) == 2
    assert "'lesion' (1)" in " ".join(merged.notes)
    assert label_spellings(["benign", "malignant"]).notes == ()


def test_number_forms_are_one_class():
    merged = label_spellings(["1", "1.0", "0", "0.0", "1,0", "+1", "-1"])
    assert merged.classes == {"1": "1", "1.0": "1", "1,0": "1", "+1": "1", "0": "0", "0.0": "0", "-1": "-1"}
    assert label_spellings(["01", "1"]).classes == {"01": "01", "1": "1"}  # a code, not a number
    assert label_spellings(["+", "-"]).classes == {"+": "+", "-": "-"}


def test_unicode_forms_are_one_class():
    assert set(label_spellings(["M\u00fcll", "Mu\u0308ll"]).classes.values()) == {"M\u00fcll"}


def test_none_is_a_class_alone_and_refused_beside_another_word_for_healthy():
    assert label_spellings(["none", "mass"]).classes["none"] == "none"
    with pytest.raises(DataError, match=r"'none' \(1 row\) stands beside.*--rename none="):
        label_spellings(["None", "normal", "mass"])
    assert label_spellings(["None", "normal", "mass"], {"none": ""}).classes["None"] == ""


def test_labels_are_renamed_in_all_their_spellings():
    assert label_spellings(["0", "0.0", "1"], {"0": "healthy", "1": "nodule"}).classes == {
        "0": "healthy", "0.0": "healthy", "1": "nodule"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--rename 7: the source has no such label"):
        label_spellings(["0", "1"], {"7": "x"})


@pytest.mark.parametrize(
    ("absent", "finding"),
    [
        ("non-COVID", "COVID"),
        ("NonCOVID", "COVID"),
        ("noncovid", "covid"),
        ("Uninfected", "Parasitized"),
        ("CN", "AD"),
        ("HC", "PD"),
        ("TD", "ASD"),
        ("0", "1"),
        ("0", "2"),
        ("0_x", "1_y"),
        ("0_normal", "1_lesion"),
        ("No", "Yes"),
        ("n", "y"),
        ("N", "P"),
        ("F", "T"),
        ("FALSE", "TRUE"),
        ("normal", "abnormal"),
        ("Normal", "PNEUMONIA"),
        ("normal", "non-normal"),
        ("healthy", "unhealthy"),
        ("healthy", "not healthy"),
        ("inactive", "active"),
        ("asymptomatic", "symptomatic"),
        ("No_DR", "DR"),
        ("NoDR", "Mild"),
        ("notumor", "glioma"),
        ("No Finding", "Finding"),
        ("no evidence of disease", "disease"),
        ("covid_negative", "covid_positive"),
        ("COVID-19 neg", "COVID-19 pos"),
        ("HER2-", "HER2+"),
        ("EGFR -ve", "EGFR +ve"),
        ("disease-free", "recurrence"),
        ("without fracture", "with fracture"),
        ("benign", "malignant"),
        ("control", "case"),
        ("wildtype", "mutant"),
        ("-", "+"),
    ],
)
def test_the_finding_is_second(absent, finding):
    assert absent_first([finding, absent]) == [absent, finding]
    assert absent_first([absent, finding]) == [absent, finding]


@pytest.mark.parametrize(
    "labels",
    [("left", "right"), ("1", "2"), ("-1", "1"), ("benign", "normal"), ("LGG", "HGG"), ("B", "M"), ("a", "b"),
     ("nodule", "mass"), ("nonunion", "union"), ("NSIP", "UIP"), ("nonspecific", "specific")],
)  # fmt: skip
def test_where_neither_or_both_say_absent_nobody_guesses(labels):
    assert absent_first(list(labels)) is None


@pytest.mark.parametrize(
    "labels",
    [
        ("stable", "unstable"), ("symmetric", "asymmetric"), ("typical", "atypical"), ("sufficient", "insufficient"),
        ("clear cell", "papillary"), ("free fluid", "ascites"), ("background", "proliferative change"),
        ("benign prostatic hyperplasia", "cancer"), ("normal pressure hydrocephalus", "atrophy"),
    ],
)  # fmt: skip
def test_a_word_that_only_begins_like_absence_decides_nothing(labels):
    """Which of them is the finding is asked for; a guess would turn sensitivity into specificity."""
    found = absent_first(labels)
    assert found is None or found[0] == labels[0] == "background"


@pytest.mark.parametrize("absent", ["absence of fluid", "free of disease", "no evidence of disease", "inactive"])
def test_what_is_said_to_be_absent_is_first(absent):
    assert absent_first(["finding", absent]) == [absent, "finding"]
