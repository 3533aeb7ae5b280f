"""What the description of the control interface promises is what the daemon does."""

from api.trial import try_api

SECONDS = 15


def test_schemathesis_finds_nothing() -> None:
    trial = try_api(SECONDS, seed=1)
    assert trial.exit_code == 0, trial.report
    assert trial.requests > 50, trial.report
    assert "level=error" not in trial.log
    assert "Traceback" not in trial.log
