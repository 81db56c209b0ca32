"""Each figure is drawn in each format, has units on its axes, and says what stands behind it and what is left out."""

import html
import re
import subprocess
import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from batchbridge.measure.results import Results
from batchbridge.plot import figures
from batchbridge.plot.batch_sizes import interval_of, power_of
from batchbridge.plot.batching import cost, cost_notes, gaps_of, levels_of, lines_of, throughput
from batchbridge.plot.figures import FIGURES, PlotError, draw, figures_of, save
from batchbridge.plot.groups import collect, label_of, spread_of, varying
from batchbridge.plot.latency_cdf import chosen, slower_shares
from batchbridge.plot.sheet import shortened
from batchbridge.plot.throughput_latency import lines_of as throughput_lines_of
from support.samples import (
    batching_results,
    load_results,
    make_run,
    overload_results,
    rates_results,
    sweep_results,
    versus_results,
)

LONG = "a server whose name is far longer than anybody would wish it to be, version 1.2.3 with all patches"


def sheets(name, *results):
    (drawing,) = draw(results, [name])
    assert not drawing.reason, drawing.reason
    return drawing.sheets


def text_of(sheet, tmp_path):
    """All text of a sheet, as its SVG has it."""
    path = tmp_path / "sheet.svg"
    save(sheet, path)
    found = re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.S)
    return "\n".join(html.unescape(re.sub(r"<[^>]+>", "", each)) for each in found)


def rendered(sheet, tmp_path):
    """What tells the extent of everything, once the sheet is laid out."""
    save(sheet, tmp_path / "sheet.png")
    canvas = FigureCanvasAgg(sheet.figure)
    canvas.draw()
    return canvas.get_renderer()


CASES = [
    ("batching", batching_results(20, outs=(1, 8, 64)), [
        "Throughput", "throughput (1,000 requests/s)", "server CPU (µs/request)", "G (%)", "U0", "U1", "K0", "K1",
        "achieved batch size (requests, mean)", "B, responses in batches of 8", "n = 20 blocks", "95% bootstrap",
        "64 connections, 0 µs of work.", "full marks and lines against K1, hollow and dotted against K0",
    ]),
    ("sweep", sweep_results(), [
        "p99 latency (ms)", "Server CPU (µs/request)", "Throughput (1,000 requests/s)", "max_batch_size (requests)",
        "max_queue_delay_us (µs)", "n = 3 blocks", "A screen: no evidence.", "Open loop, 50,000 requests/s offered.",
    ]),
    ("rates", rates_results(), [
        "busy time of the server's core (%)", "server CPU (µs/request)", "p99 latency (ms)", "U1", "B(64,64)", "K1",
        "offered rate (1,000 requests/s)", "Open loop, 64 connections; batches wait to be full", "n = 3 blocks",
    ]),
    ("overload", overload_results(), [
        "goodput (% of capacity)", "its threads' share of the core (%)", "p99 latency (ms)", "kernel", "nginx",
        "offered load (multiples of capacity)", "a connection for each request", "n = 3 blocks", "Hollow: the client",
    ]),
    ("trade-off", sweep_results(), ["server CPU (µs/request)", "p99 latency (ms)", "64, 0 µs", "beaten by another"]),
    ("throughput-latency", versus_results(), [
        "throughput (1,000 requests/s)", "p50 latency (ms)", "p99 latency (ms)", "batchbridge", "nginx",
        "Hollow: answered less than 95%",
    ]),
    ("latency-cdf", versus_results(), [
        "latency (ms)", "share of requests that took longer", "p99", "batchbridge, 20,000 requests/s",
    ]),
    ("batch-sizes", sweep_results(), ["share of batches (%)", "batch size (requests)", "batch ≤ 64, delay ≤ 400 µs"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "results", "words"), CASES, ids=[case[0] for case in CASES])
def test_each_figure_says_what_it_shows(name, results, words, tmp_path):
    (sheet,) = sheets(name, results).values()
    text = text_of(sheet, tmp_path)
    for each in [*words, "A Test Processor, 2 cores, Linux 6.18.0"]:
        assert each in " ".join(text.split()), each


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize(("name", "results"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_each_figure_in_each_format(name, results, suffix, tmp_path):
    begin = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}[suffix]
    for number, sheet in enumerate(sheets(name, results).values()):
        path = tmp_path / f"{number}.{suffix}"
        save(sheet, path)
        assert path.read_bytes().startswith(begin) and path.stat().st_size > 5000


def test_the_same_results_make_the_same_file(tmp_path):
    for suffix in ("svg", "png", "pdf"):
        written = []
        for number in range(2):
            save(sheets("sweep", sweep_results())[""], tmp_path / f"{number}.{suffix}")
            written.append((tmp_path / f"{number}.{suffix}").read_bytes())
        assert written[0] == written[1], suffix


# --- odd results ------------------------------------------------------------------------------------------------------


def test_one_run_has_no_spread(tmp_path):
    for name in ("throughput-latency", "latency-cdf"):
        (sheet,) = sheets(name, load_results()).values()
        assert "n = 1 block, so no spread is known." in text_of(sheet, tmp_path)


def test_two_blocks_show_their_extremes(tmp_path):
    assert "least and largest run" in text_of(sheets("trade-off", sweep_results(2))[""], tmp_path)


def test_invalid_runs_are_left_out_and_counted(tmp_path):
    results = sweep_results()
    results.runs[0].valid, results.runs[0].invalid_reason = False, "the server died"
    text = text_of(sheets("sweep", results)[""], tmp_path)
    assert "1 of 18 runs invalid, left out." in text and "n = 2 to 3 blocks" in text


def test_long_names_stay_within_the_sheet(tmp_path):
    results = versus_results(arms=(LONG, LONG.replace("1.2.3", "1.2.4")))
    for name in ("throughput-latency", "latency-cdf", "batch-sizes"):
        (sheet,) = sheets(name, results).values()
        renderer = rendered(sheet, tmp_path)
        width, height = sheet.figure.get_size_inches() * sheet.figure.dpi
        for text in [*sheet.figure.texts, *(t for legend in sheet.figure.legends for t in legend.get_texts())]:
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


@pytest.mark.parametrize(("name", "results"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_what_stands_around_the_panels_touches_nothing(name, results, tmp_path):
    for sheet in sheets(name, results).values():
        renderer = rendered(sheet, tmp_path)
        panels = [axis.get_tightbbox(renderer) for axis in sheet.panels if axis.get_visible()]
        around = [text.get_window_extent(renderer) for text in sheet.figure.texts]
        around += [legend.get_window_extent(renderer) for legend in sheet.figure.legends]
        for place, box in enumerate(around):
            for other in [*panels, *around[place + 1 :]]:
                across = min(box.x1, other.x1) - max(box.x0, other.x0)
                up = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert across <= 1 or up <= 1, (box, other)
        for place, box in enumerate(panels):
            for other in panels[place + 1 :]:
                across = min(box.x1, other.x1) - max(box.x0, other.x0)
                up = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert across <= 1 or up <= 1, "panels overlap"


def test_long_labels_keep_their_end():
    assert shortened("short", 60) == "short"
    found = shortened(f"{LONG}, 20,000 requests/s", 60)
    assert len(found) <= 60 and found.startswith("a server whose") and found.endswith(", 20,000 requests/s")


def test_what_the_results_note_is_said(tmp_path):
    results = load_results()
    results.note = "No evidence: 1 block of the 20 that a claim takes. Measured over loopback. Costs mix there."
    text = text_of(sheets("latency-cdf", results)[""], tmp_path)
    assert "Measured over loopback. Costs mix there." in text and "claim" not in text


def test_missing_cpu_is_said(tmp_path):
    text = text_of(sheets("sweep", sweep_results(cpu=False))[""], tmp_path)
    assert "Not measured: Server CPU." in text
    (drawing,) = draw([sweep_results(cpu=False)], ["trade-off"])
    assert drawing.sheets == {} and "server's CPU" in drawing.reason
    text = text_of(sheets("batching", batching_results(cpu=False))[""], tmp_path)
    assert "G is not shown: the server CPU of U1 was not measured." in text and "not measured" in text


def test_without_kernel_arms_there_is_no_g(tmp_path):
    text = text_of(sheets("batching", batching_results(levels=("U1",)))[""], tmp_path)
    assert "G is not shown: the server CPU of K0 or K1 was not measured." in text


def test_an_undefined_g_is_left_out_and_said(tmp_path):
    one = batching_results(blocks=1)
    text = " ".join(text_of(sheets("batching", one)[""], tmp_path).split())
    assert "G against K1 left out at 3 points: undefined" in text and "G against K0 left out at 3 points" in text
    lines, levels = lines_of(one.runs), levels_of(one.runs)
    assert gaps_of(lines, levels)[0] == {}
    four = batching_results()
    gaps, notes = gaps_of(lines_of(four.runs), levels_of(four.runs))
    assert set(gaps) == {("K1", 0), ("K0", 0)} and len(gaps["K1", 0]) == 3
    place, gap = gaps["K1", 0][2]
    assert place == pytest.approx(57.6) and gap.low <= gap.mid <= gap.high and 0.8 < gap.mid < 1.1
    assert len(notes) == 1


def test_only_one_arm(tmp_path):
    text = text_of(sheets("batching", batching_results(sizes=(8,), levels=()))[""], tmp_path)
    assert "B, batched" in text and "G is not shown" in text


def test_phases_of_an_experiment_are_not_mixed(tmp_path):
    """Throughput comes from closed loops, cost from open ones, latencies from runs without the idle loop."""
    results = batching_results(blocks=4, levels=("U1", "K1"))
    for run in results.runs:
        run.parameters["phase"] = "capacity"
    others = []
    for run in results.runs:
        for phase, rate, connections in (("cost", 1000.0, 64), ("cost", 2000.0, 64), ("latency", 1500.0, 64),
                                         ("lone", None, 1)):  # fmt: skip
            parameters = {**run.parameters, "phase": phase, "connections": connections}
            if rate is not None:
                parameters["rate_per_s"] = rate
            others.append(make_run(run.arm, run.block, parameters, rate=rate or 10.0, latency_us=50_000.0, batch=2.0,
                                   offered_per_s=rate))  # fmt: skip
            others[-1].server_cpu_us_per_request = 7.0 if phase == "cost" else 1e6
    results.runs += others
    (sheet,) = sheets("batching", results).values()
    text = " ".join(text_of(sheet, tmp_path).split())
    assert "Server CPU: the slope over open-loop rates." in text and "n = 4 blocks" in text
    assert cost(results.of("B(8,8)")) == pytest.approx(dict.fromkeys(range(4), 7.0))
    assert all(rate > 1e5 for rate in throughput(results.of("B(8,8)")).values())
    assert {group.parameters["phase"] for group in collect(results, "latency", "capacity")} == {"latency"}
    assert {group.parameters["phase"] for group in collect(results, "capacity")} == {"capacity"}
    assert len(collect(results)) > 2 * len(collect(results, "capacity")), "unless it is asked for, all of them"


def test_a_sheet_for_each_setting():
    settings = tuple({"connections": count, "work_us": work} for count in (64, 1024) for work in (0, 10))
    found = sheets("batching", batching_results(settings=settings))
    assert set(found) == {
        "64connections-0work",
        "64connections-10work",
        "1024connections-0work",
        "1024connections-10work",
    }


def test_the_achieved_size_stands_in_for_what_was_asked(tmp_path):
    results = batching_results()
    for run in results.runs:
        run.mean_batch_size = None
    text = " ".join(text_of(sheets("batching", results)[""], tmp_path).split())
    assert "Where the achieved batch size was not measured, the one asked for is its place." in text


@pytest.mark.parametrize("name", list(FIGURES))
def test_results_without_runs_have_nothing_to_draw(name):
    (drawing,) = draw([Results(FIGURES[name].kinds[0])], [name])
    assert drawing.sheets == {} and drawing.reason


def test_an_open_loop_at_one_rate_has_no_throughput_to_plot():
    (drawing,) = draw([sweep_results()], ["throughput-latency"])
    assert "one throughput" in drawing.reason
    assert sheets("throughput-latency", sweep_results(rate_per_s=None))


def test_a_kind_has_its_figures():
    assert figures_of("load") == ["throughput-latency", "latency-cdf", "batch-sizes"]
    assert figures_of("overload") == ["overload"] and figures_of("latency") == ["latency-cdf"]
    assert figures_of("batching")[0] == "batching" and "sweep" in figures_of("sweep")
    with pytest.raises(PlotError, match="results of kind 'load' have no figure sweep; they have throughput-latency"):
        list(draw([load_results()], ["sweep"]))


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(PlotError, match="cannot be written: no such file or directory"):
        save(sheets("latency-cdf", load_results())[""], tmp_path / "none" / "a.png")


def test_without_matplotlib_a_sentence_says_what_to_do(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(figures.importlib, "import_module", missing)
    with pytest.raises(PlotError, match=r"need matplotlib, which is not installed: pip install 'batchbridge\[plot\]'"):
        list(draw([load_results()], ["latency-cdf"]))


def test_the_names_of_figures_need_no_matplotlib():
    program = "import sys, batchbridge.cli.plot, batchbridge.cli.tune\nassert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


# --- what belongs together --------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_arm_and_parameters():
    groups = collect(versus_results(2))
    assert len(groups) == 6 and all(group.blocks == 2 for group in groups)
    assert varying(groups) == ["rate_per_s"]
    assert label_of(groups[0], groups) == "batchbridge, 20,000 requests/s"
    assert set(throughput_lines_of(groups)) == {"batchbridge", "nginx"}
    (only,) = collect(load_results())
    assert label_of(only, [only]) == "load" and list(throughput_lines_of([only])) == ["load"]


def test_spreads_hold_their_median():
    assert spread_of([3.0]) == (3.0, 3.0, 3.0)
    assert spread_of([1.0, 3.0]) == (1.0, 2.0, 3.0)
    low, middle, high = spread_of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert low <= middle == 3.0 <= high


def test_shares_of_a_distribution():
    run = load_results().runs[0]
    run.histogram = [(10, 50), (20, 40), (100, 10)]
    assert list(slower_shares(run, [5, 10, 19, 20, 99, 100, 200])) == [1.0, 0.5, 0.5, 0.1, 0.1, 0.0, 0.0]


def test_few_lines_are_chosen_of_many():
    groups = collect(sweep_results(blocks=1))
    assert chosen(groups, 9) == groups
    tails = [group.values(lambda run: run.latency_us["p99"])[0] for group in groups]
    few = [group.values(lambda run: run.latency_us["p99"])[0] for group in chosen(groups, 3)]
    assert few == sorted(few) and few[0] == min(tails) and few[-1] == max(tails) and len(few) == 3


def test_batch_sizes_are_counted_by_powers_of_two():
    assert [power_of(size) for size in (0, 1, 2, 3, 4, 5, 8, 9, 64, 65)] == [0, 0, 1, 2, 2, 3, 3, 4, 6, 7]
    assert [interval_of(power) for power in range(4)] == ["1", "2", "3–4", "5–8"]


def test_the_cost_is_the_slope_over_several_rates():
    runs = [
        make_run("U1", block, {"rate_per_s": rate}, rate=rate, latency_us=100, offered_per_s=rate)
        for block in range(2) for rate in (1000.0, 2000.0, 4000.0)
    ]  # fmt: skip
    for run in runs:
        run.requests_per_s = run.offered_per_s = float(run.responses)
        run.server_cpu_us_per_request = 5.0 + 1e4 / run.requests_per_s  # 1% of the core is busy without any request
    assert cost(runs) == pytest.approx({0: 5.0, 1: 5.0})
    assert cost(runs[:1]) == {0: 15.0}
    assert cost_notes([runs]) == ["Server CPU: the slope over open-loop rates."]
    k0 = [make_run("K0", 0, {}, rate=9000.0, latency_us=100, cpu_us=5.0)]
    assert cost_notes([runs, k0]) == ["Server CPU: the slope over open-loop rates, but at saturation of K0."]
    assert cost_notes([k0]) == ["Server CPU: at saturation."] and cost_notes([]) == []
    closed = make_run("U1", 0, {}, rate=9000.0, latency_us=100)
    assert set(throughput([*runs, closed])) == {0} and throughput([*runs, closed])[0] == closed.requests_per_s
