import pickle
import subprocess
import sys

import pytest

from rlhaiku.errors import BadInput
from rlhaiku.judge import JudgeSettings, from_environment
from rlhaiku.judge.settings import modal_proxy_headers


def test_no_url_means_no_judge():
    assert from_environment({}) is None
    assert from_environment({"LLM_JUDGE_URL": "  "}) is None


def test_a_required_judge_needs_its_url():
    with pytest.raises(BadInput, match="LLM_JUDGE_URL"):
        from_environment({}, required=True)


def test_environment():
    env = {"LLM_JUDGE_URL": "http://h:1/v1/", "LLM_JUDGE_API_KEY": " s3cret ", "LLM_JUDGE_TIMEOUT": "7.5"}
    settings = from_environment(env, poems_per_request=4)
    assert (settings.model, settings.api_key, settings.timeout_s) == ("qwen3-4b", "s3cret", 7.5)
    assert settings.poems_per_request == 4
    assert "s3cret" not in repr(settings) and "s3cret" not in str(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_endpoint_takes_a_base_url_with_or_without_v1(url):
    assert JudgeSettings(url).endpoint == "http://h:1/v1/chat/completions"


@pytest.mark.parametrize(
    "env",
    [
        {"LLM_JUDGE_URL": "localhost:8000"},
        {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_TIMEOUT": "soon"},
        {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_TIMEOUT": "0"},
        {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_TIMEOUT": "nan"},
    ],
)
def test_bad_values(env):
    with pytest.raises(BadInput):
        from_environment(env)


@pytest.mark.parametrize(
    "env",
    [
        {"LLM_JUDGE_URL": "http://me:s3cret@h"},
        {"LLM_JUDGE_URL": "http://h/v1?key=s3cret"},
        {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_API_KEY": "s3cret\nX: y"},
        {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_MODAL_KEY": "wk-1", "LLM_JUDGE_MODAL_SECRET": "s3cret\nX: y"},
        {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_MODAL_SECRET": "s3cret"},
    ],
)
def test_misplaced_secrets_are_refused_without_showing_them(env):
    with pytest.raises(BadInput) as caught:
        from_environment(env)
    assert "s3cret" not in str(caught.value) + repr(caught.value)


def test_a_modal_token_is_two_headers_and_in_no_settings():
    env = {"LLM_JUDGE_URL": "http://h", "LLM_JUDGE_MODAL_KEY": " wk-1 ", "LLM_JUDGE_MODAL_SECRET": "s3cret"}
    assert modal_proxy_headers(env) == {"Modal-Key": "wk-1", "Modal-Secret": "s3cret"}
    assert b"s3cret" not in pickle.dumps(from_environment(env))
    assert modal_proxy_headers({}) == {}


def test_an_outage_cannot_use_up_the_tries():
    with pytest.raises(BadInput, match="max_tries"):
        JudgeSettings("http://h", max_tries=5, breaker_failures=5)


def test_importing_stays_light():
    heavy = "('torch', 'transformers', 'ray', 'aiohttp', 'numpy')"
    code = f"import sys, rlhaiku.judge; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
