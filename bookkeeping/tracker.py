"""--report_to: figures sent to a tracker as well."""
from bookkeeping.errors import InputError


def open_tracker(report_to, folder, settings):
    """A function (figures, step) that sends figures to the tracker `report_to`, which it opens at the first;
    None for "none". A run that goes on from a state sends again what came after it."""
    if report_to == "none":
        return None
    try:
        if report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        else:
            import wandb
    except ImportError as error:
        raise InputError(
            f"--report_to {report_to}: not installed ({error}); pip install {report_to}, or leave the "
            "flag out"
        ) from None
    opened, axes = {}, set()

    def send_to_tensorboard(figures, step):
        if "writer" not in opened:
            opened["writer"] = SummaryWriter(folder / "tensorboard")
        for name, value in figures.items():
            opened["writer"].add_scalar(name, value, step)
        opened["writer"].flush()

    # wandb has one step counter for the run: each phase brings its own axis
    def send_to_wandb(figures, step):
        if "run" not in opened:
            opened["run"] = wandb.init(project="mpdistil", name=str(folder), config=settings,
                                       dir=str(folder.parent))
        phase = next(iter(figures)).split("/")[0]
        if phase not in axes:
            axes.add(phase)
            opened["run"].define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        opened["run"].log({**figures, f"{phase}/step": step})

    return send_to_tensorboard if report_to == "tensorboard" else send_to_wandb
