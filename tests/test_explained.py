"""The pictures that explain LAL are drawn, and show what the page says."""

import pytest

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from lal_triton.functional import cross_entropy, locally_adaptive_loss
from lal_triton.plots import explained


@pytest.fixture(scope="module")
def crop():
    return explained.make_crop()


def test_pictures_are_drawn(tmp_path):
    written = explained.draw(tmp_path)
    assert [path.name for path in written] == [f"explained_{name}.png" for name in ("window", "merge", "gradient")]
    assert all(path.stat().st_size > 10_000 for path in written)


def test_the_window_lies_on_a_border(crop):
    labels = crop.labels[0]
    row, column = explained.CENTRE
    window = labels[row - 2 : row + 3, column - 2 : column + 3]
    assert window.shape == (5, 5)
    assert 5 < (window == labels[row, column]).sum() < 25


def test_wrong_pixels_are_as_the_page_says(crop):
    """Only exchanged logits are wrong there, and gradients are multiples of their mean over the crop."""
    logits = explained.with_errors(crop)
    prediction = logits.argmax(1)[0]
    of_cross_entropy = explained.gradient_norm(cross_entropy, logits, crop.labels)
    of_lal = explained.gradient_norm(locally_adaptive_loss, logits, crop.labels)
    for place in (explained.PIXEL, explained.SQUARE):
        assert (prediction[place] != crop.labels[0][place]).all()
        assert (crop.logits.argmax(1)[0][place] == crop.labels[0][place]).all()

    square = of_cross_entropy[explained.SQUARE]
    assert of_cross_entropy[explained.PIXEL] > square.min()
    assert of_cross_entropy[explained.PIXEL] < 1.5 * square.min()
    assert of_lal[explained.PIXEL] < of_lal.mean() / 2
    assert 3 < of_lal[explained.SQUARE].mean() / of_lal.mean() < 5
    largest = divmod(int(of_lal.argmax()), explained.SIDE)
    assert crop.labels[0][largest] == 0
    assert prediction[largest] != 0
