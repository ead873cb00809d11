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
    any: Elect
    mass: Elect
    count: Elect

class Combine:
    sum: Combine
    mean: Combine
    max: Combine

class TrimBy:
    magnitude: TrimBy
    variance: TrimBy

_Cuts = tuple[int, int, int, int]  # lo, lo_last, hi, hi_last

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
        window: _Cuts,
        keep_below: int,
        mask: int = 0,
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
        trim_by: TrimBy = ...,
        least: float = 0.0,
    ) -> None: ...

class Formula:
    near_swap: Formula
    overlap_mean: Formula
    consensus: Formula
    fisher: Formula
    stitch: Formula
    importance: Formula
    fusion: Formula

class Elementwise:
    def __init__(
        self,
        *,
        formula: Formula,
        t: float = 0.0,
        epsilon: float = 0.0,
        rows: int = 0,
        width: int = 0,
    ) -> None: ...

class Odds:
    def __init__(self, *, index: int, smallest: int, largest: int) -> None: ...

class Pruning:
    def __init__(self, *, length: int, stride: int, seed: int, name_hash: int) -> None: ...

class Bracket:
    def __init__(self, *, expert: int, low: int, shift: int, bins: int) -> None: ...

class How:
    def __init__(self, *, isa: str, threads: int, wide: bool) -> None: ...

class Inputs:
    def __init__(
        self,
        *,
        base: int,
        base_dtype: DType,
        experts: list[Expert],
        offset: int,
        numel: int,
        spread: bool = False,
    ) -> None: ...

BLOCK: int
CHUNK: int

class Found:
    @property
    def non_finite(self) -> list[int]: ...
    @property
    def overflow(self) -> bool: ...

def fuse(how: How, op: FusedOp, inputs: Inputs, out: int, out_dtype: DType) -> Found: ...
def elementwise(how: How, f: Elementwise, inputs: Inputs, out: int, out_dtype: DType) -> Found: ...
def unify(
    how: How, inputs: Inputs, out: int, stored: DType, masks: list[int], sums: int
) -> Found: ...
def add_marked(
    isa: str,
    wide: bool,
    base: int,
    base_dtype: DType,
    delta: int,
    delta_dtype: DType,
    packed: int,
    first: int,
    scale: float,
    n: int,
    out: int,
) -> None: ...
def marked_ones(isa: str, packed: int, first: int, n: int, out: int) -> None: ...
def overlaps(how: How, inputs: Inputs, epsilon: float) -> list[int]: ...
def speculate(
    how: How,
    op: FusedOp,
    inputs: Inputs,
    strict_and_wide: list[tuple[_Cuts, _Cuts]],
    out: int,
    out_dtype: DType,
    kept: int,
    open: int,
) -> Found: ...
def open_starts(threads: int, open: int, numel: int) -> list[int]: ...
def compact(
    threads: int,
    inputs: Inputs,
    open: int,
    starts: list[int],
    index: int,
    base: int,
    experts: list[int],
) -> None: ...
def fuse_batch(
    how: How,
    op: FusedOp,
    experts: list[Expert],
    base_dtype: DType,
    out_dtype: DType,
    count: int,
    columns: list[int],
    by_index: bool,
) -> list[tuple[int, list[int], bool]]: ...
def put(threads: int, dtype: DType, values: int, index: int, numel: int, out: int) -> None: ...
def order_statistics(
    threads: int, arrays: list[tuple[int, int, list[int]]]
) -> list[list[tuple[int, int]]]: ...
def count(
    how: How,
    inputs: Inputs,
    brackets: list[Bracket],
    tallies: list[int],
    chunks: list[int],
) -> list[int]: ...
def masked_sums(how: How, op: FusedOp, inputs: Inputs, out: int, masks: list[int]) -> None: ...
def energies(how: How, op: FusedOp, inputs: Inputs, out: int, masks: list[int]) -> None: ...
def prune(how: How, rows: Pruning, odds: list[Odds], inputs: Inputs, masks: list[int]) -> None: ...
def gram(how: How, inputs: Inputs, out: int) -> None: ...
def magnitudes(how: How, inputs: Inputs, expert: int, out: int) -> None: ...
def all_finite(address: int, dtype: DType, numel: int, threads: int) -> bool: ...

class LowRank:
    def __init__(
        self,
        *,
        left: int,
        right: int,
        factor: int,
        by_column: bool,
        rows: int,
        columns: int,
        rank: int,
        scale: float,
    ) -> None: ...

def add_lowrank(
    isa: str, x: LowRank, weight: int, dtype: DType, begin: int, end: int, out: int
) -> None: ...
def sum_squares(isa: str, x: int, rows: int, columns: int, by_column: bool, sums: int) -> None: ...

class Factor:
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        row_step: int,
        step: int,
        reduction: float = 1.0,
        weight: float = 1.0,
        diagonal: int = 0,
    ) -> None: ...

def product(
    isa: str, threads: int, a: Factor, rows: int, columns: int, k: int, b: int, c: int
) -> None: ...
def factorise(isa: str, threads: int, a: int, n: int, least: float) -> tuple[int, float]: ...
def solve(isa: str, threads: int, u: int, n: int, x: int, columns: int) -> None: ...
def exp(isa: str, x: int, n: int, out: int) -> None: ...
def log(isa: str, x: int, n: int, out: int) -> None: ...
def total(isa: str, x: int, rows: int, length: int, out: int) -> None: ...
def instruction_sets() -> list[str]: ...
def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]: ...
