from pathlib import Path

from qtool.comparison.trials import Arm, run_trials, summarize_trials


def finished(accuracy):
    return {"status": "finished", "validation_accuracy": accuracy}


def test_trials_run_seed_by_seed_each_in_a_folder_of_its_own():
    ran = []

    def run_trial(recipe, place):
        ran.append((recipe, place))
        return finished(0.5)

    arms = [Arm("a", ["a0", "a1"]), Arm("b", ["b0", "b1"])]
    summaries = run_trials(arms, [3, 4], Path("c"), run_trial)

    assert ran == [
        ("a0", Path("c/a/seed-3")),
        ("b0", Path("c/b/seed-3")),
        ("a1", Path("c/a/seed-4")),
        ("b1", Path("c/b/seed-4")),
    ]
    assert {name: len(done) for name, done in summaries.items()} == {"a": 2, "b": 2}


def test_a_trial_without_an_accuracy_has_not_failed():
    plain = {"status": "finished", "validation_accuracy": None}
    result = summarize_trials("estimators", "r.yaml", [0], {"a": [plain], "b": [plain]})

    assert [arm["failed"] for arm in result["arms"]] == [0, 0]
    assert "no seed has an accuracy in both" in result["verdict"]


def test_a_failed_trial_is_counted_and_left_out_of_the_mean():
    failed = {"status": "failed", "validation_accuracy": 0.1}
    summaries = {"a": [finished(0.9), finished(0.8)], "b": [failed, finished(0.7)]}
    result = summarize_trials("estimators", "r.yaml", [0, 1], summaries)
    a, b = result["arms"]

    assert (a["values"], a["failed"]) == ([0.9, 0.8], 0)
    assert (b["values"], b["mean"], b["failed"]) == ([None, 0.7], 0.7, 1)
    assert result["differences"][0]["arm"] == "b"
    assert result["differences"][0]["against"] == "a"
    assert result["kind"] == "estimators"
    assert "too few seeds" in result["verdict"]
