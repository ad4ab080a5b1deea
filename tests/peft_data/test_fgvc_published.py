"""The fine-grained sets as their authors publish them."""

import numpy as np
import pytest
from peft_data import DataError, open_data
from scipy.io import savemat

from tests.peft_data.drawn import picture


def rows(**columns) -> np.ndarray:
    """MATLAB's structure array."""
    table = np.zeros((1, len(next(iter(columns.values())))), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        table[name][0] = values
    return table


def sizes(data) -> list[int]:
    return [len(part) for part in (data.train, data.val, data.test)]


def test_birds(tmp_path) -> None:
    folder = tmp_path / "CUB_200_2011"
    names = [f"{c + 1:03d}.Bird_{'AB'[c]}/{i}.jpg" for c in range(2) for i in range(12)]
    for name in names:
        picture(folder / "images" / name)
    (folder / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)), encoding="utf-8")
    (folder / "image_class_labels.txt").write_text(
        "".join(f"{i} {(i + 11) // 12}\n" for i in range(1, 25)), encoding="utf-8"
    )
    (folder / "train_test_split.txt").write_text(
        "".join(f"{i} {int(i % 12 != 0)}\n" for i in range(1, 25)), encoding="utf-8"
    )
    data = open_data("fgvc/cub", root=str(tmp_path))
    assert sizes(data) == [20, 2, 2] and data.class_names == ("Bird A", "Bird B")
    assert data.test.name(1) == "images/002.Bird_B/11.jpg" and data.test.labels.tolist() == [0, 1]
    assert open_data(str(folder)).name == "fgvc/cub"
    (folder / "image_class_labels.txt").unlink()
    with pytest.raises(DataError, match="lists in .* cannot be read .*train_test_split.txt"):
        open_data(str(folder))


def test_dogs(tmp_path) -> None:
    for place in ("lists", "."):
        folder = tmp_path / place.strip(".") / "StanfordDogs"
        (folder / place).mkdir(parents=True)
        for split, count in (("train", 10), ("test", 2)):
            names = [f"n0208562{i % 2}-{'Pug' if i % 2 else 'Chow'}/{split}{i}.jpg" for i in range(count)]
            for name in names:
                picture(folder / "Images" / name)
            table = {"file_list": np.array(names, dtype=object)[:, None], "labels": np.arange(count)[:, None] % 2 + 1}
            savemat(folder / place / f"{split}_list.mat", table)
        data = open_data(str(folder))
        assert data.name == "fgvc/dogs" and sizes(data) == [9, 1, 2] and data.class_names == ("Chow", "Pug")


def test_cars(tmp_path) -> None:
    names = [f"car_ims/{i:06d}.jpg" for i in range(1, 13)]
    for name in names:
        picture(tmp_path / "StanfordCars" / name)
    columns = dict(relative_im_path=names, test=[i // 10 for i in range(12)])
    table = rows(**columns, **{"class": [i % 2 + 1 for i in range(12)]})
    savemat(tmp_path / "StanfordCars/cars_annos.mat", {"annotations": table})
    data = open_data("fgvc/cars", root=str(tmp_path))
    assert sizes(data) == [9, 1, 2] and data.test.name(0) == names[10] and data.test.labels.tolist() == [0, 1]


def test_cars_with_the_devkit(tmp_path) -> None:
    folder = tmp_path / "Stanford-cars"
    (folder / "devkit").mkdir(parents=True)
    for split, count, name in (("train", 10, "devkit/cars_train_annos"), ("test", 2, "cars_test_annos_withlabels")):
        names = [f"{i:05d}.jpg" for i in range(1, count + 1)]
        for file in names:
            picture(folder / f"cars_{split}" / file)
        table = rows(fname=names, **{"class": [i % 2 + 1 for i in range(count)]})
        savemat(folder / f"{name}.mat", {"annotations": table})
    data = open_data(str(folder))
    assert sizes(data) == [9, 1, 2] and data.test.name(1) == "cars_test/00002.jpg"


def test_flowers(tmp_path) -> None:
    folder = tmp_path / "OxfordFlowers"
    for i in range(1, 9):
        picture(folder / f"jpg/image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2] * 4])})
    savemat(folder / "setid.mat", {"trnid": [[5, 6, 7]], "valid": [[1, 2]], "tstid": [[3, 4, 8]]})
    data = open_data("fgvc/flowers", root=str(tmp_path))
    assert sizes(data) == [3, 2, 3] and data.train.labels.tolist() == [0, 1, 0]
    assert data.test.name(2) == "jpg/image_00008.jpg"
    (folder / "imagelabels.mat").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read .*setid.mat"):
        open_data("fgvc/flowers", root=str(tmp_path))
