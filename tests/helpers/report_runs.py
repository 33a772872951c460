"""Run folders with invented numbers, for tests of the code that reads them. No jax."""

import json

import numpy as np

from d3jax.results.artifacts import (
    AttackEntry,
    EvolutionEntry,
    Manifest,
    NodeEntry,
    NodeRecord,
    node_folder,
    read_record,
    write_manifest,
    write_record,
)

CLASSES = ["cat", "dog", "<i>$\\cow$</i>"]  # neither HTML nor TeX
HOSTILE = "<script>alert(1)</script>$\\x"


def row(defense="none", seed=0, acc=0.9, asr=1.0, **more):
    """Return a row of results.csv."""
    return {
        "dataset": "digits",
        "model": "vgg",
        "attack": "badnets",
        "poison_rate": 0.1,
        "defense": defense,
        "seed": seed,
        "acc": acc,
        "asr": asr,
        "ra": None if None in (acc, asr) else acc * (1 - asr),
        "der": None,
        "n_clean": 100,
        "n_triggered": 90,
        "seconds": 2.5,
        "status": "ok",
    } | more


class Run:
    """A builder of run folders: its methods add nodes, and `write` writes the manifest last.

    `classes` are the class names. `external` is the text on how an external model was read, if any.
    """

    def __init__(self, path, classes=CLASSES, external=""):
        self.path, self.classes, self.external = path, list(classes), external
        self.attacks, self.evolutions, self.nodes = {}, {}, []

    def attack(self, label, attacked=True, targets=(0,)):
        """Add an attack, or a clean control if not `attacked`."""
        self.attacks[label] = AttackEntry(label, attacked, list(targets))

    def node(
        self,
        kind,
        attack,
        what,
        label="",
        seed=0,
        *,
        status="ok",
        tables=None,
        facts=None,
        arrays=None,
        logged=(),
        role=None,
    ):
        """Add a node and return its name.

        The status "" means not finished: no record is written. A node with a row of results.csv
        gets the role of its kind.
        """
        self.attacks.setdefault(attack, AttackEntry(attack, True, [0]))
        rows = {name: [dict(one) for one in found] for name, found in (tables or {}).items()}
        name = f"{attack}/seed{seed}/{what}"
        found = rows.get("results", [{}])[0]
        columns = {
            key: found.get(key)
            for key in ("dataset", "model", "attack", "poison_rate", "defense", "seed")
        }
        kinds = {"victim": "victim", "external_model": "victim", "evolution": "evolution"}
        role = kinds.get(kind, "defense") if "results" in rows else role or ""
        self.nodes.append(
            NodeEntry(
                name,
                kind,
                attack,
                seed,
                label,
                role,
                [columns if found else row(label, seed, attack=attack)],
                "r",
            )
        )
        if status:
            write_record(self.path, NodeRecord(name, "r", status, rows, facts or {}), arrays)
        folder = node_folder(self.path, name)
        folder.mkdir(parents=True, exist_ok=True)
        if logged:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in logged))
        return name

    def model(
        self,
        label="none",
        attack="badnets",
        seed=0,
        kind="",
        acc=0.9,
        asr=1.0,
        logged=(),
        status="ok",
        more=(),
        **facts,
    ):
        """Add a victim or a repair with its rows of results.csv and per_class.csv."""
        numbers = (
            {"acc": acc, "asr": asr} if status == "ok" else dict.fromkeys(("acc", "asr", "ra"))
        )
        one = row(
            label, seed, attack=attack, status=status or "not finished", **(numbers | dict(more))
        )
        counts = [
            {
                "attack": attack,
                "defense": label,
                "seed": seed,
                "class": name,
                "clean": 50,
                "correct": round(50 * acc) - i,
            }
            | {
                "triggered": 0 if i == 0 or asr is None else 40,
                "reached": 0 if i == 0 or asr is None else round(40 * asr),
            }
            for i, name in enumerate(self.classes)
        ]
        found = {"results": [one], "per_class": counts if status == "ok" else []}
        what = "train" if label == "none" else label
        kind = kind or ("victim" if label == "none" else "repair")
        return self.node(
            kind,
            attack,
            what,
            label,
            seed,
            status=status,
            tables=found,
            logged=logged,
            **facts,
        )

    def samples(
        self,
        labels=("none",),
        attack="badnets",
        seed=0,
        stamped=True,
        targets=None,
        predictions=None,
    ):
        """Add the report's images and the predictions of every model of `labels` on them."""
        rng = np.random.default_rng(len(attack))
        n, classes = 8, len(self.classes)
        clean = rng.integers(0, 200, (n, 8, 8, 3), dtype=np.uint8)
        triggered = clean.copy()
        triggered[:, -2:, -2:] = 255 if stamped else triggered[:, -2:, -2:]
        truth = np.arange(n) % classes
        for label in labels:
            sees = (predictions or {}).get(label) or (truth, np.zeros(n, int))
            arrays = {
                "predicted_clean": np.asarray(sees[0]),
                "predicted_triggered": np.asarray(sees[1]),
            }
            facts = {}
            if label == "none":
                wanted = np.zeros(n, int) if targets is None else np.asarray(targets)
                arrays |= {
                    "clean": clean,
                    "triggered": triggered,
                    "labels": truth,
                    "targets": wanted,
                }
                facts = {"psnr": 18.2 if stamped else float("inf"), "ssim": 0.987, "largest": 255.0}
            self.node(
                "report_samples",
                attack,
                f"samples-{label}",
                label,
                seed,
                facts=facts,
                arrays=arrays,
            )

    def features(self, labels, attack="badnets", inverted=False):
        """Add projected features of clean and triggered images for every model of `labels`."""
        rng = np.random.default_rng(1)
        for i, label in enumerate(labels):
            truth = np.arange(30) % len(self.classes)
            points = np.concatenate(
                [rng.normal(truth[:, None] * 3, 1, (30, 2)), rng.normal(-4, 0.5, (20, 2))]
            ).astype(np.float32)
            facts = {
                "twin_distance": 0.9 - 0.2 * i,
                "silhouette": 0.4 - 0.3 * i,
                "inverted": inverted,
            }
            self.node(
                "features",
                attack,
                f"features-{label}",
                label,
                facts=facts,
                arrays={"pca": points, "tsne": points[:, ::-1], "labels": truth},
            )

    def detection(
        self, label="nc", attack="badnets", flagged=(0,), models=("none",), known=True, seed=0
    ):
        """Add a detection that flags the classes `flagged`, and its trigger's ASR on `models`.

        The attack's targets are unknown to it if not `known`.
        """
        k = len(self.classes)
        norms = np.where(np.isin(np.arange(k), flagged), 2.0, 8.0) + 0.1 * np.arange(k)
        index = np.abs(norms - np.median(norms))
        rng = np.random.default_rng(2)
        rows = [
            {
                "dataset": "digits",
                "model": "vgg",
                "attack": attack,
                "seed": seed,
                "detection": label,
                "class": self.classes[i],
                "is_target": i in self.attacks[attack].targets if known else None,
                "flagged": i in flagged,
                "norm": float(norms[i]),
                "index": float(index[i]),
                "success": 0.9,
                "passes": 8,
                "seconds": 1.0,
            }
            for i in range(k)
        ]
        at = int(np.argmin(norms))
        turned = [
            {
                "attack": attack,
                "seed": seed,
                "detection": label,
                "class": self.classes[at],
                "flagged": at in flagged,
                "score": float(index[at]),
                "norm": float(norms[at]),
                "defense": name,
                "turned": 0.97 - 0.4 * i,
                "acc": 0.9,
            }
            for i, name in enumerate(models)
        ]
        arrays = {
            "scores": -norms,
            "norm": norms,
            "index": index,
            "success": np.where(np.arange(k) == k - 1, 0.4, 0.95),
            "flagged": np.isin(np.arange(k), flagged),
            "triggers": rng.integers(0, 255, (k, 8, 8, 3), dtype=np.uint8),
            "smallest": rng.integers(0, 255, (8, 8, 8, 3), dtype=np.uint8),
        }
        named = ", ".join(self.classes[i] for i in flagged)
        targets = [i for i in range(k) if i in self.attacks[attack].targets]
        found = len(set(flagged) & set(targets))
        verdict = {
            "dataset": "digits",
            "model": "vgg",
            "attack": attack,
            "seed": seed,
            "detection": label,
            "flagged": bool(flagged),
            "flagged_classes": named,
            "n_flagged": len(flagged),
            "targets": ", ".join(self.classes[i] for i in targets) if known else None,
            "n_targets": len(targets) if known else None,
            "n_found": found if known else None,
            "right": list(flagged) == targets if known else None,
            "statistic": float(index[at]),
            "threshold": 2.0,
            "highest": self.classes[at],
            "seconds": 1.0,
        }
        facts = {
            "statistic": float(index[at]),
            "threshold": 2.0,
            "median": float(np.median(norms)),
            "spread": 1.4826 * float(np.median(np.abs(norms - np.median(norms)))),
        }
        self.node(
            "model_detection",
            attack,
            f"detection@{label}",
            label,
            seed,
            tables={"detections": [verdict], "evidence": rows},
            facts=facts,
            arrays=arrays,
            role="detection",
        )
        for one in turned:
            self.node(
                "inverted_trigger",
                attack,
                f"inverted@{label}@{one['defense']}",
                one["defense"],
                seed,
                tables={"triggers": [one]},
            )

    def landscape(self, defenses, attack="badnets", plane=True, batchnorm=True):
        """Add the loss landscape between the victim and its repairs `defenses`."""
        ts, tensors = np.linspace(-0.5, 4, 11), [f"block{i}/conv/kernel" for i in range(10)]
        rng = np.random.default_rng(3)
        arrays = {
            "eigenvalues": np.array([12.5, 3.25]),
            "edges": np.linspace(-1, 1, 13) * np.ones((10, 1)),
        }
        for i, name in enumerate(defenses):
            arrays |= {f"{name}/ts": ts, f"{name}/taylor": np.array([0.3, 0.5 + i, 2.0])}
            arrays |= {
                f"{name}/relative": rng.random(10),
                f"{name}/counts": rng.integers(0, 90, (10, 12)),
            }
            for kind in (
                ("interpolated", "estimated", "first") if batchnorm else ("interpolated", "first")
            ):
                arrays |= {
                    f"{name}/{kind}/clean_loss": 0.2 + 0.3 * np.abs(ts - 0.5),
                    f"{name}/{kind}/backdoor_loss": 0.1 + (1 + i) * np.abs(ts),
                    f"{name}/{kind}/acc": 0.95 - 0.1 * np.abs(ts - 0.5),
                    f"{name}/{kind}/asr": np.exp(-np.abs(ts) * (1 + i)),
                }
        facts = {"defenses": list(defenses), "tensors": tensors}
        if plane:
            x, y = np.linspace(-1, 4, 13), np.linspace(-1, 3, 13)
            facts["plane"] = ["backdoored", *list(defenses)[:2]]
            arrays |= {
                "plane/places": np.array([[0, 0], [3.0, 0], [1.5, 2.0]]),
                "plane/xs": x,
                "plane/ys": y,
            }
            arrays |= {
                "plane/clean": 0.1 + (x[None] - 1) ** 2 * 0.3 + y[:, None] ** 2 * 0.1,
                "plane/backdoor": 0.05 + np.abs(x[None]) + y[:, None] ** 2,
            }
        self.node("loss_landscape", attack, "landscape", facts=facts, arrays=arrays)

    def evolution(
        self,
        label,
        attack="badnets",
        seed=0,
        lr=0.01,
        constant=True,
        scaled=False,
        updates=4,
        status="ok",
        asr=0.9,
    ):
        """Add an evolution run with a row for every update, and its learning rates."""
        more = (
            {
                f"survived_{tau}": updates if asr and asr > 0.8 else 1
                for tau in ("0.9", "0.5", "0.1")
            }
            if asr
            else {}
        )
        more |= {f"{name}_censored": value == updates for name, value in more.items()}
        self.model(label, attack, seed, kind="evolution", asr=asr, status=status, more=more.items())
        last = self.nodes[-1]
        rates = np.full(6, lr) if constant else lr * np.linspace(2, 0.1, 6)
        entry = EvolutionEntry(label, "a", constant, scaled, rates.tolist())
        self.evolutions[label] = entry
        if status != "ok":
            return
        empty = dict.fromkeys(
            (
                "stale_acc",
                "valid_acc",
                "control",
                "trained_acc",
                "trained_asr",
                "moved",
                "lr_sum",
                "score",
                "stale_asr",
                "stale_score",
            )
        )
        rows = [
            {
                "attack": attack,
                "evolution": label,
                "seed": seed,
                "update": t,
                "acc": 0.9 + 0.01 * t + 0.005 * seed,
                "ra": 0.1,
            }
            | empty
            | {"asr": asr and asr * np.exp(-t * lr * 20)}
            | ({"stale_acc": 0.85, "valid_acc": 0.9 + lr, "control": 0.02} if t else {})
            for t in range(updates + 1)
        ]
        record = read_record(self.path, last.name)
        write_record(self.path, record._replace(tables=record.tables | {"evolution": rows}))

    def forgetting(self, label, attack="badnets", updates=4):
        """Add the linear prediction of forgetting for the evolution run `label`."""
        values, t = np.geomspace(10, 1e-3, 20), np.arange(updates + 1)
        arrays = {
            "eigenvalues": values,
            "shares": np.full(20, 0.05),
            "scores": 3.0 * np.exp(-0.5 * t),
            "left/squared": np.exp(-0.4 * t[1:]),
            "left/softmax": np.append(np.exp(-0.2 * t[1:-1]), -4.0),
        }
        self.node("forgetting", attack, f"forgetting-{label}", label, arrays=arrays)

    def training_time(
        self,
        label,
        attack="badnets",
        seed=0,
        first="first_stage",
        rescored=True,
        poisoned=True,
        loop="",
    ):
        """Add a training-time defence with its first stage and its scores of training samples."""
        n = 200
        rng = np.random.default_rng(4)
        flags = np.arange(n) % 10 == 0 if poisoned else np.zeros(n, bool)
        arrays = {"flags": flags, "suspects": np.arange(n) < 20, "labelled": rng.random(n) < 0.5}
        rows = []
        for i, name in enumerate(
            (
                "entropy",
                "cross_entropy",
                "symmetric",
                "mixture",
                *(["rescored"] if rescored else []),
            )
        ):
            arrays[name] = np.where(flags, 0.01, 1.0) * rng.gamma(2, 1, n)
            order = np.argsort(arrays[name])
            hits, count = np.cumsum(flags[order]), np.arange(1, n + 1)
            arrays |= {
                f"precision/{name}": hits / count,
                f"recall/{name}": hits / max(flags.sum(), 1),
            }
            line = {
                "attack": attack,
                "defense": label,
                "seed": seed,
                "score": name,
                "auroc": 0.9 - 0.01 * i if poisoned else None,
            }
            rows.append(
                line
                | {
                    f"{kind}_{share:g}": 0.8 if poisoned else None
                    for share in (0.01, 0.05, 0.1)
                    for kind in ("precision", "recall")
                }
            )
        stage = f"{attack}/seed{seed}/{first}"
        if stage not in [node.name for node in self.nodes]:
            self.node(
                "first_stage",
                attack,
                first,
                "",
                seed,
                logged=[
                    {
                        "step": step,
                        "clean_ce": 2 / step,
                        "clean_entropy": 1 / step,
                        "clean_right": 1 - 1 / step,
                        "watch_acc": 0.5,
                        "watch_asr": 0.9,
                    }
                    | (
                        {
                            "poisoned_ce": 1 / step,
                            "poisoned_entropy": 0.5 / step,
                            "poisoned_right": 1.0,
                        }
                        if poisoned
                        else {}
                    )
                    for step in (10, 20, 30, 40)
                ],
            )
        shares = {"suspects_poisoned": 0.75, "poison_suspected": 0.5, "labelled_poisoned": 0.0123}
        more = ({"suspects": 20} | shares).items()
        logged = [*curve(watch_acc=0.6), *curve(loop=loop)] if loop else curve(watch_acc=0.6)
        self.model(
            label,
            attack,
            seed,
            kind="training_time",
            asr=0.05,
            logged=logged,
            more=more,
            facts={"first_stage": stage},
            arrays=arrays,
        )
        record = read_record(self.path, self.nodes[-1].name)
        write_record(self.path, record._replace(tables=record.tables | {"filters": rows}), arrays)

    def write(self):
        """Write the manifest and return the path of the run folder."""
        seeds = sorted({node.seed for node in self.nodes}) or [0]
        write_manifest(
            self.path,
            Manifest(
                "digits",
                self.classes,
                "vgg",
                seeds,
                self.external,
                list(self.attacks.values()),
                list(self.evolutions.values()),
                self.nodes,
            ),
        )
        return self.path


def curve(steps=(1, 2, 3), **more):
    """Return the log records of a train loop, one for each of `steps`, with the values `more`."""
    return [{"step": step, "seconds": 0.1, "loss": 1.0 / step} | more for step in steps]
