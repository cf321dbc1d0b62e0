#!/usr/bin/env python3
"""`vllm serve` as far as tests need it: loads the model for real, with transformers, and answers chat completions.

Writes its arguments to `$HOME/vllm.json`.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(argv):
    (Path(os.environ["HOME"]) / "vllm.json").write_text(json.dumps(argv))
    option = dict(pairwise(argv))
    tokenizer, model = AutoTokenizer.from_pretrained(argv[2]), AutoModelForCausalLM.from_pretrained(argv[2])
    busy = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            if body["model"] != option["--served-model-name"]:
                self.send_error(404)
                return
            prompt = tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True,
                **body["chat_template_kwargs"],
            )  # fmt: skip
            with busy, torch.inference_mode():
                made = model.generate(
                    **prompt, do_sample=True, temperature=body["temperature"], num_return_sequences=body["n"],
                    max_new_tokens=body["max_tokens"], pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
            texts = tokenizer.batch_decode(made[:, prompt["input_ids"].shape[1]:], skip_special_tokens=True)
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}} for text in texts]})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    ThreadingHTTPServer((option["--host"], int(option["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv)
