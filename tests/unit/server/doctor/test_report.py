from __future__ import annotations

from cove.server.doctor.report import Report, missing, ok, render, warn

GOOD = ok("kernel", "Linux 6.1")
WEAK = warn("KVM", "/dev/kvm: No such file", cost="no microVM tier", cure="another machine")
BAD = missing("runc", "not installed", cost="no sandboxes", cure="make setup")


def test_a_good_machine_reads_as_one_line_per_check() -> None:
    assert render(Report(lines=(GOOD,))) == "ok      kernel  Linux 6.1\n\nAll 1 checks passed."


def test_a_loss_is_followed_by_what_it_costs_and_how_to_cure_it() -> None:
    text = render(Report(lines=(GOOD, WEAK)))
    assert (
        "warn    KVM     /dev/kvm: No such file\n        costs: no microVM tier\n        cure:  another machine" in text
    )
    assert text.endswith("Cove runs here, with limits: KVM.")


def test_something_missing_is_what_the_summary_names() -> None:
    report = Report(lines=(GOOD, WEAK, BAD))
    assert render(report).endswith("Cove cannot run sandboxes here yet: runc.")
    assert not report.is_usable
    assert Report(lines=(GOOD, WEAK)).is_usable


def test_long_advice_is_wrapped_and_commands_stay_whole() -> None:
    line = warn("x", "y", cost="word " * 40, cure="apt-get install --no-install-recommends thing")
    text = render(Report(lines=(line,)))
    assert max(len(row) for row in text.splitlines()) <= 100
    assert "--no-install-recommends" in text
