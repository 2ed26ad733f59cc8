"""The recorded results kept in the repository, and any folders named in GOLDEN_PATHS, as tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.golden.cases import Case, find_cases
from tests.golden.replay import FAIL, NOT_COVERED, Comparison, _compare, _Entry, identify, judge, load_families

DATA = Path(__file__).parent / "data"
FOLDERS = [DATA, *(Path(text) for text in os.environ.get("GOLDEN_PATHS", "").split(os.pathsep) if text)]


def name(case: Case) -> str:
    return "/".join(case.path.with_suffix("").parts[-2:])


@pytest.mark.host
@pytest.mark.parametrize("case", find_cases([DATA]), ids=name)
def test_recorded_case(case):
    load_families()
    verdict = judge(case)
    assert verdict.status not in (FAIL, NOT_COVERED), verdict.line()


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("case", find_cases(FOLDERS[1:]), ids=name)
def test_recorded_case_elsewhere(case):
    load_families()
    verdict = judge(case)
    if verdict.status == NOT_COVERED:
        pytest.skip("no replay covers it")
    assert verdict.status != FAIL, verdict.line()


def judged(got, want, atol=None, rtol=None) -> str:
    return _compare("case", Comparison("value", got, want), _Entry(None, atol, rtol))[1].status


def test_the_runner_can_fail():
    assert judged([1.0, 2.0], [1.0, 2.0], atol=1e-5) == "ok"
    assert judged([1.0, 2.1], [1.0, 2.0], atol=1e-5) == FAIL
    assert judged([1.0, float("nan")], [1.0, 2.0], atol=1e-5) == FAIL
    assert judged([1.0], [1.0, 2.0], atol=1e-5) == FAIL
    assert judged([1000.01], [1000.0], rtol=1e-4) == "ok"
    assert judged([1000.2], [1000.0], rtol=1e-4) == FAIL


def test_cases_are_recognized_by_folder_name_and_suffix(tmp_path):
    load_families()

    def case(path: str, content: str = "{}") -> Case:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return Case(file)

    assert identify(case("set_b/streamingsvd/cam_merger.json")) == ("streamingsvd", "cam_merger")
    assert identify(case("streamingsvd/cam_merger_2.json")) == ("streamingsvd", "cam_merger")
    assert identify(case("x/one.json", '{"case": "cam_merger"}')) == ("streamingsvd", "cam_merger")
    assert identify(case("streamingsvd/clip_preprocess.json")) == ("streamingsvd", "clip_preprocess")
    assert identify(case("streamingsvd/autoregressive_vae.json")) == ("streamingsvd", "autoregressive_vae")
    assert identify(case("streamingsvd/something_else.json")) is None
    assert identify(case("lvdm/data/enhancer/schedule.json")) == ("enhancer", "schedule")
    assert identify(case("enhancer/data/lvdm/schedule_2.json")) == ("lvdm", "schedule")
