"""Which case the paths of `medopt predict` mean, where a case has several images or a path has an equals sign."""

from __future__ import annotations

from pathlib import Path

import pytest

from medopt.cli.places import require_scans
from medopt.core.errors import DataError
from medopt.serving.batch import find_cases

NAMES = ("t1", "t2")


def there(folder: Path, *names: str) -> list[Path]:
    found = [folder / name for name in names]
    for path in found:
        path.parent.mkdir(exist_ok=True)
        path.write_text("image:t1,image:t2\na.nii,b.nii\n")
    return found


def test_an_equals_sign_in_a_path_names_no_image(tmp_path: Path) -> None:
    scan, table = there(tmp_path, "site=A/x.dcm", "site=A/cases.csv")
    require_scans([scan, Path(f"t1={scan}")])
    with pytest.raises(DataError, match=r"There is no file or folder .*/y\.dcm\."):
        require_scans([Path(f"t1={scan.with_name('y.dcm')}")])
    assert find_cases([Path(f"t1={scan}")], NAMES) == [(str(scan), "")]
    assert find_cases([table], NAMES) == [(str(tmp_path / "site=A" / "a.nii"), str(tmp_path / "site=A" / "b.nii"))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image:t1,image:t2,image:t1\na,b,c\n", "has the column image:t1 twice"),
        ("image:t1,image:t2,x\n,,1\n", "row 2 has no image"),
        ("image:t1,image:t2\na\n", "row 2 has 1 cells; the header has 2"),
        ("image:t1\na\n", "has no column image:t2"),
    ],
)
def test_a_table_that_is_not_clear_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        find_cases([tmp_path / "cases.csv"], NAMES)


def test_an_image_is_given_once() -> None:
    with pytest.raises(DataError, match="t1 is given twice"):
        find_cases([Path("t1=a.nii"), Path("t1=b.nii"), Path("t2=c.nii")], NAMES)
    with pytest.raises(DataError, match="t3 is not an image name of this release; a case has t1, t2"):
        find_cases([Path("t3=a.nii")], NAMES)
