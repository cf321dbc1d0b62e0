"""Scoring over HTTP: what is asked, and where Modal sends whoever has waited for 150 seconds."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from launch import evaluate_url as module
from launch.cli import app
from launch.evaluate_url import evaluate_url
from rlhaiku.config import load_config
from rlhaiku.errors import RunFailed
from rlhaiku.haiku.dataset import Row, prepare_rows

SMALL = ["evaluation.num_prompts=2", "evaluation.samples_per_prompt=1"]
ANSWER = json.dumps({"choices": [{"message": {"content": "an old silent pond"}}]}).encode()


class Modal:
    """Answers a POST with 303 and a GET so often with another, before the answer."""

    def __init__(self):
        self.bodies, self.gets, self.num_redirects, self.there = [], [], 2, ""
        modal = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                modal.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.redirect() if modal.num_redirects else self.answer()

            def do_GET(self):
                modal.gets.append((self.path, self.headers["Modal-Key"]))
                number = int(self.path.rpartition("=")[2])
                self.redirect(number + 1) if number < modal.num_redirects else self.answer()

            def redirect(self, number=1):
                self.send_response(303)
                self.send_header("Location", f"{modal.there}/v1/chat/completions?call={number}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def answer(self):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(ANSWER)))
                self.end_headers()
                self.wfile.write(ANSWER)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def modal(monkeypatch):
    monkeypatch.setenv("RLHAIKU_SERVE_MODAL_KEY", "wk-1")
    made = Modal()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_it_asks_again_where_modal_says_until_there_is_an_answer(modal):
    summary = evaluate_url(load_config("laptop", SMALL), modal.url, "haiku")
    assert summary.completions == 2
    assert sorted(modal.gets) == sorted([("/v1/chat/completions?call=1", "wk-1"),
                                         ("/v1/chat/completions?call=2", "wk-1")] * 2)


def test_it_samples_from_all_tokens_as_the_run_does(modal):
    modal.num_redirects = 0
    evaluate_url(load_config("laptop", [*SMALL, "evaluation.temperature=0.7"]), modal.url, "haiku")
    body = modal.bodies[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.7, 1.0, -1, 48)


def test_keys_go_to_nobody_else(modal):
    modal.there = "http://localhost:1"
    with pytest.raises(RunFailed, match="it sent us to localhost:1"):
        evaluate_url(load_config("laptop", SMALL), modal.url, "haiku")
    assert modal.gets == []


def test_it_does_not_ask_for_ever(modal, monkeypatch):
    modal.num_redirects = 10**9
    monkeypatch.setattr(module, "START_S", 0.2)
    with pytest.raises(RunFailed, match="answered 303"):
        evaluate_url(load_config("laptop", SMALL), modal.url, "haiku")


def test_prompts_and_lengths_are_those_of_the_run(modal, tmp_path):
    modal.num_redirects = 0
    rows = [
        Row(prompt_id=f"t/{i}", topic=topic, theme="test", reference="", split="test" if i else "train",
            messages=[{"role": "user", "content": f"about {topic}"}])
        for i, topic in enumerate(["ash", "bee", "cat"])
    ]  # fmt: skip
    prepare_rows(rows, tmp_path, source="test", split_rule="all but the first")
    arguments = ["evaluate", "--url", modal.url, "--set", f"data.path={tmp_path}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert {body["messages"][0]["content"] for body in modal.bodies} == {"about bee", "about cat"}
    assert {body["max_tokens"] for body in modal.bodies} == {300}, "the reference run's"
    done = CliRunner().invoke(app, [*arguments, "--preset", "laptop"])
    assert done.exit_code == 0 and modal.bodies[-1]["max_tokens"] == 48
