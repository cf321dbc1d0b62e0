"""`rlhaiku plan` as tables."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.estimates import COMPLETION_TOKENS, ENGINE_SHARE, PROMPT_TOKENS, TRAINER_SHARE
from launch.plan import PREALLOCATED, Plan
from rlhaiku.config import describe_settings


def plan_view(plan: Plan) -> RenderableType:
    """Machines, settings, cards, time and cost, and what speaks against it."""
    parts: list[RenderableType] = [_machines(plan), _settings(plan)]
    if plan.gpus:
        parts += [_cards(plan), _memory(plan), _time(plan)]
    parts += [Text.assemble(("note", "dim"), f" {note}") for note in plan.notes]
    parts += [Text.assemble(("refused", "red"), f" {reason}") for reason in plan.refusals]
    return Group(*parts)


def _machines(plan: Plan) -> Panel:
    resources = plan.resources
    volumes = "\n          ".join(f"{name} at {path}" for name, path in resources.paths.volumes.items())
    return Panel(
        Text(f"machines  {resources.nodes} x {resources.gpu or 'CPU'}, {resources.timeout_s / 3600:.1f} h an attempt\n"
        f"image     {resources.image}\n"
        f"volumes   {volumes}\n"
        f"secrets   {', '.join(plan.secrets) or 'none'}\n"
        f"model     {plan.config.model.path}, {plan.parameters / 1e9:.3f} billion parameters"),
        title="rlhaiku plan", title_align="left", expand=False,
    )  # fmt: skip


def _settings(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    for name, value, _ in describe_settings(plan.config):
        table.add_row(name, Text(value))
    return table


def _cards(plan: Plan) -> Table:
    """Who is where, and what the fullest card keeps."""
    table = Table(title=f"placement, {plan.gpu_memory_gb:.0f} GB a GPU", title_justify="left")
    for name in ("node:GPU", "actors", "GB"):
        table.add_column(name, justify="right" if name == "GB" else "left")
    for gpu in plan.gpus:
        table.add_row(f"{gpu.node}:{gpu.index}", " + ".join(gpu.actors), f"{gpu.total_gb:.1f}")
    table.add_row("0:CPU", f"driver + {plan.config.reward.num_workers} reward workers", "")
    return table


def _memory(plan: Plan) -> Table:
    fullest = max(plan.gpus, key=lambda gpu: gpu.total_gb)
    table = Table(title=f"memory of GPU {fullest.node}:{fullest.index}, GB", title_justify="left")
    for name in [*fullest.gigabytes, "total"]:
        table.add_column(name, justify="right")
    table.add_row(*(f"{size:.1f}" for size in (*fullest.gigabytes.values(), fullest.total_gb)))
    if plan.largest_engine_share:
        table.caption = (
            f"The KV cache is what is needed. An engine that preallocates may take {plan.largest_engine_share:.0%} of "
            f"a card beside its trainer; the tutorial's takes {PREALLOCATED:.0%}, and sleeps while the trainer works."
        )
    return table


def _time(plan: Plan) -> Table:
    table = Table(
        title="predicted", title_justify="left",
        caption=f"{PROMPT_TOKENS} prompt and {COMPLETION_TOKENS} completion tokens; engines at {ENGINE_SHARE:.0%} of "
        f"their limit, the trainer at {TRAINER_SHARE:.0%}; without a judge",
    )  # fmt: skip
    for phase in plan.seconds:
        table.add_column(f"{phase}, s", justify="right")
    table.add_column("run, h", justify="right")
    table.add_column(f"cost at ${plan.price_per_gpu_hour:.2f} per GPU hour", justify="right")
    table.add_row(*(f"{value:.3f}" for value in plan.seconds.values()), f"{plan.run_hours:.2f}", f"${plan.cost:.2f}")
    return table
