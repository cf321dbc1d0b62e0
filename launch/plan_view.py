"""`rlhaiku plan` as tables."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.estimates import COMPLETION_TOKENS, ENGINE_SHARES, PROMPT_TOKENS, TRAINER_SHARES
from launch.plan import PREALLOCATED, Plan
from rlhaiku.config import describe_settings


def plan_view(plan: Plan) -> RenderableType:
    """Machines, settings, cards, time and cost, and what speaks against it."""
    parts: list[RenderableType] = [_machines(plan), _settings(plan), _cards(plan)]
    if plan.gpus and plan.parameters:
        parts += [_memory(plan), _time(plan)]
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
        f"model     {plan.config.model.path}, {_size(plan.parameters)}"),
        title="rlhaiku plan", title_align="left", expand=False,
    )  # fmt: skip


def _settings(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    for name, value, _ in describe_settings(plan.config):
        table.add_row(name, Text(value))
    return table


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.3f} billion parameters" if parameters else "of unknown size"


def _cards(plan: Plan) -> Table:
    """Who is where, and how much they need and take there."""
    on = f", {plan.gpu_memory_gb:.0f} GB a GPU" if plan.gpus else ""
    table = Table(title=f"placement{on}", title_justify="left")
    for name in ("node:GPU", "actors", "needed, GB", "taken, GB"):
        table.add_column(name, justify="right" if "GB" in name else "left")
    for gpu in plan.gpus:
        amounts = (f"{gpu.total_gb:.1f}", f"{gpu.taken_gb:.1f}") if gpu.gigabytes else ("?", "?")
        table.add_row(f"{gpu.node}:{gpu.index}", " + ".join(gpu.actors), *amounts)
    for node in sorted({actor.node for actor in plan.cpu_actors}):
        names = " + ".join(actor.name for actor in plan.cpu_actors if actor.node == node)
        table.add_row(f"{node}:CPU", names, "", "")
    return table


def _memory(plan: Plan) -> Table:
    """Of the fullest card, the cache by need and by preallocation."""
    fullest = max(plan.gpus, key=lambda gpu: gpu.taken_gb)
    table = Table(title=f"memory of GPU {fullest.node}:{fullest.index}, GB", title_justify="left")
    table.add_column("what")
    table.add_column("needed", justify="right")
    table.add_column("taken", justify="right")
    for name, size in fullest.gigabytes.items():
        taken = fullest.preallocated_kv_gb if name == "engine KV cache" else size
        table.add_row(name, f"{size:.1f}", f"{taken:.1f}")
    table.add_row("total", f"{fullest.total_gb:.1f}", f"{fullest.taken_gb:.1f}", style="bold")
    if plan.engine_share:
        table.caption = (
            f"At its start an engine takes {plan.engine_share:.1%} of the card for weights and keys and values; the "
            f"tutorial's takes {PREALLOCATED:.0%}, and sleeps while the trainer works."
        )
    return table


def _time(plan: Plan) -> Table:
    engines, trainer = ENGINE_SHARES[plan.config.rollout.engine], TRAINER_SHARES[plan.config.trainer.backend]
    table = Table(
        title="predicted", title_justify="left",
        caption=f"{PROMPT_TOKENS} prompt and {COMPLETION_TOKENS} completion tokens; engines at {engines:.0%} of their "
        f"limit, the trainer at {trainer:.0%} of its; without a judge",
    )  # fmt: skip
    for phase in plan.seconds:
        table.add_column(f"{phase}, s", justify="right")
    table.add_column("run, h", justify="right")
    table.add_column(f"cost at ${plan.price_per_gpu_hour:.2f} per GPU hour", justify="right")
    table.add_row(*(f"{value:.3f}" for value in plan.seconds.values()), f"{plan.run_hours:.2f}", f"${plan.cost:.2f}")
    return table
