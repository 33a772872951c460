"""The report page's section with an attack's sample images and each model's predicted classes."""

import numpy as np

from ..plots.samples import save_samples
from ..rendering import Markup, render
from ..view import View


def show(view: View) -> Markup:
    """Return the HTML section with sample images of an attack, and all models' predictions."""
    models = view.finished("report_samples")
    victim = next((one for one in models if len(one.arrays.get("labels", ()))), None)
    if not victim:
        return Markup("")
    images = victim.arrays
    stamped = not np.array_equal(images["clean"], images["triggered"])
    share = 1.4 / (1.4 + len(images["labels"]))  # the row labels are as wide as 1.4 images
    triggered = images["triggered"] if stamped else None
    return render(
        "samples.html.j2",
        path=save_samples(view.path("samples"), images["clean"], triggered, label_share=share),
        attack=view.attack.label,
        classes=view.study.run.manifest.classes,
        palette=view.study.palette,
        stamped=stamped,
        share=share,
        predictions=[
            (one.entry.label, kind, one.arrays[f"predicted_{kind}"].tolist())
            for one in models
            for kind in ("clean", "triggered")[: 1 + stamped]
        ],
        seed=victim.entry.seed,
        labels=images["labels"].tolist(),
        targets=images["targets"].tolist(),
        likeness=victim.record.facts
        if np.isfinite(victim.record.facts.get("psnr") or np.inf)
        else {},
    )
