# %% [markdown]
# # Teach Qwen3-4B to write haiku
#
# Cell by cell what `modal run launch/cluster.py` does at once, with a reward and a judge's rubric of your own. Open it
# as a notebook (Jupyter and editors know the percent format), or run it: `python launch/tutorial.py`. It needs a Modal
# account (`modal setup`) and `pip install -e '.[local,modal]'`; `rlhaiku plan` tells beforehand what it costs.
"""The tutorial, as a notebook in percent format."""

# %% [markdown]
# ## What to run
# Everything that `rlhaiku settings` lists can be changed. The machines are chosen by RLHAIKU_GPU and RLHAIKU_NODES
# before `launch.cluster` is imported; set LLM_JUDGE_URL (see `launch/judge.py`) for a reward with style in it.

# %%
import os

import modal

from launch.by_value import by_value
from launch.cluster import app, convert_checkpoint, download_model, prepare_dataset, train
from launch.paths import Paths
from rlhaiku import Prompt

PRESET = os.environ.get("TUTORIAL_PRESET", "reference")
SOURCE = os.environ.get("TUTORIAL_SOURCE", "statworx/haiku")
RUN = os.environ.get("TUTORIAL_RUN", "tutorial")
SETTINGS = os.environ.get("TUTORIAL_SETTINGS", "num_steps=50")

# %% [markdown]
# ## Weights and prompts
# Each stage puts what it makes on a volume, so it is done once.

# %%
with modal.enable_output(), app.run():
    download_model.remote(PRESET, SETTINGS)
    prepare_dataset.remote(SOURCE)
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
# newest checkpoint by itself; after an error, call it again with `resume=True`.

# %%
with modal.enable_output(), app.run():
    settings = f"data.path={Paths.from_environment().data_set(SOURCE, 'topics')} {SETTINGS}"
    summary = train.remote(PRESET, settings, RUN, own=by_value(reward=whispers, rubric=weather))

# %%
for when in ("base", "trained"):
    print(f"{when:8} structure {summary[when]['structure_mean']:.3f}  exact 5-7-5 {summary[when]['strict_575']:.1%}")
for poem in summary["poems"]:
    print(f"\n{poem['topic']}\n  before: {poem['base']!r}\n  after:  {poem['trained']!r}")

# %% [markdown]
# ## Serve it
# `modal deploy launch/serve.py` serves the newest checkpoint; `rlhaiku evaluate --url URL` scores what it answers.
