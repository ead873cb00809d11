class DType:
    f64: DType
    f32: DType
    f16: DType
    bf16: DType

class Rule:
    task_vector: Rule
    linear_combination: Rule

class Elect:
    none: Elect
    mass: Elect
    count: Elect

class Combine:
    sum: Combine
    mean: Combine
    max: Combine

class Expert:
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        index: int,
        coef: float,
        vote: float,
        share: float,
        window: tuple[int, int, int, int],
        keep_below: int,
    ) -> None: ...

class FusedOp:
    def __init__(
        self,
        *,
        rule: Rule,
        elect: Elect,
        combine: Combine,
        scale: float,
        divisor: float,
        seed: int,
        name_hash: int,
        ballots_are_values: bool,
    ) -> None: ...

class Bracket:
    def __init__(self, *, expert: int, low: int, shift: int, bins: int) -> None: ...

class How:
    def __init__(self, *, isa: str, threads: int, wide: bool) -> None: ...

class Inputs:
    def __init__(
        self, *, base: int, base_dtype: DType, experts: list[Expert], offset: int, numel: int
    ) -> None: ...

BLOCK: int
CHUNK: int

def fuse(
    how: How, op: FusedOp, inputs: Inputs, out: int, out_dtype: DType
) -> tuple[list[int], bool]: ...
def fuse_batch(
    how: How,
    op: FusedOp,
    experts: list[Expert],
    base_dtype: DType,
    out_dtype: DType,
    count: int,
    columns: list[int],
) -> list[tuple[int, list[int], bool]]: ...
def count(
    how: How,
    inputs: Inputs,
    brackets: list[Bracket],
    tallies: list[int],
    chunks: list[int],
) -> list[int]: ...
def masked_sums(how: How, op: FusedOp, inputs: Inputs, out: int) -> None: ...
def gram(how: How, inputs: Inputs, out: int) -> None: ...
def magnitudes(how: How, inputs: Inputs, expert: int, out: int) -> None: ...
def instruction_sets() -> list[str]: ...
def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]: ...
