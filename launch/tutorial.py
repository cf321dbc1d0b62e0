# %% [markdown]
# # Teach Qwen3-4B to write haiku
#
# Cell by cell what `modal run launch/cluster.py` does at once, with a reward and a judge's rubric of your own. Open it
# as a notebook (Jupyter and editors know the percent format), or run it: `python launch/tutorial.py`. It needs a Modal
# account (`modal setup`), `pip install -e '.[local,modal]'` in a Python of the image's version (3.12), and for the last
# cell a proxy auth token of your workspace in RLHAIKU_SERVE_MODAL_KEY and RLHAIKU_SERVE_MODAL_SECRET. `rlhaiku plan`
# tells beforehand what it costs.
"""The tutorial, as a notebook in percent format."""

# %% [markdown]
# ## What to run
# Everything that `rlhaiku settings` lists can be changed. The machines are chosen by RLHAIKU_GPU and RLHAIKU_NODES
# before `launch.cluster` is imported; set LLM_JUDGE_URL (see `launch/judge.py`) for a reward with style in it.

# %%
import os
import shlex
from pathlib import Path
from typing import Literal

import modal

from launch.by_value import by_value
from launch.cluster import app, convert_checkpoint, download_model, prepare_dataset, train
from launch.cluster_run import summary_of
from launch.console import describe, make_console
from launch.evaluate_url import evaluate_url
from rlhaiku import Prompt, load_config
from rlhaiku.haiku.statworx import prepare

PRESET = os.environ.get("TUTORIAL_PRESET", "reference")
SOURCE = os.environ.get("TUTORIAL_SOURCE", "statworx/haiku")
SPLIT: Literal["topics", "tutorial"] = "topics"
RUN = os.environ.get("TUTORIAL_RUN", "tutorial")
SETTINGS = os.environ.get("TUTORIAL_SETTINGS", "num_steps=50")
DATA = Path(os.environ.get("TUTORIAL_DATA", "data")) / SOURCE.replace("/", "--")

# %% [markdown]
# ## Weights and prompts
# Each stage puts what it makes on a volume, so it is done once.

# %%
with modal.enable_output(), app.run():
    download_model.remote(PRESET, SETTINGS)
    prepare_dataset.remote(SOURCE, SPLIT)
    convert_checkpoint.remote(PRESET, SETTINGS)

# %% [markdown]
# ## A reward of your own
# It is called in the reward workers for each poem. What it returns is added to the haiku reward; alone, without a
# rubric, it would replace that.

# %%
def whispers(prompt: Prompt, text: str) -> float:
    """A hundredth of a point for each s."""
    return 0.01 * text.lower().count("s")


# %% [markdown]
# ## A rubric of your own
# What the judge is asked, with topic and poem already fenced so that a poem cannot talk to the judge. Scores are
# cached under its `version`: change that whenever the prompt changes.


# %%
def weather(topic: str, poem: str, reference: str) -> str:
    """How much weather is in it, from 0 to 10."""
    return f"{topic}\n{poem}\nHow much weather is in the poem? Answer with one number from 0 to 10."


weather.version = "weather-1"  # type: ignore[attr-defined]

# %% [markdown]
# ## Train
# Both travel by value: no file of yours has to be on the cluster. If a machine is taken away, the run goes on from its
# newest checkpoint by itself, and detached it does so when this notebook is closed; after an error, call it again with
# `resume=True`.

# %%
with modal.enable_output(), app.run(detach=True):
    own = by_value(reward=whispers, rubric=weather)
    summary = summary_of(train.remote(PRESET, SETTINGS, RUN, own=own, source=SOURCE, split=SPLIT))

# %%
for when in ("base", "trained"):
    print(f"{when:8} structure {summary[when]['structure_mean']:.3f}  exact 5-7-5 {summary[when]['strict_575']:.1%}")
for poem in summary["poems"]:
    print(f"\n{poem['topic']}\n  before: {poem['base']!r}\n  after:  {poem['trained']!r}")

# %% [markdown]
# ## Serve it
# The run's newest checkpoint as an OpenAI server; `modal deploy launch/serve.py` does the same. Its choices are read
# when it is imported. The first request starts it, and after a quarter of an hour without any it is gone.

# %%
os.environ["RLHAIKU_SERVE_RUN"] = RUN

from launch import serve as serving  # noqa: E402

with modal.enable_output():
    serving.app.deploy()
url = serving.serve.get_web_url()
print(f"{serving.SERVER.served_name} at {url}")

# %% [markdown]
# ## Score what is served
# The same held-out prompts, prepared here as they were there; so does `rlhaiku evaluate --url URL --set data.path=...`.

# %%
prepare(DATA, SOURCE, SPLIT)
config = load_config(PRESET, [f"data.path={DATA}", *shlex.split(SETTINGS)])
scores = evaluate_url(config, url, serving.SERVER.served_name)
make_console().print(describe(scores), highlight=False)
