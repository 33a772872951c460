"""The graph of a study: all nodes to compute, and the nodes that each of them needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from ..config.study import Choice
from ..core.errors import ConfigError
from ..core.types import InputDetector, ModelDetector, TrainingDefense
from ..defenses.repair.target import Search
from .attack_run import AttackRun, evaluator, make_clean_run, make_run
from .checks import AnyDetector, Methods, check_attack, check_paths, make_methods, named
from .context import StudyContext
from .nodes.base import Node
from .nodes.evaluation import EvaluationNode
from .nodes.evidence import EvidenceNode
from .nodes.evolution import EvolutionNode
from .nodes.external_model import ExternalModelNode, StoredModelNode, StoredTriggerNode
from .nodes.features import FeaturesNode
from .nodes.first_stage import FirstStageNode
from .nodes.forgetting import ForgettingNode, is_predicted
from .nodes.input_detection import InputDetectionNode
from .nodes.inversion import InversionNode
from .nodes.inverted_trigger import InvertedTriggerNode
from .nodes.loss_landscape import LossLandscapeNode
from .nodes.model_detection import ModelDetectionNode
from .nodes.relearning import RelearningNode
from .nodes.repair import RepairNode
from .nodes.report_samples import SamplesNode
from .nodes.robustness import RobustnessNode
from .nodes.sample_detection import SampleDetectionNode
from .nodes.training_time import TrainingNode
from .nodes.trigger import TriggerNode
from .nodes.updates import UpdatesNode
from .nodes.victim import VictimNode
from .registries import ATTACKS, DETECTIONS

AnyNode = TypeVar("AnyNode", bound=Node)
EVALUATED: dict[str, type[EvaluationNode]] = {
    "relearn": RelearningNode,
    "robustness": RobustnessNode,
}
"""The class of node of each evaluation, by its name."""


class Members(NamedTuple):
    """The nodes of one attack run: `victim`, `detections`, `evolutions` and all `models`.

    Analyses of the run read them. `models` are the victim and the models of all defences.
    """

    run: AttackRun
    victim: VictimNode
    detections: list[ModelDetectionNode]
    evolutions: list[EvolutionNode]
    models: list[Node]


def make_nodes(context: StudyContext) -> list[Node]:
    """Build all nodes of a study from its config: models and detections, then their analyses.

    They are in the order of the tables.

    Raises `D3JaxError` for errors that would occur later. Examples are an attack that does not suit
    the data set, and a defence that does not suit the model.
    """
    graph = _Graph(context, make_methods(context))
    runs = []
    for choice in context.config.attacks:
        with named(f"attacks: {choice.label}"):
            attack = ATTACKS[choice.name][1](choice.config, context.dataset.info)
            check_attack(context, choice, attack, graph.methods)
            evaluate = evaluator(context, attack)
            for seed in context.config.seeds:
                runs.append(graph.add(make_run(context, choice, attack, evaluate, seed)))
    check_paths(context, [members.run.attacked for members in runs])
    for members in runs:
        graph.ask(*_analyses(context, members, runs))
    return list(graph.asked.values())


class _Graph:
    """A builder of a study's nodes; it keeps them by name, so that attack runs can share nodes.

    `known` holds all nodes, and `asked` those that the config asks for.
    """

    def __init__(self, context: StudyContext, methods: Methods):
        self.context, self.methods = context, methods
        self.known: dict[str, Node] = {}
        self.asked: dict[str, Node] = {}

    def one(self, node: AnyNode) -> AnyNode:
        """Return the study's node with the same name as `node`; add `node` if there is none.

        Raises `ConfigError` if the known node is another computation.
        """
        known = self.known.setdefault(node.name, node)
        made = (node.kind, node.digest)
        if not isinstance(known, type(node)) or (known.kind, known.digest) != made:
            raise ConfigError(
                f"{node.label!r} names a {known.title} and a {node.title} of one attack; give one "
                "another `label:`"
            )
        return known

    def ask(self, *nodes: Node) -> list[Any]:
        """Add nodes that the config asks for; return the study's node with the name of each."""
        found = [self.one(node) for node in nodes]
        self.asked |= {node.name: node for node in found}
        return found

    def add(self, run: AttackRun) -> Members:
        """Add the models and detections of an attack run to the study; return them as `Members`.

        They are the victim, detections, evolutions and defences.
        """
        (victim,) = self.ask(self._victim(run))
        start = {"context": self.context, "run": run, "victim": victim}
        detections, evolutions, models = [], [], [victim]
        for choice, detector in self.methods.detections:
            detections += self._detection(start, choice, detector)
        for choice, called in self.methods.evolutions:
            prepared = victim.prepared if choice.config.replay else None
            given = {"choice": choice, "defense": called, "prepared": prepared}
            evolutions += self.ask(EvolutionNode(**start, **given))
        for choice, defense in self.methods.defenses:
            models += self.ask(self._defended({**start, "defense": defense}, choice))
        return Members(run, victim, detections, evolutions, models)

    def _detection(
        self, start: dict[str, Any], choice: Choice, detector: AnyDetector
    ) -> list[ModelDetectionNode]:
        """Add the nodes of one detection; return the verdict node of a model detector in a list.

        The verdict node is not added yet. Other detectors have no verdict node, and the list is
        empty.
        """
        given = {**start, "choice": choice, "detector": detector}
        if isinstance(detector, ModelDetector):
            (evidence,) = self.ask(EvidenceNode(**given))
            of_run = {"context": self.context, "run": start["run"], "choice": choice}
            return [ModelDetectionNode(**of_run, evidence=evidence)]
        if isinstance(detector, InputDetector):
            self.ask(InputDetectionNode(**given))
            return []
        given["prepared"] = start["victim"].prepared
        if detector.first_stage:
            given["first_stage"] = self._first_stage(start, detector.first_stage)
        self.ask(SampleDetectionNode(**given))
        return []

    def _first_stage(self, start: dict[str, Any], defense: TrainingDefense) -> FirstStageNode:
        """Return the node of a training-time defence's first stage, which defences may share."""
        prepared = start["victim"].prepared
        return self.one(FirstStageNode(**start, defense=defense, prepared=prepared))

    def _victim(self, run: AttackRun) -> VictimNode:
        """Return the victim node of an attack run: a model to train, or an external model."""
        context = self.context
        shared = run.external or context.config.attack_seed is not None
        seeds = context.config.seeds if shared else (run.seed,)
        given = {"context": context, "run": run, "seeds": seeds}
        prepared, preparation = None, run.attack.preparation
        if run.external and not run.knows_training:
            return ExternalModelNode(**given)
        if run.external:
            if preparation:
                prepared = self.one(StoredTriggerNode(context=context, run=run))
            return StoredModelNode(**given, prepared=prepared)
        if preparation:
            clean = make_clean_run(context, run.seed) if preparation.surrogate else None
            surrogate = clean and self.one(self._victim(clean))
            prepared = self.one(TriggerNode(context=context, run=run, surrogate=surrogate))
        return VictimNode(**given, prepared=prepared)

    def _defended(self, given: dict[str, Any], choice: Choice) -> Node:
        """Return the node of a defence; add the first-stage or trigger-search nodes it needs."""
        defense, start = given["defense"], {key: given[key] for key in ("context", "run", "victim")}
        if isinstance(defense, TrainingDefense):
            given = {**given, "prepared": given["victim"].prepared}
            first = self._first_stage(start, defense)
            return TrainingNode(**given, choice=choice, first_stage=first)
        if "training_set" in defense.needs:
            given = {**given, "prepared": given["victim"].prepared}
        found = self._searched(start, defense.search) if defense.search else {}
        return RepairNode(**given, choice=choice, **found)

    def _searched(self, start: dict[str, Any], search: Search) -> dict[str, Any]:
        """Return the nodes of a repair's trigger search, as a dict of fields of a `RepairNode`.

        They are `detected`, the evidence that flags the target, and `inverted`, the inversion of
        the target. Either may be missing.
        """
        found: dict[str, Any] = {}
        if search.target == "detect":
            own = Choice(search.method, "", search.detection)
            named = {choice.label: choice for choice in self.context.config.detections}
            choice = named[search.detector] if search.detector else own
            detector = DETECTIONS[choice.name][1](choice.config, self.context.dataset.info)
            node = EvidenceNode(**start, choice=choice, detector=detector)
            found["detected"] = self.one(node)
        if not search.reuses:
            target = None if found else search.target
            given = {**start, "config": search.inversion, "target": target, **found}
            found["inverted"] = self.one(InversionNode(**given))
        return found


def _analyses(context: StudyContext, members: Members, runs: Sequence[Members]) -> Iterator[Node]:
    """Yield the nodes that analyse the models of an attack run, for tables and report page."""
    run, config = members.run, context.config
    given, shown = {"context": context, "run": run}, run.seed == config.seeds[0]
    of_run = {**given, "victim": members.victim}
    stamping = [one for one in members.detections if one.evidence.detector.trigger]
    for detection in members.detections:
        yield detection
        for model in members.models if detection in stamping else ():
            of_model = {"choice": detection.choice, "evidence": detection.evidence}
            yield InvertedTriggerNode(**given, **of_model, model=model)
    for evolution in members.evolutions:
        updates = {**of_run, "choice": evolution.choice, "evolution": evolution}
        yield UpdatesNode(**updates, control=_control(evolution, runs))
        if shown and is_predicted(evolution):
            yield ForgettingNode(**updates)
    for choice in config.evaluations if run.attacked else ():
        for model in members.models:
            yield EVALUATED[choice.name](**of_run, choice=choice, model=model)
    for model in members.models if shown else ():
        yield SamplesNode(**of_run, model=model)
        unknown = not run.knows_training and not run.attacked and stamping
        evidence = stamping[0].evidence if unknown else None
        if config.features:
            yield FeaturesNode(**of_run, model=model, evidence=evidence)
    repairs = tuple(model for model in members.models if isinstance(model, RepairNode))
    if shown and config.paths and run.attacked and repairs:
        yield LossLandscapeNode(**of_run, repairs=repairs)


def _control(evolution: EvolutionNode, runs: Sequence[Members]) -> EvolutionNode | None:
    """Return the node that runs the same evolution on a clean model, as a control, or None."""
    if not evolution.run.knows_training or not evolution.run.attacked:
        return None  # an external model without a known trigger need not be clean
    clean = (one for members in runs if not members.run.attacked for one in members.evolutions)
    wanted = (evolution.label, evolution.run.seed)
    return next((one for one in clean if (one.label, one.run.seed) == wanted), None)
