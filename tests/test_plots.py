"""The figures of the benchmark: what their axes, marks and titles say is what the rows say."""

import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgba
from matplotlib.container import BarContainer

from lal_triton.benchmarks import load
from lal_triton.plots import charts, headline, style, training, upsampled

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MEASURED = ["zen4-2-cores", "zen4-2-cores-upsampled", "h200", "h200-upsampled"]


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def steps_of(data):
    return [row for row in data["rows"] if row["phase"] == "step"]


@pytest.fixture(scope="module")
def drawn():
    """The figures of all committed results by file and name."""
    found = {}
    for name in MEASURED:
        data = read(name)
        found |= {
            (name, figure): made for figure, made in charts.make_figures(data["rows"], data["environment"]).items()
        }
    for task in ("nuclei", "digits"):
        data = read(f"training-{task}")
        found |= {(task, "curves"): training.draw_curves(data), (task, "classes"): training.draw_classes(data)}
    for figure in found.values():
        figure.draw_without_rendering()
    return found


def plain(text):
    """Without the line breaks and the spaces that keep an equals sign in its line."""
    return text.replace("\n", " ").replace(style.SPACE, " ")


def title_of(figure):
    return plain(figure.get_suptitle())


def footer_of(figure):
    return plain(figure.get_supxlabel())


# ---- what holds for every figure


def test_the_committed_results_suffice_for_every_figure(drawn):
    assert {name for _, name in drawn} == {
        *(chart.name for chart in charts.CHARTS),
        *("upsampled_headline", "upsampled_time", "memory_vs_image_size_upsampled", "curves", "classes"),
    }


def test_bars_begin_at_zero_on_a_linear_axis(drawn):
    barred = [axes for figure in drawn.values() for axes in figure.axes if axes.containers]
    assert len(barred) == 2 * 2 + 2  # headlines of two results files, and two tasks
    for axes in barred:
        (container, *_) = [container for container in axes.containers if isinstance(container, BarContainer)]
        assert axes.get_xscale() == axes.get_yscale() == "linear"
        limits = axes.get_xlim() if container.orientation == "horizontal" else axes.get_ylim()
        assert limits[0] == 0


def test_what_is_compared_is_on_one_scale(drawn):
    for (_, name), figure in drawn.items():
        if name == "upsampled_time":
            assert len({axes.get_xlim() for axes in figure.axes}) == 1
        elif name not in ("upsampled_headline", "classes"):  # whose panels show time and memory, or which has one
            assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_every_line_is_in_the_legend(drawn):
    for (_, name), figure in drawn.items():
        if name not in ("upsampled_headline", "upsampled_time"):  # labelled at the axis
            lines = {line.get_label() for axes in figure.axes for line in axes.get_lines()}
            legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
            told = {plain(text.get_text()) for legend in legends for text in legend.get_texts()}
            assert {label for label in lines if label[0] != "_"} <= told


def test_nothing_overlaps_and_all_is_within_the_figure(drawn):
    for key, figure in drawn.items():
        texts = [figure._suptitle, figure._supxlabel, *figure.legends]
        boxes = [artist.get_window_extent() for artist in texts] + [axes.get_tightbbox() for axes in figure.axes]
        for one, other in itertools.combinations(boxes, 2):
            covered = type(one).intersection(one, other)
            assert covered is None or min(covered.width, covered.height) < 2, key  # a line's width
        whole = figure.bbox
        assert all(box.x0 >= whole.x0 - 2 and box.x1 <= whole.x1 + 2 for box in boxes), key


def test_every_footer_says_where_and_when(drawn):
    for (file, _), figure in drawn.items():
        environment = read(file if file in MEASURED else f"training-{file}")["environment"]
        for told in ("device", "torch", "date"):
            assert environment[told] in footer_of(figure)
        assert ("threads: " in footer_of(figure)) == (environment["device_type"] == "cpu")
        assert "busy" not in footer_of(figure)  # these files do not tell


# ---- titles


def find(steps, name, **equal):
    (row,) = [r for r in steps if r["name"] == name and not r["compiled"] and all(r[k] == v for k, v in equal.items())]
    return row


@pytest.mark.parametrize("factor", [1, 3, 100])
def test_the_headline_is_that_of_its_bars(factor):
    data = read("zen4-2-cores-upsampled")
    steps = steps_of(data)
    at = {"upsampling": 4, "num_classes": 150, "memory_sweep": False}
    own, other = find(steps, "own_cross_entropy", **at), find(steps, "cross_entropy", **at)
    for key in ("lower_ms", "median_ms", "upper_ms"):
        own[key] *= factor
    figure = headline.draw_headline(steps, data["environment"])
    gain = other["median_ms"] / own["median_ms"]
    said = f"{gain:.1f} times faster than" if gain >= 1 else f"{1 / gain:.1f} times as long as"
    peaks = [row["peak_bytes"] / row["full_bytes"] for row in (own, other)]
    title = f"by 4: {said} in PyTorch, in {peaks[0]:.2f} of the logits' memory instead of {peaks[1]:.2f}"
    assert title_of(figure).endswith(title)
    lal = find(steps, "lal", kernel_size=5, **at)
    time, memory = figure.axes
    assert [bar.get_width() for bar in time.patches] == [row["median_ms"] for row in (other, own, lal)]
    assert [bar.get_width() for bar in memory.patches][:2] == peaks[::-1]
    spread = [list(line.get_xdata()) for line in time.get_lines()]
    assert spread == [[row["lower_ms"], row["upper_ms"]] for row in (other, own, lal)]


def test_the_title_of_all_times_spans_the_panels():
    data = read("zen4-2-cores-upsampled")
    timed = [row for row in steps_of(data) if not row["memory_sweep"]]
    gains = []
    for ratio, classes in itertools.product((4, 8), (21, 150)):
        at = {"upsampling": ratio, "num_classes": classes}
        gains.append(
            find(timed, "cross_entropy", **at)["median_ms"] / find(timed, "own_cross_entropy", **at)["median_ms"]
        )
    figure = upsampled.draw_time(timed, data["environment"])
    assert f": {min(gains):.1f} to {max(gains):.1f} times faster than F.interpolate" in title_of(figure)
    points = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "o"]
    assert sorted(x for line in points for x in line.get_xdata()) == sorted(
        r["median_ms"] for r in timed if not r["skipped"]
    )


def test_titles_over_kernel_sizes_are_those_of_lal_beside_its_peers(drawn):
    steps = [r for r in steps_of(read("zen4-2-cores")) if r["height"] == 321 and not (r["beside"] or r["one_thread"])]
    own = [find(steps, "lal", kernel_size=k) for k in (3, 5, 7)]
    unfold = [find(steps, "unfold", kernel_size=k) for k in (3, 5, 7)]
    cross_entropy = find(steps, "cross_entropy")
    gains = [theirs["median_ms"] / ours["median_ms"] for ours, theirs in zip(own, unfold, strict=True)]
    costs = [ours["median_ms"] / cross_entropy["median_ms"] for ours in own]
    title = title_of(drawn["zen4-2-cores", "time_vs_kernel_size"])
    assert f"{min(gains):.1f} to {max(gains):.1f} times faster than F.unfold" in title
    assert f"{min(costs):.1f} to {max(costs):.1f} times as long as F.cross_entropy" in title
    peaks = [row["peak_bytes"] / row["logits_bytes"] for row in unfold]
    assert f"F.unfold {peaks[0]:.1f} to {peaks[-1]:.1f}" in title_of(drawn["zen4-2-cores", "memory_vs_kernel_size"])


# ---- a busy machine


@pytest.mark.parametrize("name", ["zen4-2-cores", "zen4-2-cores-upsampled"])
def test_times_of_a_busy_machine_are_hollow_and_the_footer_counts_them(name):
    data = read(name)
    for index, row in enumerate(data["rows"]):
        row["processor_share"] = 0.31 if index % 2 else load.BUSY
    for figure_name, figure in charts.make_figures(data["rows"], data["environment"]).items():
        if figure_name.startswith("memory"):
            assert "busy" not in footer_of(figure)
            continue
        assert "The machine was busy: " in footer_of(figure)
        assert "(hollow). A thread got 0.31 of a core at worst." in footer_of(figure)
        told = int(footer_of(figure).split("busy: ")[1].split()[0])
        if figure_name == "upsampled_headline":
            faces = [bar.get_facecolor() for bar in figure.axes[0].patches]
            assert faces.count(to_rgba("white")) == told
        if figure_name == "upsampled_time":
            faces = [line.get_markerfacecolor() for axes in figure.axes for line in axes.get_lines()]
            assert faces.count("white") == told
        if figure_name == "time_vs_image_size":
            points = [line for line in figure.axes[0].get_lines() if line.get_label() == "_busy"]
            assert sum(len(line.get_xdata()) for line in points) == told


def test_an_idle_machine_is_not_remarked_on():
    data = read("zen4-2-cores")
    for row in data["rows"]:
        row["processor_share"] = load.BUSY
    for figure in charts.make_figures(data["rows"], data["environment"]).values():
        assert "busy" not in footer_of(figure)
