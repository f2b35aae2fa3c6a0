"""What the report's terms mean: shown where a reader points at one, and listed at the report's end."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

GLOSSARY = {
    "AUC": "the probability that a case with the finding gets a higher score than a case without it; .5 is chance",
    "AP": "average precision: the area below the curve of precision against recall",
    "average precision": "the area below the curve of precision against recall; chance reaches the prevalence",
    "accuracy": "the share of decisions that are correct; at a low prevalence, always answering no has a high accuracy",
    "balanced accuracy": "the mean of the shares of correct decisions of each class",
    "sensitivity": "the share of the cases with the finding that are called positive",
    "specificity": "the share of the cases without the finding that are called negative",
    "PPV": "positive predictive value: the share of the positive decisions that are correct, at this prevalence",
    "NPV": "negative predictive value: the share of the negative decisions that are correct, at this prevalence",
    "F1": "the harmonic mean of sensitivity and PPV",
    "MCC": "Matthews correlation coefficient of decisions and truth: 1 is perfect, 0 is chance",
    "Brier score": "the mean squared difference of probability and truth; 0 is perfect",
    "ECE": "expected calibration error: how far probabilities are off on average, in bins of equal width",
    "ACE": "adaptive calibration error: as ECE, in bins of equally many cases",
    "AURC": "the area below the curve of risk against coverage: wrong decisions, the most confident cases first",
    "mean absolute error": "by how much the predicted number is off on average",
    "limits of agreement": "where 95 % of the differences of predicted and true numbers are expected",
    "R2": "the share of the variance of the true numbers that is explained: 1 is perfect, 0 is always saying the mean",
    "kappa": "agreement beyond chance, 1 at best; weighted: two grades off count four times as much as one",
    "calibration": "the correction after which 30 % means that 30 of 100 such cases have the finding",
    "operating point": "the threshold, or the band of undecided cases, chosen on validation",
    "net benefit": "true positives per patient, less false ones weighed by the odds of the threshold",
    "prevalence": "the share of cases with the finding",
    "interval": "where the true value may lie, given who came; several images of a patient count as one patient",
    "int8": "weights and activations as 8-bit integers: a quarter of the size, several times the speed",
    "gate": "the acceptance of the int8 model against the float one, on validation",
    "Grad-CAM": "a map that shows where in the image the network found its evidence",
    "baseline": "a simple model that training has to beat: a linear one on thumbnails or on pretrained features",
    "multiply-adds": "the work of one image, in pairs of a multiplication and an addition",
}
_TERM = re.compile(
    r"\b(" + "|".join(re.escape(one) for one in sorted(GLOSSARY, key=len, reverse=True)) + r")(?![\w-])", re.IGNORECASE
)
_BY_LOWER = {name.lower(): meaning for name, meaning in GLOSSARY.items()}


def explained(text: str) -> Markup:
    """The text as HTML, the first term of the glossary in it with its meaning.

    >>> str(explained("F1 at site <b>"))
    '<abbr title="the harmonic mean of sensitivity and PPV">F1</abbr> at site &lt;b&gt;'
    """
    found = _TERM.search(text)
    if found is None:
        return escape(text)
    meaning = _BY_LOWER[found[1].lower()]
    return Markup('{}<abbr title="{}">{}</abbr>{}').format(
        text[: found.start()], meaning, found[1], text[found.end() :]
    )
