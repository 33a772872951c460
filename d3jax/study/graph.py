"""The nodes of a study: which there are, what each begins with, and what would go wrong later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from ..attacks import ATTACKS
from ..config.study import Choice
from ..core.types import Defense, TrainingDefense
from .attack_run import AttackRun, evaluator, make_clean_run, make_run
from .checks import Methods, check_attack, check_paths, make_methods, named
from .context import StudyContext
from .nodes.base import Node
from .nodes.evolution import EvolutionNode
from .nodes.external_model import ExternalModelNode
from .nodes.features import FeaturesNode
from .nodes.first_stage import FirstStageNode
from .nodes.forgetting import ForgettingNode, is_predicted
from .nodes.inversion import InversionNode
from .nodes.inverted_trigger import InvertedTriggerNode
from .nodes.loss_landscape import LossLandscapeNode
from .nodes.model_detection import ModelDetectionNode
from .nodes.repair import RepairNode
from .nodes.report_samples import SamplesNode
from .nodes.training_time import TrainingNode
from .nodes.trigger import TriggerNode
from .nodes.updates import UpdatesNode
from .nodes.victim import VictimNode

AnyNode = TypeVar("AnyNode", bound=Node)


def make_nodes(context: StudyContext) -> list[Node]:
    """Return the nodes that the config asks for, and those that analyse them, in table order.

    Raises what would go wrong later: an attack that this data set refuses, a defence that this
    model does not suit.
    """
    methods = make_methods(context)
    builder = _Builder(context, methods)
    for choice in context.config.attacks:
        with named(f"attacks: {choice.label}"):
            attack = ATTACKS[choice.name][1](choice.config, context.dataset.info)
            check_attack(context, choice, attack, methods)
            evaluate = evaluator(context, attack)
            for seed in context.config.seeds:
                builder.add_run(make_run(context, choice, attack, evaluate, seed))
    nodes = builder.asked
    check_paths(context, [node.run.attacked for node in nodes])
    return [*nodes, *builder.analyses(nodes)]


class _Builder:
    """Collects nodes; of one name there is one node, which several runs may share."""

    def __init__(self, context: StudyContext, methods: Methods):
        self.context, self.methods = context, methods
        self.known: dict[str, Node] = {}
        self.asked: list[Node] = []

    def one(self, node: AnyNode) -> AnyNode:
        """Return the node of that name, this one where it is new."""
        return self.known.setdefault(node.name, node)

    def ask(self, node: AnyNode) -> AnyNode:
        """Add a node that the config asks for."""
        node = self.one(node)
        if node not in self.asked:
            self.asked.append(node)
        return node

    def add_run(self, run: AttackRun) -> None:
        """Add victim, detections, evolutions and defences of an attack run."""
        victim = self.ask(self._victim(run))
        start = {"context": self.context, "run": run, "victim": victim}
        for choice in self.context.config.detections:
            self.ask(InversionNode(**start, config=choice.config))
        prepared = getattr(victim, "prepared", None)
        for choice, called in self.methods.evolutions:
            replayed = {"prepared": prepared} if choice.config.replay else {}
            self.ask(EvolutionNode(**start, choice=choice, defense=called, **replayed))
        for choice, defense in self.methods.defenses:
            if isinstance(defense, TrainingDefense):
                given = {**start, "defense": defense, "prepared": prepared}
                first = self.one(FirstStageNode(**given))
                self.ask(TrainingNode(**given, choice=choice, first_stage=first))
            else:
                searched = self._searched(start, defense)
                self.ask(RepairNode(**start, choice=choice, defense=defense, **searched))

    def _victim(self, run: AttackRun) -> VictimNode:
        """Return the model that a run begins with."""
        context = self.context
        seeds = (run.seed,) if context.config.attack_seed is None else context.config.seeds
        seeds = context.config.seeds if context.external else seeds
        given = {"context": context, "run": run, "seeds": seeds}
        if context.external:
            return ExternalModelNode(**given)
        prepared, preparation = None, run.attack.preparation
        if preparation:
            surrogate = None
            if preparation.surrogate:
                surrogate = self.one(self._victim(make_clean_run(context, run.seed)))
            prepared = self.one(TriggerNode(context=context, run=run, surrogate=surrogate))
        return VictimNode(**given, prepared=prepared)

    def _searched(self, start: dict[str, Any], defense: Defense) -> dict[str, InversionNode]:
        """Return the inversions of a repair's search: the detection, and that of one class."""
        search = defense.search
        if search is None:
            return {}
        if search.target != "detect":
            node = InversionNode(**start, config=search.inversion, target=search.target)
            return {"inverted": self.one(node)}
        found = {"detected": self.one(InversionNode(**start, config=search.detection))}
        if search.inversion != search.detection:
            given = {"config": search.inversion, "detection": found["detected"]}
            found["inverted"] = self.one(InversionNode(**start, **given))
        return found

    def analyses(self, nodes: list[Node]) -> list[Node]:
        """Return what tables and page need besides, of finished models."""
        runs: dict[tuple[str, int], list[Node]] = {}
        for node in nodes:
            for seed in getattr(node, "seeds", ()) or (node.run.seed,):
                runs.setdefault((node.run.label, seed), []).append(node)
        found: list[Node] = []
        for members in runs.values():
            found += self._analyses_of_run(members)
        return [self.one(node) for node in found]

    def _analyses_of_run(self, nodes: list[Node]) -> Iterator[Node]:
        victim = next(node for node in nodes if isinstance(node, VictimNode))
        models = [
            node for node in nodes if isinstance(node, VictimNode | RepairNode | TrainingNode)
        ]
        run = nodes[-1].run
        given, config = {"context": self.context, "run": run}, self.context.config
        inversions = self._detections(nodes)
        for choice, inversion in inversions:
            yield ModelDetectionNode(**given, choice=choice, inversion=inversion)
            for model in models:
                of_model = {"choice": choice, "inversion": inversion, "model": model}
                yield InvertedTriggerNode(**given, **of_model)
        first_seed = run.seed == config.seeds[0]
        of_run = {**given, "victim": victim}
        for node in nodes:
            if isinstance(node, EvolutionNode):
                updates = {**of_run, "choice": node.choice, "evolution": node}
                yield UpdatesNode(**updates, control=self._control(node))
                if first_seed and is_predicted(node):
                    yield ForgettingNode(**updates)
        if not first_seed:
            return
        for model in models:
            yield SamplesNode(**of_run, model=model)
            if config.features:
                unknown = self.context.external and not run.attacked and inversions
                inversion = inversions[0][1] if unknown else None
                yield FeaturesNode(**of_run, model=model, inversion=inversion)
        repairs = tuple(node for node in models if isinstance(node, RepairNode))
        if config.paths and run.attacked and repairs:
            yield LossLandscapeNode(**of_run, repairs=repairs)

    def _detections(self, nodes: list[Node]) -> list[tuple[Choice, InversionNode]]:
        """Return the detections of the config with their inversions of a run."""
        found = []
        for choice in self.context.config.detections:
            for node in nodes:
                whole = isinstance(node, InversionNode) and node.target is None
                if whole and not node.detection and node.config == choice.config:
                    found.append((choice, node))
        return found

    def _control(self, evolution: EvolutionNode) -> EvolutionNode | None:
        """Return the run of a clean model that evolves as an attacked one; None without one."""
        if self.context.external or not evolution.run.attacked:
            return None  # of a model from elsewhere it is not known that it has no trigger
        for node in self.asked:
            alike = isinstance(node, EvolutionNode) and node.label == evolution.label
            if alike and not node.run.attacked and node.run.seed == evolution.run.seed:
                return node
        return None
