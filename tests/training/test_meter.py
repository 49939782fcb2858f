"""What is counted of a training, and how it is kept over a resume."""

from labeltune.training.meter import Meter, known_peak, peak_memory


def test_rates_and_shares_are_of_what_was_added() -> None:
    meter = Meter()
    meter.add(8, 100, 0.5, 160)
    meter.add(8, 100, 0.5, 240)
    facts = meter.facts()
    assert (facts["rows_per_second"], facts["tokens_per_second"], facts["seconds"]) == (16, 200, 1)
    assert facts["padding_share_saved"] == 0.5
    other = Meter()
    other.restore(meter.state())
    assert other == meter


def test_utilisation_is_told_of_devices_whose_peak_is_known(monkeypatch) -> None:
    assert known_peak("NVIDIA H100 80GB HBM3") == 989e12 and known_peak("NVIDIA H100 PCIe") == 756e12
    assert known_peak("a toaster") is None
    meter = Meter(tokens=1000, seconds=1.0)
    monkeypatch.setattr("labeltune.training.meter.known_peak", lambda: 4e13)
    assert meter.utilisation(10**9, 4.0) == 0.1


def test_devices_of_like_names_are_told_apart() -> None:
    assert known_peak("NVIDIA L40") is None and known_peak("NVIDIA L40S") == 362e12
    assert known_peak("NVIDIA A10G") is None and known_peak("NVIDIA A10") == 125e12


def test_a_system_that_does_not_say_the_peak_has_the_largest_resident_size(monkeypatch, tmp_path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 1000 kB\n")
    monkeypatch.setattr("labeltune.training.meter.STATUS", tmp_path / "status")
    assert 0 < peak_memory() < 1000
