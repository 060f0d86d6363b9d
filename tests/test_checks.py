"""The checks of a commit are those of the continuous integration, and come from nowhere else."""

import os
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CHECK = (ROOT / ".ci" / "check").read_text()


def test_a_commit_is_checked_as_the_ci_checks_by_hooks_of_this_repository_only() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    checked = re.findall(r"^check (.+)$", CHECK, flags=re.MULTILINE)
    assert checked.pop() == "pytest"  # which takes minutes
    assert [hook["entry"] for hook in hooks] == checked


def test_the_ci_runs_what_a_developer_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in workflow["jobs"].items()
    }
    assert commands == {"check": ["bash .ci/run"], "thorough": ["bash .ci/thorough"]}
    assert "\n.ci/check\n" in (ROOT / ".ci" / "run").read_text()
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in ("check", "run", "thorough"))
