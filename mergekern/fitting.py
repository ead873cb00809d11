"""Decides one output tensor: which models' tensors fit together, and what its step is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekern.checkpoint import check_mergeable_config
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.dtypes import DISCRETE, FLOAT64, MERGEABLE, DType, dtype_name, work_dtype
from mergekern.errors import MismatchError, RecipeError
from mergekern.informed import informed_of
from mergekern.options import Options
from mergekern.outputs import Held, Output
from mergekern.plan import Equations, Input, Step
from mergekern.recipe import Recipe
from mergekern.roles import members_of
from mergekern.spec import AS_IS, Spec
from mergekern.tokenizer.tensors import is_vocabulary

Gone = list[tuple[int, str, str]]  # model, stored name, reason

# Config fields that give tensors of the same shapes another meaning; and those that a fine-tune may
# change, but a merge can have one value of.
ARCHITECTURE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim")
BEHAVIOUR = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act")

OTHER_SIZE = "vocabularies of different size"


class Fitting:
    """The models of one merge, and the rules by which a tensor's step is decided.

    base:  which model gives deltas or decides shapes, None when no model was named for it
    donor: the base, or else the first model
    """

    def __init__(self, recipe: Recipe, checkpoints: Sequence[Checkpoint], options: Options) -> None:
        sources = recipe.sources
        place = {id(source): model for model, source in enumerate(sources)}
        self.recipe = recipe
        self.mismatch = options.mismatch
        self._allow_crimes = options.allow_crimes
        self.labels = tuple(source.label for source in sources)
        self.base = None if recipe.base is None else place[id(recipe.base)]
        self.donor = self.base or 0
        self.expert_of = {place[id(source)]: k for k, source in enumerate(recipe.experts)}
        self._members = members_of(recipe)
        self._informed = informed_of(recipe, checkpoints)
        self._realigned = recipe.tokenizer is not None or options.truncate_embeddings
        self._check_option()
        self._check_architectures(checkpoints[: len(recipe.models)])

    def _check_option(self) -> None:
        if self.mismatch == "base" and self.base is None:
            raise RecipeError(
                f"mismatch base needs a base model and {self.recipe.method.name} was given none; "
                "use skip-model, or name a base_model"
            )

    def _check_architectures(self, checkpoints: Sequence[Checkpoint]) -> None:
        donor = checkpoints[self.donor].config
        for label, checkpoint in zip(self.labels, checkpoints, strict=False):
            check_mergeable_config(checkpoint.config, label)
            for field in () if self._allow_crimes else ARCHITECTURE:
                own, like = checkpoint.config.get(field), donor.get(field)
                if None not in (own, like) and own != like:
                    raise MismatchError(
                        f"model {label} has {field} {own}, {self.labels[self.donor]} has {like}: "
                        "only models of one architecture merge (--allow-crimes goes by names and "
                        "shapes alone)"
                    )

    def notes(self, checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
        """What is to say of the models, and what the donor's config.json leaves of the others'."""
        donor, name = checkpoints[self.donor].config, self.labels[self.donor]
        own = tuple(note for checkpoint in checkpoints for note in checkpoint.notes)
        if not donor:
            return (
                *own,
                f"{name} has no config.json, so the merge has none: transformers needs one to "
                "load it",
            )
        return own + tuple(
            f"{label} has {field} {checkpoint.config[field]}, {name} has {donor[field]}, which "
            "the merge keeps"
            for label, checkpoint in zip(self.labels, checkpoints, strict=False)
            for field in BEHAVIOUR
            if field in checkpoint.config and field in donor
            if checkpoint.config[field] != donor[field]
        )

    def decide(self, output: Output) -> tuple[Step | None, Gone]:
        """The step of one output tensor, None when it is left out, and what it leaves out."""
        name, held, members = output.name, output.held, self._members[output.part]
        base = members.base
        if base is not None and base not in held and (members.deltas or self.mismatch == "base"):
            return None, self._orphan(held, base)
        if base is not None and base in held and self._stays(output):
            why = f"{self.recipe.method.name} has no statistics of it"
            others = [(model, i.name, f"the base's is taken: {why}") for model, i in held.items()]
            return self._step(output, {base: held[base]}, base, why), others
        like = members.like(held, self.donor)
        misfits = {
            model: fault
            for model in members.models
            if (fault := self._fault(name, held, model, like))
        }
        if not misfits:
            return self._step(output, held, like, ""), []
        if self.mismatch == "error":
            raise MismatchError(self._complaint(name, held, misfits, base))
        fit = {model: held[model] for model in held if model not in misfits}
        why = "; ".join(f"{self.labels[model]} {fault}" for model, fault in misfits.items())
        if self.mismatch == "base":
            fit = {like: held[like]}
        gone = [
            (model, info.name, misfits.get(model, f"the base's is taken, because {why}"))
            for model, info in held.items()
            if model not in fit
        ]
        return self._step(output, fit, like, why), gone

    def _stays(self, output: Output) -> bool:
        """True for a tensor that is the base's for want of statistics."""
        if not self.recipe.statistics or next(iter(output.held.values())).dtype in DISCRETE:
            return False
        models = [m for m in self._members[output.part].experts if m in output.held]
        if not models:
            return False
        rest = self._spec(output, models).rest
        asked = rest == "base" or (rest == "vocabulary" and is_vocabulary(output.name))
        return asked and not self._statistics(output, models, output.held)

    def _statistics(self, output: Output, models: Sequence[int], held: Held) -> tuple[Input, ...]:
        """Those of a tensor, for these models in order; none where rows have been moved."""
        if self._realigned and is_vocabulary(output.name):
            return ()
        return self._informed.of(output.name, models, held)

    def _orphan(self, held: Held, place: int) -> Gone:
        """A tensor that the base lacks, in a merge that needs it there."""
        base = self.labels[place]
        if self.mismatch == "error":
            model, info = next(iter(held.items()))
            raise MismatchError(
                f"tensor {info.name}: model {self.labels[model]} has it, {list(info.shape)}, and "
                f"the base {base} lacks it; --mismatch base or --mismatch skip-model leaves it out"
            )
        return [(model, info.name, f"the base {base} lacks it") for model, info in held.items()]

    def _fault(self, name: str, held: Held, model: int, like: int) -> str:
        """Why a model's tensor does not fit, "" when it does."""
        if model not in held:
            return "lacks it"
        info, want = held[model], held[like]
        if info.shape == want.shape and info.dtype == want.dtype:
            return ""
        other = self.labels[like]
        if info.shape != want.shape:
            vocabulary = is_vocabulary(name) and info.shape[1:] == want.shape[1:]
            hint = f" ({OTHER_SIZE})" if vocabulary else ""
            return f"has shape {list(info.shape)}, {other} has {list(want.shape)}{hint}"
        if {info.dtype, want.dtype} & set(DISCRETE):
            return f"has dtype {dtype_name(info.dtype)}, {other} has {dtype_name(want.dtype)}"
        return ""

    def _complaint(
        self, name: str, held: Held, misfits: Mapping[int, str], base: int | None
    ) -> str:
        model, fault = next(iter(misfits.items()))
        if model not in held:
            have, info = next(iter(held.items()))
            fault += f", {self.labels[have]} has it with shape {list(info.shape)}"
        options = "--mismatch skip-model merges the models that fit"
        if OTHER_SIZE in fault:
            options = (
                "`tokenizer: {source: union}` in the recipe aligns them, "
                f"--truncate-embeddings cuts them to the smallest, {options}"
            )
        if base is not None:
            options = f"--mismatch base takes the base's tensor, {options}"
        return f"tensor {name}: model {self.labels[model]} {fault}; {options}"

    def _step(self, output: Output, fit: Held, like: int, why: str) -> Step:
        """The step over the models that fit; a base that stands alone is taken as it is."""
        name, info, members = output.name, fit[like], self._members[output.part]
        alone = len(fit) == 1 and (members.deltas or (bool(why) and self.mismatch == "base"))
        dtype = self.recipe.out_dtype or self.recipe.dtype or info.native or info.dtype
        note = f"{self.labels[like]} alone: {why}" if alone else why or self._lent(output, fit)
        if info.dtype in DISCRETE:
            return _copy(name, fit, note if len(fit) == 1 else "equal in every model")
        experts = list(fit) if alone else [model for model in members.experts if model in fit]
        places = (0,) if alone else tuple(self.expert_of[model] for model in experts)
        spec = AS_IS if alone else self._spec(output, experts)
        if spec is AS_IS:
            own = {model: fit[model] for model in experts}
            (only,) = own.values()
            if only.dtype == dtype or only.dtype not in MERGEABLE:
                return _copy(name, own, note)
        self.check_mergeable(name, fit)
        based = members.deltas and spec is not AS_IS and not spec.of_weights
        statistics: tuple[Input, ...] = ()
        if spec.statistics:
            statistics = self._statistics(output, experts, fit)
            spec = spec if statistics else spec.mean
        if spec.regression is not None:
            weights = tuple(Input(model, fit[model].name) for model in experts)
            untransposed = self._informed.untransposed(name, experts, fit)
            return self._solved(
                name, info, dtype, spec, note, Equations(weights, statistics, untransposed)
            )
        return Step(
            name=name,
            action="merge",
            dtype=dtype,
            shape=info.shape,
            base=Input(like, info.name) if based else None,
            experts=(*[Input(model, fit[model].name) for model in experts], *statistics),
            expert_index=places * 2 if statistics else places,
            work=work_dtype([i.dtype for i in fit.values()] + self._informed.dtypes(statistics)),
            spec=spec,
            note=note,
        )

    def _solved(
        self,
        name: str,
        info: TensorInfo,
        dtype: DType,
        spec: Spec,
        note: str,
        equations: Equations,
    ) -> Step:
        """The step of a tensor that is solved for: it reads the solution, in fp64."""
        return Step(
            name=name,
            action="merge",
            dtype=dtype,
            shape=info.shape,
            base=None,
            experts=(Input(len(self.labels), name),),
            expert_index=(0,),
            work=FLOAT64,
            spec=spec,
            note=note,
            equations=equations,
        )

    def _spec(self, output: Output, experts: Sequence[int]) -> Spec:
        """The spec of these models' experts; one object for all tensors with an equal one."""
        names = [output.name_in(model) for model in experts]
        places = [self._members[output.part].experts[model] for model in experts]
        return self.recipe.spec(output.part, output.name, names, places, output.position)

    def _lent(self, output: Output, fit: Held) -> str:
        """Which models give a tensor of another name, to which theirs of this name is tied."""
        if not output.lent:
            return ""
        lent = (model for model in output.lent if model in fit)
        return "; ".join(f"{self.labels[model]} gives {fit[model].name}" for model in lent)

    def check_mergeable(self, name: str, fit: Held) -> None:
        """Raise MismatchError for floats of a kind that does not merge."""
        for model, info in fit.items():
            if info.dtype not in MERGEABLE:
                raise MismatchError(
                    f"tensor {name}: model {self.labels[model]} has dtype "
                    f"{dtype_name(info.dtype)}, which does not merge; "
                    "convert the model to bfloat16 or float32 first"
                )


def _copy(name: str, held: Held, note: str) -> Step:
    """The bytes of a tensor that one model has, or several have alike."""
    info = next(iter(held.values()))
    return Step(
        name=name,
        action="copy",
        dtype=info.dtype,
        shape=info.shape,
        base=None,
        experts=tuple(Input(model, info.name) for model, info in held.items()),
        expert_index=tuple(range(len(held))),
        note=note,
    )
