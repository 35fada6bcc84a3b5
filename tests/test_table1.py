"""Tables of benchmarks/table1.py, from rows of runs."""

import math
import time

import pytest
import table1


def row(name, seed, **values):
    bounds = {step: 3 - 0.1 * seed - 0.25 * math.log2(step) for step in range(10, 110, 10)}
    return {"name": name, "seed": seed, "bounds": bounds, "tflop": 5.0} | values


def test_a_curve_is_shown_at_doublings_and_at_its_end():
    header, _, line = table1.curves_as_markdown([row("AR", 0), row("AR", 1)]).splitlines()
    assert [cell.split()[0] for cell in header.split("|")[3:8]] == ["10", "20", "40", "80", "100"]
    name, cost, first, *_, gained = (cell.strip() for cell in line.strip("|").split("|"))
    assert (name, cost, gained) == ("AR", "0.0500", "0.250, 0.250")
    nats = 3 - 0.25 * math.log2(10)
    means = [math.exp(x) for x in (nats - 0.05, nats, nats - 0.1)]
    assert first == "{:.2f} ({:.2f}, {:.2f})".format(*means)


def test_only_the_last_two_doublings_count():
    bounds = {10: 9.0, 20: 8.0, 40: 3.0, 80: 2.5, 160: 2.0}
    assert table1.gained_a_doubling(bounds) == pytest.approx(0.5)
    assert math.isnan(table1.gained_a_doubling({10: 3.0}))


def test_a_table_has_the_texts_that_all_runs_were_measured_on():
    both = {"validation": 1.0, "validation_error": 0.1}
    rows = [row("AR", 0, **both, gutenberg=1.0, gutenberg_error=0.1), row("AR", 1, **both)]
    assert table1.as_markdown(rows).splitlines()[0] == "| method | seeds | validation |"
    rows[1] |= {"gutenberg": 2.0, "gutenberg_error": 0.1}
    line = table1.as_markdown(rows).splitlines()[-1]
    error = math.exp(1.5) * 0.1 / math.sqrt(2)
    assert line.endswith(f"| {math.exp(1.5):.2f} ± {error:.2f} (2.72 – 7.39) |")


def test_no_run_begins_after_one_that_failed(monkeypatch):
    begun = []

    def run(job, options):
        begun.append(job)
        if job == "first":
            raise ValueError(job)
        time.sleep(0.1)  # the one that failed is noticed meanwhile

    monkeypatch.setattr(table1, "run", run)
    monkeypatch.setattr(table1, "measured", lambda job: {})
    options = table1.argparse.Namespace(at_once=1)
    with pytest.raises(ValueError, match="first"):
        list(table1.results(["first", *map(str, range(50))], options))
    assert len(begun) < 50
