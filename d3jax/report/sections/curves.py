"""The report page's section with training curves of the undefended model and of the defences."""

from ...results.log_records import by_loop
from ..plots.curves import REPAIR, TRAINING, Runs, save_curves
from ..rendering import Markup, render
from ..view import View


def show(view: View) -> Markup:
    """Return the HTML section with training curves of the undefended model and of the defences."""
    training = runs_of(view, "victim", "external_model")
    defenses = runs_of(view, "repair", "training_time")
    logged = {name for records in defenses.values() for record in records for name in record}
    return render(
        "curves.html.j2",
        attack=view.attack.label,
        training=save_curves(view.path("training"), training, TRAINING, view.study.palette),
        defenses=save_curves(view.path("defenses"), defenses, REPAIR, view.study.palette),
        seeds=len({seed for _, seed in [*training, *defenses]}),
        in_stages=bool(runs_of(view, "training_time")),
        watched=bool(logged & {"watch_acc", "watch_asr"}),
    )


def runs_of(view: View, *kinds: str) -> Runs:
    """Return the log records of an attack's nodes by (name of node and train loop, seed).

    The name is the node's label, with the loop after a slash: "abl/isolate" is a loop of "abl".
    """
    return {
        ("/".join(filter(None, (node.label, loop))), node.seed): records
        for node in view.nodes(*kinds)
        for loop, records in by_loop(view.study.run.metrics(node.name)).items()
    }
