"""Items of the reporting guidelines that a report covers, and where; the authors write the rest.

TRIPOD+AI: Collins et al., BMJ 2024;385:e078378. CLAIM: Tejani et al., Radiology: Artificial Intelligence 2024;6(4).
"""

from __future__ import annotations

from collections.abc import Sequence

COVERED: Sequence[tuple[str, str, str]] = (
    ("TRIPOD+AI 7, CLAIM data", "how scans are prepared", "Settings (prepare)"),
    ("TRIPOD+AI 8a, CLAIM ground truth", "which labels are told apart, not how they were made", "Data"),
    ("TRIPOD+AI 10, 21, CLAIM partitions", "patients, images and labels in each split", "Data"),
    ("TRIPOD+AI 11", "images that were refused, copies that were accepted", "Known of the data"),
    ("TRIPOD+AI 12, CLAIM model, training", "network, training, choice on validation, seed", "Training, Settings"),
    ("TRIPOD+AI 13", "class imbalance: sampling and weights", "Settings (training)"),
    ("TRIPOD+AI 14, 23a", "fairness: figures of subgroups with intervals", "Sites and subgroups"),
    ("TRIPOD+AI 15", "the answer: probability, threshold, how both were chosen", "Calibration and decisions"),
    ("TRIPOD+AI 16", "how training and test differ", "Data, Shift and noise"),
    ("TRIPOD+AI 18f, CLAIM", "code version, packages, digests", "Provenance"),
    ("TRIPOD+AI 23a, CLAIM performance", "discrimination, calibration, net benefit with intervals", "Performance"),
    ("TRIPOD+AI 23b", "heterogeneity between sites", "Sites and subgroups"),
    ("CLAIM robustness", "figures on degraded images", "Shift and noise"),
    ("CLAIM explainability", "saliency maps, and whether they depend on the model", "Explanation"),
    ("CLAIM failure analysis", "the most confident errors", "Explanation"),
)
AUTHOR_ITEMS: Sequence[str] = (
    "title, abstract, background and objectives (TRIPOD+AI 1 to 4)",
    "where the data come from, dates, who was eligible, how and by whom labels were made (5, 6, 8, 9)",
    "ethics, funding, conflicts of interest, protocol, registration, sharing of data (17, 18)",
    "involvement of patients and the public (19)",
    "updating, interpretation, limitations and use in care (24 to 27)",
)
