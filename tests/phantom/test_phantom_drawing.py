"""What is drawn: a nodule where one is asked for, anatomy that varies, a question that a thumbnail cannot answer."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medopt.core.errors import ConfigError
from medopt.phantom import draw_case, study
from medopt.phantom.chest import BodyPose
from medopt.phantom.detector import SITES, expose, site_named
from medopt.phantom.projection import ProjectionGrid, polyline, stamp, tube
from medopt.phantom.study import plan_patients

SMALL = {site.name: (site.rows // 10, site.columns // 10) for site in SITES}


@pytest.mark.parametrize("site", list(SMALL))
def test_same_seed_same_image_and_another_seed_another(site: str) -> None:
    one, again, other = (draw_case(seed, site, nodule=True, size=SMALL[site]) for seed in (1, 1, 2))
    assert one.dtype == np.float32
    assert one.shape == SMALL[site]
    assert np.array_equal(one, again)
    assert np.abs(one - other).mean() > 0.02
    assert one.min() >= 0
    assert one.max() <= 1


@pytest.mark.parametrize("patient", range(12))
def test_nodule_is_a_bright_spot_in_the_image(patient: int) -> None:
    site = list(SMALL)[patient % 3]
    without, with_one = (
        draw_case(4, site, nodule=there, size=SMALL[site], patient=patient, sex="MF"[patient % 2])
        for there in (False, True)
    )
    more = with_one - without
    spot = more > 0.5 * more.max()
    assert more.max() > 0.12
    assert 0.001 < spot.mean() < 0.03
    rows, columns = np.nonzero(spot)
    assert np.ptp(rows) < 0.2 * more.shape[0]
    assert np.ptp(columns) < 0.2 * more.shape[1]


def test_two_images_of_a_patient_share_the_chest_but_not_the_pose(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[np.ndarray]:
        return [
            draw_case(4, "site_a", nodule=True, size=SMALL["site_a"], patient=patient, image=image).ravel()
            for patient, image in ((0, 0), (0, 1), (1, 0))
        ]

    first, second, _ = drawn()
    assert np.corrcoef(first, second)[0, 1] < 0.98
    monkeypatch.setattr(study, "draw_pose", lambda rng: BodyPose(yaw=0, roll=0, shift=(0, 0), breath=0, arms=0))
    monkeypatch.setattr(study, "add_distractors", lambda *_: None)
    first, second, stranger = drawn()
    assert np.corrcoef(first, second)[0, 1] > 0.995
    assert np.corrcoef(first, stranger)[0, 1] < 0.98


def test_unknown_site_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"site_z.*site_a, site_b, site_c"):
        draw_case(1, "site_z", nodule=False)


def test_fewer_photons_more_noise() -> None:
    flat = np.full((128, 102), 2.5, np.float32)
    flat[:8] = 0.0  # what missed the body
    flat[8:40] = 3.5
    spread = {}
    for site in SITES:
        size = (1280, 1024)
        image = expose(flat, site, np.random.default_rng(0), size)[700:1200, 300:700]
        spread[site.name] = np.std(np.diff(image, axis=1)) / np.sqrt(2)
    assert spread["site_a"] < spread["site_b"]
    assert spread["site_a"] < spread["site_c"]


def test_splatted_tube_keeps_its_volume() -> None:
    grid = ProjectionGrid(120, 120, 0.5, (3.0, -2.0))
    x, y = polyline([(-15.0, -10.0), (15.0, 10.0)], 400)
    image = tube(grid, x, y, np.full_like(x, 3.0), across=21)
    length = np.hypot(30, 20)
    assert image.sum() * grid.spacing**2 == pytest.approx(np.pi * 9 * length, rel=0.02)
    assert image.max() == pytest.approx(6.0, rel=0.12)


def test_stamped_ball_is_as_thick_as_wide_and_cut_at_the_edge() -> None:
    grid = ProjectionGrid(80, 80, 0.5)
    image = grid.empty()
    stamp(image, grid, (2.0, -3.0), (6.0, 6.0), 12.0)
    assert image.sum() * grid.spacing**2 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.01)
    stamp(image, grid, (500.0, 0.0), (6.0, 6.0), 12.0)  # far outside: nothing happens
    assert image.sum() * grid.spacing**2 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.01)


def test_site_named_gives_each_site() -> None:
    assert [site_named(site.name) for site in SITES] == list(SITES)


@pytest.fixture(scope="module")
def thumbnails() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every image of the default study at a tenth of its matrix, brought to 32 x 32: features, label, split."""
    shots = [(who, index) for who in plan_patients(600, 7) for index in range(who.images)]
    found = []
    for who, index in shots:
        image = draw_case(
            7, who.site, nodule=who.nodule, size=SMALL[who.site], patient=who.number, image=index, sex=who.sex
        )
        low, high = np.percentile(image, (0.5, 99.5))
        picture = Image.fromarray(np.clip((image - low) / (high - low), 0, 1))
        found.append(np.asarray(picture.resize((32, 32), Image.Resampling.BOX)).ravel())
    return np.array(found), np.array([who.nodule for who, _ in shots]), np.array([who.split for who, _ in shots])


@pytest.mark.system
def test_thumbnails_do_not_answer_the_question(thumbnails: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, labels, split = thumbnails
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        {"logisticregression__C": [1e-4, 1e-2, 1.0]},
        scoring="roc_auc",
        cv=4,
    ).fit(images[split == "train"], labels[split == "train"])
    for name in ("val", "test"):
        assert roc_auc_score(labels[split == name], search.decision_function(images[split == name])) < 0.75
